"""Calibration error by hand, and where it has to be zero."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_relstitch.core.calibration import BINS, reliability

examples = settings(deadline=None, max_examples=25, derandomize=True)


def two_classes(confidence: torch.Tensor) -> torch.Tensor:
    return torch.stack([confidence, 1 - confidence], dim=-1)


def test_by_hand() -> None:
    probabilities = two_classes(torch.tensor([0.9, 0.92, 0.6], dtype=torch.float64))
    found = reliability(probabilities, torch.tensor([0, 1, 0]), bins=10)
    assert found.count.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1, 1]  # a bin holds its upper edge
    assert found.expected_error == pytest.approx((0.4 + 0.1 + 0.92) / 3)


@examples
@given(st.lists(st.tuples(st.integers(6, 10), st.integers(1, 5)), min_size=1, max_size=8))
def test_zero_where_every_confidence_is_right_as_often_as_it_says(groups: list[tuple[int, int]]) -> None:
    sure = [tenths / 10 for tenths, times in groups for _ in range(10 * times)]
    confidence = torch.tensor(sure, dtype=torch.float64)
    wrong = [int(place % 10 >= tenths) for tenths, times in groups for place in range(10 * times)]
    assert reliability(two_classes(confidence), torch.tensor(wrong)).expected_error == pytest.approx(0, abs=1e-9)


@examples
@given(st.integers(0, 2**16))
def test_never_below_the_gap_of_the_means_nor_above_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(50, 4, generator=generator).double().softmax(-1)
    labels = torch.randint(4, (50,), generator=generator)
    found = reliability(probabilities, labels)
    gap = abs(probabilities.amax(-1).mean() - (probabilities.argmax(-1) == labels).double().mean())
    assert gap - 1e-12 <= found.expected_error <= 1
    assert found.count.sum() == 50
    assert len(found.count) == BINS
