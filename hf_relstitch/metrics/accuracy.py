"""Accuracy, as `evaluate`'s own, which is on the Hub and so needs the network."""

from typing import Any

import evaluate

from hf_relstitch.metrics import checking


class Accuracy(checking.CheckedMetric):
    """Compute the share of answers that are right."""

    def _info(self) -> evaluate.MetricInfo:
        description, citation = "Share of answers that are right.", checking.SCIKIT_LEARN
        return checking.information(description, citation=citation, predictions="classes", references="classes")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        right = checking.classes(predictions) == checking.classes(references)
        return {"accuracy": float(right.double().mean())}
