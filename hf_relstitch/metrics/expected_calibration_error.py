"""Expected calibration error: whether a model is as often right as it is sure, as an `evaluate` metric."""

from typing import Any

import evaluate

from hf_relstitch.core.calibration import reliability
from hf_relstitch.core.errors import StitchError
from hf_relstitch.metrics import checking

DESCRIPTION = """Mean gap between confidence (the probability of the most probable class) and accuracy, over 15 bins of
confidence, each weighted by its answers (Guo et al. 2017); 0 is perfect."""

CITATION = """@inproceedings{guo2017calibration,
  title     = {On Calibration of Modern Neural Networks},
  author    = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {International Conference on Machine Learning},
  year      = {2017}
}"""

ROUNDING = 1e-3
"""How far from 1 probabilities may sum, for models in half precision."""


class ExpectedCalibrationError(checking.CheckedMetric):
    """Compute the mean gap between confidence and accuracy."""

    def _info(self) -> evaluate.MetricInfo:
        return checking.information(DESCRIPTION, citation=CITATION, probabilities="probabilities", references="classes")

    def _compute(self, probabilities: Any, references: Any) -> dict[str, float]:
        given, labels = checking.matrix(probabilities, name="probabilities"), checking.classes(references)
        if (given < 0).any() or ((given.sum(-1) - 1).abs() > ROUNDING * max(1, given.shape[1] ** 0.5)).any():
            raise StitchError("probabilities have to be 0 or more and sum to 1 in each row: give softmax of logits")
        if not 0 <= int(labels.min()) <= int(labels.max()) < given.shape[1]:
            raise StitchError(
                f"references go from {int(labels.min())} to {int(labels.max())} and there are {given.shape[1]} "
                "probabilities a row: give the number of each label's column"
            )
        return {"expected_calibration_error": reliability(given, labels).expected_error}
