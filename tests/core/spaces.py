"""Two spaces that are one up to an isometry, a scale and a shift, and a head on the second."""

import numpy as np
import torch
from torch import nn

CLASSES = 5


def gaussian(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def isometry(seed, width):
    return torch.linalg.qr(gaussian(seed, width, width)).Q


def clusters(seed=0, count=400, width=16):
    """Latents in five clusters, and the cluster of each."""
    labels = torch.arange(count) % CLASSES
    return 2 * gaussian(seed, CLASSES, width)[labels] + gaussian(seed + 1, count, width), labels


def linear(weight, bias):
    layer = nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def nearest_mean_head(latents, labels):
    """The head whose largest logit is that of the nearest cluster mean."""
    means = torch.stack([latents[labels == label].mean(0) for label in range(CLASSES)])
    return linear(means, -(means**2).sum(1) / 2)
