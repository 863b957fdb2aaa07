"""What is matched of a head's logits: offsets of classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from hf_relstitch import AnchorSet, Head
from hf_relstitch.core.head_outputs import apply_head, matching_offsets, matching_temperature, probabilities
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.model.stitching import stitch


def drawn(rows: int, classes: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_offsets_that_were_taken_away_are_found() -> None:
    logits, taken = drawn(50_000, 4, seed=0), torch.tensor([1.5, -0.5, 0.0, -1.0], dtype=torch.float64)
    assert_close(matching_offsets(logits - taken, logits.softmax(-1)), taken, rtol=0, atol=1e-3)


@given(st.integers(20, 200), st.integers(2, 8), st.integers(0, 99))
@settings(deadline=None, max_examples=30, derandomize=True, database=None)
def test_each_class_gets_its_share(rows: int, classes: int, seed: int) -> None:
    """The shares are those of the target, but for the one row of which nothing is known."""
    logits, target = drawn(rows, classes, seed), drawn(rows, classes, seed + 100).softmax(-1)
    offsets = matching_offsets(logits, target)
    assert_close((logits + offsets).softmax(-1).mean(0), target.mean(0), rtol=0, atol=2 / rows)


def test_a_class_that_no_anchor_has_keeps_a_bounded_offset() -> None:
    logits = drawn(200, 3, seed=1)
    target = logits.softmax(-1)
    logits[:, 2], target[:, 2] = -12, 0
    offsets = matching_offsets(logits, target)
    assert abs(float(offsets[2])) < 1


@pytest.mark.parametrize("rows", [5, 500])
def test_the_order_of_rows_and_classes_changes_nothing(rows: int) -> None:
    logits, target = drawn(rows, 5, seed=2), drawn(rows, 5, seed=3).softmax(-1)
    order, classes = torch.randperm(rows), torch.tensor([3, 1, 4, 0, 2])
    shuffled = matching_offsets(logits[order][:, classes], target[order][:, classes])
    assert_close(shuffled, matching_offsets(logits, target)[classes], rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_logits_that_say_nothing_keep_their_order_in_float32(scale: float) -> None:
    """The best temperature of answers that are worse than chance would be infinite, and all answers then alike."""
    logits = scale * drawn(60, 5, seed=8)
    temperature = matching_temperature(logits, (-logits / scale).softmax(-1))
    given = (logits / temperature).float().softmax(-1)
    assert float(given.max()) < 0.21
    assert torch.equal(given.argsort(-1), logits.argsort(-1))


def test_a_stitch_gives_each_class_the_share_that_its_head_does() -> None:
    """The source knows little of what the skewed head looks at, so that most inputs would go to the frequent class."""
    target = drawn(300, 12, seed=4)
    source = target @ drawn(12, 10, seed=5) + 4 * drawn(300, 10, seed=6)
    layer = torch.nn.Linear(12, 3)
    with torch.no_grad():
        layer.weight.copy_(drawn(3, 12, seed=7))
        layer.bias.copy_(torch.tensor([4.0, 0.0, -2.0]))
    head = Head(layer, {0: "often", 1: "sometimes", 2: "seldom"})
    sides = [
        AnchorSet(latents.float(), torch.arange(300), Provenance(name, "1", "none"))
        for name, latents in (("source", source), ("target", target))
    ]
    made = stitch(*sides, head, source=sides[0].provenance)
    own = probabilities(apply_head(layer, target)).mean(0)
    assert_close(made.held_out_logits.softmax(-1).mean(0), own, rtol=0, atol=2 / 300)
    assert made.readout is not None
    others = made.logits(source, head=layer) * made.temperature
    assert_close(others.softmax(-1).mean(0), own, rtol=0, atol=0.02)
