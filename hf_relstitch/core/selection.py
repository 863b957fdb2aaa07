"""Choosing a translation on anchors alone: cross-validation over the family, by what the head says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hf_relstitch.core.cross_validation import Fold, folds_of
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.options import Prefer, Role
from hf_relstitch.core.scoring import Judge, SearchJudge
from hf_relstitch.core.translation import Scale, TranslationSettings

Criterion = Literal["head", "cosine", "recall"]
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RIDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SHARPNESS = 1.0
SHARP_RIDGES = (0.03, 0.1, 0.3, 1.0)
SHARP_BETAS = (0.3, 0.45)
SHARP_TARGET_RIDGES = (0.3, 1.0)
MARGIN = 2.0
"""Standard errors by which a candidate that is not sharpened has to beat the best sharpened one."""


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
    another than the first, see `_settled`.
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
    best = _settled(scores, ranked)
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


def _settled(scores: dict[TranslationSettings, Tensor], ranked: list[TranslationSettings]) -> TranslationSettings:
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
