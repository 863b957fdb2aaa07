"""One latent an input, out of what an encoder gives for it."""

import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_relstitch.core.errors import StitchError
from hf_relstitch.hub import Repo

POOLINGS = {
    "mean": "the mean over tokens or frames that are not padding, or over an image's patches",
    "cls": "the first token",
    "pooler": "the model's own pooler_output",
    "last": "the last token that is not padding",
    "none": "the output itself, of a model that gives one vector an input",
}


def pool(output: Any, *, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """Latents `(n, d)` from an encoder's output, by one of `POOLINGS`.

    Raises:
        StitchError: the output has not what this pooling needs.
    """
    if pooling == "none":
        return require(output, ndim=(2,), pooling=pooling)
    if pooling == "pooler":
        pooled = getattr(output, "pooler_output", None)
        return require(pooled, ndim=(2, 4), pooling=pooling).flatten(1)
    hidden = getattr(output, "last_hidden_state", None)
    if pooling == "mean":
        hidden = require(hidden, ndim=(3, 4), pooling=pooling)
        return hidden.mean((2, 3)) if hidden.ndim == 4 else mean_of_tokens(hidden, attention_mask)
    hidden = require(hidden, ndim=(3,), pooling=pooling)
    return hidden[:, 0] if pooling == "cls" else last_token(hidden, attention_mask)


def token_mask(model: nn.Module, output: Any, attention_mask: Tensor | None) -> Tensor | None:
    """The attention mask of an output's rows, fewer than the samples where a model of sound downsamples.

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


def require(output: Any, *, ndim: tuple[int, ...], pooling: str) -> Tensor:
    """The output, if it is a tensor of one of these numbers of axes."""
    if isinstance(output, Tensor) and output.ndim in ndim:
        return output
    came = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise StitchError(
        f"pooling {pooling!r} takes {POOLINGS[pooling]}, a tensor of {' or '.join(map(str, ndim))} axes, and the "
        f"encoder gave {came}: choose another of {', '.join(POOLINGS)}"
    )


def mean_of_tokens(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean over the tokens `(n, t, d)` that are not padding."""
    if attention_mask is None:
        return hidden.mean(1)
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def last_token(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The last token of `(n, t, d)` that is not padding, whichever side the padding is on."""
    if attention_mask is None:
        return hidden[:, -1]
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention_mask * positions).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def resolve_pooling(pooling: str, *, model: nn.Module, repo: Repo | None = None) -> str:
    """One of `POOLINGS`, where `auto` reads a sentence-transformers repo or else knows the architecture.

    Raises:
        StitchError: an unknown pooling, or a sentence-transformers repo with modules that are not supported.
    """
    if pooling != "auto":
        if pooling not in POOLINGS:
            raise StitchError(f"pooling is {pooling!r}: expected 'auto' or one of {', '.join(POOLINGS)}")
        return pooling
    return (repo and sentence_transformers_pooling(repo)) or usual_pooling(model)


def usual_pooling(model: nn.Module) -> str:
    """The field's usual choice: last token of decoders, first of ViTs with a class token, else the mean."""
    config = getattr(model, "config", None)
    if config is None:
        return "none"
    decoder = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if decoder and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "last"
    has_class_token = any(
        name.split(".")[-1] in ("cls_token", "class_embedding") for name, _ in model.named_parameters()
    )
    return "cls" if has_class_token else "mean"


def sentence_transformers_pooling(repo: Repo) -> str | None:
    """The pooling that a sentence-transformers repo's own files ask for; None for any other repo."""
    if (modules_file := repo.file("modules.json")) is None:
        return None
    modules = json.loads(modules_file.read_text(encoding="utf-8"))
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    if unknown := kinds.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise StitchError(
            f"{repo.name} is a sentence-transformers model with {', '.join(sorted(unknown))}: only Transformer, "
            f"Pooling and Normalize are read; name a pooling ({', '.join(POOLINGS)}) to use the transformer alone"
        )
    if "Pooling" not in kinds or (pooling_file := repo.file(f"{kinds['Pooling']}/config.json")) is None:
        return None
    return read_pooling(json.loads(pooling_file.read_text(encoding="utf-8")), name=repo.name)


def read_pooling(config: dict[str, Any], *, name: str) -> str:
    """Our name for the mode in a sentence-transformers `1_Pooling/config.json`, old form or new."""
    ours = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "lasttoken": "last"}
    modes = [
        key.removeprefix("pooling_mode_") for key, value in config.items() if key.startswith("pooling_mode_") and value
    ]
    if isinstance(mode := config.get("pooling_mode"), str):
        modes = [mode]
    if len(modes) != 1 or modes[0] not in ours:
        raise StitchError(
            f"{name} pools by {' and '.join(modes) or 'nothing'}: supported are mean, first and last token; "
            f"name a pooling ({', '.join(POOLINGS)}) to use another"
        )
    return ours[modes[0]]
