"""Farthest-point pruning of anchors by |cosine|, and the subspaces it gives (arXiv 2406.15057, sec. 3)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_relstitch.core.errors import StitchError


def farthest_point_sampling(
    unit_anchors: Float[Tensor, "k d"], *, threshold: float, first: int
) -> Int[Tensor, " kept"]:
    """Rows kept when anchors are added, the least similar first, until all others are too similar.

    Starting from row `first`, the next row is the one whose largest |cosine| to the rows kept so far is the
    smallest; it ends when that |cosine| exceeds `threshold`. Rows come in the order in which they were added.
    """
    kept = [first]
    nearest = abs_cosines(unit_anchors, first)
    nearest[first] = torch.inf
    while len(kept) < len(unit_anchors):
        row = int(nearest.argmin())
        if nearest[row] > threshold:
            break
        kept.append(row)
        nearest = torch.maximum(nearest, abs_cosines(unit_anchors, row))
        nearest[row] = torch.inf
    return torch.tensor(kept, device=unit_anchors.device)


def abs_cosines(unit_anchors: Float[Tensor, "k d"], row: int) -> Float[Tensor, " k"]:
    """|cosine| of every anchor to one of them, without what rounding puts above 1."""
    return (unit_anchors @ unit_anchors[row]).abs().clamp(max=1)


def farthest_point_subsets(
    unit_anchors: Float[Tensor, "k d"], *, threshold: float, subspaces: int, seed: int
) -> list[Int[Tensor, " kept"]]:
    """`subspaces` prunings of the same anchors, each from a different first row drawn from `seed`.

    Raises:
        StitchError: more subspaces than anchors were asked for.
    """
    if subspaces > len(unit_anchors):
        raise StitchError(
            f"{subspaces} subspaces of {len(unit_anchors)} anchors: each starts from its own anchor, ask for fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    firsts = torch.randperm(len(unit_anchors), generator=generator)[:subspaces]
    return [farthest_point_sampling(unit_anchors, threshold=threshold, first=int(first)) for first in firsts]
