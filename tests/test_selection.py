"""Choosing, sharpening and foretelling, on spaces whose answers can be derived."""

import pytest
import torch

from hf_relstitch.core.anchor_choice import choose_anchors
from hf_relstitch.core.confidence import answer_probability, matching_temperature, mean_confidence, temperature_for
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.fidelity import held_out_translations
from hf_relstitch.core.foretelling import answers_used, foretell, verdict
from hf_relstitch.core.inversion import Frame, TranslationSettings, fit_translation
from hf_relstitch.core.relative import directions
from hf_relstitch.core.fitting import fit
from hf_relstitch.core.folds import quick_frame
from hf_relstitch.core.selection import choose_settings
from hf_relstitch.core.sharpening import SharpenedTranslation, fit_sharpened, sharpen


@pytest.fixture
def spaces():
    """Clustered latents and the same under an isometry, a scale and a shift, with a head on the second."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(5, 16, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(5, (400,), generator=generator)
    x = means[labels] + torch.randn(400, 16, generator=generator, dtype=torch.float64)
    isometry, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64))
    y = 3 * x @ isometry + 5
    head = torch.nn.Linear(16, 5, dtype=torch.float64).requires_grad_(False)
    head.weight.copy_(means @ isometry / 3)
    head.bias.copy_(-(means @ isometry / 3) @ torch.full((16,), 5.0, dtype=torch.float64) - (means**2).sum(1) / 2)
    return x, y, labels, head


def test_a_sharpness_near_zero_is_the_linear_family(spaces):
    x, y, *_ = spaces
    settings = {"alpha": 0.7, "ridge": 0.0}
    linear = fit_translation(x, y, settings=TranslationSettings(**settings))
    nearly = fit_sharpened(x[:12], y[:12], settings=TranslationSettings(**settings, sharpness=1e-7))
    exact = fit_translation(x[:12], y[:12], settings=TranslationSettings(**settings))
    torch.testing.assert_close(nearly(x[:12]), exact(x[:12]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear(x), y)


def test_sharpening_keeps_none_and_one():
    torch.testing.assert_close(sharpen(torch.tensor([[0.0, 1.0]]), sharpness=2.0), torch.tensor([[0.0, 1.0]]))
    assert sharpen(torch.tensor([[0.5]]), sharpness=2.0) < 0.5


def test_a_sharpened_ridge_regression_is_scikit_learns(spaces):
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge")
    x, y, *_ = spaces
    made = fit_sharpened(x, y, settings=TranslationSettings(alpha=1.0, ridge=0.1, sharpness=0.5, scale="mean"))
    unit, targets = directions(x, centre=x.mean(0)), directions(y, centre=y.mean(0))
    gram = sharpen(unit @ unit.T, sharpness=0.5)
    oracle = kernel_ridge.KernelRidge(alpha=0.1, kernel="precomputed").fit(gram.numpy(), targets.numpy())
    expected = directions(torch.tensor(oracle.predict(gram.numpy())), centre=torch.zeros(16))
    torch.testing.assert_close(directions(made(x), centre=y.mean(0)), expected, rtol=1e-6, atol=1e-6)


def test_an_exact_relation_is_found(spaces):
    x, y, _, head = spaces
    for prefer in ("linear", "accuracy"):
        choice = choose_settings(x[:200], y[:200], head=head, prefer=prefer)
        logits = head(fit(x[:200], y[:200], settings=choice.settings)(x[200:]))
        assert (logits.argmax(-1) == head(y[200:]).argmax(-1)).double().mean() >= 0.98
        assert choice.criterion == "head"


def test_the_scale_of_a_head_does_not_matter(spaces):
    x, y, _, head = spaces
    y = y + 3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    loud = torch.nn.Linear(16, 5, dtype=torch.float64).requires_grad_(False)
    loud.weight.copy_(head.weight * 100)
    loud.bias.copy_(head.bias * 100)
    assert choose_settings(x, y, head=head).settings == choose_settings(x, y, head=loud).settings


def test_any_callable_head_is_judged_as_its_linear_layer(spaces):
    x, y, _, head = spaces
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    linear, free = choose_settings(x, y, head=head), choose_settings(x, y, head=lambda latents: 1 * head(latents))
    assert linear.settings == free.settings
    assert linear.score == pytest.approx(free.score)


def test_without_a_head_the_cosine_decides(spaces):
    x, y, *_ = spaces
    choice = choose_settings(x, y)
    assert choice.criterion == "cosine"
    assert choice.score == pytest.approx(1, abs=1e-3)


def test_a_weak_head_is_not_imitated():
    """A head on noisy latents: the choice is right more often than the head, and near the best member."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    means, labels = draw(6, 12) * 1.5, torch.randint(6, (1500,), generator=generator)
    clean = means[labels] + 0.7 * draw(1500, 12)
    x, y = clean @ draw(12, 32), (clean + 2.5 * draw(1500, 12)) @ draw(12, 24) + 0.3 * draw(1500, 24)
    ridge = y[:200].T @ y[:200] + 50 * torch.eye(24, dtype=y.dtype)
    head = torch.nn.Linear(24, 6, dtype=torch.float64).requires_grad_(False)
    head.weight.copy_(torch.linalg.solve(ridge, y[:200].T @ torch.eye(6, dtype=y.dtype)[labels[:200]]).T * 8)
    head.bias.zero_()
    right = lambda logits: float((logits.argmax(-1) == labels[600:]).double().mean())  # noqa: E731
    made = lambda settings: right(head(fit(x[200:600], y[200:600], settings=settings)(x[600:])))  # noqa: E731
    choice = choose_settings(x[200:600], y[200:600], head=head)
    own, best = right(head(y[600:])), max(made(candidate.settings) for candidate in choice.candidates)
    assert made(choice.settings) > own + 0.1
    assert made(choice.settings) > best - 0.03


def test_a_quick_frame_spans_what_a_frame_does(spaces):
    x, *_ = spaces
    for unit in (directions(x, centre=x.mean(0)), directions(x[:10], centre=x.mean(0))):
        quick, slow = quick_frame(unit, precision=1e-7), Frame.of(unit, precision=1e-7)
        torch.testing.assert_close(quick.singular_values, slow.singular_values)
        torch.testing.assert_close((quick.u * quick.singular_values) @ quick.vh, unit)


def test_a_temperature_gives_the_confidence_asked_for():
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert mean_confidence(logits / temperature_for(logits, confidence=0.8)) == pytest.approx(0.8)


def test_a_temperature_undoes_a_scale():
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert matching_temperature(3 * logits, logits) == pytest.approx(3)
    assert matching_temperature(3 * logits, logits, multi_label=True) == pytest.approx(3)


def test_the_probability_of_an_answer_by_hand():
    logits, true = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 2.0]])
    assert answer_probability(logits, true) == pytest.approx(0.5)
    assert answer_probability(logits, true, multi_label=True) == pytest.approx(0.5)


def test_a_foretelling_by_hand():
    true = torch.eye(4).repeat(25, 1)
    told = foretell(true, true)
    assert (told.agreement, told.chance) == (1.0, 0.25)
    assert told.low == pytest.approx(100 / (100 + 1.96**2))  # Wilson's interval at 100 of 100
    assert told.high == pytest.approx(1)


def judged(x, y, head, **known):
    settings = choose_settings(x, y, head=head).settings
    told = foretell(head(held_out_translations(x, y, settings=settings)), head(y))
    return verdict(
        told, num_anchors=len(x), rank=16, answers_used=answers_used(head(y)), coverage=known.get("coverage")
    )


def test_verdicts(spaces):
    x, y, _, head = spaces
    assert judged(x, y, head).grade == "good"
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert judged(x, y[shuffled], head).grade == "do not use"
    unrelated = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    assert judged(unrelated, y, head).grade == "do not use"
    assert judged(x, y, head, coverage=0.1).grade == "do not use"


def test_a_sharpened_translation_comes_back_from_its_state(spaces):
    x, y, *_ = spaces
    made = fit_sharpened(x, y, settings=TranslationSettings(sharpness=1.0))
    again = SharpenedTranslation(400, 16, 16, sharpness=1.0, scale="carry").double()
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(again(x), made(x), rtol=0, atol=0)


def test_spaces_that_are_one_already_are_left_as_they_are():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(60, 48, generator=generator, dtype=torch.float64)
    y = x + 0.1 * torch.randn(60, 48, generator=generator, dtype=torch.float64)
    head = torch.nn.Linear(48, 6, dtype=torch.float64)
    choice = choose_settings(x, y, head=head)
    assert choice.settings.identity
    torch.testing.assert_close(fit(x, y, settings=choice.settings)(x), x, rtol=0, atol=0)


def test_anchors_are_the_middles_of_clusters(spaces):
    x, _, labels, _ = spaces
    rows = choose_anchors(x, 5, seed=0)
    assert sorted(labels[rows].tolist()) == [0, 1, 2, 3, 4]


def test_as_many_anchors_as_inputs_are_all_of_them(spaces):
    x, *_ = spaces
    for method in ("medoids", "random"):
        assert sorted(choose_anchors(x[:30], 30, method=method, seed=0).tolist()) == list(range(30))


def test_more_anchors_than_inputs_are_refused(spaces):
    x, *_ = spaces
    with pytest.raises(StitchError, match="31 anchors of 30 inputs"):
        choose_anchors(x[:30], 31)
