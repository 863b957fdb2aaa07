"""What a cell is scored by."""

from typing import Any

import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

BINS = 10


def score(logits: Tensor, native_logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Scores of logits `(n, classes)` against labels and against the target's own logits on the same inputs.

    `reliability` has a row `[inputs, mean confidence, accuracy]` for each of ten equal bins of confidence.
    """
    answers, native = logits.argmax(-1), native_logits.argmax(-1)
    bins = reliability(logits, labels)
    return {
        "accuracy": float(accuracy_score(labels, answers)),
        "f1": float(f1_score(labels, answers, average="macro")),
        "native_accuracy": float(accuracy_score(labels, native)),
        "agreement": float(accuracy_score(native, answers)),
        "ece": calibration_error(bins),
        "native_ece": calibration_error(reliability(native_logits, labels)),
        "reliability": bins,
    }


def reliability(logits: Tensor, labels: Tensor) -> list[list[float]]:
    """Inputs, mean confidence and accuracy in each bin of confidence (Guo et al. 2017); zeros for an empty one."""
    sure, answers = logits.double().softmax(-1).max(-1)
    which = (sure * BINS).long().clamp_max(BINS - 1)
    right = (answers == labels).double()
    sums = [torch.zeros(BINS, dtype=torch.float64).index_add(0, which, each) for each in (sure, right)]
    counts = which.bincount(minlength=BINS)
    means = [each / counts.clamp_min(1) for each in sums]
    return [list(row) for row in zip(counts.tolist(), *(each.tolist() for each in means), strict=True)]


def calibration_error(bins: list[list[float]]) -> float:
    """Expected calibration error of a reliability table."""
    return sum(count * abs(sure - right) for count, sure, right in bins) / sum(count for count, *_ in bins)
