"""Thresholds of similarity after a change of encoder."""

from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hf_relstitch.bulk.pairs import read_side
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.options import Metric
from hf_relstitch.core.scoring import as_compared

FEWEST_MATCHES = 20
"""Matches below which a threshold is noise: of 8 matches, the new threshold gave half or three times as many."""


def match_threshold(
    threshold: float,
    *,
    old: tuple[ArrayLike, ArrayLike],
    new: tuple[ArrayLike, ArrayLike],
    metric: Metric = "cosine",
) -> dict[str, Any]:
    """Return the threshold of similarity that gives as many matches after a change of encoder as the old one before it.

    A query and a document match if their similarity is at least the threshold; by "l2", if their distance (not its
    square) is at most the threshold. Give some hundreds of queries, and documents among which they have 200 matches or
    more; the similarities of all pairs are in memory. No query may be one of the documents. The new latents of the
    documents may be translated ones, or the new encoder's own, or the new queries may be translated ones: each has its
    own threshold. Which pairs match changes too, as it does between any two encoders.

    Args:
        threshold: the threshold with the old encoder.
        old: the old encoder's latents of the queries `(q, d_old)` and of the documents `(n, d_old)`.
        new: latents of the same queries `(q, d_new)` and documents `(n, d_new)` as they are searched after the change.
        metric: what the threshold is of.

    Returns:
        `threshold`, the new threshold; `matches`, the number of matches that it comes from; `held_out`, how many times
        as many matches each half of the queries has by the new threshold of the other half as by the old one; and
        `kept`, the share of the old matches that are matches by that threshold.

    Raises:
        StitchError: the queries or the documents have different numbers of rows in `old` and `new`, or different widths
            within one of them; a half of the queries has fewer than ten matches by the old threshold; all pairs match.

    Example:
        >>> match_threshold(0.75, old=(old_queries, old_documents), new=(new_queries, to_new(old_documents)))
        {'threshold': 0.68, 'matches': 412, 'held_out': (0.94, 1.07), 'kept': 0.57}
    """
    before, after = _nearness(*old, metric, "old"), _nearness(*new, metric, "new")
    if before.shape != after.shape:
        raise StitchError(
            f"old has {before.shape[0]} queries and {before.shape[1]} documents, and new has {after.shape[0]} and "
            f"{after.shape[1]}: give latents of the same queries and of the same documents, row for row"
        )
    is_match = before >= (-threshold if metric == "l2" else threshold)
    halves = [torch.arange(len(before)) % 2 == half for half in (0, 1)]
    counts = [int(is_match[half].sum()) for half in halves]
    if min(counts) < FEWEST_MATCHES // 2 or is_match.all():
        raise StitchError(
            f"of {is_match.numel()} pairs of a query and a document {sum(counts)} match by the old threshold "
            f"{threshold}, {counts[0]} and {counts[1]} in each half of the queries: give queries and documents of "
            f"which {FEWEST_MATCHES} or more do, better 200, and not all"
        )
    others = [_threshold(after[other], count) for other, count in zip(halves[::-1], counts[::-1], strict=True)]
    found = [after[half] >= value for half, value in zip(halves, others, strict=True)]
    kept = sum(int((hits & is_match[half]).sum()) for half, hits in zip(halves, found, strict=True))
    value = _threshold(after, sum(counts))
    return {
        "threshold": -value if metric == "l2" else value,
        "matches": sum(counts),
        "held_out": tuple(int(hits.sum()) / count for hits, count in zip(found, counts, strict=True)),
        "kept": kept / sum(counts),
    }


def _nearness(queries: ArrayLike, documents: ArrayLike, metric: Metric, side: str) -> Tensor:
    """Return similarities, or the negated distances, `(q, n)`."""
    asked, stored = read_side(queries, f"{side} queries"), read_side(documents, f"{side} documents")
    if asked.ndim != 2 or stored.ndim != 2 or asked.shape[1] != stored.shape[1]:
        raise StitchError(
            f"the {side} queries and documents have shapes {tuple(asked.shape)} and {tuple(stored.shape)}: expected "
            "(q, d) and (n, d), as they are searched in one index"
        )
    if metric == "l2":
        return -torch.cdist(asked, stored)
    return as_compared(asked, metric) @ as_compared(stored, metric).T


def _threshold(nearness: Tensor, count: int) -> float:
    """Return the middle between the last of `count` pairs that match and the next pair."""
    nearest = nearness.flatten().topk(count + 1).values
    return float(nearest[-2:].double().mean())
