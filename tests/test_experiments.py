"""The paper's experiments on spaces whose answers are known."""

import pytest
import torch
from spaces import clusters, gaussian, isometry, nearest_mean_head

from hf_relstitch.benchmarks import experiments
from hf_relstitch.core.errors import StitchError


def test_a_space_comes_back_whole_once_the_anchors_span_it() -> None:
    space, _ = clusters()
    rows = experiments.reconstruction(space, anchor_counts=[8, 64], prunings=[None, 0.5], seeds=[0, 1])
    assert [(row["num_anchors"], row["pruning"], row["seed"]) for row in rows[:4]] == [
        (8, None, 0),
        (8, 0.5, 0),
        (64, None, 0),
        (64, 0.5, 0),
    ]
    assert len(rows) == 8
    for row in rows:
        assert row["kept"] == row["num_anchors"] if row["pruning"] is None else row["kept"] < row["num_anchors"]
        assert row["rank"] <= min(16, row["kept"])
        if row["num_anchors"] == 64 and row["pruning"] is None:
            assert row["rank"] == 16
            assert row["relative_error"] < 1e-9
            assert row["cosine"] == pytest.approx(1)
        if row["num_anchors"] == 8:
            assert row["relative_error"] > 0.1


def test_angles_are_those_of_an_isometry_and_of_nothing_else() -> None:
    space, _ = clusters()
    turned, unrelated = 3 * space @ isometry(5, 16) + 1, gaussian(6, 400, 12)
    rows = experiments.angle_preservation({"a": space, "turned": turned, "unrelated": unrelated})
    assert [(row["a"], row["b"]) for row in rows] == [("a", "turned"), ("a", "unrelated"), ("turned", "unrelated")]
    assert (rows[0]["cosine_correlation"], rows[0]["cka"]) == (pytest.approx(1), pytest.approx(1))
    assert rows[1]["cka"] < 0.2
    assert abs(rows[1]["cosine_correlation"]) < 0.2


def test_norms_of_a_sphere_do_not_spread() -> None:
    directions = torch.nn.functional.normalize(gaussian(0, 500, 6), dim=-1)
    sphere = torch.cat([directions, -directions])
    even, spread = experiments.scale_distribution({"sphere": 7 * sphere, "two": torch.cat([sphere, 3 * sphere])})
    assert (even["mean"], even["spread"], even["quantile_0.05"]) == (
        pytest.approx(7),
        pytest.approx(0, abs=1e-9),
        pytest.approx(1),
    )
    assert (spread["mean"], spread["spread"]) == (pytest.approx(2), pytest.approx(0.5, rel=1e-3))
    assert (spread["quantile_0.05"], spread["quantile_0.95"]) == (pytest.approx(0.5), pytest.approx(1.5))


def test_heads_keep_all_answers_at_their_own_scale() -> None:
    space, labels = clusters()
    rows = experiments.head_scale_invariance({"means": nearest_mean_head(space, labels)}, {"means": space})
    kept = {row["factor"]: row["agreement"] for row in rows}
    assert kept[1.0] == 1
    assert kept[0.1] < kept[1.0]


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(StitchError, match="40 anchors of 40 latents"):
        experiments.reconstruction(gaussian(0, 40, 4), anchor_counts=[40])
    with pytest.raises(StitchError, match="a 40, b 39"):
        experiments.angle_preservation({"a": gaussian(0, 40, 4), "b": gaussian(0, 39, 4)})
