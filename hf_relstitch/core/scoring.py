"""Estimate what a search finds with translated documents or queries, from anchors held out of the fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_relstitch.core.cross_validation import Split, View, centres_of, translate_views
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.measures import translate_held_out
from hf_relstitch.core.options import Metric, Role
from hf_relstitch.core.relative import directions
from hf_relstitch.core.translation import TranslationSettings

NEAREST = 0.01
"""Share of the documents that a search finds: ten of a thousand, of fewer at least one."""
QUERIES = 400
"""Anchors of a split that are searched for, and no more."""
TEN, FEWEST = 10, 50
"""The nearest documents of which the recall is told by the size of an index, and the smallest index."""
SEARCH_SCALES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Output scales to choose from, relative to that of least squares."""
FIRST_SCALE = {"documents": 1.0, "queries": 4.0}
"""The output scale, relative to that of least squares, at which candidates are compared."""

SURE, HALF = 2.0, 0.5
"""Standard errors above which a gain counts; recall below which most results are not the new encoder's."""
LARGER_INDEX = (
    "the nearest 1 % of a larger index are found about as often; of its ten nearest fewer are, and of the gain about "
    "0.06 is lost for each tenfold above 1,000 documents"
)
"""Measured from 199 to 10,500 documents, MiniLM and mpnet both ways, 1,000 pairs of WordNet glosses."""


@dataclass(frozen=True)
class RecallScorer:
    """Score translated latents by recall: the share of the documents nearest to a query that a search finds.

    The held-out anchors of a split are documents and queries, each for the others, so that the fit knows none of them;
    the metric says what is near. The documents to find are those that the new encoder finds, which has encoded both
    sides: the target if documents are translated into the space of its queries, the source if its queries are
    translated into the space of the documents.

    Attributes:
        source: the source latents as the metric compares them: for cosine their directions, measured from 0.
        target: the true latents, likewise.
        translates: whether the translated latents are documents or queries.
        rows: the held-out anchors of each split; the search is for the first of them.
        wanted: the documents that each query should find, as positions in `rows`.
        metric: the measure of how near two latents are.
    """

    source: Float[Tensor, "k d_source"]
    target: Float[Tensor, "k d_target"]
    translates: Role
    rows: Sequence[Int[Tensor, " _"]]
    wanted: Sequence[Int[Tensor, "_ near"]]
    metric: Metric = "cosine"

    @classmethod
    def from_splits(cls, splits: Sequence[Split], translates: Role, *, metric: Metric = "cosine") -> "RecallScorer":
        """Draw the anchors to search for, and find the documents that each should find.

        Raises:
            StitchError: `translates` is neither "documents" nor "queries".
        """
        check_role(translates)
        source, target = (as_compared(side, metric) for side in (splits[0].x, splits[0].y))
        new = target if translates == "documents" else source
        generator = torch.Generator().manual_seed(0)  # whatever order the anchors came in
        rows = [split.held_out.nonzero()[:, 0] for split in splits]
        rows = [each[torch.randperm(len(each), generator=generator).to(each.device)] for each in rows]
        count = max(1, round(NEAREST * (min(map(len, rows)) - 1)))
        wanted = [search(new[each[:QUERIES]], new[each], count, metric=metric) for each in rows]
        return cls(source, target, translates, rows, wanted, metric)

    @property
    def num_documents(self) -> int:
        """Count the documents of a search, without the query itself."""
        return min(map(len, self.rows)) - 1

    @property
    def num_nearest(self) -> int:
        """Return the number of documents that a search returns."""
        return self.wanted[0].shape[1]

    def scores(
        self, splits: Sequence[Split], views: Sequence[View], settings: TranslationSettings
    ) -> Float[Tensor, " q"]:
        """Return the recall of each query with anchors translated by the fit that did not see them."""
        centres = centres_of(splits)
        away = translate_views(splits, views, settings)
        scale = FIRST_SCALE[self.translates] * _least_squares_scale(away, splits[0].y - centres)
        return self.recalls(centres + scale * away)

    def unchanged(self, source: Float[Tensor, "k d_target"]) -> Float[Tensor, " q"]:
        """Return the recall of each query with source latents used as target latents."""
        return self.recalls(source)

    def untranslated(self) -> Float[Tensor, " q"]:
        """Return the recall of each query if the old encoder has encoded both documents and queries."""
        old = self.source if self.translates == "documents" else self.target
        return self.shares(old, old)

    def output_scale(self, splits: Sequence[Split], settings: TranslationSettings) -> float:
        """Return the output scale that serves an index best, see `fitness`.

        Cosines are measured from 0, so the distance from the target's centre matters: it says how much a latent that is
        translated less surely counts beside the centre.
        """
        centres = centres_of(splits)
        away = translate_held_out(splits[0].x, splits[0].y, settings=settings, splits=splits) - centres
        scale = _least_squares_scale(away, splits[0].y - centres)
        return scale * max(SEARCH_SCALES, key=lambda factor: self.fitness(centres + factor * scale * away))

    def fitness(self, translated: Float[Tensor, "k d_target"]) -> float:
        """Return the mean recall with these latents; of documents also in an index that has half of them encoded anew.

        Translated latents that are too near to the target's centre, or too long, are found instead of new ones: in a
        space with a large centre, like multilingual-e5's, these would hardly be found at all.
        """
        recall = float(self.recalls(translated).mean())
        if self.translates == "queries":
            return recall
        generator = torch.Generator().manual_seed(0)
        is_new = (torch.randperm(len(translated), generator=generator) % 2 == 0).to(translated.device)
        mixed = torch.where(is_new[:, None], self.target, as_compared(translated, self.metric))
        return (recall + float(self.shares(self.target, mixed).mean())) / 2

    def recalls(self, translated: Float[Tensor, "k d_target"]) -> Float[Tensor, " q"]:
        """Return the recall of each query with these latents instead of the true latents."""
        translated = as_compared(translated, self.metric)
        if self.translates == "documents":
            return self.shares(self.target, translated)
        return self.shares(translated, self.target)

    def recall_of_ten(self, translated: Float[Tensor, "k d_target"]) -> dict[str, float]:
        """Return the recall of the ten nearest for indexes of several sizes, 50 documents or more.

        Translated documents of all splits stand in one index, since none was seen by its own fit. A translated query
        knows the documents that its fit saw, so that queries are among the documents of their own split.
        """
        new, groups = self.source, self.rows
        if self.translates == "documents":
            order = torch.randperm(len(self.target), generator=torch.Generator().manual_seed(0))
            new, groups = self.target, [order.to(self.target.device)]
        most, recalls = min(map(len, groups)), {}
        for size in (most // 4, most // 2, most):
            if size >= FEWEST:
                rows = [group[:size] for group in groups]
                wanted = [search(new[each[:QUERIES]], new[each], TEN, metric=self.metric) for each in rows]
                recalls[str(size)] = float(replace(self, rows=rows, wanted=wanted).recalls(translated).mean())
        return recalls

    def shares(self, queries: Float[Tensor, "k d"], documents: Float[Tensor, "k d"]) -> Float[Tensor, " q"]:
        """Return the share of the wanted documents that each query finds with these latents."""
        shares = []
        for rows, wanted in zip(self.rows, self.wanted, strict=True):
            found = search(queries[rows[: len(wanted)]], documents[rows], self.num_nearest, metric=self.metric)
            shares.append(share_found(wanted, found).to(queries.dtype))
        return torch.cat(shares)


def advise(translated: float, untranslated: float, error: float, *, translates: Role, documents: int) -> dict[str, str]:
    """Say what to do with an index after a change of encoder, from the recall with and without a translation.

    A gain counts if it is above two standard errors of the difference. Where neither recall reaches one half, most
    results are not those of the new encoder, and only new vectors of the documents bring them.

    Args:
        translated: mean recall with the translation.
        untranslated: mean recall of the old encoder.
        error: standard error of their difference, which is taken query by query.
        translates: what is translated.
        documents: number of documents among which both were measured.

    Returns:
        `grade` ("move", "translate queries", "keep the old encoder" or "encode anew"), `reason`, and what is known of
        a `larger_index`.
    """
    gain = translated - untranslated
    reason = (
        f"among {documents} documents a search with translated {translates} finds {translated:.2f} of what the new "
        f"encoder finds, and the old encoder {untranslated:.2f}: a gain of {gain:+.3f} ± {error:.3f}"
    )
    if max(translated, untranslated) < HALF:
        grade, reason = "encode anew", f"{reason}; neither finds half of it"
    elif gain <= SURE * error:
        grade, reason = "keep the old encoder", f"{reason}, which may be none"
    else:
        grade = "move" if translates == "documents" else "translate queries"
    return {"grade": grade, "reason": reason, "larger_index": LARGER_INDEX}


def check_role(translates: str) -> None:
    """Refuse a word that is neither of the two roles."""
    if translates not in get_args(Role):
        raise StitchError(f"translates is {translates!r}: it has to be 'documents' or 'queries'")


def as_compared(latents: Float[Tensor, "n d"], metric: Metric) -> Float[Tensor, "n d"]:
    """Return latents as a search compares them: for cosine their directions."""
    return directions(latents, centre=torch.zeros_like(latents[0])) if metric == "cosine" else latents


def search(
    queries: Float[Tensor, "q d"], documents: Float[Tensor, "n d"], count: int, *, metric: Metric
) -> Int[Tensor, "q count"]:
    """Return the documents nearest to each query, without the one in the query's own row; cosine takes directions."""
    nearness = similarities(queries, documents, metric=metric)
    nearness.fill_diagonal_(-torch.inf)
    return nearness.topk(count).indices


def share_found(wanted: Int[Tensor, "q near"], found: Int[Tensor, "q count"]) -> Float[Tensor, " q"]:
    """Return the share of the wanted documents that is among those found, for each query, in float64."""
    return (wanted[:, :, None] == found[:, None, :]).any(-1).double().mean(1)


def similarities(
    queries: Float[Tensor, "q d"], documents: Float[Tensor, "n d"], *, metric: Metric
) -> Float[Tensor, "q n"]:
    """Return what orders documents by nearness to each query; cosine takes directions, see `as_compared`."""
    products = queries @ documents.T
    return 2 * products - documents.square().sum(1) if metric == "l2" else products


def _least_squares_scale(away: Float[Tensor, "k d"], true: Float[Tensor, "k d"]) -> float:
    """Return the factor that brings latents nearest to the true ones, .01 or more."""
    scale = float((away * true).sum() / away.square().sum())
    return scale if math.isnan(scale) else max(0.01, scale)
