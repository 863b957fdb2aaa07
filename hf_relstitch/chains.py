"""An earlier cut: the chain of linear, layer-norm and activation layers from there to the logits, proved."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_relstitch.core.confidence import apply_head
from hf_relstitch.core.errors import StitchError
from hf_relstitch.cuts import ROWS, TOLERANCE, calls, pad_token_id, select_row
from hf_relstitch.head_modules import (
    ACTIVATIONS,
    activation_between,
    activation_name,
    built_activation,
    describe_layer,
    own_copy,
)

THEN = " then "
"""Between the names of what a chain is made of, where a provenance writes them down."""
FACTORS = (1.0, -4.0, 20.0)
"""What latents of the probe are multiplied with."""


def find_chain(model: PreTrainedModel, at: str, probe: Mapping[str, Tensor]) -> tuple[list[str], str, nn.Module]:
    """What comes between the input of the module `at` and the logits: its names, the row that it takes, the chain.

    The names are those of layers in the model, and of activations as transformers calls them. An activation that the
    model applies as a function is found by what comes out of one layer and goes into the next, on the probe's latents
    and on multiples of them, over which activations differ.

    Raises:
        StitchError: the model has no such module, other layers follow it, or the chain does not give its logits.
    """
    called = calls(model, probe)
    start = next((place for place, name in enumerate(called) if name == at or name.startswith(f"{at}.")), None)
    if start is None:
        raise StitchError(
            f"{type(model).__name__} calls no module {at!r}: cut it at one of the last, {', '.join(called[-6:])}"
        )
    names = called[start:]
    if strange := [name for name in names if describe_layer(model.get_submodule(name)) is None]:
        raise StitchError(
            f"{type(model).__name__} cut at {at} goes on with {strange[0]}, a "
            f"{type(model.get_submodule(strange[0])).__name__}: expected linear, layer-norm and activation layers "
            f"({', '.join(ACTIVATIONS)}) from there on; cut it later"
        )
    if activation_name(model.get_submodule(names[0])) is not None:
        raise StitchError(f"{type(model).__name__} cut at {at} begins with an activation: cut it at the layer before")
    if len(set(names)) < len(names):
        raise StitchError(f"{type(model).__name__} cut at {at} calls a layer twice from there on: cut it later")
    runs = [record(model, names, probe, factor=factor) for factor in FACTORS]
    logits = torch.cat([logits for _, logits in runs])
    differences: dict[str, float] = {}
    for rows in ROWS if runs[0][0][names[0]][0].ndim == 3 else ("pooled",):
        seen = {name: picked([run[name] for run, _ in runs], rows, probe, pad_token_id(model)) for name in names}
        chain = chain_of(model, names, seen)
        head = own_copy(nn.Sequential(*(layer for _, layer in chain))).requires_grad_(False)
        differences[rows] = distance(head, seen[names[0]][0], logits)
        if differences[rows] <= TOLERANCE * max(1.0, float(logits.abs().max())):
            return [name for name, _ in chain], rows, head
    raise StitchError(
        f"{type(model).__name__} cut at {at}: {', '.join(names)} give logits that differ from the model's own (largest "
        f"differences: {differences}; {TOLERANCE} is allowed), so that there is more between them: cut it later"
    )


def record(
    model: PreTrainedModel, names: list[str], probe: Mapping[str, Tensor], *, factor: float
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """What goes into each module and comes out of it, and the logits, with the first one's input times a factor."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda _, args, output: seen.update({name: (args[0].clone(), output.clone())})

    first = model.get_submodule(names[0])
    hooks = [first.register_forward_pre_hook(lambda _, args: (args[0] * factor, *args[1:]))]
    hooks += [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        output = model(**probe)
    finally:
        for hook in hooks:
            hook.remove()
    return seen, output.logits if "logits" in output else output[0]


def picked(
    pairs: list[tuple[Tensor, Tensor]], rows: str, probe: Mapping[str, Tensor], pad: int | None
) -> tuple[Tensor, Tensor]:
    """One row an input of what goes into a layer and comes out of it, of all runs."""
    into, out = (
        torch.cat([select_row(rows, one, probe, pad) if one.ndim == 3 else one for one in side])
        for side in zip(*pairs, strict=True)
    )
    return into, out


def distance(head: nn.Module, latents: Tensor, logits: Tensor) -> float:
    """The largest difference between a head's logits and the true ones; infinite where the shapes do not fit."""
    try:
        found = apply_head(head, latents)
    except RuntimeError:
        return torch.inf
    return float((found - logits).abs().max()) if found.shape == logits.shape else torch.inf


def chain_of(
    model: PreTrainedModel, names: list[str], seen: Mapping[str, tuple[Tensor, Tensor]]
) -> list[tuple[str, nn.Module]]:
    """The layers with their names, and between them the activations that the model applies as functions."""
    chain: list[tuple[str, nn.Module]] = []
    for place, name in enumerate(names):
        if place:
            given, made = seen[names[place - 1]][1], seen[name][0]
            alike = given.shape == made.shape and torch.equal(given, made)
            if not alike and (found := activation_between(given, made)) is not None:
                chain.append((found, built_activation(found)))
        layer = model.get_submodule(name)
        chain.append((activation_name(layer) or name, layer))
    return chain
