"""A translation in two halves that meet in the relative space, each made from one side's anchors."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from hf_relstitch.core.decomposition import Frame, shrinkage
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import directions, precision_of, to_working
from hf_relstitch.core.translation import (
    Side,
    TranslationSettings,
    anchor_subsets,
    mean_norm,
    sharpen,
    sharpened_spectrum,
)


@torch.no_grad()
def relative_half(
    x: Float[Tensor, "n d_source"],
    *,
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    settings: TranslationSettings,
) -> Float[Tensor, "n m"]:
    """Relative latents, `r = c·(x − μ_x) Xᵀ (XXᵀ + λ_x I)^(−α)`, one column an anchor.

    Of pruned subspaces the coordinates stand side by side; sharpened ones are `c·‖x − μ_x‖ s(x̂ Xᵀ) (G' + λ_x I)^(−α)`.
    The scale c is all that they hold of the target.

    Raises:
        StitchError: settings of a translation that leaves latents alone, which is not relative to anchors.
    """
    if settings.identity:
        raise StitchError(
            "the translation leaves latents as they are and has no relative half: stitch with alpha and ridge given"
        )
    anchors, target = to_working(source_anchors), to_working(target_anchors)
    centre, target_centre = anchors.mean(0), target.mean(0)
    unit, target_unit = directions(anchors, centre=centre), directions(target, centre=target_centre)
    subsets = anchor_subsets(target_unit, settings)
    coordinates = _coordinates_of(unit, subsets, precision=precision_of(source_anchors), settings=settings)

    def relative(latents: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(latents - centre, dim=-1, keepdim=True)
        made = coordinates(directions(latents, centre=centre))
        return norms * made if settings.scale == "carry" else made

    translated = relative(anchors) @ _inversion(target_anchors, target_unit, subsets, settings)
    return relative(to_working(x)) * (settings.stretch * mean_norm(target - target_centre) / mean_norm(translated))


def _coordinates_of(
    unit: Float[Tensor, "k d_source"], subsets: list[Tensor], *, precision: float, settings: TranslationSettings
) -> Callable[[Tensor], Tensor]:
    """What makes relative coordinates of directions: one matrix, or sharpening and one matrix."""
    if settings.sharpness:
        vectors, values = sharpened_spectrum(unit, sharpness=settings.sharpness)
        power = vectors * shrinkage(values, exponent=settings.alpha, ridge=settings.ridge) @ vectors.T
        return lambda latents: sharpen(latents @ unit.T, sharpness=settings.sharpness) @ power
    powers = _half(unit, subsets, precision=precision, side="source", settings=settings)
    return lambda latents: latents @ powers.T


@torch.no_grad()
def target_half(
    target_anchors: Float[Tensor, "k d_target"], *, settings: TranslationSettings
) -> Float[Tensor, "m d_target"]:
    """What takes relative latents to target latents: `(YYᵀ + λ_y I)^(−β) Y`, the mean of it over subspaces."""
    anchors = to_working(target_anchors)
    unit = directions(anchors, centre=anchors.mean(0))
    return _inversion(target_anchors, unit, anchor_subsets(unit, settings), settings)


def _inversion(
    target_anchors: Float[Tensor, "k d_target"],
    unit: Float[Tensor, "k d_target"],
    subsets: list[Tensor],
    settings: TranslationSettings,
) -> Float[Tensor, "m d_target"]:
    """`target_half` of anchors whose directions and subsets are known."""
    made = _half(unit, subsets, precision=precision_of(target_anchors), side="target", settings=settings)
    return made / len(subsets)


def _half(
    unit: Float[Tensor, "k d"], subsets: list[Tensor], *, precision: float, side: Side, settings: TranslationSettings
) -> Float[Tensor, "m d"]:
    """`(XXᵀ + λI)^(−exponent) X` of each subset of centred and normalised anchors, one under the other."""
    frames = [Frame.of(unit[rows], precision=precision) for rows in subsets]
    return torch.cat(
        [frame.u @ (settings.gains(frame.singular_values, side=side)[:, None] * frame.vh) for frame in frames]
    )
