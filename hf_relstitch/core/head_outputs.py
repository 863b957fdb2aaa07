"""What a head's logits say about how sure it is, and one temperature that corrects them."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEPS = 50
STRETCHES = tuple(2 * 0.93**step for step in range(120))
LARGEST = 20.0
"""log2 of the largest factor on logits that is tried, and of one over the smallest."""


@torch.no_grad()
def apply_head(head: nn.Module, latents: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
    """Logits in the dtype and on the device of the latents, whatever the head is in; the head stays as it is."""
    tensors = {**dict(head.named_parameters()), **dict(head.named_buffers())}
    cast = {
        name: one.to(latents) if one.is_floating_point() else one.to(latents.device) for name, one in tensors.items()
    }
    return torch.func.functional_call(head, cast, (latents,))


def _first_layer(head: nn.Module) -> tuple[nn.Linear | None, nn.Module]:
    """The linear layer that a head begins with, if it does, and what comes after it."""
    if type(head) is nn.Linear:
        return head, nn.Identity()
    if type(head) is nn.Sequential and len(head) and type(head[0]) is nn.Linear:
        return head[0], head[1:]
    return None, head


def read_by(head: nn.Module, away: Float[Tensor, "n d"]) -> Float[Tensor, "n width"]:
    """What latents that are seen from a centre become in a head's first linear layer, or as they are without one."""
    first, _ = _first_layer(head)
    return away if first is None else away @ first.weight.detach().to(away).T


def logits_of(
    head: nn.Module, read: Float[Tensor, "n width"], centre: Float[Tensor, " d_target"]
) -> Float[Tensor, "n classes"]:
    """A head's logits of what `read_by` makes of latents that are seen from the centre."""
    first, rest = _first_layer(head)
    origin = centre[None] if first is None else apply_head(first, centre[None])
    return apply_head(rest, origin + read)


def probabilities(logits: Float[Tensor, "n classes"], *, multi_label: bool = False) -> Float[Tensor, "n classes"]:
    """Softmax over classes, or a sigmoid each with `multi_label`."""
    return logits.sigmoid() if multi_label else logits.softmax(-1)


def mean_confidence(logits: Float[Tensor, "n classes"], *, multi_label: bool = False) -> float:
    """Mean probability that is given to the answer; with `multi_label`, to each class's yes or no."""
    given = probabilities(logits, multi_label=multi_label)
    return float((torch.maximum(given, 1 - given) if multi_label else given.amax(-1)).mean())


def temperature_for(logits: Float[Tensor, "n classes"], *, confidence: float, multi_label: bool = False) -> float:
    """The temperature t at which `logits / t` have the given mean confidence, by bisection.

    Mean confidence falls as t grows, so there is one answer; where none exists (all logits equal) the nearest end of
    the range 2^±20 is given.
    """
    return _bisected(lambda factor: mean_confidence(logits * factor, multi_label=multi_label) < confidence)


def matching_temperature(
    logits: Float[Tensor, "n classes"],
    target: Float[Tensor, "n classes"],
    *,
    multi_label: bool = False,
) -> float:
    """The temperature t at which `logits / t` say best what the probabilities `target` say; no labels.

    It minimises the cross-entropy from the head's own answers, which is temperature scaling (Guo et al. 2017) with the
    head in the place of labels. The loss is convex in 1/t; its derivative `Σ (p − q) logits` is bisected. Use it with
    held-out latents: fitted ones are nearer to the truth than any that come later.
    """
    return _bisected(
        lambda factor: float(((probabilities(logits * factor, multi_label=multi_label) - target) * logits).sum()) < 0
    )


@torch.no_grad()
def values_explained(head: nn.Module, translated: Float[Tensor, "k d"], target: Float[Tensor, "k d"]) -> float:
    """Share of the variance of a head's values on true latents that its values on translated ones explain.

    1 is all; 0 is what the mean value explains, and less is worse.
    """
    return _explained(apply_head(head, translated), apply_head(head, target))


def _explained(made: Float[Tensor, "k values"], values: Float[Tensor, "k values"]) -> float:
    """1 less the squared error of what is made, each of the values in units of its variance."""
    variance = values.var(0, correction=0).clamp_min(torch.finfo(values.dtype).tiny)
    return 1 - float(((made - values).square().mean(0) / variance).mean())


@torch.no_grad()
def stretch_for_values(head: nn.Module, translated: Float[Tensor, "k d"], target: Float[Tensor, "k d"]) -> float:
    """The factor on translated latents, up to 2, at which a head's values explain most: least squares.

    The length that is right for answers, the target's own, spreads values too far, as no translation is sure.
    """
    centre, values = target.mean(0), apply_head(head, target)
    read = read_by(head, translated - centre)
    return max(STRETCHES, key=lambda stretch: _explained(logits_of(head, stretch * read, centre), values))


def _bisected(too_small: Callable[[float], bool]) -> float:
    """One over the factor, within 2^±20, at which `too_small` turns false."""
    low, high = -LARGEST, LARGEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        if too_small(2.0**middle):
            low = middle
        else:
            high = middle
    return 2.0**-low


def answers_of(logits: Float[Tensor, "n classes"], *, multi_label: bool = False) -> Float[Tensor, "n classes"]:
    """What logits answer, as probabilities of 0 and 1: the class of the largest, or each class's yes or no."""
    if multi_label:
        return (logits > 0).to(logits.dtype)
    return nn.functional.one_hot(logits.argmax(-1), logits.shape[1]).to(logits.dtype)


def answer_probability(
    logits: Float[Tensor, "n classes"],
    true_logits: Float[Tensor, "n classes"],
    *,
    temperature: float,
    multi_label: bool = False,
) -> Float[Tensor, " n"]:
    """Probability that `logits / temperature` give to the answer that `true_logits` give."""
    given = probabilities(logits / temperature, multi_label=multi_label)
    if multi_label:
        return torch.where(true_logits > 0, given, 1 - given).mean(-1)
    return given.gather(-1, true_logits.argmax(-1, keepdim=True))[:, 0]
