"""Fit a linear readout of source latents to a head's own answers: no labels, and no translation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from hf_relstitch.core.decomposition import quick_frame
from hf_relstitch.core.relative import to_working

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Penalties on squared weights, per anchor in all, for latents whose mean squared norm is 1; strong ones first."""
SPLITS = 5
STEPS = 20
"""Steps from one penalty's solution to the next; more change probabilities by less than .01."""


@dataclass(frozen=True)
class Readout:
    """Hold logits that are linear in source latents, fitted to the answers of a head.

    Attributes:
        weight: the weights of each class.
        bias: the bias of each class.
        held_out: logits of the anchors, each by the fit on the splits that exclude the anchor.
        penalty: the penalty that was chosen.
    """

    weight: Float[Tensor, "classes d_source"]
    bias: Float[Tensor, " classes"]
    held_out: Float[Tensor, "k classes"]
    penalty: float


@torch.no_grad()
def fit_readout(
    latents: Float[Tensor, "k d_source"],
    answers: Float[Tensor, "k classes"],
    *,
    groups: Integer[Tensor, " k"] | None = None,
) -> Readout:
    """Fit multinomial logistic regression to probabilities; held-out loss in five splits chooses the penalty.

    This is distillation (Hinton et al. 2015) at temperature 1: the head's probabilities on the target's latents of the
    anchors replace labels. A row is held out by its position, modulo five; rows with the same number in `groups`
    together. The fits of all splits, and the fit of all
    rows, are computed side by side in float32, each from the solution for the penalty before.
    """
    x, answers = to_working(latents), to_working(answers)
    centre = x.mean(0)
    scale = (x - centre).square().sum(-1).mean().sqrt()
    # In the basis of the singular vectors the curvature is diagonal, for all splits and all penalties alike.
    frame = quick_frame((x - centre) / scale, precision=torch.finfo(x.dtype).eps)
    ones = x.new_ones(len(x), 1)
    features = torch.cat([frame.u * frame.singular_values, ones], dim=1).float()
    curvature = torch.cat([frame.singular_values.square(), ones.sum()[None]]).float() / 2
    position = torch.arange(len(x)) if groups is None else groups.unique(return_inverse=True)[1]
    split_of = position.to(x.device) % SPLITS
    fitted = (split_of[:, None] != torch.arange(SPLITS + 1, device=x.device)).float()  # the last fit sees all rows
    coefficients = features.new_zeros(features.shape[1], SPLITS + 1, answers.shape[1])
    losses: list[float] = []
    fits: list[tuple[Tensor, Tensor]] = []
    for penalty in PENALTIES:
        coefficients = _advance(coefficients, features, answers.float(), fitted, curvature, penalty=penalty)
        held_out = _apply(features, coefficients)[torch.arange(len(x)), split_of].double()
        fits.append((coefficients[:, -1].double(), held_out))
        losses.append(-float((answers * held_out.log_softmax(-1)).sum(-1).mean()))
        if losses[-1] > min(losses):
            break  # the loss has one valley along the penalties
    chosen = losses.index(min(losses))
    coefficient, held_out = fits[chosen]
    weight = (frame.vh.T @ coefficient[:-1]).T / scale
    return Readout(weight, coefficient[-1] - weight @ centre, held_out, PENALTIES[chosen])


def _apply(features: Float[Tensor, "k r"], coefficients: Float[Tensor, "r fits classes"]) -> Tensor:
    """Return the logits `(k, fits, classes)` of every fit."""
    return (features @ coefficients.flatten(1)).view(len(features), *coefficients.shape[1:])


def _advance(
    coefficients: Float[Tensor, "r fits classes"],
    features: Float[Tensor, "k r"],
    answers: Float[Tensor, "k classes"],
    fitted: Float[Tensor, "k fits"],
    curvature: Float[Tensor, " r"],
    *,
    penalty: float,
) -> Float[Tensor, "r fits classes"]:
    """Go from one penalty's solution to the next; the last row of coefficients is the bias, which is not penalised.

    Each step minimises Böhning's quadratic bound (1992), with Nesterov's momentum.
    """
    penalties = torch.full_like(curvature, penalty)
    penalties[-1] = 0
    rates = 1 / (curvature + penalties)[:, None, None]
    point = coefficients
    for step in range(STEPS):
        errors = (_apply(features, point).softmax(-1) - answers[:, None]) * fitted[:, :, None]
        gradient = (features.T @ errors.flatten(1)).view_as(point) + penalties[:, None, None] * point
        updated = point - rates * gradient
        point = updated + step / (step + 3) * (updated - coefficients)
        coefficients = updated
    return coefficients
