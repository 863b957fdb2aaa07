from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.preprocessing import KernelCenterer
from spaces import clusters, gaussian, isometry
from torch.testing import assert_close

from hf_relstitch.core.cross_validation import Split, _assign_splits
from hf_relstitch.core.decomposition import Frame, kernel_frame, quick_frame
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import directions
from hf_relstitch.core.selection import GAMMA, _leave_one_out, choose_settings
from hf_relstitch.core.translation import fit, mean_norm

examples = settings(deadline=None, max_examples=5, derandomize=True)
seeds = st.integers(0, 2**16)
preferences = pytest.mark.parametrize("prefer", ["linear", "auto"])


@pytest.fixture
def noisy():
    """Anchors of two spaces that agree on the clusters and not on all else."""
    x, _ = clusters(count=90)
    return x, 3 * x @ isometry(5, 16) + 5 + 4 * gaussian(6, 90, 16)


def scores(choice):
    """The score of each candidate, by γ and λ."""
    return {(each.settings.gamma, each.settings.ridge): each.score for each in choice.candidates}


def kernel_predictions(gram, true, held, *, penalty):
    """Predict held-out rows by scikit-learn's kernel ridge regression with an intercept, which is taken off."""
    centre = KernelCenterer().fit(gram[~held][:, ~held].numpy())
    model = KernelRidge(alpha=penalty, kernel="precomputed")
    model.fit(centre.transform(gram[~held][:, ~held].numpy()), (true[~held] - true[~held].mean(0)).numpy())
    return torch.tensor(model.predict(centre.transform(gram[held][:, ~held].numpy())))


@pytest.mark.parametrize("gamma", [0.0, GAMMA])
@pytest.mark.parametrize("ridge", [1e-4, 0.1, 1.0])
def test_what_a_left_out_anchor_is_worth_is_what_a_fit_without_it_gives(gamma, ridge):
    """Rows about their mean are each minus the sum of the others, by which a fit may not know the one left out."""
    x, _ = clusters(count=40)
    x = torch.cat([x, gaussian(7, 40, 80)], 1)
    y = x @ gaussian(5, 96, 24) + gaussian(6, 40, 24)
    choice = choose_settings(x, y)
    frame = kernel_frame(directions(x, centre=x.mean(0)), gamma=GAMMA, landmarks=40) if gamma else Frame.from_anchors(x)
    settings = replace(choice.settings, gamma=gamma, ridge=ridge, output_scale=1.0)
    true = directions(y, centre=y.mean(0))
    found = _leave_one_out(frame, true, settings)
    refits = torch.stack(
        [
            fit(x[others], y[others], settings=settings)(x[~others])[0] - y[others].mean(0)
            for others in ~torch.eye(40, dtype=torch.bool)
        ]
    )
    of_found, of_refits = (torch.cosine_similarity(each, true).mean() for each in (found, refits))
    assert_close(of_found, of_refits, rtol=0, atol=0.02)
    assert torch.cosine_similarity(found, refits).mean() > 0.97


@preferences
def test_every_score_is_that_of_refits_without_the_anchor(noisy, prefer):
    """Against the slow way: scikit-learn's ridge and kernel ridge regression with an intercept, fitted for each anchor.

    The intercept is taken off again.
    """
    x, y = noisy
    unit, true = directions(x, centre=x.mean(0)), directions(y, centre=y.mean(0))
    gram = torch.exp(-GAMMA * torch.cdist(unit, unit).square()) - torch.exp(torch.tensor(-2 * GAMMA))
    eigenvalues = {0.0: Frame.from_anchors(x), GAMMA: kernel_frame(unit, gamma=GAMMA, landmarks=len(x))}
    for candidate in choose_settings(x, y, prefer=prefer).candidates[::3]:
        if candidate.settings.identity:
            continue
        gamma, ridge = candidate.settings.gamma, candidate.settings.ridge
        # Both sizes of penalty are relative to the mean eigenvalue of all anchors, held out or not.
        mean = float(eigenvalues[gamma].singular_values.square().mean())
        errors = []
        for row in range(len(x)):
            others = torch.arange(len(x)) != row
            if gamma:
                scale = 1 - float(torch.exp(torch.tensor(-2 * GAMMA)))
                predicted = kernel_predictions(gram, true, ~others, penalty=ridge * mean * scale)
            else:
                model = Ridge(alpha=ridge * mean).fit(unit[others].numpy(), true[others].numpy())
                predicted = torch.tensor(model.predict(unit[row : row + 1].numpy())) - true[others].mean(0)
            errors.append(float((predicted[0] * (1 - 1 / len(x)) - true[row]).square().sum()))
        assert candidate.score == pytest.approx(1 - sum(errors) / len(errors), abs=1e-6), candidate


@preferences
def test_held_out_anchors_are_those_of_refits_without_their_group(noisy, prefer):
    """The same slow way, for the member that was chosen, and once for each group."""
    x, y = noisy
    groups = torch.arange(90) * 7 % 11
    choice = choose_settings(x, y, prefer=prefer, groups=groups)
    gamma, ridge = choice.settings.gamma, choice.settings.ridge
    unit, true = directions(x, centre=x.mean(0)), directions(y, centre=y.mean(0))
    gram = torch.exp(-GAMMA * torch.cdist(unit, unit).square()) - torch.exp(torch.tensor(-2 * GAMMA))
    if not gamma:
        gram = unit @ unit.T
    frame = kernel_frame(unit, gamma=GAMMA, landmarks=len(x)) if gamma else Frame.from_anchors(x)
    scale = 1 - float(torch.exp(torch.tensor(-2 * GAMMA))) if gamma else 1
    penalty = ridge * float(frame.singular_values.square().mean()) * scale
    for group in range(11):
        held = groups == group
        expected = kernel_predictions(gram, true, held, penalty=penalty)
        found = choice.translated[held] - y[~held].mean(0)
        assert_close(found / found.norm(dim=1, keepdim=True), expected / expected.norm(dim=1, keepdim=True))
    alone = choose_settings(x, y, prefer=prefer)
    assert choice.candidates == alone.candidates
    assert not torch.allclose(choice.translated, alone.translated)


@preferences
def test_the_best_is_chosen_and_stands_first(noisy, prefer):
    choice = choose_settings(*noisy, prefer=prefer)
    assert choice.score == choice.candidates[0].score == max(each.score for each in choice.candidates)
    assert choice.criterion == "leave-one-out"
    assert {each.settings.gamma > 0 for each in choice.candidates} == ({False} if prefer == "linear" else {False, True})


def test_the_chosen_penalty_has_less_error_than_those_beside_it(noisy):
    """Candidates end where the error rises again, so a valley has been passed on both sides or at an end."""
    found = scores(choose_settings(*noisy, prefer="linear"))
    ridges = sorted(ridge for gamma, ridge in found if not gamma)
    assert len(ridges) > 2
    assert max(found, key=found.get)[1] != ridges[0]


@preferences
@given(seed=seeds)
@examples
def test_an_isometry_a_scale_and_a_shift_of_either_side_change_no_score(prefer, seed):
    x, _ = clusters(count=80)
    y = x @ gaussian(5, 16, 12) + 4 * gaussian(6, 80, 12)
    plain = choose_settings(x, y, prefer=prefer)
    moved_x = 7 * x @ isometry(seed, 16) + gaussian(seed + 1, 16)
    moved_y = 0.3 * y @ isometry(seed + 2, 12) + gaussian(seed + 3, 12)
    moved = choose_settings(moved_x, moved_y, prefer=prefer)
    assert scores(moved).keys() == scores(plain).keys()
    for name, score in scores(plain).items():
        assert scores(moved)[name] == pytest.approx(score, abs=1e-6)


def test_another_pairing_changes_the_scores(noisy):
    """The negative of the one above."""
    x, y = noisy
    assert choose_settings(x[torch.randperm(90)], y).score < choose_settings(x, y).score - 0.1


@preferences
def test_an_order_of_the_anchors_changes_nothing_but_rounding(noisy, prefer):
    x, y = noisy
    order = torch.randperm(90)
    plain, permuted = choose_settings(x, y, prefer=prefer), choose_settings(x[order], y[order], prefer=prefer)
    assert permuted.settings.ridge == plain.settings.ridge
    assert permuted.settings.gamma == plain.settings.gamma
    assert_close(permuted.translated, plain.translated[order], rtol=0, atol=1e-8)


@preferences
@pytest.mark.parametrize("norm", ["keep", "mean"])
def test_held_out_anchors_and_the_fit_have_the_norm_of_the_target(noisy, prefer, norm):
    """The fit gives anchors that it has seen a larger norm than those that it has not, so it is scaled by these."""
    x, y = noisy
    choice = choose_settings(x, y, prefer=prefer, norm=norm)
    centres = (y.sum(0) - y) / (len(y) - 1)  # without the anchor
    assert mean_norm(choice.translated - centres) / mean_norm(y - y.mean(0)) == pytest.approx(1)
    row = 7
    others = torch.arange(90) != row
    refitted = fit(x[others], y[others], settings=choice.settings)(x[row : row + 1])
    cosine = torch.cosine_similarity(refitted - y.mean(0), choice.translated[row] - y.mean(0))
    assert float(cosine) > 0.99
    assert choice.settings.output_scale >= 1


def test_a_curved_relation_asks_for_the_kernel():
    x = gaussian(0, 300, 6)
    y = torch.cat([x.square(), x[:, :2] * x[:, 2:4]], dim=1)
    assert choose_settings(x, y).settings.gamma == GAMMA
    assert choose_settings(x, y).score > choose_settings(x, y, prefer="linear").score + 0.2


def test_spaces_that_are_one_already_are_left_as_they_are():
    x = gaussian(0, 60, 48)
    y = x + 0.1 * gaussian(1, 60, 48)
    choice = choose_settings(x, y)
    assert choice.settings.identity
    assert torch.equal(fit(x, y, settings=choice.settings)(x), x)
    assert torch.equal(choice.translated, x)
    assert not choose_settings(x, y @ isometry(4, 48)).settings.identity


@pytest.mark.parametrize("gamma", [0.0, GAMMA])
def test_the_frame_that_a_choice_hands_on_gives_the_fit_that_is_made_without_it(noisy, gamma):
    x, y = noisy
    choice = choose_settings(x, y, prefer="auto")
    how = replace(choice.settings, gamma=gamma)
    frame = choose_settings(x, y, prefer="linear").source_frame if not gamma else None
    if frame is None:
        frame = kernel_frame(directions(x, centre=x.mean(0)), gamma=gamma, landmarks=how.landmarks)
    assert_close(fit(x, y, settings=how, frames=(frame, Frame.from_anchors(y)))(x), fit(x, y, settings=how)(x))


@pytest.mark.parametrize("count", [10, 400])
def test_a_quick_frame_spans_what_a_frame_does(count):
    x, _ = clusters(count=400)
    unit = directions(x[:count], centre=x[:count].mean(0))
    quick, slow = quick_frame(unit, precision=1e-7), Frame.from_directions(unit, precision=1e-7)
    assert_close(quick.singular_values, slow.singular_values)
    assert_close((quick.u * quick.singular_values) @ quick.vh, unit)


def test_splits_are_even_and_every_anchor_is_in_one():
    assert _assign_splits(23, seed=0).bincount().tolist() == [5, 5, 4, 5, 4]
    assert not torch.equal(_assign_splits(23, seed=0), _assign_splits(23, seed=1))


def test_a_split_knows_nothing_of_what_it_holds_out():
    x, y = gaussian(0, 50, 6), gaussian(1, 50, 4)
    held_out = torch.arange(50) < 10
    known = Split.from_rows(x, y, held_out, norm="keep", precisions=(1e-7, 1e-7))
    y[:10] += 100
    other = Split.from_rows(x, y, held_out, norm="keep", precisions=(1e-7, 1e-7))
    for field in ("centre", "target_norm"):
        assert torch.equal(getattr(known, field), getattr(other, field))
    assert torch.equal(known.target.vh, other.target.vh)


def test_anchors_that_cannot_be_paired_are_refused(shapes_unchecked):
    with pytest.raises(StitchError, match="5 source anchors and 4 target anchors"):
        choose_settings(gaussian(0, 5, 3), gaussian(1, 4, 3))


def test_another_preference_is_refused(shapes_unchecked):
    with pytest.raises(StitchError, match="prefer is 'speed': it has to be 'auto' or 'linear'"):
        choose_settings(gaussian(0, 40, 3), gaussian(1, 40, 3), prefer="speed")
