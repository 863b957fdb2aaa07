"""Read a head's logits: how sure it is, one temperature that corrects it, and how much of its values is explained."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEPS = 50
SCALES = tuple(2 * 0.93**step for step in range(120))
LARGEST = 10.0
"""log2 of the largest factor on logits of mean square 1 that is tried, and of one over the smallest.

At the smallest, where nothing is known, the probabilities of float32 still tell which logit is the largest."""


@torch.no_grad()
def apply_head(head: nn.Module, latents: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
    """Return logits in the dtype and on the device of the latents; the head itself keeps its dtype and device."""
    tensors = {**dict(head.named_parameters()), **dict(head.named_buffers())}
    cast = {
        name: one.to(latents) if one.is_floating_point() else one.to(latents.device) for name, one in tensors.items()
    }
    return torch.func.functional_call(head, cast, (latents,))


def _first_layer(head: nn.Module) -> tuple[nn.Linear | None, nn.Module]:
    """Return the linear layer that a head begins with, if it does, and what comes after it."""
    if type(head) is nn.Linear:
        return head, nn.Identity()
    if type(head) is nn.Sequential and len(head) and type(head[0]) is nn.Linear:
        return head[0], head[1:]
    return None, head


def apply_first_layer(head: nn.Module, away: Float[Tensor, "n d"]) -> Float[Tensor, "n width"]:
    """Apply a head's first linear layer to latents measured from a centre; without such a layer, return them."""
    first, _ = _first_layer(head)
    return away if first is None else away @ first.weight.detach().to(away).T


def finish_logits(
    head: nn.Module, read: Float[Tensor, "n width"], centre: Float[Tensor, " d_target"]
) -> Float[Tensor, "n classes"]:
    """Return a head's logits from the output of `apply_first_layer` on latents measured from the centre."""
    first, rest = _first_layer(head)
    origin = centre[None] if first is None else apply_head(first, centre[None])
    return apply_head(rest, origin + read)


def probabilities(logits: Float[Tensor, "n classes"], *, multi_label: bool = False) -> Float[Tensor, "n classes"]:
    """Return softmax over classes, or a sigmoid for each class with `multi_label`."""
    return logits.sigmoid() if multi_label else logits.softmax(-1)


def mean_confidence(logits: Float[Tensor, "n classes"], *, multi_label: bool = False) -> float:
    """Return the mean probability of the answer; with `multi_label`, of each class's yes or no."""
    given = probabilities(logits, multi_label=multi_label)
    return float((torch.maximum(given, 1 - given) if multi_label else given.amax(-1)).mean())


def matching_temperature(
    logits: Float[Tensor, "n classes"],
    target: Float[Tensor, "n classes"],
    *,
    multi_label: bool = False,
) -> float:
    """Find the temperature t that brings `logits / t` nearest to the probabilities `target`; no labels.

    It minimises the cross-entropy from the head's own answers, which is temperature scaling (Guo et al. 2017) with the
    head instead of labels. The loss is convex in 1/t; its derivative `Σ (p − q) logits` is bisected. Use it with
    held-out latents: fitted latents are nearer to the truth than any later ones.
    """
    away = logits if multi_label else logits - logits.mean(-1, keepdim=True)
    unit = float(away.square().mean().sqrt()) or 1.0
    away = away / unit
    low, high = -LARGEST, LARGEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        if float(((probabilities(away * 2.0**middle, multi_label=multi_label) - target) * away).sum()) < 0:
            low = middle
        else:
            high = middle
    return unit * 2.0**-low


def matching_offsets(
    logits: Float[Tensor, "n classes"], target: Float[Tensor, "n classes"]
) -> Float[Tensor, " classes"]:
    """Find offsets b of the classes: in the mean, `softmax(logits + b)` gives each what the probabilities `target` do.

    This is logistic regression by offsets alone, solved by iterative scaling (Darroch and Ratcliff 1972). It counts one
    row more, of which nothing is known, with equal logits and probabilities: it holds classes that hardly occur.
    """
    classes = logits.shape[1]
    sums = target.sum(0) + 1 / classes
    offsets = logits.new_zeros(classes)
    for _ in range(STEPS):
        given = (logits + offsets).softmax(-1).sum(0) + offsets.softmax(-1)
        offsets = offsets + (sums / given).log()
    return offsets - offsets.mean()


@torch.no_grad()
def values_explained(
    head: nn.Module, translated: Float[Tensor, "k d"], target: Float[Tensor, "k d"]
) -> tuple[float, float]:
    """Return the share of the variance of a head's values on true latents that its values on translated ones explain.

    1 explains all; 0 explains as much as the mean value, and less is worse. The second number is its standard error.
    """
    explained = _explained(apply_head(head, translated), apply_head(head, target))
    return float(explained.mean()), float(explained.std()) / len(explained) ** 0.5


def _explained(made: Float[Tensor, "k values"], values: Float[Tensor, "k values"]) -> Float[Tensor, " k"]:
    """Return for each row 1 less the squared error of its values, each in units of its variance."""
    variance = values.var(0, correction=0).clamp_min(torch.finfo(values.dtype).tiny)
    return 1 - ((made - values).square() / variance).mean(1)


@torch.no_grad()
def output_scale_for_values(head: nn.Module, translated: Float[Tensor, "k d"], target: Float[Tensor, "k d"]) -> float:
    """Find the factor on translated latents, up to 2, at which a head's values explain most: least squares.

    The norm that is right for answers, the target's own, spreads values too far, since no translation is certain.
    """
    centre, values = target.mean(0), apply_head(head, target)
    read = apply_first_layer(head, translated - centre)
    return max(SCALES, key=lambda scale: float(_explained(finish_logits(head, scale * read, centre), values).mean()))


def answers_of(logits: Float[Tensor, "n classes"], *, multi_label: bool = False) -> Float[Tensor, "n classes"]:
    """Return the answers of logits as probabilities of 0 and 1: the class of the largest, or each class's yes or no."""
    if multi_label:
        return (logits > 0).to(logits.dtype)
    return nn.functional.one_hot(logits.argmax(-1), logits.shape[1]).to(logits.dtype)
