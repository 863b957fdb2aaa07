"""Loading classifiers and splitting them, at the input of their last linear layer, into encoder and head."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.data.inputs import inputs_at, probe_inputs
from hf_relstitch.data.provenance import Cut, Provenance
from hf_relstitch.data.words import Word
from hf_relstitch.encoders.batches import choose_batching
from hf_relstitch.encoders.encoder import Encoder, processor_beside, to_encoder
from hf_relstitch.encoders.pooling import mean_of_tokens
from hf_relstitch.encoders.processors import load_processor, main_modality, modality_of, prepare_tokenizer, preprocess
from hf_relstitch.heads.cutting import BY_HAND, Body, find_chain, find_cut, folded, logits_of
from hf_relstitch.heads.head import SETFIT_HEAD, Head
from hf_relstitch.hub.files import weight_map
from hf_relstitch.hub.repo import Repo, hub_options, is_commit, locate
from hf_relstitch.layers import ACTIVATIONS, built_activation, linear_of

ADAPTER = "adapter_config.json"
TASKS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForImageClassification": AutoModelForImageClassification,
    "ForAudioClassification": AutoModelForAudioClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}


def _read_linear(repo: Repo, name: str) -> nn.Linear:
    """A linear layer of a repo's safetensors.

    Raises:
        StitchError: they do not hold it.
    """
    weight, bias = (_read_tensor(repo, f"{name}.{part}") for part in ("weight", "bias"))
    if weight is None or weight.ndim != 2:
        raise StitchError(f"{repo.name} has no linear {name} in its safetensors: give the head")
    return linear_of(weight, bias)


def _read_tensor(repo: Repo, name: str) -> Tensor | None:
    """One tensor of a repo's safetensors, or None where they do not hold it."""
    file = "model.safetensors"
    if (index := repo.file(f"{file}.index.json")) is not None:
        file = weight_map(index).get(name, file)
    if (weights := repo.file(file)) is None:
        return None
    with safe_open(weights, "pt") as opened:
        return opened.get_tensor(name) if name in opened.keys() else None  # noqa: SIM118  (it is no mapping)


def load_head(provenance: Provenance, **options: Any) -> Head:
    """Load the head of a classifier on the Hub without its encoder: only its last layers are read.

    `provenance` comes from target anchors, and says where the model was cut; `options` are `token`, `cache_dir`,
    `local_files_only` and `force_download`.

    Raises:
        StitchError: the anchors were not cut from a classifier on the Hub, or it is gone.
    """
    cut = provenance.cut
    if cut is None or not is_commit(provenance.revision):
        raise StitchError(
            f"the target anchors come from {provenance.model_id} ({provenance.describe()}), which is no classifier on "
            "the Hub that its head could be read from: give the head"
        )
    repo = locate(provenance.model_id, revision=provenance.revision, **options)
    if repo.commit != provenance.revision:
        raise StitchError(f"{repo.name} is a folder here, and the anchors are of the Hub's model: give the head")
    if len(cut.layers) == 1 or cut.averaged:
        module: nn.Module = folded([_read_linear(repo, name) for name in cut.layers])
    else:
        layers = [built_activation(name) if name in ACTIVATIONS else _read_linear(repo, name) for name in cut.layers]
        module = nn.Sequential(*layers)
    config = repo.config()
    return head_of(module.requires_grad_(False), config, provenance)


def head_of(module: nn.Module, config: Any, provenance: Provenance) -> Head:
    """Return the head of a classifier, with what its config says of it.

    A CrossEncoder of sentence-transformers names the activation that it applies to its logits, and reads pairs.
    """
    theirs = getattr(config, "sentence_transformers", None) or {}
    activation = theirs.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
    reads: Literal["pairs"] | None = "pairs" if activation else None
    names = {index: str(name) for index, name in config.id2label.items()}  # some configs on the Hub have numbers
    return Head(module, names, config.problem_type, provenance, reads=reads, activation=activation)


def load_classifier(
    model_id: str, *, revision: str | None = None, cut: str | None = None, **model_kwargs: Any
) -> tuple[Encoder, Head]:
    """Load a classifier of texts, tokens, images or sounds from a folder or the Hub, and split it.

    `split_classifier` says how.

    Raises:
        StitchError: the model is missing, is not a classifier that can be cut, or its head was never trained.
    """
    with wrap_errors(f"{model_id} cannot be loaded as a classifier"):
        trust = bool(model_kwargs.pop("trust_remote_code", False))
        repo = locate(model_id, revision=revision, trust_remote_code=trust, **hub_options(model_kwargs))
        if repo.file(ADAPTER) is not None:
            raise StitchError(
                f"{repo.name} holds an adapter of PEFT ({ADAPTER}): merge it into its classifier first, by "
                "AutoPeftModelForSequenceClassification.from_pretrained(…).merge_and_unload().save_pretrained(FOLDER), "
                "and save the processor there too"
            )
        architecture = _architecture_of(repo)
        loader = _auto_class(architecture)
        if loader is None and repo.file(SETFIT_HEAD) is not None:
            raise StitchError(
                f"{repo.name} is a SetFit model whose head is a pickle, which would run code if it were read: load it "
                "with setfit where you trust it, and give target=, the encoder, and head=model.model_head"
            )
        if loader is None:
            raise StitchError(
                f"{repo.name} is {architecture}: the target has to be a …{', …'.join(TASKS)} model, with one row of "
                f"logits an input, or a token; {BY_HAND}"
            )
        with repo.limited_build():
            model, loading = loader.from_pretrained(
                repo.place, output_loading_info=True, **repo.model_loading | model_kwargs
            )
        if loading["missing_keys"]:
            raise StitchError(
                f"{repo.name} lacks trained weights for {', '.join(sorted(loading['missing_keys']))}: train it first"
            )
        processor = load_processor(repo, modality=main_modality(model))
        if isinstance(processor, PreTrainedTokenizerBase):
            processor = prepare_tokenizer(processor, None, model=model)
        return split_classifier(model, processor, at=cut, repo=repo)


def to_target(target: Any, *, at: str | None = None) -> tuple[Encoder, Head]:
    """Return encoder and head of a classifier in a folder or on the Hub, in memory, or of a SetFit model.

    Raises:
        StitchError: the target is not a classifier, or its processor is not known.
    """
    if isinstance(target, str | Path):
        return load_classifier(str(target), cut=at)
    if hasattr(target, "model_body") and hasattr(target, "model_head"):
        if at is not None:
            raise StitchError(f"cut is {at!r} and the target is a SetFit model, which is apart already: leave it out")
        return to_encoder(target.model_body), Head.from_module(target)
    if not isinstance(target, PreTrainedModel):
        raise StitchError(
            f"a target is wanted and what came is a {type(target).__name__}: give a classifier (a folder, a Hub id, a "
            "transformers model or a SetFit model), or an encoder with head="
        )
    if _auto_class(type(target).__name__) is None:
        raise StitchError(
            f"the target is a {type(target).__name__}: expected a …{', …'.join(TASKS)} model, or an encoder with head="
        )
    return split_classifier(target, processor_beside(target), at=at)


def _architecture_of(repo: Repo) -> str:
    """The architecture that a repo's config names.

    Raises:
        StitchError: it has no config that transformers reads.
    """
    try:
        return str((repo.config().architectures or ["no architecture"])[0])
    except (OSError, ValueError) as error:
        raise StitchError(f"{repo.name} holds no model that transformers knows: {error}") from error


def is_classifier(place: str) -> bool | None:
    """Tell whether a folder or a Hub repo holds a classifier, by its config alone; None where that cannot be read."""
    try:
        return _auto_class(_architecture_of(locate(place))) is not None
    except StitchError:  # loading it says what is wrong
        return None


def labels_tokens(target: Any) -> bool:
    """Tell whether a target labels tokens, by its class or by its config alone; False where that cannot be read."""
    if isinstance(target, Encoder):
        return target.provenance.by_token
    try:
        name = _architecture_of(locate(target)) if isinstance(target, str | Path) else type(target).__name__
    except StitchError:  # loading it says what is wrong
        return False
    return _auto_class(name) is AutoModelForTokenClassification


def check_word_inputs(target: Any, anchors: Sequence[Any], *, source_takes: str | None) -> None:
    """Refuse anchors other than texts, and a source of another modality, if the target labels tokens.

    Raises:
        StitchError: they are not what such a head needs.
    """
    if source_takes in (None, "text") and all(isinstance(each, str | Word) for each in anchors):
        return
    if labels_tokens(target):
        raise StitchError(
            "the target labels words, so that both models have to read the same texts: the source takes "
            f"{source_takes}, and the first anchor is a {type(inputs_at(anchors, [0])[0]).__name__}; give a text "
            "encoder and a list of texts"
        )


def _auto_class(architecture: str) -> Any:
    """The Auto class of a classifier, None for what is none; many audio ones are called ForSequenceClassification."""
    task = next((name for name in TASKS if name in architecture), None)
    if task == "ForSequenceClassification" and architecture in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values():
        task = "ForAudioClassification"
    return TASKS[task] if task else None


@torch.no_grad()
def split_classifier(
    model: PreTrainedModel, processor: Any, *, at: str | None = None, repo: Repo | None = None
) -> tuple[Encoder, Head]:
    """Split a classifier into the encoder of its latents and its head, and prove it.

    The last modules that a forward pass calls have to be the linear layer that gives the logits, or two whose mean they
    are. Its input is the latent. That input is pooled already, or has several rows for an input; then the latent is the
    row that gives the model's own logits on a probe batch with padding. Of a model that labels tokens each row is a
    latent.

    `at` names a module to cut at instead, like "classifier.dense": the latent is its input, and the head is the chain
    of linear, layer-norm and activation layers from there to the logits, proved in the same way.

    Raises:
        StitchError: the last module is not linear, no row of its input gives the logits to 1e-5 (in half precision, to
            its rounding), or other layers follow the module to cut at.
    """
    model = model.eval().requires_grad_(False)
    name = repo.name if repo else type(model).__name__
    batching = choose_batching(lambda batch: _reading(model, batch), model, processor, name=name)
    probes = probe_inputs(modality_of(processor))
    probe = preprocess(model, processor, probes if batching == "padded" else probes[1:])
    head: nn.Module
    if at is None:
        layers, rows = find_cut(model, probe)
        head = folded([model.get_submodule(layer) for layer in layers])
    else:
        layers, rows, head = find_chain(model, at, probe)
    encoder = Encoder(
        Body(model, layers=layers if at is None else layers[:1], rows=rows),
        processor,
        pooling="tokens" if rows == "each" else "none",
        cut=Cut(tuple(layers), rows, averaged=at is None and len(layers) > 1),
        batching=batching,
        model_id=name,
        revision=repo.commit if repo else None,
        license=repo.license() if repo else None,
    )
    return encoder, head_of(head, model.config, encoder.provenance)


def _reading(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits of each input; of a model that labels tokens, their mean over the tokens."""
    logits = logits_of(model(**batch))
    return mean_of_tokens(logits, batch.get("attention_mask")) if logits.ndim == 3 else logits
