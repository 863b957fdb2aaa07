"""Stitching index: how much of the native accuracy a stitched model keeps, as an `evaluate` metric."""

from typing import Any

import evaluate

from hf_relstitch.core.errors import StitchError
from hf_relstitch.metrics import checking

DESCRIPTION = """Accuracy of the stitched model's answers (predictions) over that of the native model's (native), on
labels (references): 1 where the stitch costs nothing, above 1 where it helps."""


class StitchingIndex(checking.CheckedMetric):
    """Compute stitched over native accuracy, and both."""

    def _info(self) -> evaluate.MetricInfo:
        return checking.information(DESCRIPTION, predictions="classes", references="classes", native="classes")

    def _compute(self, predictions: Any, references: Any, native: Any) -> dict[str, float]:
        labels = checking.classes(references)
        stitched, own = (
            float((checking.classes(answers) == labels).double().mean()) for answers in (predictions, native)
        )
        if own == 0:
            raise StitchError(
                "the native model answers no input right, so there is no accuracy to keep: are the labels in the "
                "order of its classes?"
            )
        return {"stitching_index": stitched / own, "stitched_accuracy": stitched, "native_accuracy": own}
