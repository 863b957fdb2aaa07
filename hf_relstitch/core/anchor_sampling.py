"""Which inputs to take as anchors, where there are more than the budget: the middles of clusters."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import BLOCK, directions, to_working

ROUNDS = 10
MEANS = 64
"""Means that are compared with all points at a time."""


@torch.no_grad()
def choose_anchors(latents: Float[Tensor, "n d"], count: int, *, seed: int = 0) -> Int[Tensor, " count"]:
    """Return the rows of one encoder's latents to use as anchors; the encoder may belong to either side.

    It clusters the directions of the latents by k-means and takes the row nearest to each mean. Against
    random, farthest-point, herding, pivoted QR and leverage it was the best on average, and most so for few anchors.
    Its anchors lie further apart than other inputs do, so an agreement estimated from them is on the low side.

    Raises:
        StitchError: `count` is more than the inputs or less than one.
    """
    if count < 1:
        raise StitchError(f"{count} anchors are asked for: ask for one at least, and better for some hundreds")
    if count > len(latents):
        raise StitchError(f"{count} anchors of {len(latents)} inputs: ask for fewer, or give more inputs")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(latents), generator=generator).to(latents.device)
    points = to_working(latents)
    unit = directions(points, centre=points.mean(0))
    means = unit[shuffled[:count]]
    for _ in range(ROUNDS):
        nearest = torch.cat([_squared_distances(rows, means).argmin(1) for rows in unit.split(BLOCK)])
        sums = torch.zeros_like(means).index_add(0, nearest, unit)
        sizes = torch.bincount(nearest, minlength=count).to(unit)
        moved = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], means)
        if torch.equal(moved, means):
            break
        means = moved
    return _nearest_rows(means, unit)


def _squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Between all rows of both, up to rounding."""
    return (x**2).sum(-1, keepdim=True) - 2 * x @ y.T + (y**2).sum(-1)


def _nearest_rows(means: Float[Tensor, "m d"], points: Float[Tensor, "n d"]) -> Int[Tensor, " m"]:
    """The point nearest to each mean that no mean before it took."""
    taken = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    rows = []
    for block in means.split(MEANS):
        for distance in _squared_distances(block, points):
            rows.append(int(distance.masked_fill(taken, torch.inf).argmin()))
            taken[rows[-1]] = True
    return torch.tensor(rows, device=points.device)


def _farthest_point_sampling(
    unit_anchors: Float[Tensor, "k d"], *, threshold: float, first: int
) -> Int[Tensor, " kept"]:
    """Rows kept when anchors are added, the least similar first, until all others are too similar.

    Starting from row `first`, the next row is the one whose largest |cosine| to the rows kept so far is the
    smallest; it ends when that |cosine| exceeds `threshold`. Rows come in the order in which they were added.
    """
    kept = [first]
    nearest = _abs_cosines(unit_anchors, first)
    nearest[first] = torch.inf
    while len(kept) < len(unit_anchors):
        row = int(nearest.argmin())
        if nearest[row] > threshold:
            break
        kept.append(row)
        nearest = torch.maximum(nearest, _abs_cosines(unit_anchors, row))
        nearest[row] = torch.inf
    return torch.tensor(kept, device=unit_anchors.device)


def _abs_cosines(unit_anchors: Float[Tensor, "k d"], row: int) -> Float[Tensor, " k"]:
    """|cosine| of every anchor to one of them, without what rounding puts above 1."""
    return (unit_anchors @ unit_anchors[row]).abs().clamp(max=1)


def farthest_point_subsets(
    unit_anchors: Float[Tensor, "k d"], *, threshold: float, subspaces: int, seed: int
) -> list[Int[Tensor, " kept"]]:
    """Return `subspaces` prunings of the same anchors, each from a different first row drawn from `seed`.

    Raises:
        StitchError: there are more subspaces than anchors.
    """
    if subspaces > len(unit_anchors):
        raise StitchError(
            f"{subspaces} subspaces of {len(unit_anchors)} anchors: each starts from its own anchor, ask for fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    firsts = torch.randperm(len(unit_anchors), generator=generator)[:subspaces]
    return [_farthest_point_sampling(unit_anchors, threshold=threshold, first=int(first)) for first in firsts]
