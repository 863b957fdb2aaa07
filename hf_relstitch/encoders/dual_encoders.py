"""Models of two towers, like CLIP, SigLIP and CLAP: one side of them as an encoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

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
