"""Choosing a translation on anchors alone: cross-validation over the family, by what the head says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hf_relstitch.core.confidence import answer_probability, apply_head, logits_of, read_by, temperature_for
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.fidelity import held_out_translations
from hf_relstitch.core.folds import Fold, View, centres_of, folds_of, readings
from hf_relstitch.core.inversion import Scale, TranslationSettings, mean_norm
from hf_relstitch.core.relative import directions
from hf_relstitch.core.retrieval import Role, SearchJudge

Prefer = Literal["linear", "accuracy"]
Criterion = Literal["head", "cosine", "recall"]

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RIDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SHARPNESS = 1.0
SHARP_RIDGES = (0.03, 0.1, 0.3, 1.0)
SHARP_BETAS = (0.3, 0.45)
SHARP_TARGET_RIDGES = (0.3, 1.0)
CONFIDENCE = 0.8
"""Mean confidence that the head is brought to on translated latents, so that neither's scale matters."""
MARGIN = 2.0
"""Standard errors by which a candidate that is not sharpened has to beat the best sharpened one."""
LENGTHS = (1.0, 1.2, 1.4, 1.7, 2.0, 2.8, 4.0)
"""Mean norms that translated latents may get, relative to that of the target anchors."""
LENGTH_MATTERS = 0.005
"""What a longer latent has to score more than a shorter one."""


@dataclass(frozen=True)
class Candidate:
    """One member of the family with its cross-validated score."""

    settings: TranslationSettings
    score: float


@dataclass(frozen=True)
class Choice:
    """The settings that were chosen, and on what grounds.

    `score` is the mean of `criterion` over anchors held out of the fit; `standard_error` is its standard error.
    `candidates` are all that were looked at, the highest score first; with `prefer="accuracy"` the choice may be
    another than the first, see `settled`.
    """

    settings: TranslationSettings
    score: float
    standard_error: float
    criterion: Criterion
    candidates: tuple[Candidate, ...]


@torch.no_grad()
def choose_settings(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    *,
    head: nn.Module | None = None,
    translates: Role | None = None,
    prefer: Prefer = "linear",
    scale: Scale = "carry",
    multi_label: bool = False,
    seed: int = 0,
    folds: Sequence[Fold] | None = None,
) -> Choice:
    """The member of the family that does best on anchors held out of its fit, in five folds; no labels.

    With a head the criterion is the mean probability that the head, seeing the translated latent, gives to the answer
    that it gives on the true one: agreement made smooth. It is bounded and linear in the answer, as the mean absolute
    error that noise in labels does not bias (Ghosh, Kumar & Sastry 2017), so a weak head's mistakes do not pull the
    choice as they do with a divergence. Every answer weighs the same in all, however often the head gives it, since a
    weak head gives the frequent ones too often, and the balanced error is the one that such noise leaves in place
    (Menon et al. 2015). The logits of each candidate are brought to a mean confidence of 0.8 first, so that the scale
    of neither head nor latents matters. Without a head, or with a single logit, the criterion is the cosine of
    translated and true latents; where it is said what of a search `translates`, it is what that search finds, see
    `SearchJudge`.

    `prefer="linear"` looks at W(α, λ) and, for spaces of one width, at leaving latents as they are; `"accuracy"` also
    at sharpened translations, which do not fold: kernel ridge regressions whose outputs are then evened out over the
    target's directions (β, with a ridge of its own). `stretch` of the choice gives held-out latents the mean norm of
    the target anchors, or up to four times that where the criterion gains .005 by it: what a head adds for frequent
    answers then counts for less. `folds` are these anchors in `folds_of`, where they are at hand.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same;
            `prefer` or `translates` is something else.
    """
    check_prefer(prefer)
    folds = folds or folds_of(source_anchors, target_anchors, scale=scale, seed=seed)
    x, y = folds[0].x, folds[0].y
    judge = SearchJudge.of(folds, translates) if translates is not None else Judge.of(head, y, multi_label=multi_label)
    scores: dict[TranslationSettings, Tensor] = {}
    for candidates in grid(prefer, TranslationSettings(scale=scale, seed=seed)):
        views = [fold.view(candidates[0]) for fold in folds]
        readouts = [judge.readout(view) for view in views]
        scores |= {candidate: judge.scores(folds, views, candidate, readouts=readouts) for candidate in candidates}
    if scale == "carry" and x.shape[1] == y.shape[1]:
        scores[TranslationSettings(seed=seed, identity=True)] = judge.unchanged(x)
    means = {candidate: float(each.mean()) for candidate, each in scores.items()}
    ranked = sorted(means, key=lambda candidate: -means[candidate])
    best = settled(scores, ranked)
    stretch = 1.0 if best.identity else judge.stretch(folds, best)
    return Choice(
        settings=replace(best, stretch=stretch),
        score=means[best],
        standard_error=float(scores[best].std()) / len(scores[best]) ** 0.5,
        criterion=judge.criterion,
        candidates=tuple(Candidate(candidate, means[candidate]) for candidate in ranked),
    )


def check_prefer(prefer: str) -> None:
    """Refuse another word than the two."""
    if prefer not in get_args(Prefer):
        raise StitchError(f"prefer is {prefer!r}: it has to be 'linear' or 'accuracy'")


def settled(scores: dict[TranslationSettings, Tensor], ranked: list[TranslationSettings]) -> TranslationSettings:
    """The first of the ranked candidates, or the first sharpened one unless the first beats it beyond doubt.

    Where the head is weak, linear maps are nearer to what it says and no nearer to the truth; so a linear map has to
    be better by two standard errors of the difference (as in the one-standard-error rule of Breiman et al. 1984).
    """
    sharpened = next((candidate for candidate in ranked if candidate.sharpness), None)
    if sharpened is None or sharpened == ranked[0]:
        return ranked[0]
    ahead = scores[ranked[0]] - scores[sharpened]
    return ranked[0] if ahead.mean() > MARGIN * ahead.std() / len(ahead) ** 0.5 else sharpened


def grid(prefer: Prefer, base: TranslationSettings) -> list[list[TranslationSettings]]:
    """The candidates, in groups that share their decompositions."""
    groups = [[replace(base, alpha=alpha, ridge=ridge) for alpha in ALPHAS for ridge in RIDGES]]
    if prefer == "accuracy":
        sharp = replace(base, alpha=1.0, sharpness=SHARPNESS)
        members = product(SHARP_RIDGES, SHARP_BETAS, SHARP_TARGET_RIDGES)
        groups += [[replace(sharp, ridge=ridge, beta=beta, target_ridge=other) for ridge, beta, other in members]]
    return groups


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
        weights = even if multi_label else balanced(logits.argmax(-1), dtype=even.dtype)
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


def balanced(answers: Int[Tensor, " k"], *, dtype: torch.dtype) -> Float[Tensor, " k"]:
    """Weights, 1 in the mean, that give every answer that occurs the same in all."""
    _, which, counts = answers.unique(return_inverse=True, return_counts=True)
    return len(answers) / (len(counts) * counts[which].to(dtype))
