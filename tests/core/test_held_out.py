import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, hamming_loss, label_ranking_average_precision_score
from sklearn.metrics.pairwise import cosine_similarity, paired_cosine_distances
from torch.testing import assert_close

from hf_relstitch.core.cross_validation import _assign_splits
from hf_relstitch.core.measures import agreement, mean_cosine, mean_reciprocal_rank, translate_held_out
from hf_relstitch.core.relative import BLOCK
from hf_relstitch.core.translation import TranslationSettings, fit, fit_translation

examples = settings(deadline=None, max_examples=25, derandomize=True)
seeds = st.integers(0, 2**16)
EXACT = TranslationSettings(alpha=0.5, ridge=0.0)


def gaussian(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.fixture
def isometric_pair():
    """Anchors of two spaces that are the same up to an isometry, a scale and a shift."""
    source = gaussian(0, 60, 6)
    return source, 3 * source @ torch.linalg.qr(gaussian(1, 6, 6)).Q + gaussian(2, 6)


@pytest.fixture
def unrelated_pair():
    """Anchors of two spaces that have nothing in common."""
    return gaussian(0, 200, 6), gaussian(1, 200, 6)


@pytest.mark.parametrize("corrupted", range(12))
def test_a_row_is_translated_without_its_own_target(corrupted):
    source, target = gaussian(0, 12, 3), gaussian(1, 12, 4)
    clean = translate_held_out(source, target, settings=TranslationSettings(), splits=4)
    target[corrupted] += 1000
    dirty = translate_held_out(source, target, settings=TranslationSettings(), splits=4)
    assert torch.equal(dirty[corrupted], clean[corrupted])


def test_a_row_is_translated_without_the_targets_of_its_group():
    source, target, groups = gaussian(0, 24, 3), gaussian(1, 24, 4), torch.arange(24) % 8
    clean = translate_held_out(source, target, settings=TranslationSettings(), splits=4, groups=groups)
    target[5] += 1000
    dirty = translate_held_out(source, target, settings=TranslationSettings(), splits=4, groups=groups)
    assert torch.equal(dirty[groups == 5], clean[groups == 5])
    assert not torch.equal(dirty, clean)


def test_a_row_is_translated_with_the_targets_of_the_other_splits():
    source, target = gaussian(0, 12, 3), gaussian(1, 12, 4)
    clean = translate_held_out(source, target, settings=TranslationSettings(), splits=4)
    target[5] += 1000
    dirty = translate_held_out(source, target, settings=TranslationSettings(), splits=4)
    changed = (dirty - clean).abs().amax(-1) > 1
    assert changed.sum() == 9


def test_as_many_splits_as_rows_leave_one_out():
    source, target = gaussian(0, 9, 3), gaussian(1, 9, 4)
    expected = []
    for row in range(9):
        others = [other for other in range(9) if other != row]
        translation = fit_translation(source[others], target[others], settings=EXACT)
        expected.append(translation(source[row : row + 1]))
    assert_close(translate_held_out(source, target, settings=EXACT, splits=9), torch.cat(expected))


@pytest.mark.parametrize(
    "chosen",
    [{"alpha": 0.0, "ridge": 0.0}, {"norm": "mean"}, {"pruning": 0.6, "subspaces": 2}, {"gamma": 1.0}],
    ids=["inversion", "mean", "pruned", "kernel"],
)
def test_held_out_translations_are_those_of_fits(chosen):
    """Made of each split's decomposition, and the same as fitting without the split."""
    source, target = gaussian(0, 60, 6), gaussian(1, 60, 5)
    how = TranslationSettings(output_scale=1.2, seed=3, **chosen)
    split_of = _assign_splits(60, seed=3)
    expected = torch.empty_like(target)
    for split in range(5):
        others = split_of != split
        expected[~others] = fit(source[others], target[others], settings=how)(source[~others])
    assert_close(translate_held_out(source, target, settings=how), expected, rtol=0, atol=1e-9)


def test_held_out_translations_are_computed_in_float64():
    source, target = gaussian(0, 20, 3).half(), gaussian(1, 20, 4).half()
    translated = translate_held_out(source, target, settings=TranslationSettings())
    in_float64 = translate_held_out(source.double(), target.double(), settings=TranslationSettings())
    assert_close(translated, in_float64, rtol=0, atol=1e-12)


def test_a_seed_gives_the_same_splits_whatever_the_global_generator():
    drawn = []
    for global_seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            drawn.append(
                translate_held_out(gaussian(0, 20, 3), gaussian(1, 20, 4), settings=TranslationSettings(seed=7))
            )
    assert torch.equal(*drawn)


def test_another_seed_gives_other_splits():
    drawn = [
        translate_held_out(gaussian(0, 20, 3), gaussian(1, 20, 4), settings=TranslationSettings(seed=seed))
        for seed in (7, 8)
    ]
    assert (drawn[0] - drawn[1]).abs().max() > 0.01


def test_splits_do_not_follow_the_order_of_the_rows():
    source, target = gaussian(0, 40, 3), gaussian(1, 40, 4)
    clean = translate_held_out(source, target, settings=TranslationSettings(), splits=4)
    target[0] += 1000
    dirty = translate_held_out(source, target, settings=TranslationSettings(), splits=4)
    unchanged = [row for row in range(40) if torch.equal(dirty[row], clean[row])]
    assert unchanged != list(range(10))


def test_an_isometric_pair_has_mean_cosine_one(isometric_pair):
    source, target = isometric_pair
    translated = translate_held_out(source, target, settings=EXACT)
    assert mean_cosine(translated, target, centre=target.mean(0)) == pytest.approx(1, abs=1e-12)


def test_an_isometric_pair_has_reciprocal_rank_one(isometric_pair):
    source, target = isometric_pair
    translated = translate_held_out(source, target, settings=EXACT)
    assert mean_reciprocal_rank(translated, target, centre=target.mean(0)) == 1


def test_an_isometric_pair_agrees_always(isometric_pair):
    source, target = isometric_pair
    translated = translate_held_out(source, target, settings=EXACT)
    head = gaussian(3, 6, 5)
    assert agreement(translated @ head, target @ head) == 1


def test_an_unrelated_pair_has_mean_cosine_near_zero(unrelated_pair):
    source, target = unrelated_pair
    translated = translate_held_out(source, target, settings=EXACT)
    assert abs(mean_cosine(translated, target, centre=target.mean(0))) < 0.1


def test_an_unrelated_pair_has_reciprocal_rank_near_chance(unrelated_pair):
    source, target = unrelated_pair
    translated = translate_held_out(source, target, settings=EXACT)
    chance = sum(1 / rank for rank in range(1, 201)) / 200
    assert mean_reciprocal_rank(translated, target, centre=target.mean(0)) == pytest.approx(chance, abs=0.03)


def test_an_unrelated_pair_agrees_near_chance(unrelated_pair):
    source, target = unrelated_pair
    translated = translate_held_out(source, target, settings=EXACT)
    head = torch.eye(6).double()
    assert agreement(translated @ head, target @ head) == pytest.approx(1 / 6, abs=0.08)


def test_mean_cosine_of_hand_worked_latents():
    centre = torch.tensor([1.0, 1]).double()
    target = centre + torch.tensor([[2.0, 0], [0, 3], [-1, 0]]).double()
    translated = centre + torch.tensor([[5.0, 0], [4, 0], [-3, 4]]).double()
    assert mean_cosine(translated, target, centre=centre) == pytest.approx((1 + 0 + 0.6) / 3)


@examples
@given(seed=seeds, n=st.integers(1, 20), d=st.integers(1, 8))
def test_mean_cosine_equals_that_of_scikit_learn(seed, n, d):
    translated, target, centre = gaussian(seed, n, d), gaussian(seed + 1, n, d), gaussian(seed + 2, d)
    expected = 1 - paired_cosine_distances(translated - centre, target - centre).mean()
    assert mean_cosine(translated, target, centre=centre) == pytest.approx(expected, abs=1e-12)


def test_reciprocal_rank_of_hand_worked_latents():
    centre = torch.tensor([1.0, 1]).double()
    target = centre + torch.tensor([[2.0, 0], [0, 9], [-1, 0]]).double()  # east, north, west
    translated = centre + torch.tensor([[5.0, 1], [2, 1], [3, 1]]).double()  # all nearest east, then north
    assert mean_reciprocal_rank(translated, target, centre=centre) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


@examples
@given(seed=seeds, n=st.integers(2, 20), d=st.integers(2, 8))
def test_reciprocal_rank_equals_that_of_scikit_learn(seed, n, d):
    translated, target, centre = gaussian(seed, n, d), gaussian(seed + 1, n, d), gaussian(seed + 2, d)
    similarity = cosine_similarity(translated - centre, target - centre)
    expected = label_ranking_average_precision_score(np.eye(n), similarity)  # one true label a row: 1/rank
    assert mean_reciprocal_rank(translated, target, centre=centre) == pytest.approx(expected)


def test_reciprocal_rank_of_more_rows_than_are_compared_at_a_time():
    translated, target, centre = gaussian(0, BLOCK + 77, 3), gaussian(1, BLOCK + 77, 3), gaussian(2, 3)
    translated[BLOCK:] = target[BLOCK:]
    similarity = cosine_similarity(translated - centre, target - centre)
    expected = label_ranking_average_precision_score(np.eye(len(target)), similarity)
    assert mean_reciprocal_rank(translated, target, centre=centre) == pytest.approx(expected)


def test_equal_targets_share_the_worst_of_their_ranks():
    target = torch.tensor([[1.0, 0], [1, 0], [0, 1]]).double()
    assert mean_reciprocal_rank(target, target, centre=torch.zeros(2).double()) == pytest.approx(
        (1 / 2 + 1 / 2 + 1) / 3
    )


def test_agreement_of_hand_worked_logits():
    translated = torch.tensor([[3.0, 1, -5], [0, 2, 1], [0, 1, 2], [9, 8, 7]])
    target = torch.tensor([[1.0, 0, -1], [0, 1, 2], [-9, -2, -1], [7, 6, 8]])
    assert agreement(translated, target) == 0.5


def test_agreement_of_hand_worked_multi_label_logits():
    translated = torch.tensor([[3.0, 1, -5, 2], [-1, 2, 0, -3]])
    target = torch.tensor([[1.0, -1, -2, 9], [-2, 1, -4, 1]])
    assert agreement(translated, target, multi_label=True) == 6 / 8


@examples
@given(seed=seeds, n=st.integers(1, 20), classes=st.integers(2, 6))
def test_agreement_equals_the_accuracy_of_scikit_learn(seed, n, classes):
    translated, target = gaussian(seed, n, classes), gaussian(seed + 1, n, classes)
    expected = accuracy_score(target.numpy().argmax(1), translated.numpy().argmax(1))
    assert agreement(translated, target) == pytest.approx(expected)


@examples
@given(seed=seeds, n=st.integers(1, 20), classes=st.integers(2, 6))
def test_multi_label_agreement_equals_the_hamming_score_of_scikit_learn(seed, n, classes):
    translated, target = gaussian(seed, n, classes), gaussian(seed + 1, n, classes)
    expected = 1 - hamming_loss(target.numpy() > 0, translated.numpy() > 0)
    assert agreement(translated, target, multi_label=True) == pytest.approx(expected)
