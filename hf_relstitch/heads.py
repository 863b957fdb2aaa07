"""Heads: taking a target model apart, at the input of its last linear layer, into encoder and head."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

from hf_relstitch.chains import THEN, find_chain
from hf_relstitch.core.errors import StitchError
from hf_relstitch.cuts import BY_HAND, Body, find_cut, folded, linear_of, pad_token_id
from hf_relstitch.encoders import Encoder
from hf_relstitch.files import weight_map
from hf_relstitch.head_modules import (
    ACTIVATIONS,
    CHAIN,
    Prototypes,
    built_activation,
    class_means,
    describe_head,
    num_logits,
    own_copy,
)
from hf_relstitch.hub import Repo, hub_options, is_commit, locate
from hf_relstitch.inputs import probe_inputs
from hf_relstitch.processors import load_processor, main_modality, modality_of, prepare_tokenizer, preprocess
from hf_relstitch.provenance import Provenance
from hf_relstitch.sklearn_heads import is_estimator, layers_of_estimator

TASKS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForImageClassification": AutoModelForImageClassification,
    "ForAudioClassification": AutoModelForAudioClassification,
}
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
SETFIT_HEAD = "model_head.pkl"
"""Where SetFit pickles a head; the file's being there is all that is looked at."""


@dataclass(frozen=True)
class Head:
    """What a target model does to a latent to get logits.

    Attributes:
        module: from latents `(n, d_target)` to logits: its last linear layer, or the chain from an earlier cut on; of
            one in training mode a copy that is not.
        id2label: the name of each class.
        problem_type: as in a transformers config; None leaves it to the loss.
        provenance: the target model and where it was cut; None for a layer that came without a model.

    Raises:
        StitchError: another problem type, or a class whose name is no text.
    """

    module: nn.Module
    id2label: dict[int, str]
    problem_type: str | None = None
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise StitchError(f"problem_type is {self.problem_type!r}: expected one of {', '.join(PROBLEM_TYPES)}")
        if strange := [name for name in self.id2label.values() if not isinstance(name, str)]:
            raise StitchError(f"a class is named {strange[0]!r}, a {type(strange[0]).__name__}: give names as texts")
        if any(each.training for each in self.module.modules()):
            object.__setattr__(self, "module", deepcopy(self.module).eval())

    @property
    def multi_label(self) -> bool:
        """Whether each class is answered yes or no by itself."""
        return self.problem_type == "multi_label_classification"

    @property
    def answers(self) -> bool:
        """Whether its logits are answers; a single one, or those of a regression, are values."""
        return len(self.id2label) > 1 and self.problem_type != "regression"

    @classmethod
    def of(cls, head: Any, *, labels: list[str] | None = None, dim: int | None = None) -> "Head":
        """A head as it is, or one made of a module, a fitted scikit-learn estimator or a SetFit model's `model_head`.

        `labels` are the names of the classes; `dim` is the width of the latents, for modules that do not say it. A
        module that is no chain of linear, activation and layer-norm layers works, but cannot be saved.

        Raises:
            StitchError: what can be no head, or not as many names as classes.
        """
        head = getattr(head, "model_head", head)  # of a SetFit model
        head = getattr(head, "best_estimator_", head)  # of a search over scikit-learn's settings
        if isinstance(head, cls):
            made, classes = head, len(head.id2label)
        elif is_estimator(head):
            module, known, problem_type = layers_of_estimator(head)
            classes = num_logits(module, dim=dim)
            made = cls(module, dict(enumerate(known or _plain_names(classes))), problem_type)
        elif isinstance(head, nn.Module):
            module = own_copy(head) if describe_head(head) else deepcopy(head).eval()
            classes = num_logits(module, dim=dim)
            made = cls(module, dict(enumerate(_plain_names(classes))))
        else:
            raise StitchError(f"the head is a {type(head).__name__}: expected a Head, {CHAIN}; any nn.Module in memory")
        if labels is not None and (len(labels) != classes or len(set(labels)) < classes):
            raise StitchError(
                f"{len(set(labels))} different labels for a head of {classes} classes: name each class once"
            )
        return replace(made, id2label=dict(enumerate(labels))) if labels else made

    @classmethod
    def of_class_names(
        cls,
        encoder: Encoder,
        names: Sequence[str],
        *,
        template: str | Sequence[str] = "{}",
        temperature: float = 0.01,
    ) -> "Head":
        """A zero-shot head: the cosine to each class's name, as the target's encoder or its text side encodes it.

        `template`, or each of several, has `{}` where the name goes, as "a photo of a {}"; of several, the mean of the
        normalised latents is taken, as CLIP does. The logits are cosines over `temperature`, which is CLIP's.

        Raises:
            StitchError: no names, a template without `{}`, or an encoder that takes no texts.
        """
        templates = [template] if isinstance(template, str) else list(template)
        if not templates or any("{}" not in one for one in templates):
            raise StitchError(f"the template is {template!r}: it needs {{}} where the name of the class goes")
        if encoder.modality != "text":
            raise StitchError(f"class names are texts and the encoder takes {encoder.modality}s: give latents instead")
        if len(set(names)) < len(names):
            raise StitchError(f"{len(names)} class names and {len(set(names))} different ones: name each class once")
        inputs = [one.replace("{}", name) for name in names for one in templates]
        latents = encoder.encode(inputs, progress=False)
        return cls.of_examples(dict(zip(names, latents.split(len(templates)), strict=True)), temperature=temperature)

    @classmethod
    def of_examples(cls, latents: Mapping[str, Any], *, temperature: float = 0.01) -> "Head":
        """A head of class prototypes: the mean of a few normalised target latents `(n, d_target)` of each class.

        Raises:
            StitchError: fewer than two classes, one without latents or with none that has a direction, or latents of
                different widths.
        """
        module = Prototypes.of(class_means(latents), temperature=temperature)
        return cls(module.requires_grad_(False), dict(enumerate(latents)), "single_label_classification")

    @classmethod
    def of_model(cls, provenance: Provenance, **options: Any) -> "Head":
        """The head of a classifier on the Hub, without its encoder: its last layer alone is read from the weights.

        `provenance` is that of target anchors, which says where the model was cut; `options` are `token`,
        `cache_dir`, `local_files_only` and `force_download`.

        Raises:
            StitchError: the anchors were not cut from a classifier on the Hub, or it is not there any more.
        """
        cut_at = re.fullmatch(r"input of (\S+(?: (?:and|then) \S+)*), \w+", provenance.pooling)
        if cut_at is None or not is_commit(provenance.revision):
            raise StitchError(
                f"the target anchors come from {provenance.model_id} ({provenance.pooling}), which is no classifier on "
                "the Hub that its head could be read from: give the head"
            )
        repo = locate(provenance.model_id, revision=provenance.revision, **options)
        if repo.commit != provenance.revision:
            raise StitchError(f"{repo.name} is a folder here, and the anchors are of the Hub's model: give the head")
        if THEN in cut_at[1]:
            names = cut_at[1].split(THEN)
            layers = [built_activation(one) if one in ACTIVATIONS else read_linear(repo, one) for one in names]
            module: nn.Module = nn.Sequential(*layers)
        else:
            module = folded([read_linear(repo, name) for name in cut_at[1].split(" and ")])
        config = AutoConfig.from_pretrained(repo.place, **repo.loading)
        return cls(module.requires_grad_(False), class_names(config), config.problem_type, provenance)


def class_names(config: Any) -> dict[int, str]:
    """The names of a classifier's classes as texts; some configs on the Hub have numbers."""
    return {index: str(name) for index, name in config.id2label.items()}


def _plain_names(count: int) -> list[str]:
    return [f"LABEL_{index}" for index in range(count)]


def read_linear(repo: Repo, name: str) -> nn.Linear:
    """A linear layer of a repo's safetensors.

    Raises:
        StitchError: they do not hold it.
    """
    weight, bias = (read_tensor(repo, f"{name}.{part}") for part in ("weight", "bias"))
    if weight is None or weight.ndim != 2:
        raise StitchError(f"{repo.name} has no linear {name} in its safetensors: give the head")
    return linear_of(weight, bias)


def read_tensor(repo: Repo, name: str) -> Tensor | None:
    """One tensor of a repo's safetensors, or None where they do not hold it."""
    file = "model.safetensors"
    if (index := repo.file(f"{file}.index.json")) is not None:
        file = weight_map(index).get(name, file)
    if (weights := repo.file(file)) is None:
        return None
    with safe_open(weights, "pt") as opened:
        return opened.get_tensor(name) if name in opened.keys() else None  # noqa: SIM118  (it is no mapping)


def load_target(
    model_id: str, *, revision: str | None = None, cut: str | None = None, **model_kwargs: Any
) -> tuple[Encoder, Head]:
    """Load a text, image or audio classifier from a folder or the Hub and cut it, as `hf_relstitch.cut` does.

    Raises:
        StitchError: no such model, not a classifier that can be cut, or one whose head was never trained.
    """
    repo = locate(model_id, revision=revision, **hub_options(model_kwargs))
    architecture = architecture_of(repo)
    loader = auto_class(architecture)
    if loader is None and repo.file(SETFIT_HEAD) is not None:
        raise StitchError(
            f"{repo.name} is a SetFit model whose head is a pickle, which would run code if it were read: load it with "
            "setfit where you trust it, and give target=, the encoder, and head=model.model_head"
        )
    if loader is None:
        raise StitchError(
            f"{repo.name} is {architecture}: the target has to be a …{', …'.join(TASKS)} model, with one row of logits "
            f"an input; {BY_HAND}"
        )
    model, loading = loader.from_pretrained(repo.place, output_loading_info=True, **repo.loading | model_kwargs)
    if loading["missing_keys"]:
        raise StitchError(
            f"{repo.name} lacks trained weights for {', '.join(sorted(loading['missing_keys']))}: train it first"
        )
    processor = load_processor(repo, modality=main_modality(model))
    if isinstance(processor, PreTrainedTokenizerBase):
        prepare_tokenizer(processor, None, model=model)
    return take_apart(model, processor, at=cut, repo=repo)


def architecture_of(repo: Repo) -> str:
    """The architecture that a repo's config names.

    Raises:
        StitchError: it has no config that transformers reads.
    """
    try:
        return str((AutoConfig.from_pretrained(repo.place, **repo.loading).architectures or ["no architecture"])[0])
    except (OSError, ValueError) as error:
        raise StitchError(f"{repo.name} holds no model that transformers knows: {error}") from error


def is_classifier(place: str) -> bool:
    """Whether a folder or a Hub repo holds a classifier, by its config alone."""
    return auto_class(architecture_of(locate(place))) is not None


def auto_class(architecture: str) -> Any:
    """The Auto class of a classifier, None for what is none; many audio ones are called ForSequenceClassification."""
    task = next((name for name in TASKS if name in architecture), None)
    if task == "ForSequenceClassification" and architecture in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values():
        task = "ForAudioClassification"
    return TASKS[task] if task else None


@torch.no_grad()
def cut(
    model: PreTrainedModel, processor: Any, *, at: str | None = None, repo: Repo | None = None
) -> tuple[Encoder, Head]:
    """Take a classifier apart into the encoder of its latents and its head, and prove it.

    The last modules that a forward pass calls have to be the linear layer that makes the logits, or two whose mean
    they are. Its input is the latent: pooled already, or of each input one row, the one that gives the model's own
    logits on a probe batch with padding.

    `at` is the name of a module to cut at instead, "classifier.dense" say: the latent is its input, and the head is the
    chain of linear, layer-norm and activation layers from there to the logits, proved in the same way.

    Raises:
        StitchError: the last module is not linear, no row of its input gives the logits to 1e-5 (in half precision, to
            its rounding), or other layers follow the module to cut at.
    """
    model = model.eval().requires_grad_(False)
    if isinstance(processor, PreTrainedTokenizerBase) and pad_token_id(model) is None:
        model.config.get_text_config().pad_token_id = processor.pad_token_id
    probe = preprocess(model, processor, probe_inputs(modality_of(processor)))
    head: nn.Module
    if at is None:
        layers, rows = find_cut(model, probe)
        named, head = " and ".join(layers), folded([model.get_submodule(name) for name in layers])
    else:
        layers, rows, head = find_chain(model, at, probe)
        named = THEN.join(layers)
    encoder = Encoder(
        Body(model, layers=layers if at is None else layers[:1], rows=rows),
        processor,
        pooling="none",
        cut=f"input of {named}, {rows}",
        model_id=repo.name if repo else None,
        revision=repo.commit if repo else None,
        license=repo.license() if repo else None,
    )
    return encoder, Head(head, class_names(model.config), model.config.problem_type, encoder.provenance)


take_apart = cut
"""Its name where `cut` is the name of a module."""
