from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from spaces import clusters, gaussian, isometry, linear, nearest_mean_head
from torch.testing import assert_close

from hf_relstitch.core import cross_validation as folds
from hf_relstitch.core.cross_validation import FOLDS, Fold, _assigned_folds
from hf_relstitch.core.decomposition import Frame, quick_frame
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.head_outputs import temperature_for
from hf_relstitch.core.measures import held_out_translations
from hf_relstitch.core.relative import directions
from hf_relstitch.core.scoring import _balanced
from hf_relstitch.core.selection import _settled, choose_settings, grid
from hf_relstitch.core.translation import TranslationSettings, fit, mean_norm

examples = settings(deadline=None, max_examples=5, derandomize=True)
seeds = st.integers(0, 2**16)
preferences = pytest.mark.parametrize("prefer", ["linear", "accuracy"])


@pytest.fixture
def noisy():
    """Anchors of two spaces that agree on the clusters and not on all else, and a head on the second."""
    x, labels = clusters(count=150)
    y = 3 * x @ isometry(5, 16) + 5 + 4 * gaussian(6, 150, 16)
    return x, y, nearest_mean_head(y, labels)


def scores(choice):
    return torch.tensor([candidate.score for candidate in choice.candidates], dtype=torch.float64)


@preferences
def test_an_exact_relation_is_found(prefer):
    x, labels = clusters()
    y = 3 * x @ isometry(5, 16) + 5
    head = nearest_mean_head(y, labels)
    choice = choose_settings(x[:200], y[:200], head=head, prefer=prefer)
    logits = head(fit(x[:200], y[:200], settings=choice.settings)(x[200:]))
    assert (logits.argmax(-1) == head(y[200:]).argmax(-1)).double().mean() >= 0.98
    assert choice.criterion == "head"


def test_anchors_that_come_in_order_get_the_scores_that_all_rows_of_a_fold_would_give(monkeypatch):
    """The norm of translated latents is told from some rows of a fold, and short ones may come first."""
    x, labels = clusters(count=1600)
    x = x * torch.linspace(0.2, 3, len(x))[:, None].double()
    y = x @ isometry(5, 16) + gaussian(6, len(x), 16)
    head = nearest_mean_head(y, labels)
    some = choose_settings(x, y, head=head)
    monkeypatch.setattr(folds, "NORM_ROWS", len(x))
    every = choose_settings(x, y, head=head)
    assert some.score == pytest.approx(every.score, abs=0.01)


@preferences
@given(seed=seeds)
@examples
def test_an_isometry_of_either_side_changes_nothing(prefer, seed):
    """Choice and scores know only angles and norms, so turning a space (and the head with it) leaves them."""
    x, labels = clusters(count=80)
    y = x @ gaussian(5, 16, 12) + 4 * gaussian(6, 80, 12)
    head = nearest_mean_head(y, labels)
    turn_x, turn_y = isometry(seed, 16), isometry(seed + 1, 12)
    turned_head = linear(head.weight @ turn_y, head.bias)
    plain = choose_settings(x, y, head=head, prefer=prefer)
    turned = choose_settings(x @ turn_x, y @ turn_y, head=turned_head, prefer=prefer)
    assert turned.score == pytest.approx(plain.score, abs=1e-6)
    assert_close(scores(turned), scores(plain), rtol=0, atol=1e-6)


@given(seed=seeds, size=st.floats(0.01, 100))
@examples
def test_a_scale_and_a_shift_of_the_source_change_nothing(seed, size):
    x, labels = clusters(count=80)
    y = x @ gaussian(5, 16, 12) + 4 * gaussian(6, 80, 12)
    head = nearest_mean_head(y, labels)
    plain, moved = (choose_settings(each, y, head=head) for each in (x, size * x + gaussian(seed, 16)))
    assert_close(scores(moved), scores(plain), rtol=0, atol=1e-6)


def test_another_pairing_changes_the_scores(noisy):
    """The negative of the two above."""
    x, y, head = noisy
    assert choose_settings(x[torch.randperm(150)], y, head=head).score < choose_settings(x, y, head=head).score - 0.1


@preferences
def test_the_scale_of_a_head_does_not_matter(noisy, prefer):
    x, y, head = noisy
    loud = linear(head.weight * 100, head.bias * 100)
    plain, louder = (choose_settings(x, y, head=each, prefer=prefer) for each in (head, loud))
    assert plain.settings == louder.settings
    assert_close(scores(louder), scores(plain))


@pytest.mark.parametrize("scale", ["carry", "mean"])
@pytest.mark.parametrize("judged_by", ["head", "cosine"])
def test_every_score_is_that_of_fits_on_the_other_folds(noisy, scale, judged_by):
    """Against the slow way: fit each candidate on four folds, bring the fifth to the target's mean norm, and look."""
    x, y, head = noisy
    head = head if judged_by == "head" else None
    fold_of = _assigned_folds(len(x), seed=3)
    choice = choose_settings(x, y, head=head, prefer="accuracy", scale=scale, seed=3)
    candidates = [candidate for candidate in choice.candidates if not candidate.settings.identity]
    assert {bool(each.settings.sharpness) for each in candidates} == {True, False}
    for candidate in candidates[::6]:
        translated, centres = torch.empty_like(y), torch.empty_like(y)
        for fold in range(FOLDS):
            held_out = fold_of == fold
            made = fit(x[~held_out], y[~held_out], settings=candidate.settings)(x[held_out])
            centres[held_out] = centre = y[~held_out].mean(0)
            length = mean_norm(y[~held_out] - centre) / mean_norm(made - centre)
            translated[held_out] = centre + (made - centre) * length
        expected = slow_scores(translated, y, centres, head)
        assert candidate.score == pytest.approx(float(expected.mean()), abs=1e-9), candidate


def slow_scores(made, true, centres, head):
    if head is None:
        return torch.cosine_similarity(made - centres, true - centres)
    answers = head(true).argmax(1)
    weights = 1 / answers.bincount()[answers].double()
    temperature = temperature_for(head(made), confidence=0.8)
    given = (head(made) / temperature).softmax(-1).gather(1, answers[:, None])[:, 0]
    return weights / weights.mean() * given


def test_balanced_weights_are_the_same_in_all_for_every_answer():
    answers = torch.tensor([4, 0, 4, 4, 0, 4, 7])
    weights = _balanced(answers, dtype=torch.float64)
    assert weights.mean() == pytest.approx(1)
    assert [float(weights[answers == answer].sum()) for answer in (0, 4, 7)] == pytest.approx([7 / 3] * 3)


def test_the_best_is_chosen_and_stands_first(noisy):
    x, y, head = noisy
    choice = choose_settings(x, y, head=head)
    assert choice.score == choice.candidates[0].score == max(each.score for each in choice.candidates)
    assert len(choice.candidates) == 1 + sum(map(len, grid("linear", TranslationSettings())))


def test_a_linear_map_has_to_beat_a_sharpened_one_beyond_doubt():
    linear_map, sharp = TranslationSettings(), TranslationSettings(sharpness=1.0)
    noise = gaussian(0, 100)
    noise = (noise - noise.mean()) / noise.std()
    for ahead, chosen in ((0.19, sharp), (0.21, linear_map)):
        scores = {linear_map: noise + ahead, sharp: torch.zeros(100, dtype=noise.dtype)}
        assert _settled(scores, [linear_map, sharp]) == chosen
    scores = {linear_map: noise, sharp: noise + 0.01}
    assert _settled(scores, [sharp, linear_map]) == sharp
    assert _settled(scores, [linear_map]) == linear_map


def test_the_stretch_gives_held_out_latents_the_norm_of_the_target():
    """With hardly more anchors than dimensions, a fit makes latents that it has not seen too short."""
    x = gaussian(0, 70, 40)
    y = x @ isometry(1, 40) + 0.5 * gaussian(2, 70, 40)
    chosen = choose_settings(x, y).settings
    lengths = [
        float((each - y.mean(0)).norm(dim=-1).mean())
        for each in (*(held_out_translations(x, y, settings=how) for how in (chosen, replace(chosen, stretch=1.0))), y)
    ]
    assert lengths[0] / lengths[2] == pytest.approx(1, abs=0.03)
    assert lengths[1] / lengths[2] < 0.96


@preferences
def test_a_linear_choice_never_sharpens(noisy, prefer):
    x, y, head = noisy
    sharp = {
        candidate.settings.sharpness > 0 for candidate in choose_settings(x, y, head=head, prefer=prefer).candidates
    }
    assert sharp == ({False} if prefer == "linear" else {False, True})


def test_without_a_head_or_with_one_logit_the_cosine_decides():
    x, _ = clusters(count=100)
    y = 3 * x @ isometry(5, 16) + 5
    for head in (None, torch.nn.Linear(16, 1)):
        choice = choose_settings(x, y, head=head)
        assert choice.criterion == "cosine"
        assert choice.score == pytest.approx(1, abs=1e-3)


def test_many_labels_are_judged_each_by_itself(noisy):
    x, y, head = noisy
    one, many = (choose_settings(x, y, head=head, multi_label=each) for each in (False, True))
    assert one.score != many.score
    assert 0.5 < many.score <= 1


def test_spaces_that_are_one_already_are_left_as_they_are():
    x = gaussian(0, 60, 48)
    y = x + 0.1 * gaussian(1, 60, 48)
    choice = choose_settings(x, y, head=linear(gaussian(2, 6, 48), gaussian(3, 6)))
    assert choice.settings.identity
    assert torch.equal(fit(x, y, settings=choice.settings)(x), x)
    turned = choose_settings(x, y @ isometry(4, 48), head=linear(gaussian(2, 6, 48) @ isometry(4, 48), gaussian(3, 6)))
    assert not turned.settings.identity


def test_a_weak_head_is_not_imitated():
    """A head on noisy latents: the choice is right more often than the head, and near the best member."""
    labels = torch.arange(1500) % 6
    clean = 1.5 * gaussian(0, 6, 12)[labels] + 0.7 * gaussian(1, 1500, 12)
    x = clean @ gaussian(2, 12, 32)
    y = (clean + 2.5 * gaussian(3, 1500, 12)) @ gaussian(4, 12, 24) + 0.3 * gaussian(5, 1500, 24)
    ridge = y[:200].T @ y[:200] + 50 * torch.eye(24, dtype=y.dtype)
    one_hot = torch.eye(6, dtype=y.dtype)[labels[:200]]
    head = linear(torch.linalg.solve(ridge, y[:200].T @ one_hot).T * 8, torch.zeros(6, dtype=y.dtype))

    def right(latents):
        return float((head(latents).argmax(-1) == labels[600:]).double().mean())

    choice = choose_settings(x[200:600], y[200:600], head=head)
    members = [fit(x[200:600], y[200:600], settings=each.settings) for each in choice.candidates]
    chosen = right(fit(x[200:600], y[200:600], settings=choice.settings)(x[600:]))
    assert chosen > right(y[600:]) + 0.1
    assert chosen > max(right(member(x[600:])) for member in members) - 0.03


def underfit():
    """Latents of six classes, some frequent, clear to the source, and a head that hardly leaves its bias."""
    labels = torch.multinomial(
        torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04]), 1600, True, generator=torch.Generator().manual_seed(0)
    )
    clean = 1.5 * gaussian(0, 6, 12)[labels] + 0.7 * gaussian(1, 1600, 12)
    x = clean @ gaussian(2, 12, 32)
    y = (clean + 2 * gaussian(3, 1600, 12)) @ gaussian(4, 12, 24) / 5
    fitted = LogisticRegression(C=0.01, max_iter=500).fit(y[:300].numpy(), labels[:300].numpy())
    head = linear(torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_))
    return x[300:700], y[300:700], head, x[700:], y[700:], labels[700:]


def test_a_head_that_hardly_leaves_its_bias_gets_longer_latents():
    """It is right more often so than with latents of the target's length, and than on its own latents."""
    x, y, head, query, own, labels = underfit()
    choice = choose_settings(x, y, head=head)

    def right(latents):
        return float((head(latents).argmax(-1) == labels).double().mean())

    assert choice.settings.stretch > 1.9
    long = right(fit(x, y, settings=choice.settings)(query))
    short = right(fit(x, y, settings=replace(choice.settings, stretch=1.0))(query))
    assert long > short + 0.05
    assert long > right(own) + 0.2


def held_out_length(x, y, settings):
    """Mean norm of held-out latents, relative to that of the target anchors."""
    translated = held_out_translations(x, y, settings=settings)
    return float((translated - y.mean(0)).norm(dim=-1).mean() / (y - y.mean(0)).norm(dim=-1).mean())


def test_longer_latents_have_to_be_better_beyond_doubt(noisy):
    """A head that is at home in its latents is as good on longer ones, but these are nobody's latents."""
    x, y, head = noisy
    assert held_out_length(x, y, choose_settings(x, y, head=head).settings) == pytest.approx(1, abs=0.05)


def test_a_head_for_many_labels_gets_no_longer_latents():
    x, y, head, *_ = underfit()
    lengths = [
        held_out_length(x, y, choose_settings(x, y, head=head, multi_label=each).settings) for each in (False, True)
    ]
    assert lengths[0] > 1.5
    assert lengths[1] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("count", [10, 400])
def test_a_quick_frame_spans_what_a_frame_does(count):
    x, _ = clusters(count=400)
    unit = directions(x[:count], centre=x[:count].mean(0))
    quick, slow = quick_frame(unit, precision=1e-7), Frame.of(unit, precision=1e-7)
    assert_close(quick.singular_values, slow.singular_values)
    assert_close((quick.u * quick.singular_values) @ quick.vh, unit)


def test_folds_are_even_and_every_anchor_is_in_one():
    assert _assigned_folds(23, seed=0).bincount().tolist() == [5, 5, 4, 5, 4]
    assert not torch.equal(_assigned_folds(23, seed=0), _assigned_folds(23, seed=1))


def test_a_fold_knows_nothing_of_what_it_holds_out():
    x, y = gaussian(0, 50, 6), gaussian(1, 50, 4)
    held_out = torch.arange(50) < 10
    known = Fold.of(x, y, held_out, scale="carry", precisions=(1e-7, 1e-7))
    y[:10] += 100
    other = Fold.of(x, y, held_out, scale="carry", precisions=(1e-7, 1e-7))
    for field in ("centre", "target_norm"):
        assert torch.equal(getattr(known, field), getattr(other, field))
    assert torch.equal(known.target.vh, other.target.vh)


def test_anchors_that_cannot_be_paired_are_refused(shapes_unchecked):
    with pytest.raises(StitchError, match="5 source anchors and 4 target anchors"):
        choose_settings(gaussian(0, 5, 3), gaussian(1, 4, 3))


def test_another_preference_is_refused(shapes_unchecked):
    with pytest.raises(StitchError, match="prefer is 'speed': it has to be 'linear' or 'accuracy'"):
        choose_settings(gaussian(0, 40, 3), gaussian(1, 40, 3), prefer="speed")


def test_a_head_that_is_not_finite_is_refused(noisy):
    x, y, head = noisy
    head.weight[0, 0] = torch.nan
    with pytest.raises(StitchError, match="logits that are not finite"):
        choose_settings(x, y, head=head)
