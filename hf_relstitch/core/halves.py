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
    anchors = to_working(source_anchors)
    centre, unit = anchors.mean(0), directions(anchors, centre=anchors.mean(0))
    target = to_working(target_anchors)
    target_unit = directions(target, centre=target.mean(0))
    projections = []
    for rows in anchor_subsets(target_unit, settings):
        frame = Frame.of(unit[rows], precision=precision_of(source_anchors))
        projections.append((frame.vh.T * frame.gains(exponent=settings.alpha, ridge=settings.ridge)) @ frame.u.T)
    projection = torch.cat(projections, 1)
    inputs, latents = anchors - centre, to_working(x) - centre
    if settings.scale == "mean":
        inputs, latents = unit, directions(to_working(x), centre=centre)
    translated = inputs @ projection @ target_half(target_anchors, settings=settings)
    return latents @ projection * (settings.stretch * mean_norm(target - target.mean(0)) / mean_norm(translated))


@torch.no_grad()
def target_half(
    target_anchors: Float[Tensor, "k d_target"], *, settings: TranslationSettings
) -> Float[Tensor, "m d_target"]:
    """What takes relative latents to target latents: `(YYᵀ + λ_y I)^(−(1−α)) Y`, the mean of it over subspaces."""
    anchors = to_working(target_anchors)
    unit = directions(anchors, centre=anchors.mean(0))
    subsets = anchor_subsets(unit, settings)
    inversions = []
    for rows in subsets:
        frame = Frame.of(unit[rows], precision=precision_of(target_anchors))
        gains = frame.gains(exponent=1 - settings.alpha, ridge=settings.ridge)
        inversions.append(frame.u @ (gains[:, None] * frame.vh))
    return torch.cat(inversions) / len(subsets)
