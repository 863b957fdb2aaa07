"""Scores of a cell: metrics of `evaluate`, and calibration."""

from functools import cache
from typing import Any

from torch import Tensor

from hf_relstitch.core.calibration import Reliability, reliability
from hf_relstitch.metrics import F1, Accuracy, NativeAgreement


def score(logits: Tensor, native_logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Score logits `(n, classes)` against labels and against the target's own logits on the same inputs.

    `reliability` has a row `[inputs, mean confidence, accuracy]` for each bin of confidence. `ece` sums it up.
    """
    answers, native = logits.argmax(-1), native_logits.argmax(-1)
    accuracy, _, agreement = metrics()
    return own_scores(logits, labels) | {
        "native_accuracy": accuracy.compute(predictions=native, references=labels)["accuracy"],
        "agreement": agreement.compute(predictions=answers, native=native)["native_agreement"],
        "native_ece": calibration(native_logits, labels).expected_error,
    }


def own_scores(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Score logits by the scores that need only the logits and the labels."""
    answers = logits.argmax(-1)
    accuracy, f1, _ = metrics()
    bins = calibration(logits, labels)
    return {
        "accuracy": accuracy.compute(predictions=answers, references=labels)["accuracy"],
        "f1": f1.compute(predictions=answers, references=labels, average="macro")["f1"],
        "ece": bins.expected_error,
        "reliability": [
            list(row) for row in zip(bins.count.tolist(), bins.confidence.tolist(), bins.accuracy.tolist(), strict=True)
        ],
    }


@cache
def metrics() -> tuple[Any, ...]:
    """Load the metrics, once for all calls: accuracy, F1 and agreement with the target."""
    return Accuracy(keep_in_memory=True), F1(keep_in_memory=True), NativeAgreement(keep_in_memory=True)


def calibration(logits: Tensor, labels: Tensor) -> Reliability:
    """Measure confidence and accuracy by bins of confidence."""
    return reliability(logits.double().softmax(-1), labels)
