"""Baselines from other work, for anchors `x`, `y` and queries `q`, all float64.

`PEERS` return target latents of the queries. `fit_logistic` returns a new head for the source's latents.
"""

from copy import deepcopy

import numpy as np
import torch
from scipy.linalg import svd
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import KFold
from torch import Tensor, nn

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import directions
from hf_relstitch.core.translation import mean_norm

LATENTIS = "latentis==0.0.8 GitPython gitdb smmap python-dotenv"
"""Packages that latentis's Procrustes imports; latentis depends on many more."""
PENALTIES = np.logspace(-3, 3, 13)
"""Penalties of ridge regression on rows of norm 1."""
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse penalties C of logistic regression on rows of norm 1."""


def _padded(x: Tensor, width: int) -> Tensor:
    """Return latents with zeros appended up to a width."""
    return torch.nn.functional.pad(x, (0, max(0, width - x.shape[1])))


def _absolute(_: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Return the latents unchanged, zero-padded or cut to the target's width."""
    return _padded(q, y.shape[1])[:, : y.shape[1]]


def _least_squares(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Map queries by least squares, without an offset."""
    solution, *_ = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)
    return q @ torch.tensor(solution)


def _affine(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Map queries by ordinary least squares, with an offset."""
    return torch.tensor(LinearRegression().fit(x.numpy(), y.numpy()).predict(q.numpy()))


def _ridge(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Map centred and normalised queries by scikit-learn's `RidgeCV`, and scale them to the target's mean norm."""
    centre, target_centre = x.mean(0), y.mean(0)
    model = RidgeCV(alphas=PENALTIES).fit(directions(x, centre=centre).numpy(), y.numpy())
    away = torch.tensor(model.predict(directions(q, centre=centre).numpy())) - target_centre
    return at_mean_norm(away, y)


def at_mean_norm(away: Tensor, y: Tensor) -> Tensor:
    """Bring latents that are measured from the target's centre to the mean norm of the target anchors `y`."""
    return y.mean(0) + away * (mean_norm(y - y.mean(0)) / mean_norm(away))


def _ortho(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Rotate queries by the best rotation of the raw anchors, the narrower side zero-padded."""
    width = max(x.shape[1], y.shape[1])
    return _padded(q, width) @ _rotation(_padded(x, width), _padded(y, width))[:, : y.shape[1]]


def _procrustes(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Rotate queries by the best rotation of centred and normalised anchors, and scale them to the target's mean norm.

    The narrower side is zero-padded.
    """
    width = max(x.shape[1], y.shape[1])
    cx, cy = x.mean(0), y.mean(0)
    unit, target_unit = directions(x, centre=cx), directions(y, centre=cy)
    turn = _rotation(_padded(unit, width), _padded(target_unit, width))[:, : y.shape[1]]
    scale = mean_norm(y - cy) / mean_norm(_padded(x - cx, width) @ turn)
    return scale * _padded(q - cx, width) @ turn + cy


def _rotation(x: Tensor, y: Tensor) -> Tensor:
    """Return the orthogonal matrix that brings x nearest to y.

    scipy's `orthogonal_procrustes` fails to converge on some anchors.
    """
    u, _, vh = svd((x.T @ y).numpy(), lapack_driver="gesvd")
    return torch.tensor(u @ vh)


def _latentis(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Translate queries by latentis's own Procrustes, which standardises both sides and zero-pads the narrower.

    Raises:
        StitchError: latentis is not installed.
    """
    try:
        from latentis.transform.translate.aligner import Procrustes  # noqa: PLC0415  (not among the extras)
    except ImportError as error:
        raise StitchError(
            f"the method latentis needs the package ({error}): pip install --no-deps {LATENTIS}"
        ) from error
    translated, _ = Procrustes().fit(x, y).transform(q)
    return torch.as_tensor(translated)


PEERS = {
    "absolute": _absolute,
    "least-squares": _least_squares,
    "affine": _affine,
    "ridge": _ridge,
    "ortho": _ortho,
    "procrustes": _procrustes,
    "latentis": _latentis,
}


def fit_logistic(x: Tensor, answers: Tensor) -> nn.Sequential:
    """Fit a logistic head on latents `(k, d)` to probabilities `(k, classes)`.

    True labels are rows of 0 and 1. Latents are centred and normalised. C is the first of `STRENGTHS` whose
    cross-entropy to the answers, in five folds, the next strength does not lower.
    """
    centre = x.mean(0)
    unit = directions(x, centre=centre)
    folds = list(KFold(5, shuffle=True, random_state=0).split(unit))
    heads: list[nn.Linear | None] = [None] * len(folds)
    best, least = STRENGTHS[0], float("inf")
    for strength in STRENGTHS:
        loss = 0.0
        for place, (fitted, held_out) in enumerate(folds):
            heads[place] = head = logistic_head(unit[fitted], answers[fitted], strength=strength, start=heads[place])
            loss += float(nn.functional.cross_entropy(head(unit[held_out]), answers[held_out], reduction="sum"))
        if loss >= least:
            break
        best, least = strength, loss
    return nn.Sequential(_Directions(centre), logistic_head(unit, answers, strength=best))


class _Directions(nn.Module):
    """Compute the directions of latents from a centre."""

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.centre = centre

    def forward(self, x: Tensor) -> Tensor:
        return directions(x, centre=self.centre)


def logistic_head(
    x: Tensor, answers: Tensor, *, strength: float, start: nn.Linear | None = None, tolerance: float = 1e-4
) -> nn.Linear:
    """Fit a linear head that minimises `C·Σ cross-entropy + ‖W‖²/2` for a strength C, from an optional first head.

    This is the objective of scikit-learn's `LogisticRegression`, which takes no soft answers, with its default
    tolerance.
    """
    linear = deepcopy(start) or nn.Linear(x.shape[1], answers.shape[1], dtype=x.dtype)
    if start is None:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    linear.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        linear.parameters(),
        max_iter=300,
        history_size=10,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        optimizer.zero_grad()
        total = nn.functional.cross_entropy(linear(x), answers) + linear.weight.square().sum() / (2 * strength * len(x))
        total.backward()
        return float(total.detach())

    with torch.enable_grad():
        optimizer.step(loss)
    return linear.requires_grad_(False)
