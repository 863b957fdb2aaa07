"""What a search finds when its documents or its queries are translated, told from anchors held out of the fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.fidelity import held_out_translations
from hf_relstitch.core.folds import Fold, View, centres_of, readings
from hf_relstitch.core.inversion import TranslationSettings
from hf_relstitch.core.relative import directions

Role = Literal["documents", "queries"]

NEAREST = 0.01
"""Share of the documents that a search finds: ten of a thousand, of fewer at least one."""
QUERIES = 400
"""Anchors of a fold that are searched for, and no more."""
LENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0)
"""Lengths that translated latents may get, seen from the target's centre, relative to that of least squares."""
FIRST_LENGTH = {"documents": 1.0, "queries": 4.0}
"""The length at which the candidates are compared."""


@dataclass(frozen=True)
class SearchJudge:
    """Scores translated latents by recall: of the documents nearest to a query, the share that a search finds.

    The anchors of a fold are documents and queries, each for the others, so that the fit knows none of them; near is
    a high cosine. What is to be found is what the new encoder finds, which has encoded both: the target where
    documents are translated into the space of its queries, the source where its queries are translated into the
    space of the documents.

    Attributes:
        source: directions of the source latents, seen from 0.
        target: directions of the true latents, seen from 0.
        translates: whether the translated latents are documents or queries.
        rows: the anchors of each fold, the first ones searched for.
        wanted: what is to be found by each of these, as places among the anchors of its fold.
    """

    source: Float[Tensor, "k d_source"]
    target: Float[Tensor, "k d_target"]
    translates: Role
    rows: Sequence[Int[Tensor, " _"]]
    wanted: Sequence[Int[Tensor, "_ near"]]
    criterion: Literal["recall"] = "recall"

    @classmethod
    def of(cls, folds: Sequence[Fold], translates: Role) -> "SearchJudge":
        """Draw which anchors are searched for, and see what each is to find.

        Raises:
            StitchError: `translates` is something else.
        """
        check_role(translates)
        source, target = from_zero(folds[0].x), from_zero(folds[0].y)
        new = target if translates == "documents" else source
        generator = torch.Generator().manual_seed(0)  # whatever order the anchors came in
        rows = [fold.held_out.nonzero()[:, 0] for fold in folds]
        rows = [each[torch.randperm(len(each), generator=generator).to(each.device)] for each in rows]
        count = max(1, round(NEAREST * (min(map(len, rows)) - 1)))
        return cls(source, target, translates, rows, [search(new[each[:QUERIES]], new[each], count) for each in rows])

    @property
    def num_documents(self) -> int:
        """Among how many one is searched for, itself aside."""
        return min(map(len, self.rows)) - 1

    @property
    def num_nearest(self) -> int:
        """How many a search finds."""
        return self.wanted[0].shape[1]

    def readout(self, view: View) -> Float[Tensor, "r_target d_target"]:
        """What coordinates in the target space become: latents."""
        return view.basis

    def scores(
        self,
        folds: Sequence[Fold],
        views: Sequence[View],
        settings: TranslationSettings,
        *,
        readouts: Sequence[Float[Tensor, "_ d_target"]],
    ) -> Float[Tensor, " q"]:
        """The recall of each query with anchors translated by the fit on the folds that they are not in."""
        away = torch.empty_like(folds[0].y)
        for fold, read in readings(folds, views, settings, readouts=readouts):
            away[fold.held_out] = read
        centres = centres_of(folds)
        length = FIRST_LENGTH[self.translates] * least_squares_length(away, folds[0].y - centres)
        return self.recalls(centres + length * away)

    def unchanged(self, source: Float[Tensor, "k d_target"]) -> Float[Tensor, " q"]:
        """The recall of each query with source latents taken for target latents as they are."""
        return self.recalls(source)

    def untranslated(self) -> float:
        """The mean recall where the old encoder has encoded both documents and queries."""
        old = self.source if self.translates == "documents" else self.target
        return float(self.shares(old, old).mean())

    def stretch(self, folds: Sequence[Fold], settings: TranslationSettings) -> float:
        """The length with the highest recall.

        Cosines are seen from 0, so that the length from the target's centre matters: it says how much a latent that
        is told less surely counts beside the centre.
        """
        centres = centres_of(folds)
        away = held_out_translations(folds[0].x, folds[0].y, settings=settings, folds=folds) - centres
        length = least_squares_length(away, folds[0].y - centres)
        recalls = {each: float(self.recalls(centres + each * length * away).mean()) for each in LENGTHS}
        return length * max(recalls, key=recalls.__getitem__)

    def recalls(self, translated: Float[Tensor, "k d_target"]) -> Float[Tensor, " q"]:
        """The recall of each query with these latents in the place of the true ones."""
        made = from_zero(translated)
        return self.shares(self.target, made) if self.translates == "documents" else self.shares(made, self.target)

    def shares(self, queries: Float[Tensor, "k d"], documents: Float[Tensor, "k d"]) -> Float[Tensor, " q"]:
        """Of the documents that are to be found by each query, the share that is found with these latents."""
        shares = []
        for rows, wanted in zip(self.rows, self.wanted, strict=True):
            found = search(queries[rows[: len(wanted)]], documents[rows], self.num_nearest)
            shares.append((wanted[:, :, None] == found[:, None, :]).any(-1).to(queries.dtype).mean(1))
        return torch.cat(shares)


def check_role(translates: str) -> None:
    """Refuse another word than the two."""
    if translates not in get_args(Role):
        raise StitchError(f"translates is {translates!r}: it has to be 'documents' or 'queries'")


def from_zero(latents: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Directions as a search sees them."""
    return directions(latents, centre=torch.zeros_like(latents[0]))


def search(queries: Float[Tensor, "q d"], documents: Float[Tensor, "n d"], count: int) -> Int[Tensor, "q count"]:
    """The documents with the highest dot products to each query, without the one in the query's own row."""
    similarity = queries @ documents.T
    similarity.fill_diagonal_(-torch.inf)
    return similarity.topk(count).indices


def least_squares_length(away: Float[Tensor, "k d"], true: Float[Tensor, "k d"]) -> float:
    """The factor that brings latents nearest to the true ones, or next to nothing where they point elsewhere."""
    length = float((away * true).sum() / away.square().sum())
    return length if math.isnan(length) else max(0.01, length)
