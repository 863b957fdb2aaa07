"""Search in two stages: candidates by a translation, then ranked by the new encoder; and a test of that encoder."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.options import Metric
from hf_relstitch.core.scoring import as_compared, similarities
from hf_relstitch.encoders.encoder import to_encoder

NEAREST = 10
"""Documents that a probe looks at for each query."""


class Reranker:
    """Rank candidates by the new encoder, and keep what it encodes.

    A search with translated vectors finds most of what the new encoder would find among its first few hundred. Ranking
    these by the new encoder's own latents gives its order. Each document is encoded once: `latents` holds what was
    encoded, by id, so that it can replace the translated vectors in the index little by little.

    Args:
        encoder: the new encoder: a folder, a Hub id, an `Encoder`, a transformers model or a SentenceTransformer.
        read: a function that returns the inputs of some ids, in their order, like the texts of documents.
        metric: how latents are compared.

    Attributes:
        latents: the new encoder's latents `(d,)` on the CPU, by id.

    Example:
        >>> rerank = Reranker("me/new-encoder", lambda ids: [texts[id] for id in ids])
        >>> candidates = [[row["id"] for row in table.search(vector).limit(200).to_list()] for vector in vectors]
        >>> rerank(["how to reset a password"], candidates)
        [[('doc-17', 0.81), ('doc-4', 0.78)]]
    """

    def __init__(
        self, encoder: Any, read: Callable[[Sequence[Any]], Sequence[Any]], *, metric: Metric = "cosine"
    ) -> None:
        self.documents, self.queries = to_encoder(encoder).for_search()
        self.read = read
        self.metric: Metric = metric
        self.latents: dict[Hashable, Tensor] = {}

    def __call__(
        self, queries: Sequence[Any], candidates: Sequence[Sequence[Any]], *, nearest: int = NEAREST
    ) -> list[list[tuple[Any, float]]]:
        """Return the nearest candidates of each query, with their similarity, the nearest first.

        Raises:
            StitchError: there is not one list of candidates for each query, `read` does not return one input for each
                id, or an input cannot be encoded.
        """
        if len(queries) != len(candidates):
            raise StitchError(
                f"there are {len(queries)} queries and {len(candidates)} lists of candidates: give as many"
            )
        missing = [key for key in dict.fromkeys(key for row in candidates for key in row) if key not in self.latents]
        if missing:
            inputs = self.read(missing)
            if len(inputs) != len(missing):
                raise StitchError(f"read returned {len(inputs)} inputs for {len(missing)} ids: return one for each")
            encoded = self.documents.encode(inputs, progress=False)
            self.latents |= dict(zip(missing, encoded, strict=True))
        ranked: list[list[tuple[Any, float]]] = []
        for query, row in zip(self.queries.encode(queries, progress=False), candidates, strict=True):
            if not row:
                ranked.append([])
                continue
            documents = torch.stack([self.latents[key] for key in row])
            scores, order = _compare(query[None], documents, self.metric)[0].sort(descending=True, stable=True)
            ranked.append([(row[at], float(score)) for at, score in zip(order.tolist(), scores, strict=True)][:nearest])
        return ranked


def probe(
    queries: Sequence[Any],
    documents: Sequence[Any],
    relevant: Sequence[int],
    *,
    old: Any,
    new: Any,
    metric: Metric = "cosine",
) -> dict[str, Any]:
    """Measure on known pairs of a query and its document if the new encoder finds more than the old one.

    Do this before an index is moved: a translation gives at most what the new encoder gives.

    Args:
        queries: inputs to search with; a hundred tell a difference of .1.
        documents: inputs to search in; those of the queries and as many others as can be had.
        relevant: for each query the row of its document.
        old: the encoder of the index, as for `Reranker`.
        new: the encoder to change to.
        metric: how latents are compared.

    Returns:
        `old` and `new`, the shares of queries whose document is among the first ten; `gain`, their difference, with its
        `standard_error`; and `better`, whether the gain is above two standard errors.

    Raises:
        StitchError: there is not one row for each query, or a row is not one of the documents.
    """
    if len(relevant) != len(queries) or not all(0 <= row < len(documents) for row in relevant):
        raise StitchError(
            f"relevant holds {len(relevant)} rows for {len(queries)} queries among {len(documents)} documents: give "
            "the row of its document for each query"
        )
    hits = {
        name: _hits(encoder, queries, documents, relevant, metric) for name, encoder in (("old", old), ("new", new))
    }
    difference = hits["new"] - hits["old"]
    gain, error = float(difference.mean()), float(difference.std() / len(difference) ** 0.5)
    shares = {name: float(hit.mean()) for name, hit in hits.items()}
    return shares | {"gain": gain, "standard_error": error, "better": gain > 2 * error}


def _hits(
    encoder: Any, queries: Sequence[Any], documents: Sequence[Any], relevant: Sequence[int], metric: Metric
) -> Tensor:
    """For each query 1 if its document is among the first, and 0 if it is not, `(q,)`."""
    of_documents, of_queries = to_encoder(encoder).for_search()
    asked, stored = of_queries.encode(queries, progress=False), of_documents.encode(documents, progress=False)
    found = _compare(asked, stored, metric).topk(min(NEAREST, len(stored))).indices
    return (found == torch.as_tensor(relevant)[:, None]).any(1).double()


def _compare(queries: Tensor, documents: Tensor, metric: Metric) -> Tensor:
    """Return what orders documents by nearness to each query, `(q, n)`, in float64."""
    sides = (as_compared(side.double(), metric) for side in (queries, documents))
    return similarities(*sides, metric=metric)
