"""Anchors in folds, decomposed once, from which every member of the family is made without fitting it anew."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hf_relstitch.core.inversion import Frame, Scale, TranslationSettings, anchor_subsets, fold, mean_norm, shrinkage
from hf_relstitch.core.relative import directions
from hf_relstitch.core.sharpening import sharpen, sharpened_spectrum

FOLDS = 5


def assigned_folds(count: int, *, seed: int) -> Int[Tensor, " k"]:
    """The fold of each anchor, as even as can be, drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    assigned = torch.empty(count, dtype=torch.int64)
    assigned[torch.randperm(count, generator=generator)] = torch.arange(count) * FOLDS // count
    return assigned


@dataclass(frozen=True)
class View:
    """One way to see a fold: features of its latents, and maps from these to coordinates in the target space.

    A translated latent is `features · map(settings) · basis`, up to one scale; the rows of `basis` are orthonormal.
    """

    fitted: Float[Tensor, "k r"]
    held_out: Float[Tensor, "n r"]
    map_of: Callable[[TranslationSettings], Float[Tensor, "r r_target"]]
    basis: Float[Tensor, "r_target d_target"]


@dataclass(frozen=True)
class Fold:
    """Anchors of all folds but one, decomposed, and the anchors of that one; all that it knows is of the former."""

    held_out: Bool[Tensor, " k"]
    fitted_unit: Float[Tensor, "k_fit d_source"]
    fitted_norms: Float[Tensor, "k_fit 1"]
    target_unit: Float[Tensor, "k_fit d_target"]
    unit: Float[Tensor, "n d_source"]
    norms: Float[Tensor, "n 1"]
    source: Frame
    target: Frame
    target_norm: Float[Tensor, ""]
    centre: Float[Tensor, " d_target"]
    precisions: tuple[float, float]

    @classmethod
    def of(
        cls, x: Tensor, y: Tensor, held_out: Bool[Tensor, " k"], *, scale: Scale, precisions: tuple[float, float]
    ) -> "Fold":
        """Decompose the anchors that are not held out."""
        centre, target_centre = x[~held_out].mean(0), y[~held_out].mean(0)
        unit, target_unit = directions(x, centre=centre), directions(y[~held_out], centre=target_centre)
        norms = (x - centre).norm(dim=-1, keepdim=True)
        norms = norms if scale == "carry" else torch.ones_like(norms)
        return cls(
            held_out=held_out,
            fitted_unit=unit[~held_out],
            fitted_norms=norms[~held_out],
            target_unit=target_unit,
            unit=unit[held_out],
            norms=norms[held_out],
            source=quick_frame(unit[~held_out], precision=precisions[0]),
            target=quick_frame(target_unit, precision=precisions[1]),
            target_norm=mean_norm(y[~held_out] - target_centre),
            centre=target_centre,
            precisions=precisions,
        )

    def view(self, settings: TranslationSettings) -> View:
        """What the candidates of one group have in common."""
        if settings.pruning is not None:
            return self.pruned_view(settings)
        if settings.sharpness:
            vectors, values = sharpened_spectrum(self.fitted_unit, sharpness=settings.sharpness)
            relative = sharpen(self.unit @ self.fitted_unit.T, sharpness=settings.sharpness)
            held_out = relative @ vectors / values
        else:
            vectors, values = self.source.u, self.source.singular_values**2
            held_out = (self.unit @ self.source.vh.T) / self.source.singular_values
        between = vectors.T @ self.target.u

        def map_of(each: TranslationSettings) -> Tensor:
            gains = values * shrinkage(values, exponent=each.alpha, ridge=each.ridge)
            return gains[:, None] * between * each.gains(self.target, side="target")

        return View(self.fitted_norms * vectors, self.norms * held_out, map_of, self.target.vh)

    def pruned_view(self, settings: TranslationSettings) -> View:
        """The source latents themselves, and the averaged matrices of pruned inversions."""
        frames = [
            tuple(
                quick_frame(unit[rows], precision=precision)
                for unit, precision in zip((self.fitted_unit, self.target_unit), self.precisions, strict=True)
            )
            for rows in anchor_subsets(self.target_unit, settings)
        ]

        def map_of(each: TranslationSettings) -> Tensor:
            return torch.stack([fold(*pair, settings=each) for pair in frames]).mean(0)

        basis = torch.eye(self.target_unit.shape[1], dtype=self.unit.dtype, device=self.unit.device)
        return View(self.fitted_norms * self.fitted_unit, self.norms * self.unit, map_of, basis)

    def stretch(self, settings: TranslationSettings) -> float:
        """What makes held-out latents as long, in the mean, as fitted ones."""
        view = self.view(settings)
        made = view.map_of(settings)
        return float(mean_norm(view.fitted @ made) / mean_norm(view.held_out @ made))


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
