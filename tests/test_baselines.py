"""What others would do, against scikit-learn's own answers."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import nn

from hf_relstitch.benchmarks.baselines import PEERS, PENALTIES, fit_logistic, logistic_head


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ridge_is_scikit_learns_at_the_targets_mean_norm() -> None:
    x, q = 3 * randn(200, 8) + 1, 3 * randn(50, 8, seed=1) + 1
    y = x @ randn(8, 12, seed=2) + randn(200, 12, seed=3) + 5
    translated = PEERS["ridge"](x, y, q)
    centre, target_centre = x.mean(0), y.mean(0)
    unit, asked = (nn.functional.normalize(side - centre, dim=1).numpy() for side in (x, q))
    away = torch.tensor(RidgeCV(alphas=PENALTIES).fit(unit, y.numpy()).predict(asked)) - target_centre
    found = translated - target_centre
    assert nn.functional.cosine_similarity(found, away).min() > 1 - 1e-12
    assert found.norm(dim=1).mean() == pytest.approx(float((y - target_centre).norm(dim=1).mean()))


def spread(x: torch.Tensor, answers: torch.Tensor) -> dict[str, np.ndarray]:
    """Soft answers as scikit-learn takes them: each row once for each class, weighted by its probability."""
    classes = answers.shape[1]
    return {
        "X": x.repeat_interleave(classes, 0).numpy(),
        "y": np.tile(np.arange(classes), len(x)),
        "sample_weight": answers.reshape(-1).numpy(),
    }


@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
def test_a_distilled_head_is_scikit_learns_on_weighted_rows(strength: float) -> None:
    x, q = randn(150, 6), randn(60, 6, seed=1)
    answers = (2 * x @ randn(6, 4, seed=2)).softmax(-1)
    ours = logistic_head(x, answers, strength=strength, tolerance=1e-8)(q).softmax(-1)
    model = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8).fit(**spread(x, answers))
    assert np.abs(ours.numpy() - model.predict_proba(q.numpy())).max() < 1e-3


def test_a_fresh_head_is_scikit_learns_on_labels() -> None:
    x, q, labels = randn(150, 6), randn(60, 6, seed=1), torch.arange(150) % 3
    x[:, 0] += labels
    head = logistic_head(x, nn.functional.one_hot(labels).double(), strength=1.0, tolerance=1e-8)
    model = LogisticRegression(max_iter=10_000, tol=1e-8).fit(x.numpy(), labels.numpy())
    assert np.abs(head(q).softmax(-1).numpy() - model.predict_proba(q.numpy())).max() < 1e-3


def test_a_penalty_is_chosen_that_fits_what_is_held_out() -> None:
    x, q, weight = randn(300, 6), randn(1000, 6, seed=1), randn(6, 4, seed=2)
    taught = fit_logistic(x, (8 * nn.functional.normalize(x, dim=1) @ weight).softmax(-1))
    noise = fit_logistic(x, nn.functional.one_hot(torch.randint(4, (300,), generator=torch.Generator())).double())
    assert (taught(q).argmax(1) == (q @ weight).argmax(1)).double().mean() > 0.95
    assert noise(q).softmax(-1).max() < 0.6
    assert (noise(q).argmax(1) == (q @ weight).argmax(1)).double().mean() < 0.5
