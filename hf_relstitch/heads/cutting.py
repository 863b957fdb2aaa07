"""Where a classifier is split: at its last linear layer, or earlier, with the chain of layers from there; proved."""

from collections.abc import Mapping, Sequence
from threading import Lock, local
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.data.provenance import EACH, ONLY, ROWS
from hf_relstitch.encoders.pooling import last_token, mean_of_tokens
from hf_relstitch.layers import (
    ACTIVATIONS,
    activation_between,
    activation_name,
    built_activation,
    copy_head,
    describe_layer,
    linear_of,
)

QUANTISED_HEAD = ", and this one is quantised: leave it out, by llm_int8_skip_modules or modules_to_not_convert"
FACTORS = (1.0, -4.0, 20.0)
"""What latents of the probe are multiplied with."""
TOLERANCE = 1e-5
HERE = local()
"""What a thread takes in its pass: other threads may run the same model, with all hooks on it, at the same time."""
HOOKING = Lock()
"""Held while hooks are registered, since torch numbers them without a lock of its own."""
BY_HAND = (
    "give the parts by hand instead: target=Encoder(…), a model that gives what the head takes, and head=, a module or "
    "a fitted scikit-learn estimator; or cut a classifier earlier, with cut="
)


def find_chain(model: PreTrainedModel, at: str, probe: Mapping[str, Tensor]) -> tuple[list[str], str, nn.Module]:
    """Find the layers from the input of the module `at` to the logits: return names, the row taken, and the chain.

    The names are those of layers in the model, and of activations in transformers' words. An activation that the model
    applies as a function is found by comparing the output of one layer with the input of the next, on the probe's
    latents and on multiples of them, over which activations differ.

    Raises:
        StitchError: the model lacks the module, other layers follow it, or the chain does not give its logits.
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
    runs = [_record(model, names, probe, factor=factor) for factor in FACTORS]
    logits = torch.cat([logits for _, logits in runs])
    differences: dict[str, float] = {}
    for rows in _rows_to_try(runs[0][0][names[0]][0], logits):
        seen = {name: _picked([run[name] for run, _ in runs], rows, probe, pad_token_id(model)) for name in names}
        chain = _chain_of(model, names, seen)
        head = copy_head(nn.Sequential(*(layer for _, layer in chain))).requires_grad_(False)
        differences[rows] = _distance(head, seen[names[0]][0], logits)
        if differences[rows] <= TOLERANCE * max(1.0, float(logits.abs().max())):
            return [name for name, _ in chain], rows, head
    raise StitchError(
        f"{type(model).__name__} cut at {at}: {', '.join(names)} give logits that differ from the model's own (largest "
        f"differences: {differences}; {TOLERANCE} is allowed), so that there is more between them: cut it later"
    )


def _record(
    model: PreTrainedModel, names: list[str], probe: Mapping[str, Tensor], *, factor: float
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """What goes into each module and comes out of it, and the logits, with the first one's input times a factor."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    first = model.get_submodule(names[0])
    hooks = [first.register_forward_pre_hook(lambda _, args: (args[0] * factor, *args[1:]))]
    hooks += [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: (args[0].clone(), output.clone())})
        )
        for name in names
    ]
    try:
        output = model(**probe)
    finally:
        for hook in hooks:
            hook.remove()
    return seen, logits_of(output)


def _rows_to_try(latents: Tensor, logits: Tensor) -> tuple[str, ...]:
    """The rows that a model may take of what goes into its head: each where it gives logits for each."""
    if logits.ndim == 3:
        return (EACH,)
    return ROWS if latents.ndim == 3 else (ONLY,)


def _picked(
    pairs: list[tuple[Tensor, Tensor]], rows: str, probe: Mapping[str, Tensor], pad: int | None
) -> tuple[Tensor, Tensor]:
    """One row an input of what goes into a layer and comes out of it, of all runs."""
    into, out = (
        torch.cat([_select_row(rows, one, probe, pad) if one.ndim == 3 else one for one in side])
        for side in zip(*pairs, strict=True)
    )
    return into, out


def _distance(head: nn.Module, latents: Tensor, logits: Tensor) -> float:
    """The largest difference between a head's logits and the true ones; infinite where the shapes do not fit."""
    try:
        found = apply_head(head, latents)
    except RuntimeError:
        return torch.inf
    return float((found - logits).abs().max()) if found.shape == logits.shape else torch.inf


def _chain_of(
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


class Body(nn.Module):
    """Run a target model up to the input of its last linear layers: latents from its own inputs.

    They are `(n, d_target)`, or `(n, t, d_target)` with rows "each".
    """

    def __init__(self, model: PreTrainedModel, *, layers: Sequence[str], rows: str) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.rows = rows

    @property
    def hf_device_map(self) -> dict[str, Any] | None:
        """Return the devices of the model's parts by their names in here; None if accelerate has placed no parts."""
        places = getattr(self.model, "hf_device_map", None)
        return places and {f"model.{name}".rstrip("."): place for name, place in places.items()}

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the latent of each input; inputs of several layers stand side by side."""
        taken, _ = run(self.model, self.layers, inputs)
        return torch.cat([_select_row(self.rows, one, inputs, pad_token_id(self.model)) for one in taken], -1)


def _select_row(rows: str, latents: Tensor, inputs: Mapping[str, Tensor], pad_token_id: int | None) -> Tensor:
    """The row of each input, `(n, d)`, that a model takes from what goes into its last layer, `(n, d)` or `(n, t, d)`.

    With rows "each" all are returned.

    transformers' decoders take the last token whose id is not that of padding, so an end token that also pads is
    passed over; `next` is the row after it, for decoders whose input is the text shifted by one.
    """
    if rows in (ONLY, EACH):
        return latents
    if rows == "first":
        return latents[:, 0]
    if rows == "mean":
        return mean_of_tokens(latents, inputs.get("attention_mask"))
    ids = inputs.get("input_ids")
    mask = None if ids is None or pad_token_id is None else (ids != pad_token_id).int().to(latents.device)
    if rows == "next" and mask is not None:
        mask = mask | mask.roll(1, 1) & (mask.cumsum(1) > 0)
    return last_token(latents, mask)


def logits_of(output: Any) -> Tensor:
    """Return the logits in a classifier's output, which a few classifiers return without their name."""
    return output.logits if "logits" in output else output[0]


def pad_token_id(model: PreTrainedModel) -> int | None:
    """Return the id that a text model takes for padding."""
    return getattr(model.config.get_text_config(), "pad_token_id", None)


def find_cut(model: PreTrainedModel, probe: Mapping[str, Tensor]) -> tuple[list[str], str]:
    """Find the linear layers that give a classifier's logits, nearly always one, and the row that they take; prove it.

    They are the last modules that a forward pass calls: the mean of their outputs has to be the model's own logits on
    the probe batch.

    Raises:
        StitchError: the model cannot be run on the probe, its last module is not linear, or no row gives the logits.
    """
    try:
        called = calls(model, probe)
    except Exception as error:  # whatever transformers' models raise for an input that they lack
        raise StitchError(
            f"{type(model).__name__} does not run on {' and '.join(probe)} alone ({error}), so its head cannot be "
            f"found: {BY_HAND}"
        ) from error
    last = model.get_submodule(called[-1])
    if type(last) is not nn.Linear:
        raise StitchError(
            f"{type(model).__name__} ends in {called[-1]}, a {type(last).__name__}: only heads that end in a linear "
            f"layer can be cut{QUANTISED_HEAD if getattr(model, 'hf_quantizer', None) else ''}; {BY_HAND}"
        )
    modules = {name: model.get_submodule(name) for name in reversed(called)}
    linears = [
        name
        for name, module in modules.items()
        if type(module) is nn.Linear and module.out_features == last.out_features
    ]
    differences: dict[str, float] = {}
    for layers in (linears[:1], linears[1::-1]):
        rows, found = _closest(model, layers, probe)
        if rows:
            return layers, rows
        differences = differences or found
    allowed = _tolerance(last.weight.dtype)
    raise StitchError(
        f"{type(model).__name__}: {called[-1]} gives logits that differ from the model's own (largest differences: "
        f"{differences or 'other shapes'}; {allowed} is allowed), so it is not the whole head: supported are models "
        f"with one row of logits an input, or a token; {BY_HAND}"
    )


def calls(model: PreTrainedModel, probe: Mapping[str, Tensor]) -> list[str]:
    """List the innermost modules in the order in which a forward pass calls them, dropout and identity aside."""
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
        if not any(module.children()) and not isinstance(module, nn.Dropout | nn.Identity)
    ]
    try:
        model(**probe)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _closest(
    model: PreTrainedModel, layers: Sequence[str], probe: Mapping[str, Tensor]
) -> tuple[str | None, dict[str, float]]:
    """Which row makes the mean of these layers the model's own logits, if any, and how far each row is from them."""
    taken, logits = run(model, layers, probe)
    differences: dict[str, float] = {}
    if len({one.shape[:-1] for one in taken}) > 1:
        return None, differences
    for rows in _rows_to_try(taken[0], logits):
        latents = [_select_row(rows, one, probe, pad_token_id(model)) for one in taken]
        each = [model.get_submodule(name)(one) for name, one in zip(layers, latents, strict=True)]
        found = torch.stack(each).mean(0)
        if found.shape == logits.shape:
            differences[rows] = float((found - logits).abs().max())
    best = min(differences, key=lambda rows: differences[rows], default=None)
    exact = best is not None and differences[best] <= _tolerance(logits.dtype) * max(1.0, float(logits.abs().max()))
    return best if exact else None, differences


def _tolerance(dtype: torch.dtype) -> float:
    """How far logits of size 1 may be from the model's own; in half precision its roundings are larger."""
    return max(TOLERANCE, 2 * torch.finfo(dtype).eps)


def folded(linears: Sequence[nn.Linear]) -> nn.Linear:
    """Merge linear layers into one, their mean, on inputs side by side; return a single layer in memory unchanged."""
    if len(linears) == 1 and type(linears[0].weight) is nn.Parameter and not linears[0].weight.is_meta:
        return linears[0]
    parts = [_stored(one) for one in linears]
    biases = [bias for _, bias in parts if bias is not None]
    return linear_of(
        torch.cat([weight for weight, _ in parts], 1) / len(linears),
        torch.stack(biases).sum(0) / len(linears) if biases else None,
    )


def _stored(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """The weights of a linear layer, also of one that is offloaded, or quantised by a tensor of a class of its own."""
    with align_module_device(linear):
        weight = linear.weight
        return weight.dequantize() if hasattr(weight, "__tensor_flatten__") else weight, linear.bias


def run(model: PreTrainedModel, layers: Sequence[str], inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Run one forward pass, and return the input of each layer and the logits of the model."""
    taken: dict[str, Tensor] = {}
    outer, HERE.taken = getattr(HERE, "taken", {}), taken
    with HOOKING:
        hooks = [
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: getattr(HERE, "taken", {}).update({name: args[0]})
            )
            for name in layers
        ]
    try:
        output = model(**inputs)
    finally:
        HERE.taken = outer
        for hook in hooks:
            hook.remove()
    return [taken[name] for name in layers], logits_of(output)
