"""Native agreement: how often a stitched model answers as the native one, as an `evaluate` metric."""

from typing import Any

import evaluate

from hf_relstitch.metrics import checking

DESCRIPTION = """Share of inputs on which the stitched model (predictions) answers as the native one (native): no labels
are needed."""


class NativeAgreement(checking.CheckedMetric):
    """Compute the share of answers that equal those of the native model."""

    def _info(self) -> evaluate.MetricInfo:
        return checking.information(DESCRIPTION, predictions="classes", native="classes")

    def _compute(self, predictions: Any, native: Any) -> dict[str, float]:
        same = checking.classes(predictions) == checking.classes(native)
        return {"native_agreement": float(same.double().mean())}
