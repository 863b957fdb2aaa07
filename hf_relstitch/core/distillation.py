"""Fit a linear readout of source latents to a head's own answers: no labels, and no translation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

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
        weight: of each class.
        bias: of each class.
        held_out: logits of the anchors, each by the fit on the splits that it is not in.
        penalty: the penalty that was chosen.
    """

    weight: Float[Tensor, "classes d_source"]
    bias: Float[Tensor, " classes"]
    held_out: Float[Tensor, "k classes"]
    penalty: float


@torch.no_grad()
def fit_readout(latents: Float[Tensor, "k d_source"], answers: Float[Tensor, "k classes"]) -> Readout:
    """Fit multinomial logistic regression to probabilities, the penalty chosen in five splits by held-out loss.

    It is distillation (Hinton et al. 2015) at temperature 1: the head's probabilities on the target's latents of the
    anchors take the place of labels. A row is held out by its position, modulo five. Computed in float64.
    """
    x, answers = to_working(latents), to_working(answers)
    centre = x.mean(0)
    scale = (x - centre).square().sum(-1).mean().sqrt()
    # In the basis of the singular vectors the curvature is diagonal, for all rows and all penalties alike.
    u, s, vh = torch.linalg.svd((x - centre) / scale, full_matrices=False)
    ones = u.new_ones(len(u), 1)
    features = torch.cat([u * s, ones], dim=1)
    curvature = torch.cat([s.square(), ones.sum()[None]]) / 2
    split_of = torch.arange(len(x), device=x.device) % SPLITS
    kept = one_hot(split_of, SPLITS).T.to(x) == 0
    paths = [_Path(features[rows], answers[rows], curvature) for rows in kept]
    losses: list[float] = []
    outputs: list[Tensor] = []
    for penalty in PENALTIES:
        held_out = torch.empty_like(answers)
        for path, rows in zip(paths, kept, strict=True):
            held_out[~rows] = features[~rows] @ path.advance(penalty)
        outputs.append(held_out)
        losses.append(-float((answers * held_out.log_softmax(-1)).sum(-1).mean()))
        if losses[-1] > min(losses):
            break  # the loss has one valley along the penalties
    chosen = losses.index(min(losses))
    path = _Path(features, answers, curvature)
    coefficients = [path.advance(penalty) for penalty in PENALTIES[: chosen + 1]][-1]
    weight = (vh.T @ coefficients[:-1]).T / scale
    return Readout(weight, coefficients[-1] - weight @ centre, outputs[chosen], PENALTIES[chosen])


class _Path:
    """Solve one penalty after the other, each from the solution of the one before."""

    def __init__(self, features: Tensor, answers: Tensor, curvature: Tensor) -> None:
        self.features, self.answers, self.curvature = features, answers, curvature
        self.coefficients = features.new_zeros(features.shape[1], answers.shape[1])

    def advance(self, penalty: float) -> Tensor:
        """Return coefficients `(d + 1, classes)` for a penalty; the last row is the bias, which is not penalised.

        Each step minimises Böhning's quadratic bound (1992), with Nesterov's momentum.
        """
        penalties = torch.full_like(self.curvature, penalty)
        penalties[-1] = 0
        rates = 1 / (self.curvature + penalties)[:, None]
        point = self.coefficients
        for step in range(STEPS):
            gradient = self.features.T @ ((self.features @ point).softmax(-1) - self.answers)
            updated = point - rates * (gradient + penalties[:, None] * point)
            point = updated + step / (step + 3) * (updated - self.coefficients)
            self.coefficients = updated
        return self.coefficients
