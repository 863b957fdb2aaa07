"""From settings to the translation that they ask for: one matrix, or kernel values and a matrix."""

from dataclasses import dataclass, fields
from numbers import Real
from typing import Literal, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hf_relstitch.core.anchor_sampling import farthest_point_subsets
from hf_relstitch.core.decomposition import Frame, kernel, kernel_frame, shrinkage
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import check_latents, directions, precision_of, to_working

Norm = Literal["keep", "mean"]
Side = Literal["source", "target"]
MAX_GAMMA = 20.0
"""Above it a kernel is 0 for all but copies of an anchor."""
LANDMARKS = 2000
"""Anchors that kernel values are taken to, and no more: their decomposition takes seconds."""


class GivenSettings(TypedDict, total=False):
    """Name the fields of `TranslationSettings` as keyword arguments, of which some are given."""

    alpha: float
    ridge: float
    beta: float | None
    target_ridge: float | None
    norm: Norm
    pruning: float | None
    subspaces: int
    seed: int
    output_scale: float
    gamma: float
    landmarks: int
    identity: bool


@dataclass(frozen=True)
class TranslationSettings:
    """Say how a translation is fitted to anchors.

    `alpha` and `ridge` are α and λ of the family `W(α, λ) = Xᵀ(XXᵀ + λ_x I)^(−α) · (YYᵀ + λ_y I)^(−(1−α)) Y`: α = 0, λ
    = 0 is the inversion of arXiv 2406.15057, α = ½, λ = 0 the Parseval frame, α = 1 ridge regression. `ridge` is
    relative to the mean squared singular value of each side.

    `beta` and `target_ridge` are the target side's own exponent and λ, if they differ from 1 − α and the source side's.
    With another `beta` no member is exact any more, but each side can be shrunk as much as it needs.

    `norm="keep"` lets each latent keep its own norm, which makes the translation affine; `norm="mean"` gives every
    latent the mean norm of the target anchors, as the paper does.

    `pruning` keeps anchors by farthest-point sampling until each anchor left out has an |cosine| above it to a kept
    anchor; `subspaces` averages that many prunings, each with its own first anchor drawn from `seed`.

    `output_scale` is the mean norm that translated anchors get, relative to that of the target anchors: above 1 it
    makes up for what a fit loses on latents that it has not seen.

    `gamma` above 0 passes the cosines to anchors through a kernel (see `kernel`) before they are decoded, and the
    translation is no longer one matrix. The kernel's values are computed against the first `landmarks` anchors.

    `identity` leaves latents unchanged, for two encoders that already share one space; nothing is fitted.
    """

    alpha: float = 0.7
    ridge: float = 0.3
    beta: float | None = None
    target_ridge: float | None = None
    norm: Norm = "keep"
    pruning: float | None = None
    subspaces: int = 1
    seed: int = 0
    output_scale: float = 1.0
    gamma: float = 0.0
    landmarks: int = LANDMARKS
    identity: bool = False

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "norm"}
        if strange := [name for name, value in given.items() if not isinstance(value, Real | None)]:
            raise StitchError(f"{strange[0]} is {given[strange[0]]!r}: expected a number")
        infinite = float("inf")
        rules = {
            f"alpha is {self.alpha}: it has to be in [0, 1]": 0 <= self.alpha <= 1,
            f"ridge is {self.ridge}: it has to be 0 or more, and finite": 0 <= self.ridge < infinite,
            f"beta is {self.beta}: it has to be in [0, 1], or None for 1 − alpha": self.beta is None
            or 0 <= self.beta <= 1,
            f"target_ridge is {self.target_ridge}: it has to be 0 or more, and finite, or None for ridge": (
                self.target_ridge is None or 0 <= self.target_ridge < infinite
            ),
            f"norm is {self.norm!r}: it has to be 'keep' or 'mean'": self.norm in ("keep", "mean"),
            f"pruning is {self.pruning}: it is an |cosine|, in (0, 1], or None": self.pruning is None
            or 0 < self.pruning <= 1,
            f"subspaces is {self.subspaces} with pruning {self.pruning}: it has to be 1 or more, and more than 1 only "
            "with a pruning threshold": self.subspaces == 1 or (self.subspaces > 1 and self.pruning is not None),
            f"output_scale is {self.output_scale}: it has to be above 0, and finite": 0 < self.output_scale < infinite,
            f"gamma is {self.gamma}: it has to be from 0 to {MAX_GAMMA}": 0 <= self.gamma <= MAX_GAMMA,
            f"landmarks is {self.landmarks}: it has to be 1 or more": self.landmarks >= 1,
            "a kernel translation is not pruned: set gamma to 0 or pruning to None": not self.gamma
            or self.pruning is None,
            "identity=True leaves latents as they are: it goes with no gamma, no pruning and norm='keep'": not (
                self.identity and (self.gamma or self.pruning or self.norm != "keep")
            ),
        }
        for message, kept in rules.items():
            if not kept:
                raise StitchError(message)

    def gains(self, singular_values: Float[Tensor, " r"], *, side: Side) -> Float[Tensor, " r"]:
        """Return the diagonal of `Uᵀ (XXᵀ + λI)^(−exponent) X V`: α, λ_x of the source, or β, λ_y of the target."""
        exponent, ridge = self.alpha, self.ridge
        if side == "target":
            exponent = 1 - self.alpha if self.beta is None else self.beta
            ridge = self.ridge if self.target_ridge is None else self.target_ridge
        return singular_values * shrinkage(singular_values**2, exponent=exponent, ridge=ridge)


def compose(source: Frame, target: Frame, *, settings: TranslationSettings) -> Float[Tensor, "d_source d_target"]:
    """Return the relative projection and its inversion as one matrix, `W(α, λ)`, without a `(k, k)` inverse."""
    source_gains = settings.gains(source.singular_values, side="source")
    target_gains = settings.gains(target.singular_values, side="target")
    return (source.vh.T * source_gains) @ (source.u.T @ target.u) @ (target_gains[:, None] * target.vh)


class Translation(nn.Module):
    """Map source latents to target latents: `y = x A + b`, or `y = (x − μ) A / ‖x − μ‖ + b` with `norm="mean"`.

    Both are one matrix product into one output: `(x − μ) A = x A − μ A`, and the norm is a factor on each row.
    All tensors are buffers: nothing here is trained. They are empty until `fit_translation` or a checkpoint
    fills them.
    """

    weight: Float[Tensor, "d_source d_target"]
    bias: Float[Tensor, " d_target"]
    centre: Float[Tensor, " d_source"]

    def __init__(self, d_source: int, d_target: int, *, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("weight", torch.empty(d_source, d_target))
        self.register_buffer("bias", torch.empty(d_target))
        self.register_buffer("centre", torch.empty(d_source))

    def forward(self, x: Float[Tensor, "n d_source"]) -> Float[Tensor, "n d_target"]:
        """Translate latents: compute in the dtype of the weights, return the dtype of `x`.

        Raises:
            StitchError: `x` is not a tensor of floats of this shape.
        """
        check_latents(x, width=len(self.centre))
        latents = x.to(self.weight.dtype)
        if self.norm == "keep":
            return torch.addmm(self.bias, latents, self.weight).to(x.dtype)
        product = torch.addmm(-(self.centre @ self.weight), latents, self.weight)
        out = None if product.requires_grad or torch.compiler.is_compiling() else product
        return torch.addcmul(self.bias, product, self.inverse_radii(latents), out=out).to(x.dtype)

    def inverse_radii(self, x: Float[Tensor, "n d_source"]) -> Float[Tensor, "n 1"]:
        """Return `1/‖x − μ‖`, and 0 for latents so near to the centre that rounding alone sets their direction."""
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
    """Fit the translation that `settings` describe to anchors paired row for row (arXiv 2406.15057, sec. 3).

    It is exact, for every α at λ = 0, when the target space is the source space under an isometry, a scale and a shift
    and the anchors span it. It is computed and returned in float64 without gradients, on the device of the anchors if
    that has float64. It can be no better than the anchors: directions that they do not span are lost, and with a small
    `ridge` the weak directions of the target anchors are amplified by their condition number. `frames` are both sides'
    `Frame.from_anchors`, if the caller has them.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same.
    """
    x, y = pair_anchors(source_anchors, target_anchors)
    if settings.identity:
        return unchanged(x, y)
    x_centre, y_centre = x.mean(0), y.mean(0)
    x_unit, y_unit = directions(x, centre=x_centre), directions(y, centre=y_centre)
    if settings.pruning is None:
        frames = frames or (Frame.from_anchors(source_anchors), Frame.from_anchors(target_anchors))
        weight = compose(*frames, settings=settings)
    else:
        precisions = precision_of(source_anchors), precision_of(target_anchors)
        weight = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype, device=x.device)
        subsets = draw_subsets(y_unit, settings)
        for rows in subsets:
            pair = (
                Frame.from_directions(x_unit[rows], precision=precisions[0]),
                Frame.from_directions(y_unit[rows], precision=precisions[1]),
            )
            weight += compose(*pair, settings=settings) / len(subsets)

    inputs = x - x_centre if settings.norm == "keep" else x_unit
    weight *= settings.output_scale * mean_norm(y - y_centre) / mean_norm(inputs @ weight)
    translation = Translation(x.shape[1], y.shape[1], norm=settings.norm)
    translation.weight = weight
    translation.centre = x_centre
    translation.bias = y_centre - x_centre @ weight if settings.norm == "keep" else y_centre
    return translation


def pair_anchors(
    source_anchors: Float[Tensor, "k d_source"], target_anchors: Float[Tensor, "m d_target"]
) -> tuple[Float[Tensor, "k d_source"], Float[Tensor, "k d_target"]]:
    """Return both sides' anchors in float64, see `to_working`.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same.
    """
    if len(source_anchors) != len(target_anchors):
        raise StitchError(
            f"{len(source_anchors)} source anchors and {len(target_anchors)} target anchors: "
            "they are paired row for row, so encode the same inputs with both models"
        )
    x, y = to_working(source_anchors), to_working(target_anchors)
    if not all(len(each) and each.isfinite().all() and (each != each[0]).any() for each in (x, y)):
        raise StitchError("anchors have to be finite and not all the same: look at the inputs and at both encoders")
    return x, y


def unchanged(x: Float[Tensor, "k d_source"], y: Float[Tensor, "k d_target"]) -> Translation:
    """Build the translation that changes nothing, in the dtype and on the device of the anchors.

    Raises:
        StitchError: the two spaces differ in width, so they cannot be the same space.
    """
    if x.shape[1] != y.shape[1]:
        raise StitchError(
            f"identity=True with latents {x.shape[1]} and {y.shape[1]} wide: only spaces of one width can be the same"
        )
    translation = Translation(x.shape[1], y.shape[1], norm="keep")
    translation.weight = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    translation.centre = x.mean(0)
    translation.bias = torch.zeros(y.shape[1], dtype=x.dtype, device=x.device)
    return translation


def draw_subsets(unit_anchors: Float[Tensor, "k d"], settings: TranslationSettings) -> list[Tensor]:
    """Return the rows that each averaged inversion uses: all of them, or `settings.subspaces` prunings."""
    if settings.pruning is None:
        return [torch.arange(len(unit_anchors), device=unit_anchors.device)]
    return farthest_point_subsets(
        unit_anchors, threshold=settings.pruning, subspaces=settings.subspaces, seed=settings.seed
    )


def mean_norm(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return the mean norm of the rows."""
    return x.norm(dim=-1).mean()


class KernelTranslation(nn.Module):
    """Map source latents to target latents through kernel values: `y = ‖x − μ‖ κ(x̂ Zᵀ) D + b`.

    With `norm="mean"` the norm of the latent is left out. The module holds the directions Z of the source anchors that
    are its landmarks, costs `n·m·(d_source + d_target)` and is not a single matrix. All tensors are buffers: nothing
    here is trained. They are empty until `fit_kernel_translation` or a checkpoint fills them.
    """

    directions: Float[Tensor, "m d_source"]
    centre: Float[Tensor, " d_source"]
    decoder: Float[Tensor, "m d_target"]
    bias: Float[Tensor, " d_target"]

    def __init__(self, num_landmarks: int, d_source: int, d_target: int, *, gamma: float, norm: Norm) -> None:
        super().__init__()
        self.gamma = gamma
        self.norm = norm
        self.register_buffer("directions", torch.empty(num_landmarks, d_source))
        self.register_buffer("centre", torch.empty(d_source))
        self.register_buffer("decoder", torch.empty(num_landmarks, d_target))
        self.register_buffer("bias", torch.empty(d_target))

    def forward(self, x: Float[Tensor, "n d_source"]) -> Float[Tensor, "n d_target"]:
        """Translate latents: compute in float32 or the dtype of the buffers, return the dtype of `x`.

        Raises:
            StitchError: `x` is not a tensor of floats of this shape.
        """
        check_latents(x, width=len(self.centre))
        dtype = torch.promote_types(self.decoder.dtype, torch.float32)
        latents, centre = x.to(dtype), self.centre.to(dtype)
        cosines = directions(latents, centre=centre) @ self.directions.to(dtype).T
        decoded = kernel(cosines, gamma=self.gamma) @ self.decoder.to(dtype)
        if self.norm == "keep":
            decoded = decoded * torch.linalg.vector_norm(latents - centre, dim=-1, keepdim=True)
        return (decoded + self.bias).to(x.dtype)


@torch.no_grad()
def fit_kernel_translation(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "m d_target"],
    *,
    settings: TranslationSettings,
    frames: tuple[Frame, Frame] | None = None,
) -> KernelTranslation:
    """Fit the family W(α, λ) over kernel values: `D = (G + λ_x I)^(−α) · (YYᵀ + λ_y I)^(−β) Y`, β = 1 − α if None.

    `G = κ(XXᵀ)` is the kernel matrix of the source anchors, its ridge relative to its mean eigenvalue. α = 1, β = 0 is
    kernel ridge regression; `settings.gamma` towards 0 is the linear family. It is computed and returned in float64.
    `frames` are the source's `kernel_frame` and the target's `Frame.from_anchors`, if the caller has them.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same.
    """
    x, y = pair_anchors(source_anchors, target_anchors)
    centre, bias = x.mean(0), y.mean(0)
    unit = directions(x, centre=centre)
    frames = frames or (
        kernel_frame(unit, gamma=settings.gamma, landmarks=settings.landmarks),
        Frame.from_anchors(target_anchors),
    )
    marks = unit[: settings.landmarks]
    translation = KernelTranslation(len(marks), x.shape[1], y.shape[1], gamma=settings.gamma, norm=settings.norm)
    translation.directions, translation.centre, translation.bias = marks, centre, torch.zeros_like(bias)
    translation.decoder = compose(*frames, settings=settings)
    translation.decoder *= settings.output_scale * mean_norm(y - bias) / mean_norm(translation(x))
    translation.bias = bias
    return translation


def fit(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    *,
    settings: TranslationSettings,
    frames: tuple[Frame, Frame] | None = None,
) -> Translation | KernelTranslation:
    """Fit the translation that `settings` describe to anchors paired row for row.

    See `fit_translation` and `fit_kernel_translation`, also for `frames`.

    Raises:
        StitchError: the anchors cannot be paired, carry nothing, or together exceed the range of float64.
    """
    fit_one = fit_kernel_translation if settings.gamma else fit_translation
    translation = fit_one(source_anchors, target_anchors, settings=settings, frames=frames)
    limits = torch.finfo(torch.float32)
    largest = [float(buffer.abs().max()) for buffer in translation.buffers() if buffer.numel()]
    if not all(size == 0 or limits.tiny <= size <= limits.max for size in largest):  # nor all rounded to zero
        sizes = [float(mean_norm(to_working(side))) for side in (source_anchors, target_anchors)]
        raise StitchError(
            f"the translation does not fit into float32; the anchors' mean norms are {sizes[0]:.1e}, {sizes[1]:.1e}: "
            "scale both sides to norms near 1"
        )
    return translation


def empty_translation(
    num_anchors: int, d_source: int, d_target: int, *, settings: TranslationSettings
) -> Translation | KernelTranslation:
    """Make a translation of the right kind and shapes, for a checkpoint to fill."""
    if settings.gamma:
        num_landmarks = min(num_anchors, settings.landmarks)
        return KernelTranslation(num_landmarks, d_source, d_target, gamma=settings.gamma, norm=settings.norm)
    return Translation(d_source, d_target, norm=settings.norm)
