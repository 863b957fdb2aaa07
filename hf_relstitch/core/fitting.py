"""From settings to the translation that they ask for: one matrix, or a sharpened one."""

from jaxtyping import Float
from torch import Tensor

from hf_relstitch.core.inversion import Frame, Translation, TranslationSettings, fit_translation
from hf_relstitch.core.sharpening import SharpenedTranslation, fit_sharpened


def fit(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    *,
    settings: TranslationSettings,
    frames: tuple[Frame, Frame] | None = None,
) -> Translation | SharpenedTranslation:
    """The translation that `settings` make of anchors paired row for row; see `fit_translation`, `fit_sharpened`.

    `frames` are both sides' `Frame.of_anchors`, where they are at hand.

    Raises:
        StitchError: anchors that cannot be paired, or that carry nothing.
    """
    make = fit_sharpened if settings.sharpness else fit_translation
    return make(source_anchors, target_anchors, settings=settings, frames=frames)


def empty_translation(
    num_anchors: int, d_source: int, d_target: int, *, settings: TranslationSettings
) -> Translation | SharpenedTranslation:
    """A translation of the right kind and shapes, for a checkpoint to fill."""
    if settings.sharpness:
        return SharpenedTranslation(num_anchors, d_source, d_target, sharpness=settings.sharpness, scale=settings.scale)
    return Translation(d_source, d_target, scale=settings.scale)
