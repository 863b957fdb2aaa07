"""One latent an input, out of what an encoder gives for it, or one side of a model of two towers, like CLIP."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_relstitch.core.errors import StitchError

FEATURES = {
    "text_features": "the text side's features of a two-tower model",
    "image_features": "the image side's features of a two-tower model",
    "audio_features": "the audio side's features of a two-tower model",
}
FULL_LENGTH = ("siglip", "siglip2")
"""Whose text side takes the last place, padding or not, and was trained on texts that are padded to the full length."""
LEFT_OUT = "left_out_modules"
"""The field of an encoder's config that names the modules of the other side, which are not there."""
POOLINGS = {
    "mean": "the mean over tokens or frames that are not padding, or over an image's patches",
    "cls": "the first token",
    "max": "the greatest of each number over the tokens that are not padding",
    "weighted_mean": "the mean over tokens weighted by their place, 1 for the first, 2 for the next",
    "pooler": "the model's own pooler_output",
    "last": "the last token that is not padding",
    **FEATURES,
    "tokens": "the last hidden state of each token, for heads that label tokens",
    "none": "the output itself, of a model that gives one vector an input",
}


CLASS_TOKEN_APART = ("cvt",)
"""Whose class token is not in the last hidden state, which is a map."""


def pool(output: Any, *, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """Pool an encoder's output into latents `(n, d)`, by one of `POOLINGS`; for "tokens" they are `(n, t, d)`.

    Raises:
        StitchError: the output lacks a part that this pooling needs.
    """
    if pooling in FEATURES:
        return tensor_of(output)
    if pooling == "none":
        return _require(output, ndim=(2,), pooling=pooling)
    if pooling == "pooler":
        pooled = getattr(output, "pooler_output", None)
        return _require(pooled, ndim=(2, 4), pooling=pooling).flatten(1)
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None and getattr(output, "feature_maps", None):  # of a backbone
        hidden = output.feature_maps[-1]
    if pooling == "tokens":
        return _require(output if isinstance(output, Tensor) else hidden, ndim=(3,), pooling=pooling)
    if attention_mask is not None and isinstance(hidden, Tensor):
        attention_mask = attention_mask.to(hidden.device)
    if pooling == "mean":
        hidden = _require(hidden, ndim=(3, 4), pooling=pooling)  # of tokens, or a feature map (n, d, h, w)
        return hidden.mean((2, 3)) if hidden.ndim == 4 else mean_of_tokens(hidden, attention_mask)
    hidden = _require(hidden, ndim=(3,), pooling=pooling)
    return OF_TOKENS[pooling](hidden, attention_mask)


def token_mask(model: nn.Module, output: Any, attention_mask: Tensor | None) -> Tensor | None:
    """Return the attention mask of an output's rows, fewer than the samples if a model of sound downsamples.

    Raises:
        StitchError: the model does not say which of its rows are padding.
    """
    hidden = getattr(output, "last_hidden_state", None)
    if attention_mask is None or hidden is None or hidden.ndim != 3 or hidden.shape[1] == attention_mask.shape[1]:
        return attention_mask
    lengths: Any = getattr(model, "_get_feat_extract_output_lengths", None)
    if lengths is None:
        raise StitchError(
            f"{type(model).__name__} makes {hidden.shape[1]} rows of {attention_mask.shape[1]} inputs and does not say "
            "which are padding: give a feature extractor with return_attention_mask=False"
        )
    rows = torch.arange(hidden.shape[1], device=attention_mask.device)
    return (rows < lengths(attention_mask.sum(1))[:, None]).int()


def _require(output: Any, *, ndim: tuple[int, ...], pooling: str) -> Tensor:
    """The output, if it is a tensor of one of these numbers of axes."""
    if isinstance(output, Tensor) and output.ndim in ndim:
        return output
    came = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise StitchError(
        f"pooling {pooling!r} takes {POOLINGS[pooling]}, a tensor of {' or '.join(map(str, ndim))} axes, and the "
        f"encoder gave {came}: choose another of {', '.join(POOLINGS)}"
    )


def mean_of_tokens(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the mean over the tokens `(n, t, d)` that are not padding."""
    return hidden.mean(1) if attention_mask is None else _weighted_mean(hidden, attention_mask)


def _weighted_mean(hidden: Tensor, weights: Tensor) -> Tensor:
    """Mean over the tokens `(n, t, d)`, of half precision in float32."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    shares = weights.unsqueeze(-1).to(hidden.device, exact)
    return ((hidden * shares).sum(1) / shares.sum(1).clamp_min(1)).to(hidden.dtype)


def _mean_by_place(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean over the tokens `(n, t, d)` that are not padding, each weighted by its place among them."""
    mask = torch.ones(hidden.shape[:2], device=hidden.device) if attention_mask is None else attention_mask
    return _weighted_mean(hidden, mask.cumsum(1) * mask)


def _max_of_tokens(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The greatest of each number over the tokens `(n, t, d)` that are not padding."""
    kept = hidden if attention_mask is None else hidden.masked_fill(attention_mask.unsqueeze(-1) == 0, -torch.inf)
    return kept.amax(1)


def _first_token(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The first token of `(n, t, d)` that is not padding, whichever side the padding is on."""
    if attention_mask is None:
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.int().argmax(1)]


def last_token(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the last token of `(n, t, d)` that is not padding, whichever side the padding is on."""
    if attention_mask is None:
        return hidden[:, -1]
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention_mask * positions).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


OF_TOKENS = {"cls": _first_token, "last": last_token, "max": _max_of_tokens, "weighted_mean": _mean_by_place}


def resolve_pooling(pooling: str, *, model: nn.Module) -> str:
    """Return one of `POOLINGS`; for `auto` the field's usual choice.

    It is the last token of decoders, the first of ViTs with a class token, timm's own pooling, else the mean.

    Raises:
        StitchError: the pooling is unknown, or names no side of a two-tower model or a side that it lacks.
    """
    if pooling != "auto":
        if pooling not in POOLINGS:
            raise StitchError(f"pooling is {pooling!r}: expected 'auto' or one of {', '.join(POOLINGS)}")
        if pooling in FEATURES:
            check_side(model, pooling)
        return pooling
    if sides := towers_of(model):
        raise StitchError(
            f"{type(model).__name__} has two towers: say by pooling= which side to take, "
            f"{' or '.join(map(repr, sides))}"
        )
    config = getattr(model, "config", None)
    if config is None:
        return "none"
    if config.model_type == "timm_wrapper":
        return "pooler"
    decoder = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if decoder and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "last"
    has_class_token = config.model_type not in CLASS_TOKEN_APART and any(
        name.split(".")[-1] in ("cls_token", "class_embedding") for name, _ in model.named_parameters()
    )
    return "cls" if has_class_token else "mean"


def towers_of(model: nn.Module) -> list[str]:
    """List the sides that a two-tower model has, of `FEATURES`; any other model has none."""
    sides = [side for side in FEATURES if hasattr(model, f"get_{side}")]
    return sides if "text_features" in sides else []


def check_side(model: nn.Module, side: str) -> None:
    """Refuse a side that a model lacks.

    Raises:
        StitchError: the model has no method like `get_text_features` for this side.
    """
    if side not in towers_of(model):
        raise StitchError(
            f"pooling is {side!r} and {type(model).__name__} has no get_{side}: of its sides are there "
            f"{', '.join(towers_of(model)) or 'none, since it is no two-tower model'}"
        )


def features(model: Any, batch: Mapping[str, Tensor], *, side: str, **options: Any) -> Any:
    """Compute the output of one side of a two-tower model for a batch; the features are its `pooler_output`."""
    given = dict(batch)
    if side == "text_features" and model.config.model_type in FULL_LENGTH:
        text = model.config.text_config
        missing = text.max_position_embeddings - given["input_ids"].shape[1]
        fill = {"input_ids": text.pad_token_id, "attention_mask": 0}
        given |= {name: pad(given[name], (0, max(missing, 0)), value=fill[name]) for name in fill.keys() & given.keys()}
    return getattr(model, f"get_{side}")(**given, **options)


@torch.no_grad()
def keep_side(model: Any, side: str, probe: Mapping[str, Tensor]) -> None:
    """Remove the parts of a model that one side does not use: those that do not run for two inputs, proved by features.

    From then on its config says what is missing.

    Raises:
        StitchError: the model computes no features from its processor's output.
    """
    used: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: used.add(name.split(".")[0]))
        for name, module in model.named_modules()
        if name
    ]
    try:
        expected = features(model, probe, side=side)
    except Exception as error:  # whatever an architecture that takes other inputs raises
        raise StitchError(
            f"{type(model).__name__} makes no {side} of what its processor makes ({type(error).__name__}: {error}): "
            "give it as a CallableEncoder"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    unused = {name: module for name, module in model.named_children() if name not in used}
    leave_out(model, list(unused))
    try:
        same = torch.equal(tensor_of(features(model, probe, side=side)), tensor_of(expected))
    except (AttributeError, TypeError):  # a module that is read without being called
        same = False
    if not same:
        for name, module in unused.items():
            setattr(model, name, module)
        delattr(model.config, LEFT_OUT)


def leave_out(model: Any, names: list[str]) -> None:
    """Remove these modules from a model, and name them in its config.

    Raises:
        StitchError: the model lacks one of these modules.
    """
    if unknown := set(names) - {name for name, _ in model.named_children()}:
        raise StitchError(f"the source's config leaves out {', '.join(sorted(map(str, unknown)))}, which is no module")
    for name in names:
        setattr(model, name, None)
    tied: dict[str, str] | None = getattr(model, "all_tied_weights_keys", None)
    if tied is not None:  # transformers would look for them there
        gone = {pair for pair in tied.items() if any(name.split(".")[0] in names for name in pair)}
        for name, _ in gone:
            tied.pop(name)
    setattr(model.config, LEFT_OUT, names)


def as_configured(model: Any, config: Any) -> Any:
    """Apply to a whole encoder the changes that `from_pretrained` writes into the config of one side of it."""
    if names := list(getattr(config, LEFT_OUT, [])):
        leave_out(model, names)
        model.config.get_text_config().pad_token_id = config.get_text_config().pad_token_id
    return model


def tensor_of(output: Any) -> Tensor:
    """Return the features `(n, d)` in the output of a side."""
    found = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise StitchError(f"a side gives a {type(output).__name__} without a row of features for each input")
    return found
