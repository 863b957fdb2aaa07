"""Choose a translation on anchors alone, by what it makes of anchors that its fit has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from hf_relstitch.core.cross_validation import Split, make_splits
from hf_relstitch.core.decomposition import Frame, kernel_frame
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.options import Prefer, Role
from hf_relstitch.core.relative import directions
from hf_relstitch.core.scoring import RecallScorer
from hf_relstitch.core.translation import LANDMARKS, Norm, TranslationSettings, mean_norm, pair_anchors

Criterion = Literal["leave-one-out", "recall"]
RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6)
GAMMA = 1.0
"""The kernel's γ: `exp(2γ(r − 1))` is the RBF kernel `exp(−γ‖x − z‖²)` of unit vectors."""

SEARCH_ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SEARCH_RIDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
KERNEL_RIDGES = (0.03, 0.1, 0.3, 1.0)
KERNEL_BETAS = (0.3, 0.45)
KERNEL_TARGET_RIDGES = (0.3, 1.0)


@dataclass(frozen=True)
class Candidate:
    """Hold one member of the family with its score on anchors held out of its fit."""

    settings: TranslationSettings
    score: float


@dataclass(frozen=True)
class Choice:
    """Hold the settings that were chosen, and the scores behind the choice.

    `score` is the mean of `criterion` over anchors held out of the fit; `standard_error` is its standard error.
    `candidates` holds everything that was compared, the highest score first.
    """

    settings: TranslationSettings
    score: float
    standard_error: float
    criterion: Criterion
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class LeaveOneOutChoice(Choice):
    """Hold a choice with the data behind it.

    `translated` holds the source anchors, each translated by the fit on all others; `source_frame` is the source's
    decomposition, which `fit` takes.
    """

    translated: Float[Tensor, "k d_target"]
    source_frame: Frame


@torch.no_grad()
def choose_settings(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    *,
    prefer: Prefer = "auto",
    norm: Norm = "keep",
    source_frame: Frame | None = None,
    groups: Integer[Tensor, " k"] | None = None,
) -> LeaveOneOutChoice:
    """Choose ridge or kernel ridge regression, and its λ, by leave-one-out error; no labels, and no head.

    Both map directions of source latents to directions of target latents. Their leave-one-out predictions have a closed
    form, `y − (y − ŷ)/(1 − h)` with h the leverage, so that every anchor is held out once, nothing is drawn, and the
    order of the anchors does not matter (Allen 1974). The score is 1 less the squared distance of a direction from its
    prediction. If the spaces have the same dimension, leaving latents unchanged is a candidate too.

    `prefer="auto"` compares both, `"linear"` only translations that are one matrix. `output_scale` of the choice gives
    held-out latents the mean norm of the target anchors. `source_frame` is the source's `Frame.from_anchors`, if the
    caller has it.

    Anchors that are not independent, as words of one text, have the same number in `groups`. `translated` of the choice
    then leaves out a whole group at a time, which has a closed form too: `y − (I − H)⁻¹(y − ŷ)`, with H the group's
    block of the hat matrix. The choice itself leaves out single anchors, which is faster, and on words as good.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same;
            `prefer` is neither "auto" nor "linear".
    """
    check_prefer(prefer)
    x, y = pair_anchors(source_anchors, target_anchors)
    centre, target_centre = x.mean(0), y.mean(0)
    unit, true = directions(x, centre=centre), directions(y, centre=target_centre)
    frames = {0.0: source_frame or Frame.from_anchors(source_anchors)}
    if prefer == "auto":
        frames[GAMMA] = kernel_frame(unit, gamma=GAMMA, landmarks=LANDMARKS)
    scores: dict[TranslationSettings, Tensor] = {}
    for gamma, frame in frames.items():
        best = -torch.inf
        for ridge in RIDGES:
            settings = TranslationSettings(alpha=1.0, ridge=ridge, gamma=gamma, norm=norm)
            scores[settings] = 1 - (_leave_one_out(frame, true, settings) - true).square().sum(-1)
            if (score := float(scores[settings].mean())) < best:
                break  # the error has one valley along λ
            best = score
    if norm == "keep" and x.shape[1] == y.shape[1]:
        identity = TranslationSettings(identity=True)
        scores[identity] = 1 - (directions(x, centre=target_centre) - true).square().sum(-1)
    choice = _rank(scores, "leave-one-out")
    if choice.settings.identity:
        return LeaveOneOutChoice(**vars(choice), translated=x, source_frame=frames[0.0])
    norms = (x - centre).norm(dim=-1, keepdim=True) if norm == "keep" else 1.0
    frame = frames[choice.settings.gamma]
    fitted = norms * (frame.u @ (_shrink(frame, choice.settings)[:, None] * (frame.u.T @ true)))
    left_out = norms * _leave_one_out(frame, true, choice.settings, groups)
    scaled = replace(choice.settings, output_scale=float(mean_norm(fitted) / mean_norm(left_out)))
    return LeaveOneOutChoice(
        **vars(choice) | {"settings": scaled},
        translated=_mean_of_others(y, groups) + left_out * (mean_norm(y - target_centre) / mean_norm(left_out)),
        source_frame=frame,
    )


def _leave_one_out(
    frame: Frame,
    true: Float[Tensor, "k d"],
    settings: TranslationSettings,
    groups: Integer[Tensor, " k"] | None = None,
) -> Float[Tensor, "k d"]:
    """Predict each row by ridge regression on all rows but it, or but its whole group.

    Rows are measured from their mean, so each is minus the sum of all others: a regression without an intercept would
    know a left-out row by these. So left-out predictions are those of the regression with an intercept, less the
    intercept. A row is `k/(k − 1)` times as far from the mean of the others as from that of all, which is undone.
    """
    gains = _shrink(frame, settings)
    count, mean = len(true), frame.u.mean(0)
    # The hat matrix with an intercept is A Aᵀ: the columns are the intercept, the centred features, and what centring
    # takes from their Gram matrix, by Sherman and Morrison.
    centred, taken = frame.u - mean, count**0.5 * gains * mean
    least = torch.finfo(true.dtype).eps
    rest = (1 - count * (gains * mean.square()).sum()).clamp_min(least)
    columns = [
        centred.new_full((count, 1), count**-0.5),
        centred * gains.sqrt(),
        (centred @ taken)[:, None] / rest.sqrt(),
    ]
    a = torch.cat(columns, dim=1)
    residual = true - a @ (a.T @ true)
    if groups is None:
        away = residual / (1 - a.square().sum(1)).clamp_min(least)[:, None]
    else:
        away = torch.empty_like(true)
        _, number, sizes = groups.unique(return_inverse=True, return_counts=True)
        for rows in number.argsort(stable=True).split(sizes.tolist()):
            values, vectors = torch.linalg.eigh(torch.eye(len(rows)).to(a) - a[rows] @ a[rows].T)
            away[rows] = vectors @ ((vectors.T @ residual[rows]) / values.clamp_min(least)[:, None])
    return (1 - 1 / count) * (true - away - _mean_of_others(true, groups))


def _shrink(frame: Frame, settings: TranslationSettings) -> Float[Tensor, " r"]:
    """Return the share of each direction of the anchors that ridge regression keeps."""
    return frame.singular_values * settings.gains(frame.singular_values, side="source")


def _mean_of_others(rows: Float[Tensor, "k d"], groups: Integer[Tensor, " k"] | None) -> Float[Tensor, "k d"]:
    """Return for each row the mean of all rows but it, or but its whole group."""
    if groups is None:
        return (rows.sum(0) - rows) / (len(rows) - 1)
    _, number, sizes = groups.unique(return_inverse=True, return_counts=True)
    sums = rows.new_zeros(len(sizes), rows.shape[1]).index_add_(0, number, rows)
    return (rows.sum(0) - sums[number]) / (len(rows) - sizes[number])[:, None]


def _rank(scores: dict[TranslationSettings, Tensor], criterion: Criterion) -> Choice:
    """Choose the candidate with the highest mean score, the first of equals."""
    means = {candidate: float(score.mean()) for candidate, score in scores.items()}
    ranked = sorted(means, key=lambda candidate: -means[candidate])
    best = scores[ranked[0]]
    return Choice(
        settings=ranked[0],
        score=means[ranked[0]],
        standard_error=float(best.std()) / len(best) ** 0.5,
        criterion=criterion,
        candidates=tuple(Candidate(candidate, means[candidate]) for candidate in ranked),
    )


@torch.no_grad()
def choose_for_search(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    *,
    translates: Role,
    prefer: Prefer = "linear",
    splits: Sequence[Split] | None = None,
) -> Choice:
    """Choose the member of the family that serves a search best, by recall in five splits; see `RecallScorer`.

    `prefer="linear"` compares W(α, λ) and, if the spaces have the same dimension, leaving latents unchanged. `"auto"`
    also compares kernel translations, whose outputs are evened out over the target's directions (β, with a ridge of its
    own). `splits` is the result of `make_splits` for these anchors, if the caller has it.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same;
            `prefer` or `translates` is not one of its words.
    """
    check_prefer(prefer)
    splits = splits or make_splits(source_anchors, target_anchors, norm="keep", seed=0)
    scorer = RecallScorer.from_splits(splits, translates)
    scores: dict[TranslationSettings, Tensor] = {}
    for candidates in search_grid(prefer):
        views = [split.view(candidates[0]) for split in splits]
        scores |= {candidate: scorer.scores(splits, views, candidate) for candidate in candidates}
    if splits[0].x.shape[1] == splits[0].y.shape[1]:
        scores[TranslationSettings(identity=True)] = scorer.unchanged(splits[0].x)
    choice = _rank(scores, "recall")
    if choice.settings.identity:
        return choice
    return replace(choice, settings=replace(choice.settings, output_scale=scorer.output_scale(splits, choice.settings)))


def search_grid(prefer: Prefer) -> list[list[TranslationSettings]]:
    """List the candidates for a search, in groups that share their decompositions."""
    groups = [[TranslationSettings(alpha=alpha, ridge=ridge) for alpha in SEARCH_ALPHAS for ridge in SEARCH_RIDGES]]
    if prefer == "auto":
        bent = TranslationSettings(alpha=1.0, gamma=GAMMA)
        members = product(KERNEL_RIDGES, KERNEL_BETAS, KERNEL_TARGET_RIDGES)
        groups += [[replace(bent, ridge=ridge, beta=beta, target_ridge=other) for ridge, beta, other in members]]
    return groups


def check_prefer(prefer: str) -> None:
    """Refuse a word that is neither of the two preferences."""
    if prefer not in get_args(Prefer):
        raise StitchError(f"prefer is {prefer!r}: it has to be 'auto' or 'linear'")
