"""Latents of two encoders, for tests that move an index from one to the other."""

import torch

D_OLD, D_NEW, ROWS = 12, 20, 300


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw normal numbers, always alike."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


OLD = randn(ROWS, D_OLD, seed=1)
NEW = OLD @ randn(D_OLD, D_NEW, seed=2) + 0.1 * randn(ROWS, D_NEW, seed=3)
