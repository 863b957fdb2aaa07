import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_relstitch.core.anchor_sampling import _farthest_point_sampling, farthest_point_subsets
from hf_relstitch.core.errors import StitchError

examples = settings(deadline=None, max_examples=25, derandomize=True)


def unit_rows(seed, k, d):
    rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((k, d)))
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


@st.composite
def prunings(draw):
    """Unit anchors, a threshold and a first row."""
    k = draw(st.integers(1, 25))
    anchors = unit_rows(draw(st.integers(0, 2**16)), k, draw(st.integers(2, 8)))
    return anchors, draw(st.floats(0.05, 1, exclude_max=True)), draw(st.integers(0, k - 1))


def slow_farthest_point_sampling(rows, *, threshold, first):
    """Word for word: add the row that is least similar to its most similar kept row, while it is not too similar."""
    kept = [first]
    while True:
        best, best_similarity = None, math.inf
        for row in range(len(rows)):
            if row in kept:
                continue
            similarity = max(abs(sum(a * b for a, b in zip(rows[row], rows[other], strict=True))) for other in kept)
            if similarity < best_similarity:
                best, best_similarity = row, similarity
        if best is None or best_similarity > threshold:
            return kept
        kept.append(best)


def test_pruning_a_hand_worked_set():
    anchors = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0.8, 0.6]]).double()
    assert _farthest_point_sampling(anchors, threshold=0.9, first=0).tolist() == [0, 2, 3]


def test_opposite_anchors_count_as_similar():
    anchors = torch.tensor([[1.0, 0], [-1, 0], [0, 1]]).double()
    assert _farthest_point_sampling(anchors, threshold=0.5, first=0).tolist() == [0, 2]


def test_an_anchor_exactly_at_the_threshold_is_kept():
    anchors = torch.tensor([[1.0, 0], [0.5, 0.75**0.5]]).double()
    assert _farthest_point_sampling(anchors, threshold=0.5, first=0).tolist() == [0, 1]


def test_an_anchor_at_the_centre_is_kept_once():
    anchors = torch.tensor([[1.0, 0], [0, 0], [0.8, 0.6]]).double()
    assert _farthest_point_sampling(anchors, threshold=0.5, first=0).tolist() == [0, 1]


@examples
@given(prunings())
def test_pruning_equals_the_slow_version(pruning):
    anchors, threshold, first = pruning
    expected = slow_farthest_point_sampling(anchors.tolist(), threshold=threshold, first=first)
    assert _farthest_point_sampling(anchors, threshold=threshold, first=first).tolist() == expected


@examples
@given(prunings())
def test_no_two_kept_anchors_are_more_similar_than_the_threshold(pruning):
    anchors, threshold, first = pruning
    kept = anchors[_farthest_point_sampling(anchors, threshold=threshold, first=first)]
    similarity = np.abs(np.triu((kept @ kept.T).numpy(), k=1))
    assert similarity.max() <= threshold


@examples
@given(prunings())
def test_every_anchor_left_out_is_too_similar_to_one_kept(pruning):
    anchors, threshold, first = pruning
    kept = _farthest_point_sampling(anchors, threshold=threshold, first=first)
    left_out = [row for row in range(len(anchors)) if row not in kept.tolist()]
    nearest = [(anchors[kept] @ anchors[row]).abs().max().item() for row in left_out]
    assert min(nearest, default=math.inf) > threshold


@examples
@given(prunings())
def test_a_threshold_of_one_keeps_every_anchor_once(pruning):
    anchors, _, first = pruning
    kept = _farthest_point_sampling(anchors, threshold=1.0, first=first)
    assert sorted(kept.tolist()) == list(range(len(anchors)))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_threshold_of_one_keeps_equal_and_opposite_anchors(sign):
    rows = unit_rows(0, 200, 5)
    kept = [_farthest_point_sampling(torch.stack([row, sign * row]), threshold=1.0, first=0) for row in rows]
    assert min(map(len, kept)) == 2


def test_each_subspace_starts_from_its_own_anchor():
    subsets = farthest_point_subsets(unit_rows(0, 10, 4), threshold=0.5, subspaces=10, seed=3)
    assert sorted(int(subset[0]) for subset in subsets) == list(range(10))


def test_a_subspace_is_the_pruning_from_its_first_anchor():
    anchors = unit_rows(0, 20, 4)
    subsets = farthest_point_subsets(anchors, threshold=0.5, subspaces=6, seed=3)
    assert [subset.tolist() for subset in subsets] == [
        slow_farthest_point_sampling(anchors.tolist(), threshold=0.5, first=int(subset[0])) for subset in subsets
    ]


def test_subspaces_from_different_first_anchors_differ():
    subsets = farthest_point_subsets(unit_rows(0, 40, 4), threshold=0.5, subspaces=4, seed=0)
    assert len({frozenset(subset.tolist()) for subset in subsets}) == 4


def test_there_are_as_many_subspaces_as_asked_for():
    assert len(farthest_point_subsets(unit_rows(0, 40, 4), threshold=0.5, subspaces=7, seed=0)) == 7


def test_a_seed_gives_the_same_subspaces_whatever_the_global_generator():
    drawn = []
    for global_seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            subsets = farthest_point_subsets(unit_rows(0, 40, 4), threshold=0.5, subspaces=4, seed=5)
        drawn.append([subset.tolist() for subset in subsets])
    assert drawn[0] == drawn[1]


def test_another_seed_gives_other_subspaces():
    drawn = [farthest_point_subsets(unit_rows(0, 40, 4), threshold=0.5, subspaces=4, seed=seed) for seed in (5, 6)]
    assert [int(subset[0]) for subset in drawn[0]] != [int(subset[0]) for subset in drawn[1]]


def test_drawing_subspaces_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    farthest_point_subsets(unit_rows(0, 40, 4), threshold=0.5, subspaces=4, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_subspaces_than_anchors_are_refused():
    with pytest.raises(StitchError, match=r"6 subspaces of 5 anchors: .* ask for fewer"):
        farthest_point_subsets(unit_rows(0, 5, 4), threshold=0.5, subspaces=6, seed=0)
