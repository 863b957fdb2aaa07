"""Heads as modules and as data: chains of linear, activation and layer-norm layers, and class prototypes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from hf_relstitch.core.errors import StitchError


class Prototypes(nn.Module):
    """Score latents against class prototypes, as zero-shot classifiers do: `cos(latent, prototype) / temperature`."""

    def __init__(self, dim: int, num_classes: int, *, temperature: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        self.temperature = temperature

    @classmethod
    def from_vectors(cls, prototypes: Tensor, *, temperature: float) -> "Prototypes":
        """Build the module from prototypes `(classes, d)` of any length.

        Raises:
            StitchError: a prototype is not finite or has no direction, or the temperature is not above 0.
        """
        if not (prototypes.ndim == 2 and prototypes.isfinite().all() and prototypes.norm(dim=-1).all()):
            raise StitchError("a class prototype is not finite or zero: give each class a latent with a direction")
        if not temperature > 0:
            raise StitchError(f"the temperature is {temperature}: it has to be above 0; CLIP's is 0.01")
        made = cls(prototypes.shape[1], len(prototypes), temperature=temperature)
        made.load_state_dict({"weight": functional.normalize(prototypes, dim=-1)})
        return made

    def forward(self, latents: Tensor) -> Tensor:
        """Return logits `(n, classes)` of latents `(n, d)`."""
        return functional.linear(functional.normalize(latents, dim=-1), self.weight) / self.temperature


class Normalize(nn.Module):
    """Scale latents to norm 1, as many embedders do."""

    def forward(self, latents: Tensor) -> Tensor:
        """Return `x / ‖x‖` for each latent of `(n, d)`."""
        return functional.normalize(latents, dim=-1)


ACTIVATIONS = (
    "relu",
    "gelu",
    "tanh",
    "sigmoid",
    "silu",
    "gelu_pytorch_tanh",
    "gelu_new",
    "gelu_fast",
    "quick_gelu",
    "relu6",
    "leaky_relu",
    "relu2",
    "mish",
    "hardswish",
)
"""The activations that a head may have, by transformers' names; where two are the same function the first is meant."""
SMALLEST = 1e-12
"""Temperature below which logits of a usual size are not finite."""
SAME = 1e-6
"""How far a module's values may be from those of the activation that it is taken for."""
CHAIN = (
    f"an nn.Linear or an nn.Sequential of nn.Linear, nn.LayerNorm and activation layers ({', '.join(ACTIVATIONS)}), "
    "or class prototypes"
)


def is_temperature(value: Any) -> bool:
    """Tell whether a value can divide logits: a number above 0 by which they stay in the range of float32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and SMALLEST <= value <= 1 / SMALLEST


def flatten_layers(module: nn.Module) -> list[nn.Module]:
    """List the layers of a chain in order, without those that do nothing to a latent."""
    if type(module) is nn.Sequential:
        return [layer for one in module for layer in flatten_layers(one)]
    return [] if isinstance(module, nn.Identity | nn.Dropout) else [module]


def activation_name(module: nn.Module) -> str | None:
    """Return transformers' name of an activation of torch or transformers; None if it has no name here.

    The name is found by comparing values over the range in which activations differ.
    """
    known = type(module).__module__.startswith(("torch.nn.modules.activation", "transformers.activations"))
    if not known or next(module.parameters(), None) is not None:
        return None
    probe = torch.linspace(-20, 20, 4002).view(2, -1)
    try:
        return activation_between(probe, module(probe.clone()))
    except Exception:  # whatever a module raises that takes no such vectors
        return None


def built_activation(name: str) -> nn.Module:
    """Build an activation from its name here."""
    made: nn.Module = ACT2FN[name]
    return made


def activation_between(given: Tensor, made: Tensor) -> str | None:
    """Find the activation that maps one tensor to the other, if any."""
    if given.shape != made.shape:
        return None
    allowed = SAME * (1 + made.abs())
    alike = (name for name in ACTIVATIONS if ((built_activation(name)(given) - made).abs() <= allowed).all())
    return next(alike, None)


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Build a separate linear layer with these weights."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return linear.to(weight.device)


def describe_layer(layer: nn.Module) -> dict[str, Any] | None:
    """Describe one layer of a chain as data; return None for a layer that no chain has."""
    if type(layer) is nn.Linear:
        sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
        return {"layer": "linear", **sizes, "bias": layer.bias is not None}
    if type(layer) is nn.LayerNorm and len(layer.normalized_shape) == 1 and layer.elementwise_affine:
        return {
            "layer": "layer_norm",
            "features": layer.normalized_shape[0],
            "eps": layer.eps,
            "bias": layer.bias is not None,
        }
    if isinstance(layer, Normalize):
        return {"layer": "normalize"}
    name = activation_name(layer)
    return {"layer": "activation", "name": name} if name else None


def _build_layers(described: Sequence[Mapping[str, Any]]) -> tuple[nn.Sequential, list[tuple[int, int]]]:
    """Layers one after the other, and the widths that each takes and gives, where it has any."""
    layers = [_build_layer(one) for one in described]
    return nn.Sequential(*layers), [width for layer in layers if (width := _layer_widths(layer)) is not None]


def _build_layer(description: Mapping[str, Any]) -> nn.Module:
    """One layer of a chain.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: it describes none.
    """
    given = dict(description)
    kind = given.pop("layer")
    if kind == "linear":
        return nn.Linear(given["in_features"], given["out_features"], bias=given["bias"])
    if kind == "layer_norm":
        return nn.LayerNorm(given["features"], eps=float(given["eps"]), bias=given["bias"])
    if kind == "normalize":
        return Normalize()
    if kind == "activation" and given["name"] in ACTIVATIONS:
        return built_activation(given["name"])
    raise ValueError(f"layer {dict(description)}")


def describe_chain(module: nn.Module) -> list[dict[str, Any]]:
    """Describe the layers of a chain as data, from which `build_chain` builds a module again.

    Raises:
        StitchError: the chain has a layer that cannot be stored as data.
    """
    described = []
    for layer in flatten_layers(module):
        if (found := describe_layer(layer)) is None:
            raise StitchError(f"a layer is a {type(layer).__name__}, which cannot be stored as data; what can: {CHAIN}")
        described.append(found)
    return described


def build_chain(described: Sequence[Mapping[str, Any]], *, gives: int | None) -> nn.Sequential:
    """Build the layers of a description, with weights to be filled; their output has the width `gives`, None for any.

    Raises:
        StitchError: the description has no layers, or layers that do not fit each other.
    """
    try:
        layers, widths = _build_layers(described)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StitchError(f"the config's layers are {described}: {error} is missing or no such thing") from error
    ends = [] if gives is None else [(gives, gives)]
    if any(out != into for (_, out), (into, _) in pairwise([*widths, *ends])):
        wanted = "fit" if gives is None else f"fit and give {gives} numbers"
        raise StitchError(f"the config's layers are {described}: expected layers that {wanted}")
    return layers.requires_grad_(False)


def _layer_widths(layer: nn.Module) -> tuple[int, int] | None:
    """What width of vector a layer takes and gives; None where any will do."""
    if type(layer) is nn.Linear:
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[0], layer.normalized_shape[0]
    if isinstance(layer, Prototypes):
        return layer.weight.shape[1], layer.weight.shape[0]
    return None


def widths_of(module: nn.Module) -> tuple[int | None, int | None]:
    """Return the width of the latents that a head takes and its number of logits; None if the module does not say."""
    widths = [width for layer in flatten_layers(module) if (width := _layer_widths(layer)) is not None]
    if not widths or describe_head(module) is None:
        return None, None
    return widths[0][0], widths[-1][1]


@torch.no_grad()
def copy_head(module: nn.Module) -> nn.Module:
    """Copy a head so that it shares nothing with its module, in the form in which it is saved.

    Raises:
        StitchError: its layers do not fit each other.
    """
    description = describe_head(module)
    if description is None:
        raise StitchError(f"the head is a {type(module).__name__}: expected {CHAIN}")
    d_target, num_labels = widths_of(module)
    made = build_head(description, d_target=d_target or 0, num_labels=num_labels or 0)
    tensors: list[Tensor] = []
    for layer in flatten_layers(module):
        with align_module_device(layer):  # one that is offloaded
            tensors += layer.parameters()
    made.to(tensors[0].device, tensors[0].dtype)
    for parameter, tensor in zip(made.parameters(), tensors, strict=True):
        parameter.copy_(tensor)
    return made


def describe_head(module: nn.Module) -> dict[str, Any] | None:
    """Describe a head as data, from which `build_head` builds a module again; return None for any other module."""
    if isinstance(module, Prototypes):
        return {"kind": "prototypes", "temperature": module.temperature}
    layers = [describe_layer(layer) for layer in flatten_layers(module)]
    if len(layers) == 1 and layers[0] and layers[0]["layer"] == "linear":
        return {"kind": "linear", "bias": layers[0]["bias"]}
    found = [layer for layer in layers if layer is not None]
    if len(found) < len(layers) or not any(layer["layer"] == "linear" for layer in found):
        return None
    return {"kind": "mlp", "layers": found}


def build_head(description: Mapping[str, Any], *, d_target: int, num_labels: int) -> nn.Module:
    """Build the module of a description, with weights to be filled.

    Raises:
        StitchError: the description is not a head from latents `d_target` wide to `num_labels` logits.
    """
    kind, widths = description.get("kind"), [(d_target, num_labels)]
    made: nn.Module | None = None
    try:
        if kind == "linear" and isinstance(description["bias"], bool):
            made = nn.Linear(d_target, num_labels, bias=description["bias"])
        elif kind == "prototypes" and is_temperature(description["temperature"]):
            made = Prototypes(d_target, num_labels, temperature=float(description["temperature"]))
        elif kind == "mlp":
            made, widths = _build_layers(description["layers"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StitchError(f"the config's head is {description}: {error} is missing or no such thing") from error
    if made is None or any(out != into for (_, out), (into, _) in pairwise([(0, d_target), *widths, (num_labels, 0)])):
        raise StitchError(
            f"the config's head is {description}: expected kind 'linear', 'mlp' or 'prototypes', from latents "
            f"{d_target} wide to {num_labels} logits"
        )
    return made
