"""Heads trained with scikit-learn, as linear layers, and with AdamW, as chains of layers."""

from collections.abc import Sequence

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional


def trained_head(latents: torch.Tensor, classes: Sequence[int], *, C: float = 1.0) -> nn.Linear:
    """A logistic regression from latents `(n, d)` to their classes, 0 to the largest, three or more."""
    fitted = LogisticRegression(max_iter=1000, C=C).fit(latents.numpy(), classes)
    assert fitted.classes_.tolist() == list(range(max(classes) + 1))
    layer = nn.Linear(latents.shape[1], len(fitted.classes_))
    layer.load_state_dict({"weight": torch.tensor(fitted.coef_), "bias": torch.tensor(fitted.intercept_)})
    return layer


def trained_chain(chain: nn.Module, latents: torch.Tensor, classes: Sequence[int], *, epochs: int = 30) -> nn.Module:
    """A classifier of latents `(n, d)`, trained in place as a fine-tuned model's head is."""
    torch.manual_seed(0)
    labels = torch.tensor(classes)
    optimiser = torch.optim.AdamW(chain.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(latents)).split(64):
            optimiser.zero_grad()
            functional.cross_entropy(chain(latents[rows]), labels[rows]).backward()
            optimiser.step()
    return chain.eval()
