"""What a search finds when its documents or its queries are translated, told from anchors held out of the fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hf_relstitch.core.cross_validation import Fold, View, centres_of, readings
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.head_outputs import answer_probability, apply_head, logits_of, read_by, temperature_for
from hf_relstitch.core.measures import held_out_translations
from hf_relstitch.core.options import Role
from hf_relstitch.core.relative import directions
from hf_relstitch.core.translation import TranslationSettings, mean_norm

NEAREST = 0.01
"""Share of the documents that a search finds: ten of a thousand, of fewer at least one."""
QUERIES = 400
"""Anchors of a fold that are searched for, and no more."""
SEARCH_LENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0)
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
        source, target = _from_zero(folds[0].x), _from_zero(folds[0].y)
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
        length = FIRST_LENGTH[self.translates] * _least_squares_length(away, folds[0].y - centres)
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
        length = _least_squares_length(away, folds[0].y - centres)
        recalls = {each: float(self.recalls(centres + each * length * away).mean()) for each in SEARCH_LENGTHS}
        return length * max(recalls, key=recalls.__getitem__)

    def recalls(self, translated: Float[Tensor, "k d_target"]) -> Float[Tensor, " q"]:
        """The recall of each query with these latents in the place of the true ones."""
        made = _from_zero(translated)
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


def _from_zero(latents: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Directions as a search sees them."""
    return directions(latents, centre=torch.zeros_like(latents[0]))


def search(queries: Float[Tensor, "q d"], documents: Float[Tensor, "n d"], count: int) -> Int[Tensor, "q count"]:
    """The documents with the highest dot products to each query, without the one in the query's own row."""
    similarity = queries @ documents.T
    similarity.fill_diagonal_(-torch.inf)
    return similarity.topk(count).indices


def _least_squares_length(away: Float[Tensor, "k d"], true: Float[Tensor, "k d"]) -> float:
    """The factor that brings latents nearest to the true ones, or next to nothing where they point elsewhere."""
    length = float((away * true).sum() / away.square().sum())
    return length if math.isnan(length) else max(0.01, length)


CONFIDENCE = 0.8
"""Mean confidence that the head is brought to on translated latents, so that neither's scale matters."""
LENGTHS = (1.0, 1.2, 1.4, 1.7, 2.0, 2.8, 4.0)
"""Mean norms that translated latents may get, relative to that of the target anchors."""
LENGTH_MATTERS = 0.005
"""What a longer latent has to score more than a shorter one."""


@dataclass(frozen=True)
class Judge:
    """Scores translated latents, row by row: by the head's answers, or by cosine where there are none."""

    target: Float[Tensor, "k d_target"]
    head: nn.Module | None
    logits: Float[Tensor, "k classes"]
    weights: Float[Tensor, " k"]
    multi_label: bool

    @classmethod
    def of(cls, head: nn.Module | None, target: Float[Tensor, "k d_target"], *, multi_label: bool) -> "Judge":
        """A head with a single logit answers nothing, and judges nothing."""
        logits = target if head is None else apply_head(head, target)
        if not logits.isfinite().all():
            raise StitchError("the head gives logits that are not finite for the target's anchors: look at its weights")
        even = torch.ones_like(target[:, 0])
        if head is None or logits.shape[1] < 2:
            return cls(target, None, target, even, multi_label)
        weights = even if multi_label else _balanced(logits.argmax(-1), dtype=even.dtype)
        return cls(target, head, logits, weights, multi_label)

    @property
    def criterion(self) -> Literal["head", "cosine"]:
        """Its name."""
        return "cosine" if self.head is None else "head"

    def readout(self, view: View) -> Float[Tensor, "r_target width"]:
        """What coordinates in the target space become in the head's first layer, or as latents where there is none."""
        return view.basis if self.head is None else read_by(self.head, view.basis)

    def scores(
        self,
        folds: Sequence[Fold],
        views: Sequence[View],
        settings: TranslationSettings,
        *,
        readouts: Sequence[Float[Tensor, "_ width"]],
    ) -> Float[Tensor, " k"]:
        """One score for each anchor, translated by the fit on the folds that it is not in.

        No latent of `d_target` is made for a head that begins linear.
        """
        made = torch.empty_like(self.logits)
        for fold, read in readings(folds, views, settings, readouts=readouts):
            made[fold.held_out] = read if self.head is None else logits_of(self.head, read, fold.centre)
        return self.cosines(made, centres_of(folds)) if self.head is None else self.answers(made)

    def unchanged(self, source: Float[Tensor, "k d_target"]) -> Float[Tensor, " k"]:
        """One score for each source latent taken for a target latent as it is."""
        if self.head is None:
            centre = self.target.mean(0)
            return self.cosines(source - centre, centre.expand_as(self.target))
        return self.answers(apply_head(self.head, source))

    def cosines(
        self, centred: Float[Tensor, "k d_target"], centres: Float[Tensor, "k d_target"]
    ) -> Float[Tensor, " k"]:
        """Between translated latents and the true ones, both seen from the centres."""
        origin = torch.zeros_like(self.target[0])
        return (directions(centred, centre=origin) * directions(self.target - centres, centre=origin)).sum(-1)

    def answers(self, logits: Float[Tensor, "k classes"]) -> Float[Tensor, " k"]:
        """Probabilities of the head's own answers, weighted, once the logits have the mean confidence `CONFIDENCE`."""
        temperature = temperature_for(logits, confidence=CONFIDENCE, multi_label=self.multi_label)
        given = answer_probability(logits, self.logits, temperature=temperature, multi_label=self.multi_label)
        return self.weights * given

    def stretch(self, folds: Sequence[Fold], settings: TranslationSettings) -> float:
        """What makes held-out latents as long, in the mean, as target anchors, times one of `LENGTHS`.

        It is the shortest that scores within `LENGTH_MATTERS` of the best: most heads hardly tell lengths apart, and
        the target's own length is what else the latents are good for.
        """
        centres = centres_of(folds)
        away = held_out_translations(folds[0].x, folds[0].y, settings=settings, folds=folds) - centres
        stretch = sum(float(fold.target_norm / mean_norm(away[fold.held_out])) for fold in folds) / len(folds)
        if self.head is None or self.multi_label:
            return stretch
        scores = {
            length: float(self.answers(apply_head(self.head, centres + length * stretch * away)).mean())
            for length in LENGTHS
        }
        enough = max(scores.values()) - LENGTH_MATTERS
        return stretch * next(length for length in LENGTHS if scores[length] >= enough)


def _balanced(answers: Int[Tensor, " k"], *, dtype: torch.dtype) -> Float[Tensor, " k"]:
    """Weights, 1 in the mean, that give every answer that occurs the same in all."""
    _, which, counts = answers.unique(return_inverse=True, return_counts=True)
    return len(answers) / (len(counts) * counts[which].to(dtype))
