"""A translation in two halves that meet in the relative space, each made from one side's anchors."""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.inversion import Frame, TranslationSettings, anchor_subsets, mean_norm
from hf_relstitch.core.relative import directions, precision_of, to_working


@torch.no_grad()
def relative_half(
    x: Float[Tensor, "n d_source"],
    *,
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    settings: TranslationSettings,
) -> Float[Tensor, "n m"]:
    """Relative latents, `r = c·(x − μ_x) Xᵀ (XXᵀ + λ_x I)^(−α)`, one column an anchor.

    Of pruned subspaces the coordinates stand side by side. The scale c is all that they hold of the target.

    Raises:
        StitchError: settings of a translation that is not linear in relative coordinates, or that leaves latents alone.
    """
    if settings.identity or settings.sharpness:
        raise StitchError(
            "the translation leaves latents as they are or sharpens them, and has no relative half: "
            "stitch with prefer='linear', or with alpha and ridge given"
        )
    anchors, target = to_working(source_anchors), to_working(target_anchors)
    centre, target_centre = anchors.mean(0), target.mean(0)
    unit, target_unit = directions(anchors, centre=centre), directions(target, centre=target_centre)
    subsets = anchor_subsets(target_unit, settings)
    powers = half(unit, subsets, precision=precision_of(source_anchors), exponent=settings.alpha, ridge=settings.ridge)
    inputs, latents = anchors - centre, to_working(x) - centre
    if settings.scale == "mean":
        inputs, latents = unit, directions(to_working(x), centre=centre)
    translated = inputs @ powers.T @ inversion(target_anchors, target_unit, subsets, settings)
    return latents @ powers.T * (settings.stretch * mean_norm(target - target_centre) / mean_norm(translated))


@torch.no_grad()
def target_half(
    target_anchors: Float[Tensor, "k d_target"], *, settings: TranslationSettings
) -> Float[Tensor, "m d_target"]:
    """What takes relative latents to target latents: `(YYᵀ + λ_y I)^(−(1−α)) Y`, the mean of it over subspaces."""
    anchors = to_working(target_anchors)
    unit = directions(anchors, centre=anchors.mean(0))
    return inversion(target_anchors, unit, anchor_subsets(unit, settings), settings)


def inversion(
    target_anchors: Float[Tensor, "k d_target"],
    unit: Float[Tensor, "k d_target"],
    subsets: list[Tensor],
    settings: TranslationSettings,
) -> Float[Tensor, "m d_target"]:
    """`target_half` of anchors whose directions and subsets are known."""
    precision, exponent = precision_of(target_anchors), 1 - settings.alpha
    return half(unit, subsets, precision=precision, exponent=exponent, ridge=settings.ridge) / len(subsets)


def half(
    unit: Float[Tensor, "k d"], subsets: list[Tensor], *, precision: float, exponent: float, ridge: float
) -> Float[Tensor, "m d"]:
    """`(XXᵀ + λI)^(−exponent) X` of each subset of centred and normalised anchors, one under the other."""
    frames = [Frame.of(unit[rows], precision=precision) for rows in subsets]
    return torch.cat([frame.u @ (frame.gains(exponent=exponent, ridge=ridge)[:, None] * frame.vh) for frame in frames])
