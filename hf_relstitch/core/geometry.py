"""How alike two spaces are in shape, whatever their widths: angles between latents, and CKA."""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_relstitch.core.relative import directions


def angle_correlation(x: Float[Tensor, "n d_x"], y: Float[Tensor, "n d_y"]) -> float:
    """Pearson correlation, over all pairs of rows, of the pair's cosine in one space and in the other.

    Each space is seen from its mean. By `Σ_ij (x_i·x_j)(y_i·y_j) = ‖XᵀY‖²` no `(n, n)` matrix is made. NaN where all
    cosines of a space are the same.
    """
    x_unit, y_unit = (directions(each, centre=each.mean(0)) for each in (x, y))
    x_self, y_self = (each.square().sum(-1) for each in (x_unit, y_unit))
    pairs = len(x) * (len(x) - 1)

    def mean_product(a: Tensor, b: Tensor, self_product: Tensor) -> Tensor:
        return ((a.T @ b).square().sum() - self_product.sum()) / pairs

    x_mean, y_mean = (
        (unit.sum(0).square().sum() - own.sum()) / pairs for unit, own in ((x_unit, x_self), (y_unit, y_self))
    )
    covariance = mean_product(x_unit, y_unit, x_self * y_self) - x_mean * y_mean
    variances = [
        (mean_product(unit, unit, own.square()) - mean**2).clamp(min=0)
        for unit, own, mean in ((x_unit, x_self, x_mean), (y_unit, y_self, y_mean))
    ]
    if min(float(variance) for variance in variances) < torch.finfo(x.dtype).eps:
        return float("nan")
    return float((covariance / (variances[0] * variances[1]).sqrt()).clamp(-1, 1))


def linear_cka(x: Float[Tensor, "n d_x"], y: Float[Tensor, "n d_y"]) -> float:
    """Linear centred kernel alignment, `‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)` of centred latents (Kornblith et al. 2019).

    1 where one isometry, one scale and one shift make one space of the other; these change nothing in either. NaN
    where a space's latents are all the same.
    """
    a, b = x - x.mean(0), y - y.mean(0)
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))
