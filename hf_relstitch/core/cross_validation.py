"""Anchors in folds, decomposed once, from which every member of the family is made without fitting it anew."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hf_relstitch.core.decomposition import quick_frame, shrinkage
from hf_relstitch.core.relative import directions, precision_of
from hf_relstitch.core.translation import (
    Scale,
    TranslationSettings,
    anchor_subsets,
    fold,
    mean_norm,
    paired,
    sharpen,
    sharpened_spectrum,
    unchanged,
)

FOLDS = 5
NORM_ROWS = 64
"""Held-out rows of a fold, and no fewer, that tell the mean norm of translated latents."""


def _assigned_folds(count: int, *, seed: int, folds: int = FOLDS) -> Int[Tensor, " k"]:
    """The fold of each anchor, as even as can be, drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    assigned = torch.empty(count, dtype=torch.int64)
    assigned[torch.randperm(count, generator=generator)] = torch.arange(count) * folds // count
    return assigned


@dataclass(frozen=True)
class Spectrum:
    """A `Frame` without the rows of the anchors."""

    singular_values: Float[Tensor, " r"]
    vh: Float[Tensor, "r d"]


@dataclass(frozen=True)
class View:
    """One way to see a fold: features of its latents, and maps from these to coordinates in the target space.

    A translated latent is `features · map(settings) · basis`, up to one scale; the rows of `basis` are orthonormal. A
    map comes as its factors, gains on both sides of a matrix: whoever multiplies by these needs no map of each member.
    """

    fitted: Callable[[], Float[Tensor, "k r"]]
    held_out: Float[Tensor, "n r"]
    factors_of: Callable[[TranslationSettings], tuple[Float[Tensor, "r 1"], Float[Tensor, "r r_target"], Tensor]]
    basis: Float[Tensor, "r_target d_target"]

    def map_of(self, settings: TranslationSettings) -> Float[Tensor, "r r_target"]:
        """The map of one member of the family."""
        source_gains, between, target_gains = self.factors_of(settings)
        return source_gains * between * target_gains


@dataclass(frozen=True)
class Fold:
    """Anchors of all folds but one, decomposed, and the anchors of that one; all that it knows is of the former.

    The anchors themselves, `x` and `y`, are shared by all folds; directions are made of them when they are needed.
    """

    x: Float[Tensor, "k d_source"]
    y: Float[Tensor, "k d_target"]
    held_out: Bool[Tensor, " k"]
    scale: Scale
    source: Spectrum
    target: Spectrum
    between: Float[Tensor, "r r_target"]
    target_norm: Float[Tensor, ""]
    source_centre: Float[Tensor, " d_source"]
    centre: Float[Tensor, " d_target"]
    precisions: tuple[float, float]

    @classmethod
    def of(
        cls, x: Tensor, y: Tensor, held_out: Bool[Tensor, " k"], *, scale: Scale, precisions: tuple[float, float]
    ) -> "Fold":
        """Decompose the anchors that are not held out."""
        centre, target_centre = x[~held_out].mean(0), y[~held_out].mean(0)
        unit, target_unit = directions(x[~held_out], centre=centre), directions(y[~held_out], centre=target_centre)
        frames = quick_frame(unit, precision=precisions[0]), quick_frame(target_unit, precision=precisions[1])
        return cls(
            x=x,
            y=y,
            held_out=held_out,
            scale=scale,
            source=Spectrum(frames[0].singular_values, frames[0].vh),
            target=Spectrum(frames[1].singular_values, frames[1].vh),
            between=frames[0].u.T @ frames[1].u,
            target_norm=mean_norm(y[~held_out] - target_centre),
            source_centre=centre,
            centre=target_centre,
            precisions=precisions,
        )

    def unit(self, rows: Bool[Tensor, " k"]) -> Float[Tensor, "n d_source"]:
        """Directions of the source anchors in these rows."""
        return directions(self.x[rows], centre=self.source_centre)

    def norms(self, rows: Bool[Tensor, " k"]) -> Float[Tensor, "n 1"]:
        """What a translated latent carries on: its distance from the centre, or 1."""
        norms = (self.x[rows] - self.source_centre).norm(dim=-1, keepdim=True)
        return norms if self.scale == "carry" else torch.ones_like(norms)

    def view(self, settings: TranslationSettings) -> View:
        """What the candidates of one group have in common."""
        if settings.pruning is not None:
            return self.pruned_view(settings)
        if settings.sharpness:
            return self.sharpened_view(settings)
        features = self.source.vh.T / self.source.singular_values

        def fitted() -> Tensor:
            return (self.norms(~self.held_out) * self.unit(~self.held_out)) @ features

        held_out = (self.norms(self.held_out) * self.unit(self.held_out)) @ features
        return View(fitted, held_out, self.factors_of(self.source.singular_values**2, self.between), self.target.vh)

    def factors_of(
        self, values: Float[Tensor, " r"], between: Float[Tensor, "r r_target"]
    ) -> Callable[[TranslationSettings], tuple[Tensor, Tensor, Tensor]]:
        """The factors of each map, from eigenvalues of the source's Gram."""

        def factors(each: TranslationSettings) -> tuple[Tensor, Tensor, Tensor]:
            source_gains = values * shrinkage(values, exponent=each.alpha, ridge=each.ridge)
            return source_gains[:, None], between, each.gains(self.target.singular_values, side="target")

        return factors

    def sharpened_view(self, settings: TranslationSettings) -> View:
        """The eigenvectors of the sharpened Gram."""
        unit, target_unit = self.unit(~self.held_out), directions(self.y[~self.held_out], centre=self.centre)
        vectors, values = sharpened_spectrum(unit, sharpness=settings.sharpness)
        relative = sharpen(self.unit(self.held_out) @ unit.T, sharpness=settings.sharpness)
        held_out = self.norms(self.held_out) * (relative @ vectors / values)
        between = (vectors.T @ target_unit) @ (self.target.vh.T / self.target.singular_values)
        fitted = self.norms(~self.held_out) * vectors
        return View(lambda: fitted, held_out, self.factors_of(values, between), self.target.vh)

    def pruned_view(self, settings: TranslationSettings) -> View:
        """The source latents themselves, and the averaged matrices of pruned inversions."""
        fitted_unit, target_unit = self.unit(~self.held_out), directions(self.y[~self.held_out], centre=self.centre)
        frames = [
            tuple(
                quick_frame(unit[rows], precision=precision)
                for unit, precision in zip((fitted_unit, target_unit), self.precisions, strict=True)
            )
            for rows in anchor_subsets(target_unit, settings)
        ]

        basis = torch.eye(self.y.shape[1], dtype=self.y.dtype, device=self.y.device)
        ones = torch.ones_like(basis[0])

        def factors(each: TranslationSettings) -> tuple[Tensor, Tensor, Tensor]:
            made = torch.stack([fold(*pair, settings=each) for pair in frames]).mean(0)
            return ones.new_ones(len(made), 1), made, ones

        fitted, held_out = (self.norms(rows) * self.unit(rows) for rows in (~self.held_out, self.held_out))
        return View(lambda: fitted, held_out, factors, basis)

    def translated(self, settings: TranslationSettings) -> Float[Tensor, "n d_target"]:
        """The held-out anchors, translated by the fit that `settings` make of the others."""
        if settings.identity:
            return unchanged(self.x, self.y)(self.x[self.held_out])
        view = self.view(settings)
        made = view.map_of(settings)
        scale = settings.stretch * self.target_norm / mean_norm(view.fitted() @ made)
        return self.centre + scale * (view.held_out @ made) @ view.basis


def folds_of(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "m d_target"],
    *,
    scale: Scale,
    seed: int,
    folds: int = FOLDS,
) -> list[Fold]:
    """Anchors in folds drawn from the seed, each without one decomposed.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same.
    """
    x, y = paired(source_anchors, target_anchors)
    precisions = precision_of(source_anchors), precision_of(target_anchors)
    fold_of = _assigned_folds(len(x), seed=seed, folds=folds).to(x.device)
    return [Fold.of(x, y, fold_of == fold, scale=scale, precisions=precisions) for fold in range(folds)]


def readings(
    folds: Sequence[Fold],
    views: Sequence[View],
    settings: TranslationSettings,
    *,
    readouts: Sequence[Float[Tensor, "_ width"]],
) -> Iterator[tuple[Fold, Float[Tensor, "_ width"]]]:
    """Each fold, and its held-out anchors translated by the fit on the others, as the fold's readout reads them.

    They have the target's mean norm, seen from its centre. No latent of `d_target` is made for a readout that is
    narrower.
    """
    for each, view, readout in zip(folds, views, readouts, strict=True):
        source_gains, between, target_gains = view.factors_of(settings)
        held_out = view.held_out * source_gains.T
        some = held_out[:: max(1, len(held_out) // NORM_ROWS)]  # whatever order the anchors came in
        scale = each.target_norm / mean_norm(some @ between * target_gains)
        yield each, scale * torch.linalg.multi_dot([held_out, between, target_gains[:, None] * readout])


def centres_of(folds: Sequence[Fold]) -> Float[Tensor, "k d_target"]:
    """The target's centre for each anchor, as the fold that it is held out of knows it."""
    centres = torch.empty_like(folds[0].y)
    for each in folds:
        centres[each.held_out] = each.centre
    return centres
