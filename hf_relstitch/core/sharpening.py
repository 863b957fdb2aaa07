"""One step past linear: relative coordinates are sharpened before they are decoded; still closed form."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hf_relstitch.core.inversion import Frame, Scale, TranslationSettings, mean_norm, paired, shrinkage
from hf_relstitch.core.relative import check_latents, directions

NULL = 1e-12
"""Eigenvalues of a sharpened Gram below this share of the largest, times its size, are rounding."""


def sharpen(relative: Float[Tensor, "n k"], *, sharpness: float) -> Float[Tensor, "n k"]:
    """Relative coordinates bent so that near anchors count for more: `(exp(2γr) − 1)/(exp(2γ) − 1)`.

    0 stays 0, 1 stays 1, and γ = 0 changes nothing. `exp(2γ(r − 1))` is the RBF kernel of unit vectors; taking off
    its value at r = 0 removes the part that is the same for every latent. Its Taylor coefficients are positive, so
    the sharpened Gram of anchors is positive semi-definite (Schoenberg 1942).
    """
    if sharpness == 0:
        return relative
    return torch.expm1(2 * sharpness * relative) / math.expm1(2 * sharpness)


def sharpened_spectrum(
    unit_anchors: Float[Tensor, "k d"], *, sharpness: float
) -> tuple[Float[Tensor, "k r"], Float[Tensor, " r"]]:
    """Eigenvectors and eigenvalues of the sharpened Gram of anchors, without those that rounding alone can make."""
    gram = sharpen(unit_anchors @ unit_anchors.T, sharpness=sharpness)
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values[-1] * len(gram) * NULL
    return vectors[:, kept], values[kept]


class SharpenedTranslation(nn.Module):
    """Source latents to target latents through sharpened relative coordinates: `y = ‖x − μ‖ s(x̂ Xᵀ) D + b`.

    With `scale="mean"` the norm of the latent is left out. It holds the directions X of the source anchors, costs
    `n·k·(d_source + d_target)` and folds into no matrix. All tensors are buffers: nothing here is trained. They are
    empty until `fit_sharpened` or a checkpoint fills them.
    """

    directions: Float[Tensor, "k d_source"]
    centre: Float[Tensor, " d_source"]
    decoder: Float[Tensor, "k d_target"]
    bias: Float[Tensor, " d_target"]

    def __init__(self, num_anchors: int, d_source: int, d_target: int, *, sharpness: float, scale: Scale) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.scale = scale
        self.register_buffer("directions", torch.empty(num_anchors, d_source))
        self.register_buffer("centre", torch.empty(d_source))
        self.register_buffer("decoder", torch.empty(num_anchors, d_target))
        self.register_buffer("bias", torch.empty(d_target))

    def forward(self, x: Float[Tensor, "n d_source"]) -> Float[Tensor, "n d_target"]:
        """Translate latents; computed in float32 or the dtype of the buffers, given in the dtype of `x`.

        Raises:
            StitchError: `x` is something else.
        """
        check_latents(x, width=len(self.centre))
        dtype = torch.promote_types(self.decoder.dtype, torch.float32)
        latents, centre = x.to(dtype), self.centre.to(dtype)
        relative = directions(latents, centre=centre) @ self.directions.to(dtype).T
        decoded = sharpen(relative, sharpness=self.sharpness) @ self.decoder.to(dtype)
        if self.scale == "carry":
            decoded = decoded * torch.linalg.vector_norm(latents - centre, dim=-1, keepdim=True)
        return (decoded + self.bias).to(x.dtype)


@torch.no_grad()
def fit_sharpened(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "m d_target"],
    *,
    settings: TranslationSettings,
    frames: tuple[Frame, Frame] | None = None,
) -> SharpenedTranslation:
    """The family W(α, λ) over sharpened coordinates: `D = (G' + λ_x I)^(−α) · (YYᵀ + λ_y I)^(−β) Y`, β = 1 − α if None.

    `G' = s(XXᵀ)` is the sharpened source Gram, its ridge relative to its mean eigenvalue. α = 1, β = 0 is kernel ridge
    regression, whose outputs β > 0 evens out over the target's directions; `settings.sharpness` towards 0 is the
    linear family. Computed and given in float64.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same.
    """
    x, y = paired(source_anchors, target_anchors)
    centre, bias = x.mean(0), y.mean(0)
    unit = directions(x, centre=centre)
    vectors, values = sharpened_spectrum(unit, sharpness=settings.sharpness)
    target = frames[1] if frames else Frame.of_anchors(target_anchors)
    coefficients = shrinkage(values, exponent=settings.alpha, ridge=settings.ridge)[:, None] * (vectors.T @ target.u)
    gains = settings.gains(target.singular_values, side="target")

    made = SharpenedTranslation(len(x), x.shape[1], y.shape[1], sharpness=settings.sharpness, scale=settings.scale)
    made.directions, made.centre, made.bias = unit, centre, torch.zeros_like(bias)
    made.decoder = (vectors @ (coefficients * gains)) @ target.vh
    made.decoder = made.decoder * (settings.stretch * mean_norm(y - bias) / mean_norm(made(x)))
    made.bias = bias
    return made
