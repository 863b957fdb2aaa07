"""Decompose anchors once for each split, so that every member of the family is fitted without another decomposition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hf_relstitch.core.decomposition import kernel, kernel_frame, quick_frame, shrinkage
from hf_relstitch.core.relative import directions, precision_of
from hf_relstitch.core.translation import (
    Norm,
    TranslationSettings,
    compose,
    draw_subsets,
    mean_norm,
    pair_anchors,
    unchanged,
)

SPLITS = 5
NORM_ROWS = 64
"""Held-out rows of a split, and no fewer, that tell the mean norm of translated latents."""


def _assign_splits(count: int, *, seed: int, splits: int = SPLITS) -> Int[Tensor, " k"]:
    """Draw the split that each anchor is held out of, in even numbers."""
    generator = torch.Generator().manual_seed(seed)
    assigned = torch.empty(count, dtype=torch.int64)
    assigned[torch.randperm(count, generator=generator)] = torch.arange(count) * splits // count
    return assigned


@dataclass(frozen=True)
class Spectrum:
    """Hold a `Frame` without the rows of the anchors."""

    singular_values: Float[Tensor, " r"]
    vh: Float[Tensor, "r d"]


@dataclass(frozen=True)
class View:
    """Hold features of a split's latents, and maps from these to coordinates in the target space.

    A translated latent is `features · map(settings) · basis`, up to one scale; the rows of `basis` are orthonormal. A
    map comes as its factors, gains on both sides of a matrix: a caller who multiplies by these needs no map for each
    member.
    """

    fitted: Callable[[], Float[Tensor, "k r"]]
    held_out: Float[Tensor, "n r"]
    factors_of: Callable[[TranslationSettings], tuple[Float[Tensor, "r 1"], Float[Tensor, "r r_target"], Tensor]]
    basis: Float[Tensor, "r_target d_target"]


@dataclass(frozen=True)
class Split:
    """Hold the decomposed anchors that a fit sees, and the anchors held out of it.

    All splits share the anchors themselves, `x` and `y`; directions are computed from them when they are needed.
    """

    x: Float[Tensor, "k d_source"]
    y: Float[Tensor, "k d_target"]
    held_out: Bool[Tensor, " k"]
    norm: Norm
    source: Spectrum
    target: Spectrum
    between: Float[Tensor, "r r_target"]
    target_norm: Float[Tensor, ""]
    source_centre: Float[Tensor, " d_source"]
    centre: Float[Tensor, " d_target"]
    precisions: tuple[float, float]

    @classmethod
    def from_rows(
        cls, x: Tensor, y: Tensor, held_out: Bool[Tensor, " k"], *, norm: Norm, precisions: tuple[float, float]
    ) -> "Split":
        """Decompose the anchors that are not held out."""
        centre, target_centre = x[~held_out].mean(0), y[~held_out].mean(0)
        unit, target_unit = directions(x[~held_out], centre=centre), directions(y[~held_out], centre=target_centre)
        frames = quick_frame(unit, precision=precisions[0]), quick_frame(target_unit, precision=precisions[1])
        return cls(
            x=x,
            y=y,
            held_out=held_out,
            norm=norm,
            source=Spectrum(frames[0].singular_values, frames[0].vh),
            target=Spectrum(frames[1].singular_values, frames[1].vh),
            between=frames[0].u.T @ frames[1].u,
            target_norm=mean_norm(y[~held_out] - target_centre),
            source_centre=centre,
            centre=target_centre,
            precisions=precisions,
        )

    def unit(self, rows: Bool[Tensor, " k"]) -> Float[Tensor, "n d_source"]:
        """Return directions of the source anchors in these rows."""
        return directions(self.x[rows], centre=self.source_centre)

    def norms(self, rows: Bool[Tensor, " k"]) -> Float[Tensor, "n 1"]:
        """Return the norm that a translated latent keeps: its distance from the centre, or 1."""
        norms = (self.x[rows] - self.source_centre).norm(dim=-1, keepdim=True)
        return norms if self.norm == "keep" else torch.ones_like(norms)

    def view(self, settings: TranslationSettings) -> View:
        """Return the features that candidates with the same gamma and pruning share."""
        if settings.pruning is not None:
            return self.pruned_view(settings)
        if settings.gamma:
            return self.kernel_view(settings)
        features = self.source.vh.T / self.source.singular_values

        def fitted() -> Tensor:
            return (self.norms(~self.held_out) * self.unit(~self.held_out)) @ features

        held_out = (self.norms(self.held_out) * self.unit(self.held_out)) @ features
        return View(fitted, held_out, self.factors_of(self.source.singular_values**2, self.between), self.target.vh)

    def factors_of(
        self, values: Float[Tensor, " r"], between: Float[Tensor, "r r_target"]
    ) -> Callable[[TranslationSettings], tuple[Tensor, Tensor, Tensor]]:
        """Return the function from settings to the factors of a map, from eigenvalues of the source's Gram."""

        def factors(each: TranslationSettings) -> tuple[Tensor, Tensor, Tensor]:
            source_gains = values * shrinkage(values, exponent=each.alpha, ridge=each.ridge)
            return source_gains[:, None], between, each.gains(self.target.singular_values, side="target")

        return factors

    def kernel_view(self, settings: TranslationSettings) -> View:
        """Return the eigenvectors of the kernel matrix, and kernel values of the held-out rows in them."""
        unit, target_unit = self.unit(~self.held_out), directions(self.y[~self.held_out], centre=self.centre)
        frame = kernel_frame(unit, gamma=settings.gamma, landmarks=settings.landmarks)
        cosines = self.unit(self.held_out) @ unit[: settings.landmarks].T
        features = kernel(cosines, gamma=settings.gamma) @ (frame.vh.T / frame.singular_values)
        between = (frame.u.T @ target_unit) @ (self.target.vh.T / self.target.singular_values)
        fitted = self.norms(~self.held_out) * frame.u
        factors = self.factors_of(frame.singular_values**2, between)
        return View(lambda: fitted, self.norms(self.held_out) * features, factors, self.target.vh)

    def pruned_view(self, settings: TranslationSettings) -> View:
        """Return the source latents themselves, with the averaged matrices of pruned inversions."""
        fitted_unit, target_unit = self.unit(~self.held_out), directions(self.y[~self.held_out], centre=self.centre)
        frames = [
            tuple(
                quick_frame(unit[rows], precision=precision)
                for unit, precision in zip((fitted_unit, target_unit), self.precisions, strict=True)
            )
            for rows in draw_subsets(target_unit, settings)
        ]

        basis = torch.eye(self.y.shape[1], dtype=self.y.dtype, device=self.y.device)
        ones = torch.ones_like(basis[0])

        def factors(each: TranslationSettings) -> tuple[Tensor, Tensor, Tensor]:
            made = torch.stack([compose(*pair, settings=each) for pair in frames]).mean(0)
            return ones.new_ones(len(made), 1), made, ones

        fitted, held_out = (self.norms(rows) * self.unit(rows) for rows in (~self.held_out, self.held_out))
        return View(lambda: fitted, held_out, factors, basis)

    def translated(self, settings: TranslationSettings) -> Float[Tensor, "n d_target"]:
        """Translate the held-out anchors by the fit that `settings` and the other anchors define."""
        if settings.identity:
            return unchanged(self.x, self.y)(self.x[self.held_out])
        view = self.view(settings)
        source_gains, between, target_gains = view.factors_of(settings)
        made = source_gains * between * target_gains
        scale = settings.output_scale * self.target_norm / mean_norm(view.fitted() @ made)
        return self.centre + scale * (view.held_out @ made) @ view.basis


def make_splits(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "m d_target"],
    *,
    norm: Norm,
    seed: int,
    splits: int = SPLITS,
    groups: Int[Tensor, " k"] | None = None,
) -> list[Split]:
    """Split anchors as the seed says, and decompose those that each fit sees; `groups` are not taken apart.

    Raises:
        StitchError: the two sides have different numbers of rows, or anchors that are not finite or all the same.
    """
    x, y = pair_anchors(source_anchors, target_anchors)
    precisions = precision_of(source_anchors), precision_of(target_anchors)
    count, group_of = len(x), torch.arange(len(x))
    if groups is not None:
        values, group_of = groups.cpu().unique(return_inverse=True)
        count = len(values)
    split_of = _assign_splits(count, seed=seed, splits=splits)[group_of].to(x.device)
    return [Split.from_rows(x, y, split_of == split, norm=norm, precisions=precisions) for split in range(splits)]


def translate_views(
    splits: Sequence[Split], views: Sequence[View], settings: TranslationSettings
) -> Float[Tensor, "k d_target"]:
    """Translate each anchor by the fit that did not see it, from the target's centre and at its mean norm."""
    away = torch.empty_like(splits[0].y)
    for split, view in zip(splits, views, strict=True):
        source_gains, between, target_gains = view.factors_of(settings)
        held_out = view.held_out * source_gains.T
        some = held_out[:: max(1, len(held_out) // NORM_ROWS)]  # whatever order the anchors came in
        scale = split.target_norm / mean_norm(some @ between * target_gains)
        away[split.held_out] = scale * torch.linalg.multi_dot([held_out, between, target_gains[:, None] * view.basis])
    return away


def centres_of(splits: Sequence[Split]) -> Float[Tensor, "k d_target"]:
    """Return the target's centre for each anchor, as the fit that did not see the anchor knows it."""
    centres = torch.empty_like(splits[0].y)
    for each in splits:
        centres[each.held_out] = each.centre
    return centres
