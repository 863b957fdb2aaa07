"""Angle preservation: whether two spaces have the same shape, as an `evaluate` metric."""

from typing import Any

import evaluate

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.measures import angle_correlation, linear_cka
from hf_relstitch.metrics import checking

DESCRIPTION = """Whether two spaces, of any widths, have the same shape: the correlation over pairs of inputs of their
cosines in the one and in the other, and linear CKA. 1 is the same up to an isometry, a scale and a shift."""


class AnglePreservation(checking.CheckedMetric):
    """Compute the correlation of pairwise cosines, and linear CKA, of two spaces' latents of the same inputs."""

    def _info(self) -> evaluate.MetricInfo:
        return checking.information(DESCRIPTION, predictions="latents", references="latents")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        x = checking.matrix(predictions, name="predictions")
        y = checking.matrix(references, name="references")
        if len(x) < 3:
            raise StitchError(f"angle_preservation of {len(x)} inputs: it compares pairs, give 3 or more")
        for name, each in (("predictions", x), ("references", y)):
            if not (each != each[0]).any():
                raise StitchError(f"{name} are all the same latent: give those of different inputs")
        return {"cosine_correlation": angle_correlation(x, y), "cka": linear_cka(x, y)}
