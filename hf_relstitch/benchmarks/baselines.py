"""What others would do: from anchors `x`, `y` and queries `q`, all float64, to target latents of the queries."""

import numpy as np
import torch
from scipy.linalg import svd
from sklearn.linear_model import LinearRegression, RidgeCV
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import directions
from hf_relstitch.core.translation import mean_norm

LATENTIS = "latentis==0.0.8 GitPython gitdb smmap python-dotenv"
"""What its Procrustes imports; all that it depends on is much more."""


def _padded(x: Tensor, width: int) -> Tensor:
    """Latents with zeros appended up to a width."""
    return torch.nn.functional.pad(x, (0, max(0, width - x.shape[1])))


def _absolute(_: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """The latents as they are, zero-padded or cut to the target's width."""
    return _padded(q, y.shape[1])[:, : y.shape[1]]


def _least_squares(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """The linear map of least squares, without an offset."""
    solution, *_ = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)
    return q @ torch.tensor(solution)


def _affine(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Ordinary least squares with an offset."""
    return torch.tensor(LinearRegression().fit(x.numpy(), y.numpy()).predict(q.numpy()))


def ridge(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Ridge regression with an offset, its penalty among 13 by leave-one-out error."""
    penalties = np.logspace(-4, 2, 13) * float((x - x.mean(0)).square().sum(0).mean())
    return torch.tensor(RidgeCV(alphas=penalties).fit(x.numpy(), y.numpy()).predict(q.numpy()))


def _ortho(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """The best rotation of the anchors as they are, the narrower side zero-padded."""
    width = max(x.shape[1], y.shape[1])
    return _padded(q, width) @ _rotation(_padded(x, width), _padded(y, width))[:, : y.shape[1]]


def _procrustes(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """The best rotation of centred and normalised anchors, the narrower side zero-padded, at the target's mean norm."""
    width = max(x.shape[1], y.shape[1])
    cx, cy = x.mean(0), y.mean(0)
    unit, target_unit = directions(x, centre=cx), directions(y, centre=cy)
    turn = _rotation(_padded(unit, width), _padded(target_unit, width))[:, : y.shape[1]]
    scale = mean_norm(y - cy) / mean_norm(_padded(x - cx, width) @ turn)
    return scale * _padded(q - cx, width) @ turn + cy


def _rotation(x: Tensor, y: Tensor) -> Tensor:
    """The orthogonal matrix that brings x nearest to y; scipy's `orthogonal_procrustes` fails to converge on some."""
    u, _, vh = svd((x.T @ y).numpy(), lapack_driver="gesvd")
    return torch.tensor(u @ vh)


def _latentis(x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Latentis's own Procrustes, which standardises both sides and zero-pads the narrower.

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
    "ridge": ridge,
    "ortho": _ortho,
    "procrustes": _procrustes,
    "latentis": _latentis,
}
