"""Heads: taking a target model apart, at the input of its last linear layer, into encoder and head."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
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

from hf_relstitch.core.errors import StitchError
from hf_relstitch.cuts import BY_HAND, Body, find_cut, folded, linear_of, pad_token_id
from hf_relstitch.encoders import Encoder, load_processor, main_modality, modality_of, preprocess
from hf_relstitch.files import read_json
from hf_relstitch.hub import Repo, hub_options, is_commit, locate
from hf_relstitch.provenance import Provenance

TASKS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForImageClassification": AutoModelForImageClassification,
    "ForAudioClassification": AutoModelForAudioClassification,
}


@dataclass(frozen=True)
class Head:
    """What a target model does to a latent to get logits.

    Attributes:
        linear: its last linear layer.
        id2label: the name of each class.
        problem_type: as in a transformers config; None leaves it to the loss.
        provenance: the target model and where it was cut; None for a layer that came without a model.
    """

    linear: nn.Linear
    id2label: dict[int, str]
    problem_type: str | None = None
    provenance: Provenance | None = None

    @property
    def multi_label(self) -> bool:
        """Whether each class is answered yes or no by itself."""
        return self.problem_type == "multi_label_classification"

    @classmethod
    def of(cls, head: "Head | nn.Linear", *, labels: list[str] | None = None) -> "Head":
        """A head as it is, or a bare linear layer as a head whose classes have these names.

        Raises:
            StitchError: another kind of module, or not as many names as classes.
        """
        if isinstance(head, cls) and labels is None:
            return head
        linear = head.linear if isinstance(head, cls) else head
        if not isinstance(linear, nn.Linear):
            raise StitchError(
                f"the head is a {type(linear).__name__}: expected an nn.Linear from target latents to logits"
            )
        names = labels or [f"LABEL_{index}" for index in range(linear.out_features)]
        if len(names) != linear.out_features:
            raise StitchError(f"{len(names)} labels for a head of {linear.out_features} classes: name each class once")
        problem_type, provenance = (head.problem_type, head.provenance) if isinstance(head, cls) else (None, None)
        return cls(linear, dict(enumerate(names)), problem_type, provenance)

    @classmethod
    def of_model(cls, provenance: Provenance, **options: Any) -> "Head":
        """The head of a classifier on the Hub, without its encoder: its last layer alone is read from the weights.

        `provenance` is that of target anchors, which says where the model was cut; `options` are `token`,
        `cache_dir`, `local_files_only` and `force_download`.

        Raises:
            StitchError: the anchors were not cut from a classifier on the Hub, or it is not there any more.
        """
        cut_at = re.fullmatch(r"input of (\S+(?: and \S+)*), \w+", provenance.pooling)
        if cut_at is None or not is_commit(provenance.revision):
            raise StitchError(
                f"the target anchors come from {provenance.model_id} ({provenance.pooling}), which is no classifier on "
                "the Hub that its head could be read from: give the head"
            )
        repo = locate(provenance.model_id, revision=provenance.revision, **options)
        linear = folded([read_linear(repo, name) for name in cut_at[1].split(" and ")])
        config = AutoConfig.from_pretrained(repo.place, **repo.loading)
        return cls(linear.requires_grad_(False), dict(config.id2label), config.problem_type, provenance)


def read_linear(repo: Repo, name: str) -> nn.Linear:
    """A linear layer of a repo's safetensors.

    Raises:
        StitchError: they do not hold it.
    """
    weight, bias = (read_tensor(repo, f"{name}.{part}") for part in ("weight", "bias"))
    if weight is None:
        raise StitchError(f"{repo.name} has no {name}.weight in its safetensors: give the head")
    return linear_of(weight, bias)


def read_tensor(repo: Repo, name: str) -> Tensor | None:
    """One tensor of a repo's safetensors, or None where they do not hold it."""
    file = "model.safetensors"
    if (index := repo.file(f"{file}.index.json")) is not None:
        file = read_json(index)["weight_map"].get(name, file)
    if (weights := repo.file(file)) is None:
        return None
    with safe_open(weights, "pt") as opened:
        return opened.get_tensor(name) if name in opened.keys() else None  # noqa: SIM118  (it is no mapping)


def load_target(model_id: str, *, revision: str | None = None, **model_kwargs: Any) -> tuple[Encoder, Head]:
    """Load a text, image or audio classifier from a folder or the Hub and cut it.

    Raises:
        StitchError: no such model, not a classifier that can be cut, or one whose head was never trained.
    """
    repo = locate(model_id, revision=revision, **hub_options(model_kwargs))
    config = AutoConfig.from_pretrained(repo.place, **repo.loading)
    architecture = (config.architectures or ["no architecture"])[0]
    loader = auto_class(architecture)
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
    return cut(model, load_processor(repo, modality=main_modality(model)), repo=repo)


def auto_class(architecture: str) -> Any:
    """The Auto class of a classifier, None for what is none; many audio ones are called ForSequenceClassification."""
    task = next((name for name in TASKS if name in architecture), None)
    if task == "ForSequenceClassification" and architecture in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values():
        task = "ForAudioClassification"
    return TASKS[task] if task else None


@torch.no_grad()
def cut(model: PreTrainedModel, processor: Any, *, repo: Repo | None = None) -> tuple[Encoder, Head]:
    """Take a classifier apart into the encoder of its latents and its head, and prove it.

    The last modules that a forward pass calls have to be the linear layer that makes the logits, or two whose mean
    they are. Its input is the latent: pooled already, or of each input one row, the one that gives the model's own
    logits on a probe batch with padding.

    Raises:
        StitchError: the last module is not linear, or no row of its input gives the logits to 1e-5.
    """
    model = model.eval().requires_grad_(False)
    if isinstance(processor, PreTrainedTokenizerBase) and pad_token_id(model) is None:
        model.config.get_text_config().pad_token_id = processor.pad_token_id
    probe = preprocess(model, processor, probe_inputs(modality_of(processor)))
    layers, rows = find_cut(model, probe)
    encoder = Encoder(
        Body(model, layers=layers, rows=rows),
        processor,
        pooling="none",
        cut=f"input of {' and '.join(layers)}, {rows}",
        model_id=repo.name if repo else None,
        revision=repo.commit if repo else None,
        license=repo.license() if repo else None,
    )
    head = folded([model.get_submodule(name) for name in layers])
    return encoder, Head(head, dict(model.config.id2label), model.config.problem_type, encoder.provenance)


def probe_inputs(modality: str) -> list[Any]:
    """Two inputs that differ, in length too where they have one."""
    if modality == "text":
        return ["storm", "A storm hits the northern coast, and the harbour is closed until the morning."]
    if modality == "image":
        return [Image.radial_gradient("L"), Image.linear_gradient("L")]
    return [np.sin(np.linspace(0, 500, length, dtype=np.float32) ** 1.2) for length in (8_000, 16_000)]
