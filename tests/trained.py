"""Heads trained with scikit-learn, as linear layers."""

from collections.abc import Sequence

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn


def trained_head(latents: torch.Tensor, classes: Sequence[int], *, C: float = 1.0) -> nn.Linear:
    """A logistic regression from latents `(n, d)` to their classes, 0 to the largest, three or more."""
    fitted = LogisticRegression(max_iter=1000, C=C).fit(latents.numpy(), classes)
    assert fitted.classes_.tolist() == list(range(max(classes) + 1))
    layer = nn.Linear(latents.shape[1], len(fitted.classes_))
    layer.load_state_dict({"weight": torch.tensor(fitted.coef_), "bias": torch.tensor(fitted.intercept_)})
    return layer
