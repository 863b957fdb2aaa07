"""From settings to the translation that they ask for: one matrix, or a sharpened one."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hf_relstitch.core.anchor_sampling import farthest_point_subsets
from hf_relstitch.core.decomposition import Frame, shrinkage
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import check_latents, directions, precision_of, to_working

Scale = Literal["carry", "mean"]
Side = Literal["source", "target"]


@dataclass(frozen=True)
class TranslationSettings:
    """How a translation is made from anchors.

    `alpha` and `ridge` are α and λ of the family `W(α, λ) = Xᵀ(XXᵀ + λ_x I)^(−α) · (YYᵀ + λ_y I)^(−(1−α)) Y`:
    α = 0, λ = 0 is the inversion of arXiv 2406.15057, α = ½, λ = 0 the Parseval frame, α = 1 ridge regression.
    `ridge` is relative to the mean squared singular value of each side.

    `beta` and `target_ridge` are the target side's own exponent and λ, where they are not 1 − α and the source side's:
    with another `beta` no member is exact any more, but the two sides can be shrunk each as much as it needs.

    `scale="carry"` lets each latent keep its own norm, which makes the translation affine; `scale="mean"`
    gives every latent the mean norm of the target anchors, as the paper does.

    `pruning` keeps anchors by farthest-point sampling until each one left out has an |cosine| above it to one
    kept; `subspaces` averages that many prunings, each with its own first anchor drawn from `seed`.

    `stretch` is the mean norm that translated anchors get, relative to that of the target anchors: above 1 it makes
    up for what a fit loses on latents that it has not seen, and lets them count for more beside a head's bias.

    `sharpness` is γ of `sharpening.py`: above 0 the relative coordinates are bent before they are decoded, and the
    translation is no longer one matrix.

    `identity` leaves latents as they are, for two encoders whose spaces are one already; nothing is fitted.
    """

    alpha: float = 0.7
    ridge: float = 0.3
    beta: float | None = None
    target_ridge: float | None = None
    scale: Scale = "carry"
    pruning: float | None = None
    subspaces: int = 1
    seed: int = 0
    stretch: float = 1.0
    sharpness: float = 0.0
    identity: bool = False

    def __post_init__(self) -> None:
        infinite = float("inf")
        rules = {
            f"alpha is {self.alpha}: it has to be in [0, 1]": 0 <= self.alpha <= 1,
            f"ridge is {self.ridge}: it has to be 0 or more, and finite": 0 <= self.ridge < infinite,
            f"beta is {self.beta}: it has to be in [0, 1], or None for 1 − alpha": self.beta is None
            or 0 <= self.beta <= 1,
            f"target_ridge is {self.target_ridge}: it has to be 0 or more, and finite, or None for ridge": (
                self.target_ridge is None or 0 <= self.target_ridge < infinite
            ),
            f"scale is {self.scale!r}: it has to be 'carry' or 'mean'": self.scale in ("carry", "mean"),
            f"pruning is {self.pruning}: it is an |cosine|, in (0, 1], or None": self.pruning is None
            or 0 < self.pruning <= 1,
            f"subspaces is {self.subspaces} with pruning {self.pruning}: it has to be 1 or more, and more than 1 only "
            "with a pruning threshold": self.subspaces == 1 or (self.subspaces > 1 and self.pruning is not None),
            f"stretch is {self.stretch}: it has to be above 0, and finite": 0 < self.stretch < infinite,
            f"sharpness is {self.sharpness}: it has to be 0 or more, and finite": 0 <= self.sharpness < infinite,
            "a sharpened translation is not pruned: set sharpness to 0 or pruning to None": not self.sharpness
            or self.pruning is None,
            "identity=True leaves latents as they are: it goes with no sharpness, no pruning and scale='carry'": not (
                self.identity and (self.sharpness or self.pruning or self.scale != "carry")
            ),
        }
        for message, kept in rules.items():
            if not kept:
                raise StitchError(message)

    def gains(self, singular_values: Float[Tensor, " r"], *, side: Side) -> Float[Tensor, " r"]:
        """Diagonal of `Uᵀ (XXᵀ + λI)^(−exponent) X V` of a side: α and λ_x of the source, β and λ_y of the target."""
        exponent, ridge = self.alpha, self.ridge
        if side == "target":
            exponent = 1 - self.alpha if self.beta is None else self.beta
            ridge = self.ridge if self.target_ridge is None else self.target_ridge
        return singular_values * shrinkage(singular_values**2, exponent=exponent, ridge=ridge)


def fold(source: Frame, target: Frame, *, settings: TranslationSettings) -> Float[Tensor, "d_source d_target"]:
    """The relative projection and its inversion as one matrix, `W(α, λ)`, without a `(k, k)` inverse."""
    source_gains = settings.gains(source.singular_values, side="source")
    target_gains = settings.gains(target.singular_values, side="target")
    return (source.vh.T * source_gains) @ (source.u.T @ target.u) @ (target_gains[:, None] * target.vh)


class Translation(nn.Module):
    """Source latents to target latents: `y = x A + b` for `scale="carry"`, `y = (x − μ) A / ‖x − μ‖ + b` for `"mean"`.

    Both are one matrix product into one output: `(x − μ) A = x A − μ A`, and the norm is a factor on each row.
    All tensors are buffers: nothing here is trained. They are empty until `fit_translation` or a checkpoint
    fills them.
    """

    weight: Float[Tensor, "d_source d_target"]
    bias: Float[Tensor, " d_target"]
    centre: Float[Tensor, " d_source"]

    def __init__(self, d_source: int, d_target: int, *, scale: Scale) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("weight", torch.empty(d_source, d_target))
        self.register_buffer("bias", torch.empty(d_target))
        self.register_buffer("centre", torch.empty(d_source))

    def forward(self, x: Float[Tensor, "n d_source"]) -> Float[Tensor, "n d_target"]:
        """Translate latents; computed in the dtype of the weights, given in the dtype of `x`.

        Raises:
            StitchError: `x` is something else.
        """
        check_latents(x, width=len(self.centre))
        latents = x.to(self.weight.dtype)
        if self.scale == "carry":
            return torch.addmm(self.bias, latents, self.weight).to(x.dtype)
        product = torch.addmm(-(self.centre @ self.weight), latents, self.weight)
        out = None if product.requires_grad or torch.compiler.is_compiling() else product
        return torch.addcmul(self.bias, product, self.inverse_radii(latents), out=out).to(x.dtype)

    def inverse_radii(self, x: Float[Tensor, "n d_source"]) -> Float[Tensor, "n 1"]:
        """`1/‖x − μ‖`, and 0 for latents so near to the centre that rounding alone makes their direction."""
        exact = torch.promote_types(x.dtype, torch.float32)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():  # without a centred copy; ONNX knows no cdist
            latents, centre = x.to(exact), self.centre.to(exact)
            radii = torch.cdist(latents, centre[None], compute_mode="donot_use_mm_for_euclid_dist")
        else:
            radii = torch.linalg.vector_norm(x - self.centre, dim=-1, keepdim=True, dtype=exact)
        rounding = 4 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(self.centre, dtype=exact)
        return torch.where(radii > rounding, 1 / radii, 0).to(x.dtype)


@torch.no_grad()
def fit_translation(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    *,
    settings: TranslationSettings,
    frames: tuple[Frame, Frame] | None = None,
) -> Translation:
    """The translation that `settings` makes of anchors paired row for row (arXiv 2406.15057, sec. 3).

    Exact, for every α at λ = 0, when the target space is the source space under an isometry, a scale and a
    shift and the anchors span it. Computed and given in float64 without gradients, on the device of the anchors if
    that has float64. It can be no better than the anchors: what they do not span is lost, and with a small `ridge`
    the weak directions of the target anchors are amplified by their condition number. `frames` are both sides'
    `Frame.of_anchors`, where they are at hand.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same.
    """
    x, y = paired(source_anchors, target_anchors)
    if settings.identity:
        return unchanged(x, y)
    x_centre, y_centre = x.mean(0), y.mean(0)
    x_unit, y_unit = directions(x, centre=x_centre), directions(y, centre=y_centre)
    if settings.pruning is None:
        frames = frames or (Frame.of_anchors(source_anchors), Frame.of_anchors(target_anchors))
        weight = fold(*frames, settings=settings)
    else:
        precisions = precision_of(source_anchors), precision_of(target_anchors)
        weight = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype, device=x.device)
        subsets = anchor_subsets(y_unit, settings)
        for rows in subsets:
            pair = Frame.of(x_unit[rows], precision=precisions[0]), Frame.of(y_unit[rows], precision=precisions[1])
            weight += fold(*pair, settings=settings) / len(subsets)

    inputs = x - x_centre if settings.scale == "carry" else x_unit
    weight *= settings.stretch * mean_norm(y - y_centre) / mean_norm(inputs @ weight)
    translation = Translation(x.shape[1], y.shape[1], scale=settings.scale)
    translation.weight = weight
    translation.centre = x_centre
    translation.bias = y_centre - x_centre @ weight if settings.scale == "carry" else y_centre
    return translation


def paired(
    source_anchors: Float[Tensor, "k d_source"], target_anchors: Float[Tensor, "m d_target"]
) -> tuple[Float[Tensor, "k d_source"], Float[Tensor, "k d_target"]]:
    """Both sides' anchors in float64, see `to_working`.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same.
    """
    if len(source_anchors) != len(target_anchors):
        raise StitchError(
            f"{len(source_anchors)} source anchors and {len(target_anchors)} target anchors: "
            "they are paired row for row, so encode the same inputs with both models"
        )
    x, y = to_working(source_anchors), to_working(target_anchors)
    if not (_varied(x) and _varied(y)):
        raise StitchError("anchors have to be finite and not all the same: look at the inputs and at both encoders")
    return x, y


def unchanged(x: Float[Tensor, "k d_source"], y: Float[Tensor, "k d_target"]) -> Translation:
    """The translation that changes nothing, in the dtype and on the device of the anchors.

    Raises:
        StitchError: the two spaces differ in width, so they cannot be one.
    """
    if x.shape[1] != y.shape[1]:
        raise StitchError(
            f"identity=True with latents {x.shape[1]} and {y.shape[1]} wide: only spaces of one width can be the same"
        )
    translation = Translation(x.shape[1], y.shape[1], scale="carry")
    translation.weight = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    translation.centre = x.mean(0)
    translation.bias = torch.zeros(y.shape[1], dtype=x.dtype, device=x.device)
    return translation


def anchor_subsets(unit_anchors: Float[Tensor, "k d"], settings: TranslationSettings) -> list[Tensor]:
    """The rows that each averaged inversion uses: all of them, or `settings.subspaces` prunings."""
    if settings.pruning is None:
        return [torch.arange(len(unit_anchors), device=unit_anchors.device)]
    return farthest_point_subsets(
        unit_anchors, threshold=settings.pruning, subspaces=settings.subspaces, seed=settings.seed
    )


def _varied(x: Float[Tensor, "n d"]) -> bool:
    """Whether latents are finite and not all the same."""
    return bool(len(x) and x.isfinite().all() and (x != x[0]).any())


def mean_norm(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean length of the rows."""
    return x.norm(dim=-1).mean()


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
    empty until `_fit_sharpened` or a checkpoint fills them.
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
def _fit_sharpened(
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


def fit(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    *,
    settings: TranslationSettings,
    frames: tuple[Frame, Frame] | None = None,
) -> Translation | SharpenedTranslation:
    """The translation that `settings` make of anchors paired row for row; see `fit_translation`, `_fit_sharpened`.

    `frames` are both sides' `Frame.of_anchors`, where they are at hand.

    Raises:
        StitchError: anchors that cannot be paired, or that carry nothing.
    """
    make = _fit_sharpened if settings.sharpness else fit_translation
    return make(source_anchors, target_anchors, settings=settings, frames=frames)


def empty_translation(
    num_anchors: int, d_source: int, d_target: int, *, settings: TranslationSettings
) -> Translation | SharpenedTranslation:
    """A translation of the right kind and shapes, for a checkpoint to fill."""
    if settings.sharpness:
        return SharpenedTranslation(num_anchors, d_source, d_target, sharpness=settings.sharpness, scale=settings.scale)
    return Translation(d_source, d_target, scale=settings.scale)
