import pytest
import torch
from spaces import clusters, gaussian, isometry
from torch.testing import assert_close

from hf_relstitch.core.anchor_sampling import _squared_distances, choose_anchors
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import directions


def draw(count, total, *, seed=0):
    """The rows that k-means starts from."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]


def test_medoids_are_the_middles_of_clusters():
    """Where each cluster has one of the rows that k-means starts from, its medoid is the row nearest to its mean."""
    x, labels = clusters()
    starts = (draw(5, len(x), seed=seed) for seed in range(200))
    seed = next(seed for seed, rows in enumerate(starts) if len(set(labels[rows].tolist())) == 5)
    rows = choose_anchors(x, 5, seed=seed)
    unit = directions(x, centre=x.mean(0))
    for row, label in zip(rows.tolist(), labels[rows].tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        middle = unit[members].mean(0)
        assert row == members[(unit[members] - middle).norm(dim=1).argmin()]
    assert sorted(labels[rows].tolist()) == [0, 1, 2, 3, 4]


def test_medoids_spread_further_than_random_rows():
    x = gaussian(0, 500, 8)

    def farthest(rows):
        return float(
            torch.cdist(x / x.norm(dim=1, keepdim=True), (x / x.norm(dim=1, keepdim=True))[rows]).amin(1).mean()
        )

    assert farthest(choose_anchors(x, 40)) < 0.95 * farthest(draw(40, len(x)))


def test_as_many_anchors_as_inputs_are_all_of_them():
    assert sorted(choose_anchors(gaussian(0, 30, 8), 30).tolist()) == list(range(30))


def test_no_row_is_taken_twice_though_inputs_repeat():
    x = gaussian(0, 10, 4).repeat(6, 1)
    assert len(set(choose_anchors(x, 40).tolist())) == 40


def test_the_seed_decides():
    x = gaussian(0, 200, 8)
    first, again, other = (choose_anchors(x, 20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_isometry_a_scale_and_a_shift_choose_the_same_medoids():
    x = gaussian(0, 200, 8)
    assert torch.equal(choose_anchors(3 * x @ isometry(1, 8) + 5, 20), choose_anchors(x, 20))


def test_squared_distances_are_cdists():
    x, y = gaussian(0, 5, 3), gaussian(1, 4, 3)
    assert_close(_squared_distances(x, y), torch.cdist(x, y) ** 2)


def test_more_anchors_than_inputs_are_refused():
    with pytest.raises(StitchError, match="31 anchors of 30 inputs"):
        choose_anchors(gaussian(0, 30, 8), 31)


@pytest.mark.parametrize("count", [0, -5])
def test_no_anchors_are_refused(count):
    with pytest.raises(StitchError, match="ask for one at least"):
        choose_anchors(gaussian(0, 20, 4), count)
