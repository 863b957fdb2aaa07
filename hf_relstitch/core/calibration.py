"""Calibration: the gap between confidence and accuracy of a classifier."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 15
"""Bins of equal width from 0 to 1, as in Guo et al. 2017."""


@dataclass(frozen=True)
class Reliability:
    """Hold for each bin of confidence the count, mean confidence and accuracy of its answers; 0 in an empty bin."""

    count: Int[Tensor, " bins"]
    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]

    @property
    def expected_error(self) -> float:
        """Return the expected calibration error: the mean |accuracy − confidence|, each bin weighted by its answers."""
        return float((self.count * (self.accuracy - self.confidence).abs()).sum() / self.count.sum())


def reliability(
    probabilities: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], *, bins: int = BINS
) -> Reliability:
    """Return confidence and accuracy of the most probable class, by bins of confidence, for a reliability diagram."""
    confidence, answers = probabilities.max(-1)
    places = (confidence * bins).ceil().long().clamp(1, bins) - 1  # a bin holds its upper edge
    count = torch.bincount(places, minlength=bins)
    filled = count.clamp(min=1)
    sums = [
        torch.bincount(places, weights=each.to(confidence), minlength=bins) / filled
        for each in (confidence, answers == labels)
    ]
    return Reliability(count, sums[0], sums[1])
