"""Split a translation where it meets the relative space: each part needs one side's anchors only."""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_relstitch.core.decomposition import Frame, kernel, kernel_frame
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import directions, precision_of, to_working
from hf_relstitch.core.translation import Side, TranslationSettings, draw_subsets, mean_norm


@torch.no_grad()
def encode_relative(
    x: Float[Tensor, "n d_source"],
    *,
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    settings: TranslationSettings,
) -> Float[Tensor, "n m"]:
    """Return relative latents, `r = c·(x − μ_x) Xᵀ (XXᵀ + λ_x I)^(−α)`, one column for each anchor.

    The coordinates of pruned subspaces stand side by side. With a kernel they are `c·‖x − μ_x‖ κ(x̂ Xᵀ) (G + λ_x
    I)^(−α)`. The scale c is all that they hold of the target.

    Raises:
        StitchError: the settings leave latents unchanged, which is not relative to anchors.
    """
    if settings.identity:
        raise StitchError(
            "the translation leaves latents as they are and is not relative to anchors: stitch with alpha and ridge "
            "given"
        )
    anchors, target = to_working(source_anchors), to_working(target_anchors)
    centre, target_centre = anchors.mean(0), target.mean(0)
    unit, target_unit = directions(anchors, centre=centre), directions(target, centre=target_centre)
    subsets = draw_subsets(target_unit, settings)
    if settings.gamma:
        frames = [kernel_frame(unit, gamma=settings.gamma, landmarks=settings.landmarks)]
    else:
        precision = precision_of(source_anchors)
        frames = [Frame.from_directions(unit[rows], precision=precision) for rows in subsets]
    powers = _powers(frames, side="source", settings=settings).T
    marks = unit[: settings.landmarks]

    def project(latents: Tensor) -> Tensor:
        unit_latents = directions(latents, centre=centre)
        features = kernel(unit_latents @ marks.T, gamma=settings.gamma) if settings.gamma else unit_latents
        norms = torch.linalg.vector_norm(latents - centre, dim=-1, keepdim=True)
        return norms * (features @ powers) if settings.norm == "keep" else features @ powers

    translated = project(anchors) @ decode_relative(target_anchors, settings=settings)
    return project(to_working(x)) * (settings.output_scale * mean_norm(target - target_centre) / mean_norm(translated))


@torch.no_grad()
def decode_relative(
    target_anchors: Float[Tensor, "k d_target"], *, settings: TranslationSettings
) -> Float[Tensor, "m d_target"]:
    """Return the matrix from relative to target latents: `(YYᵀ + λ_y I)^(−β) Y`, its mean over subspaces."""
    anchors = to_working(target_anchors)
    unit = directions(anchors, centre=anchors.mean(0))
    subsets, precision = draw_subsets(unit, settings), precision_of(target_anchors)
    frames = [Frame.from_directions(unit[rows], precision=precision) for rows in subsets]
    return _powers(frames, side="target", settings=settings) / len(frames)


def _powers(frames: list[Frame], *, side: Side, settings: TranslationSettings) -> Float[Tensor, "m d"]:
    """Return `(XXᵀ + λI)^(−exponent) X` of each frame, one under the other."""
    return torch.cat(
        [frame.u @ (settings.gains(frame.singular_values, side=side)[:, None] * frame.vh) for frame in frames]
    )
