"""Latents of two encoders, for tests that move an index from one to the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

D_OLD, D_NEW, ROWS = 12, 20, 300


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw normal numbers, always alike."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


OLD = randn(ROWS, D_OLD, seed=1)
NEW = OLD @ randn(D_OLD, D_NEW, seed=2) + 0.1 * randn(ROWS, D_NEW, seed=3)


@contextmanager
def stopped(model: nn.Module, *, at: int) -> Iterator[list[int]]:
    """Stop what runs in the block, as Ctrl-C does, at so many batches of a translation; yield the batches' sizes."""
    sizes: list[int] = []

    def stop(_: Any, given: Any) -> None:
        sizes.append(len(given[0]))
        if len(sizes) == at:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield sizes
    finally:
        hook.remove()
