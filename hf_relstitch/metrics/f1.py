"""F1, as `evaluate`'s own, which is on the Hub and so needs the network."""

from typing import Any

import evaluate
import torch
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.metrics import checking

DESCRIPTION = """F1 of each class, 2·right / (answered + labelled), averaged as in scikit-learn: `average` is binary
(class 1 alone, the default), macro, micro or weighted."""


class F1(checking.CheckedMetric):
    """Compute the harmonic mean of precision and recall."""

    def _info(self) -> evaluate.MetricInfo:
        citation = checking.SCIKIT_LEARN
        return checking.information(DESCRIPTION, citation=citation, predictions="classes", references="classes")

    def _compute(self, predictions: Any, references: Any, average: str = "binary") -> dict[str, float]:
        answers, labels = checking.classes(predictions), checking.classes(references)
        names, places = torch.cat([answers, labels]).unique(return_inverse=True)
        answered, labelled = (torch.bincount(each, minlength=len(names)).double() for each in places.chunk(2))
        right = torch.bincount(places[: len(answers)][answers == labels], minlength=len(names)).double()
        each = 2 * right / (answered + labelled)
        return {"f1": float(_averaged(each, names, right=right, labelled=labelled, average=average))}


def _averaged(each: Tensor, names: Tensor, *, right: Tensor, labelled: Tensor, average: str) -> Tensor:
    """The F1 of each class that occurs as one number.

    Raises:
        StitchError: an unknown average, or `binary` of classes other than 0 and 1.
    """
    if average == "binary":
        if not set(names.tolist()) <= {0, 1}:
            raise StitchError(f"average='binary' of {len(names)} classes, not 0 and 1: give macro, micro or weighted")
        return each[names == 1].sum()
    if average == "macro":
        return each.mean()
    if average == "micro":
        return right.sum() / labelled.sum()
    if average == "weighted":
        return (each * labelled).sum() / labelled.sum()
    raise StitchError(f"average is {average!r}: it has to be binary, macro, micro or weighted")
