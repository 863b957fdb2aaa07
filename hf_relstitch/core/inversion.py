"""The inversion family W(α, λ): from relative coordinates back to a space, folded into one matrix."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.pruning import farthest_point_subsets
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


@dataclass(frozen=True)
class Frame:
    """The thin SVD of one side's anchors, `X = U D Vᵀ`, without the directions that are null.

    A singular value counts as null when rounding alone can make it, as in `torch.linalg.pinv`: encoders that end in
    a layer norm have such directions, and an inversion would amplify their noise beyond everything else.
    """

    u: Float[Tensor, "k r"]
    singular_values: Float[Tensor, " r"]
    vh: Float[Tensor, "r d"]

    @classmethod
    def of(cls, unit_anchors: Float[Tensor, "k d"], *, precision: float) -> "Frame":
        """Decompose centred and normalised anchors that are known to a relative `precision`.

        Of many anchors the triangular factor is decomposed, `(d, d)`, which is faster on accelerators.
        """
        k, d = unit_anchors.shape
        q, r = torch.linalg.qr(unit_anchors) if k > 2 * d else (None, unit_anchors)
        u, s, vh = torch.linalg.svd(r, full_matrices=False)
        u = u if q is None else q @ u
        kept = s > s[0] * max(unit_anchors.shape) * precision
        return cls(u[:, kept], s[kept], without_silent(vh[kept], unit_anchors))

    @classmethod
    def of_anchors(cls, anchors: Float[Tensor, "k d"]) -> "Frame":
        """Decompose the directions of anchors from their mean."""
        latents = to_working(anchors)
        return cls.of(directions(latents, centre=latents.mean(0)), precision=precision_of(anchors))

    @property
    def rank(self) -> int:
        """Directions that the anchors span."""
        return len(self.singular_values)

    @property
    def condition_number(self) -> float:
        """The largest singular value over the smallest that is not numerically null."""
        return float(self.singular_values[0] / self.singular_values[-1])

    @property
    def effective_rank(self) -> float:
        """Directions that the anchors really use: exp of the entropy of the singular values (Roy & Vetterli 2007)."""
        p = self.singular_values / self.singular_values.sum()
        return float(torch.exp(-(p * p.log()).sum()))


def without_silent(vh: Float[Tensor, "r d"], unit_anchors: Float[Tensor, "k d"]) -> Float[Tensor, "r d"]:
    """`Vᵀ` with 0 for coordinates so small beside the largest that it holds nothing but rounding there.

    all-mpnet-base-v2 has some that vary by 1e-34: a head on standardised latents would see rounding alone, magnified.
    With 0 they are translated to their mean.
    """
    sizes = unit_anchors.norm(dim=0)
    return vh * (sizes > max(unit_anchors.shape) * torch.finfo(vh.dtype).eps * sizes.max())


def shrinkage(eigenvalues: Float[Tensor, " r"], *, exponent: float, ridge: float) -> Float[Tensor, " r"]:
    """Eigenvalues of `(G + λI)^(−exponent)`, with λ relative to the mean of the eigenvalues of G that are not null."""
    return (eigenvalues + ridge * eigenvalues.mean()) ** -exponent


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
    if not (varied(x) and varied(y)):
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


def varied(x: Float[Tensor, "n d"]) -> bool:
    """Whether latents are finite and not all the same."""
    return bool(len(x) and x.isfinite().all() and (x != x[0]).any())


def mean_norm(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean length of the rows."""
    return x.norm(dim=-1).mean()
