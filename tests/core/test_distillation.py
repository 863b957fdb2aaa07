import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from spaces import clusters, gaussian, isometry, nearest_mean_head
from torch.testing import assert_close

from hf_relstitch.core.distillation import PENALTIES, SPLITS, fit_readout


@pytest.fixture
def distilled():
    """Latents of a source, and what a head answers to noisy latents of a target."""
    x, labels = clusters(count=200)
    y = x @ isometry(5, 16) + 2 * gaussian(6, 200, 16)
    answers = (nearest_mean_head(y, labels)(y) / 20).softmax(-1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))  # clusters repeat every five rows
    return 10 * x[order] + 3, answers[order]


def logistic(latents, answers, penalty):
    """scikit-learn's logistic regression on soft answers: each row once for each class, weighted by its probability."""
    count, classes = answers.shape
    model = LogisticRegression(C=1 / penalty, max_iter=5000, tol=1e-10)
    rows = np.repeat(latents.numpy(), classes, axis=0)
    model.fit(rows, np.tile(np.arange(classes), count), sample_weight=answers.numpy().ravel())
    return torch.tensor(model.coef_), torch.tensor(model.intercept_)


def test_the_fit_is_scikit_learns(distilled):
    x, answers = distilled
    readout = fit_readout(x, answers)
    scale = (x - x.mean(0)).square().sum(1).mean().sqrt()
    weight, bias = logistic((x - x.mean(0)) / scale, answers, readout.penalty)
    expected = (x - x.mean(0)) / scale @ weight.T + bias
    found = x @ readout.weight.T + readout.bias
    assert_close(found.softmax(-1), expected.softmax(-1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("groups", [None, torch.arange(200) * 7 % 23])
def test_held_out_logits_are_those_of_fits_without_the_rows(distilled, groups):
    x, answers = distilled
    readout = fit_readout(x, answers, groups=groups)
    position = torch.arange(len(x)) if groups is None else groups
    unit = (x - x.mean(0)) / (x - x.mean(0)).square().sum(1).mean().sqrt()
    for split in range(SPLITS):
        held_out = position % SPLITS == split
        weight, bias = logistic(unit[~held_out], answers[~held_out], readout.penalty)
        expected = unit[held_out] @ weight.T + bias
        assert_close(readout.held_out[held_out].softmax(-1), expected.softmax(-1), rtol=0, atol=2e-3)


def test_the_penalty_has_the_least_held_out_loss(distilled):
    x, answers = distilled
    unit = (x - x.mean(0)) / (x - x.mean(0)).square().sum(1).mean().sqrt()
    losses = {}
    for penalty in PENALTIES:
        held_out_loss = 0.0
        for split in range(SPLITS):
            rows = torch.arange(len(x)) % SPLITS == split
            weight, bias = logistic(unit[~rows], answers[~rows], penalty)
            held_out_loss -= float((answers[rows] * (unit[rows] @ weight.T + bias).log_softmax(-1)).sum())
        losses[penalty] = held_out_loss
    assert fit_readout(x, answers).penalty == min(losses, key=losses.get)


def test_sizes_and_shifts_of_latents_change_nothing(distilled):
    x, answers = distilled
    plain, moved = fit_readout(x, answers), fit_readout(x / 1000 + 4, answers)
    assert_close(moved.held_out, plain.held_out, rtol=1e-6, atol=1e-6)
    assert moved.penalty == plain.penalty


def test_fewer_anchors_than_dimensions_and_classes_without_answers():
    x, answers = gaussian(0, 40, 64), torch.zeros(40, 5, dtype=torch.float64)
    answers[torch.arange(40), torch.arange(40) % 2] = 1
    readout = fit_readout(x, answers)
    assert readout.weight.shape == (5, 64)
    logits = x @ readout.weight.T + readout.bias
    assert logits.isfinite().all()
    assert (logits.argmax(1) < 2).all()
