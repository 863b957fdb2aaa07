import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from spaces import CLASSES, clusters, gaussian, isometry, linear, nearest_mean_head
from torch.testing import assert_close

from hf_relstitch.core.expected_agreement import (
    AgreementEstimate,
    _share_near,
    anchor_coverage,
    answers_used,
    estimate_agreement,
    nearest,
    scale_invariance,
    verdict,
)
from hf_relstitch.core.head_outputs import (
    answers_of,
    apply_head,
    matching_temperature,
    output_scale_for_values,
    values_explained,
)
from hf_relstitch.core.measures import translate_held_out
from hf_relstitch.core.relative import BLOCK
from hf_relstitch.core.selection import choose_settings


@pytest.fixture
def logits():
    return gaussian(0, 300, 7)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0, 30.0])
def test_values_are_stretched_as_a_regression_would(noise):
    """Of latents with added noise, `1/(1 + noise²)` of each is what they tell of the true ones."""
    target, head = gaussian(0, 4000, 6), torch.nn.Linear(6, 2).double()
    translated = target + noise * gaussian(1, 4000, 6)
    stretch = output_scale_for_values(head, translated, target)
    assert stretch == pytest.approx(1 / (1 + noise**2), rel=0.08, abs=0.001)
    stretched = target.mean(0) + stretch * (translated - target.mean(0))
    explained, _ = values_explained(head, stretched, target)
    assert explained == pytest.approx(1 / (1 + noise**2), abs=0.04)
    share, error = values_explained(head, translated, target)
    assert (error > 0) == (noise > 0)
    assert error < 0.05 * max(1, noise**2)
    assert share == pytest.approx(1 - noise**2, rel=0.1, abs=0.05)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_temperature_undoes_a_scale(logits, multi_label):
    target = logits.sigmoid() if multi_label else logits.softmax(-1)
    assert matching_temperature(3 * logits, target, multi_label=multi_label) == pytest.approx(3)


def test_the_matching_temperature_has_the_least_cross_entropy(logits):
    answers = answers_of(logits + gaussian(1, 300, 7))
    best = matching_temperature(logits, answers)

    def loss(temperature):
        return float(-(answers * (logits / temperature).log_softmax(-1)).sum())

    assert loss(best) < min(loss(0.98 * best), loss(1.02 * best))


def test_a_head_is_applied_as_its_layer():
    head = torch.nn.Linear(4, 3)
    assert_close(apply_head(head, gaussian(0, 5, 4)).float(), head(gaussian(0, 5, 4).float()))
    bare = torch.nn.Linear(4, 3, bias=False)
    assert_close(apply_head(bare, gaussian(0, 5, 4)).float(), bare(gaussian(0, 5, 4).float()))


def test_an_estimate_by_hand():
    true = torch.eye(4).repeat(25, 1)
    told = estimate_agreement(true, true)
    assert told.agreement == pytest.approx(1)
    assert told.chance == 0.25
    share = 102 / 104  # by Agresti and Coull, 100 of 100
    assert told.low == pytest.approx(1 - 1.96 * (2 * share * (1 - share) / 100) ** 0.5)
    assert told.high == pytest.approx(1)


def test_copies_in_one_group_make_nothing_surer(logits):
    other = logits + gaussian(1, *logits.shape)
    once, groups = estimate_agreement(other, logits), torch.arange(len(logits)).repeat(5)
    copied = estimate_agreement(other.repeat(5, 1), logits.repeat(5, 1), groups=groups)
    assert vars(copied) == pytest.approx(vars(once))
    assert estimate_agreement(other.repeat(5, 1), logits.repeat(5, 1)).low > once.low
    assert vars(estimate_agreement(other, logits, groups=torch.arange(len(logits)))) == pytest.approx(vars(once))


def test_kappa_is_scikit_learns(logits):
    other = logits + gaussian(1, 300, 7)
    share = float((other.argmax(-1) == logits.argmax(-1)).double().mean())
    expected = cohen_kappa_score(other.argmax(-1), logits.argmax(-1))
    assert estimate_agreement(other, logits).kappa(share) == pytest.approx(expected)


def test_an_estimate_is_right_about_new_inputs_and_less_noisy_than_the_share():
    """A hundred draws of 150 anchors of the same noisy answers, against the share among very many."""
    true = 2 * gaussian(0, 50_000, 6)
    translated = true + 1.5 * gaussian(1, 50_000, 6)
    same = (translated.argmax(-1) == true.argmax(-1)).double()
    told = [estimate_agreement(translated[rows], true[rows]) for rows in torch.arange(15_000).chunk(100)]
    errors = torch.tensor([each.agreement for each in told]) - same.mean()
    shares = torch.stack([same[rows].mean() for rows in torch.arange(15_000).chunk(100)]) - same.mean()
    assert abs(errors.mean()) < 0.01
    assert errors.std() < 0.95 * shares.std()
    assert sum(each.low <= same.mean() <= each.high for each in told) >= 93


def test_answers_used_by_hand():
    assert answers_used(torch.eye(4).repeat(25, 1)) == pytest.approx(1)
    assert answers_used(torch.eye(4)[:1].repeat(25, 1)) == pytest.approx(1 / 4)
    assert answers_used(torch.eye(100)[:10]) == pytest.approx(1), "10 anchors cannot use more than 10 classes"
    assert answers_used(torch.eye(4), multi_label=True) == 1


def test_a_head_without_offset_at_the_centre_is_scale_invariant():
    latents = gaussian(0, 200, 8)
    latents -= latents.mean(0)
    weight = gaussian(1, 5, 8)
    kept = scale_invariance(linear(weight, torch.zeros(5, dtype=torch.float64)), latents)
    assert kept == {"0.1": 1.0, "0.3": 1.0, "1.0": 1.0, "3.0": 1.0, "10.0": 1.0}
    biased = scale_invariance(linear(weight, gaussian(2, 5)), latents)
    assert biased["1.0"] == 1.0
    assert biased["0.1"] < biased["0.3"] < 1.0


def test_coverage_tells_inputs_like_the_anchors_from_others():
    latents, _ = clusters(count=600)
    assert anchor_coverage(latents[300:], latents[:300]) > 0.9
    assert anchor_coverage(gaussian(7, 300, 16) - 8 * latents[:1], latents[:300]) < 0.1


def test_coverage_tells_inputs_between_the_anchors_by_their_angle():
    """Anchors along five lines through their centre; latents near it in other directions, as near as anchors are."""
    along = torch.arange(0.05, 20, 0.4, dtype=torch.float64)
    lines = torch.cat([sign * along[:, None] * torch.eye(16)[line].double() for line in range(5) for sign in (1, -1)])
    between = 0.2 * torch.nn.functional.normalize(gaussian(0, 200, 16), dim=1)
    assert _share_near(between, lines) == 1
    assert anchor_coverage(between, lines) < 0.1


def judged(x, y, head, **known):
    settings = choose_settings(x, y).settings
    told = estimate_agreement(head(translate_held_out(x, y, settings=settings)), head(y))
    return verdict(told, num_anchors=len(x), rank=16, answers_used=answers_used(head(y)), **known)


@pytest.fixture
def spaces():
    x, labels = clusters()
    y = 3 * x @ isometry(5, 16) + 5
    return x, y, nearest_mean_head(y, labels)


def test_a_good_model_is_called_good(spaces):
    assert judged(*spaces).grade == "good"


def test_a_shuffled_pairing_is_not_to_be_used(spaces):
    x, y, head = spaces
    found = judged(x, y[torch.randperm(len(y))], head)
    assert found.grade == "do not use"
    assert "same inputs in the same order" in found.remedy


def test_anchors_of_one_class_are_told_of(spaces):
    x, y, _ = spaces
    found = judged(x, y, lambda latents: latents.new_tensor([1.0, 0.0]).expand(len(latents), 2))
    assert found.grade == "do not use"
    assert found.remedy.startswith("anchors of more than one class")


def test_a_space_without_relation_is_not_to_be_used(spaces):
    x, y, head = spaces
    assert judged(gaussian(9, *x.shape), y, head).grade == "do not use"


def test_anchors_of_another_domain_are_not_to_be_used(spaces):
    x, _, _ = spaces
    coverage = anchor_coverage(x, gaussian(7, 300, 16) - 8 * x[:1])
    found = judged(*spaces, coverage=coverage)
    assert found.grade == "do not use"
    assert found.remedy == "take the anchors from the inputs that the model is for"


def test_anchors_of_few_classes_are_at_most_usable(spaces):
    x, y, head = spaces
    extra = linear(
        torch.cat([head.weight, torch.zeros(20, 16).double()]),
        torch.cat([head.bias, head.bias.min() - torch.ones(20).double() * 1e6]),
    )
    found = judged(x, y, extra)
    assert found.grade == "usable"
    assert "only 20% of its classes" in found.reason
    assert extra.out_features == 5 * CLASSES


def test_a_fair_model_is_usable(spaces):
    x, y, head = spaces
    fair = judged(x, y + 12 * gaussian(8, *y.shape), head)
    assert (fair.grade, fair.remedy) == ("usable", "more anchors")


def test_too_few_anchors_of_related_spaces_ask_for_more():
    told = AgreementEstimate(agreement=0.4, low=0.25, high=0.55, chance=0.2)
    few, many = (verdict(told, num_anchors=count, rank=30, answers_used=1.0) for count in (32, 60))
    assert (few.grade, few.remedy) == ("do not use", "more anchors")
    assert many.grade == "do not use"
    assert "another encoder" in many.remedy


def test_nearest_of_more_rows_than_are_compared_at_a_time():
    anchors = gaussian(0, BLOCK + 50, 3)
    distances = torch.cdist(anchors, anchors)
    assert_close(nearest(anchors, anchors[:9]), distances[:, :9].amin(1))
    assert_close(nearest(anchors, anchors, themselves=True), distances.fill_diagonal_(torch.inf).amin(1))
