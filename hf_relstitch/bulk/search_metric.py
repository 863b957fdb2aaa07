"""Recall of a search by a metric with held-out translations, and the norms with the best recall."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hf_relstitch.core.options import Metric, Role

FACTORS = (1.0, 0.7, 1.4, 0.5, 2.0)
"""Norms that translated latents may get, relative to the mean norm of the target."""


@dataclass(frozen=True)
class MetricSearch:
    """Hold a search by a metric among held-out rows, each the query to the others.

    Attributes:
        metric: the measure of how near two latents are.
        translates: whether documents or queries are translated.
        source: all source latents.
        target: all target latents.
        rows: the rows of each split; the first rows are searched for.
        counts: how many rows of each split are searched for.
        nearest: how many documents a search returns.
    """

    metric: Metric
    translates: Role
    source: Tensor
    target: Tensor
    rows: Sequence[Tensor]
    counts: Sequence[int]
    nearest: int

    def recalls(self, translated: Tensor) -> Tensor:
        """Return, for each query, the share of the new encoder's results that the search finds."""
        new = self.target if self.translates == "documents" else self.source
        sides = (self.target, translated) if self.translates == "documents" else (translated, self.target)
        return self._shares(new, *sides)

    def untranslated(self) -> float:
        """Return the mean recall of a search in which the old encoder encodes both documents and queries."""
        new, old = (self.target, self.source) if self.translates == "documents" else (self.source, self.target)
        return float(self._shares(new, old, old).mean())

    def _shares(self, new: Tensor, queries: Tensor, documents: Tensor) -> Tensor:
        shares = []
        for rows, count in zip(self.rows, self.counts, strict=True):
            wanted = self._search(new[rows[:count]], new[rows])
            found = self._search(queries[rows[:count]], documents[rows])
            shares.append((wanted[:, :, None] == found[:, None, :]).any(-1).double().mean(1))
        return torch.cat(shares)

    def _search(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Return the nearest documents to each query, without the document in its own row."""
        if self.metric == "cosine":
            queries, documents = functional.normalize(queries, dim=1), functional.normalize(documents, dim=1)
        similarity = queries @ documents.T
        if self.metric == "l2":
            similarity = 2 * similarity - documents.square().sum(1)
        similarity.fill_diagonal_(-torch.inf)
        return similarity.topk(self.nearest).indices


def choose_norms(search: MetricSearch, translated: Tensor) -> tuple[float, bool, Tensor]:
    """Choose a factor for translated latents of the target's mean norm, and whether all rows get the same norm.

    Returns:
        The factor, whether all rows get that norm, and the recall of each query with it.
    """
    norm = float(translated.norm(dim=1).mean())
    level = functional.normalize(translated, dim=1) * norm
    ways = [(factor, is_level) for is_level in (False, True) for factor in FACTORS]
    found = {way: search.recalls(way[0] * (level if way[1] else translated)) for way in ways}
    factor, is_level = max(ways, key=lambda way: float(found[way].mean()))
    return factor, is_level, found[factor, is_level]
