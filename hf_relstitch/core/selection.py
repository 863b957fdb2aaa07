"""Choosing a translation on anchors alone: cross-validation over the family, by what the head says."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hf_relstitch.core.confidence import answer_probability, temperature_for
from hf_relstitch.core.inversion import Frame, Scale, TranslationSettings, mean_norm, shrinkage
from hf_relstitch.core.relative import directions, precision_of, to_working
from hf_relstitch.core.sharpening import sharpen, sharpened_spectrum

Prefer = Literal["linear", "accuracy"]
Logits = Callable[[Tensor], Tensor]

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RIDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SHARP_ALPHAS = (0.7, 0.85, 1.0)
SHARP_RIDGES = (0.03, 0.1, 0.3, 1.0)
SHARPNESSES = (0.25, 0.5, 1.0, 2.0)
CONFIDENCE = 0.8
"""Mean confidence that the head is brought to on true latents, so that its own scale does not matter."""
NORM_ROWS = 64
"""Held-out rows of a fold that tell the mean norm of translated latents."""


@dataclass(frozen=True)
class Candidate:
    """One member of the family with its cross-validated score."""

    settings: TranslationSettings
    score: float


@dataclass(frozen=True)
class Choice:
    """The settings that were chosen, and on what grounds.

    `score` is the mean of `criterion` over anchors held out of the fit; `standard_error` is its standard error.
    """

    settings: TranslationSettings
    score: float
    standard_error: float
    criterion: Literal["head", "cosine"]
    candidates: tuple[Candidate, ...]


@torch.no_grad()
def choose_settings(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    *,
    head: nn.Linear | Logits | None = None,
    prefer: Prefer = "linear",
    scale: Scale = "carry",
    multi_label: bool = False,
    folds: int = 5,
    seed: int = 0,
) -> Choice:
    """The member of the family that does best on anchors held out of its fit; no labels.

    With a head the criterion is the mean probability that the head, seeing the translated latent, gives to the answer
    that it gives on the true one: agreement made smooth. It is bounded and linear in the answer, as the mean absolute
    error that noise in labels does not bias (Ghosh, Kumar & Sastry 2017), so a weak head's mistakes do not pull the
    choice as they do with a divergence. The head is brought to a mean confidence of 0.8 first, so its scale does not
    matter. Without a head, or with a single logit, the criterion is the cosine of translated and true latents.

    `prefer="linear"` looks at W(α, λ) and, for spaces of one width, at leaving latents as they are; `"accuracy"` also
    at sharpened translations, which do not fold.
    `stretch` of the choice gives held-out latents the mean norm of the target anchors.
    """
    rows = assigned_folds(len(source_anchors), folds=folds, seed=seed)
    split = [Fold.of(source_anchors, target_anchors, rows == fold, scale=scale) for fold in range(folds)]
    target = to_working(target_anchors)
    judge = Judge.of(head, target, multi_label=multi_label)
    scores: dict[TranslationSettings, Tensor] = {}
    for sharpness, settings in grid(prefer, TranslationSettings(scale=scale, seed=seed)).items():
        views = [fold.view(sharpness) for fold in split]
        for candidate in settings:
            per_anchor = torch.empty(len(target), dtype=target.dtype, device=target.device)
            for fold, view in zip(split, views, strict=True):
                per_anchor[fold.held_out] = judge.scores(fold, view, candidate)
            scores[candidate] = per_anchor
    if scale == "carry" and source_anchors.shape[1] == target_anchors.shape[1]:
        scores[TranslationSettings(scale=scale, seed=seed, identity=True)] = judge.unchanged(to_working(source_anchors))
    best = max(scores, key=lambda candidate: float(scores[candidate].mean()))
    if not best.identity:
        best = replace(best, stretch=sum(fold.stretch(fold.view(best.sharpness), best) for fold in split) / folds)
    chosen = scores[replace(best, stretch=1.0)]
    return Choice(
        settings=best,
        score=float(chosen.mean()),
        standard_error=float(chosen.std()) / len(target) ** 0.5,
        criterion=judge.criterion,
        candidates=tuple(Candidate(candidate, float(each.mean())) for candidate, each in scores.items()),
    )


def grid(prefer: Prefer, base: TranslationSettings) -> dict[float, list[TranslationSettings]]:
    """The candidates, by sharpness: one decomposition of the source serves all of one sharpness."""
    candidates = {0.0: [replace(base, alpha=alpha, ridge=ridge) for alpha in ALPHAS for ridge in RIDGES]}
    if prefer == "accuracy":
        for sharpness in SHARPNESSES:
            candidates[sharpness] = [
                replace(base, alpha=alpha, ridge=ridge, sharpness=sharpness)
                for alpha in SHARP_ALPHAS
                for ridge in SHARP_RIDGES
            ]
    return candidates


def assigned_folds(count: int, *, folds: int, seed: int) -> Int[Tensor, " k"]:
    """The fold of each anchor, as even as can be, drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    assigned = torch.empty(count, dtype=torch.int64)
    assigned[torch.randperm(count, generator=generator)] = torch.arange(count) * folds // count
    return assigned


@dataclass(frozen=True)
class View:
    """The source anchors of one fold in their eigenbasis, at one sharpness, and its held-out latents in it."""

    eigenvalues: Float[Tensor, " r"]
    fitted: Float[Tensor, "k r"]
    held_out: Float[Tensor, "n r"]
    to_target: Float[Tensor, "r r_target"]

    def coefficients(self, target: Frame, settings: TranslationSettings) -> Float[Tensor, "r r_target"]:
        """The translation from this basis to that of the target frame, `Dα M Dβ`."""
        gains = self.eigenvalues * shrinkage(self.eigenvalues, exponent=settings.alpha, ridge=settings.ridge)
        return gains[:, None] * self.to_target * target.gains(exponent=1 - settings.alpha, ridge=settings.ridge)


@dataclass(frozen=True)
class Fold:
    """Anchors of all folds but one, decomposed, and the anchors of that one."""

    held_out: Bool[Tensor, " k"]
    fitted_unit: Float[Tensor, "k_fit d_source"]
    fitted_norms: Float[Tensor, "k_fit 1"]
    unit: Float[Tensor, "n d_source"]
    norms: Float[Tensor, "n 1"]
    source: Frame
    target: Frame
    target_norm: Float[Tensor, ""]
    centre: Float[Tensor, " d_target"]

    @classmethod
    def of(cls, source_anchors: Tensor, target_anchors: Tensor, held_out: Tensor, *, scale: Scale) -> "Fold":
        """Decompose the anchors that are not held out; their centre and norm are all that the fold knows."""
        held_out = held_out.to(source_anchors.device)
        x, y = to_working(source_anchors), to_working(target_anchors)
        x_centre, y_centre = x[~held_out].mean(0), y[~held_out].mean(0)
        unit = directions(x, centre=x_centre)
        norms = (x - x_centre).norm(dim=-1, keepdim=True)
        norms = norms if scale == "carry" else torch.ones_like(norms)
        y_unit = directions(y[~held_out], centre=y_centre)
        return cls(
            held_out=held_out,
            fitted_unit=unit[~held_out],
            fitted_norms=norms[~held_out],
            unit=unit[held_out],
            norms=norms[held_out],
            source=quick_frame(unit[~held_out], precision=precision_of(source_anchors)),
            target=quick_frame(y_unit, precision=precision_of(target_anchors)),
            target_norm=mean_norm(y[~held_out] - y_centre),
            centre=y_centre,
        )

    def view(self, sharpness: float) -> View:
        """The source side at one sharpness."""
        if sharpness == 0:
            vectors, values = self.source.u, self.source.singular_values**2
            held_out = (self.unit @ self.source.vh.T) / self.source.singular_values
        else:
            vectors, values = sharpened_spectrum(self.fitted_unit, sharpness=sharpness)
            held_out = sharpen(self.unit @ self.fitted_unit.T, sharpness=sharpness) @ vectors / values
        return View(values, self.fitted_norms * vectors, self.norms * held_out, vectors.T @ self.target.u)

    def stretch(self, view: View, settings: TranslationSettings) -> float:
        """What makes held-out latents as long, in the mean, as fitted ones."""
        coefficients = view.coefficients(self.target, settings)
        return float(mean_norm(view.fitted @ coefficients) / mean_norm(view.held_out @ coefficients))


def quick_frame(unit_anchors: Float[Tensor, "k d"], *, precision: float) -> Frame:
    """`Frame.of` by the Gram matrix of the smaller side: several times faster, blind below √eps of the largest."""
    wide = unit_anchors.shape[0] < unit_anchors.shape[1]
    gram = unit_anchors @ unit_anchors.T if wide else unit_anchors.T @ unit_anchors
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    floor = max(max(unit_anchors.shape) * precision, 10 * torch.finfo(gram.dtype).eps ** 0.5)
    kept = values > values[0] * floor**2
    s, vectors = values[kept].sqrt(), vectors[:, kept]
    if wide:
        return Frame(vectors, s, vectors.T @ unit_anchors / s[:, None])
    return Frame(unit_anchors @ vectors / s, s, vectors.T)


@dataclass(frozen=True)
class Judge:
    """Scores translated latents, row by row: by the head's answers, or by cosine where there are none."""

    target: Float[Tensor, "k d_target"]
    head: nn.Linear | Logits | None
    logits: Float[Tensor, "k classes"] | None
    temperature: float
    multi_label: bool

    @classmethod
    def of(cls, head: nn.Linear | Logits | None, target: Tensor, *, multi_label: bool) -> "Judge":
        """A head that answers nothing (one logit) judges nothing."""
        logits = None if head is None else apply_head(head, target)
        if logits is None or logits.shape[1] < 2:
            return cls(target, None, None, 1.0, multi_label)
        temperature = temperature_for(logits, confidence=CONFIDENCE, multi_label=multi_label)
        return cls(target, head, logits, temperature, multi_label)

    @property
    def criterion(self) -> Literal["head", "cosine"]:
        """Its name."""
        return "cosine" if self.head is None else "head"

    def scores(self, fold: Fold, view: View, settings: TranslationSettings) -> Float[Tensor, " n"]:
        """One score for each held-out row."""
        coefficients = view.coefficients(fold.target, settings)
        if self.head is None or self.logits is None:
            true = (self.target[fold.held_out] - fold.centre) @ fold.target.vh.T
            lengths = (self.target[fold.held_out] - fold.centre).norm(dim=-1)
            translated = view.held_out @ coefficients
            return (translated * true).sum(-1) / (translated.norm(dim=-1) * lengths).clamp_min(1e-30)
        scale = fold.target_norm / mean_norm(view.held_out[:NORM_ROWS] @ coefficients)
        if isinstance(self.head, nn.Linear):
            weight = self.head.weight.detach().to(self.target)
            offset = apply_head(self.head, fold.centre[None])
            logits = offset + scale * (view.held_out @ (coefficients @ (fold.target.vh @ weight.T)))
        else:
            latents = fold.centre + scale * ((view.held_out @ coefficients) @ fold.target.vh)
            logits = apply_head(self.head, latents)
        true_logits = self.logits[fold.held_out]
        return answer_probability(logits, true_logits, temperature=self.temperature, multi_label=self.multi_label)

    def unchanged(self, source: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
        """The score of each anchor where source latents are taken for target latents as they are."""
        if self.head is None or self.logits is None:
            centre = self.target.mean(0)
            return (directions(source, centre=centre) * directions(self.target, centre=centre)).sum(-1)
        logits = apply_head(self.head, source)
        return answer_probability(logits, self.logits, temperature=self.temperature, multi_label=self.multi_label)


def apply_head(head: nn.Linear | Logits, latents: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
    """Logits in the dtype of the latents, whatever the head computes in."""
    if isinstance(head, nn.Linear):
        bias = None if head.bias is None else head.bias.detach().to(latents)
        return nn.functional.linear(latents, head.weight.detach().to(latents), bias)
    parameter = next(head.parameters(), None) if isinstance(head, nn.Module) else None
    logits = head(latents.to(parameter.dtype) if parameter is not None else latents)
    return logits.detach().to(latents)
