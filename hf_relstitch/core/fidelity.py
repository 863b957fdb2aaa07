"""How good a translation is, measured on anchors that it was not fitted on: no labels needed."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_relstitch.core.folds import FOLDS, Fold, folds_of
from hf_relstitch.core.inversion import TranslationSettings
from hf_relstitch.core.relative import BLOCK, directions


def held_out_translations(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    *,
    settings: TranslationSettings,
    folds: int | Sequence[Fold] = FOLDS,
) -> Float[Tensor, "k d_target"]:
    """Each source anchor translated by a fit on the folds that it is not in; folds are drawn from the seed.

    `folds` may be these anchors in `folds_of` already, so that nothing is decomposed twice.
    """
    if isinstance(folds, int):
        folds = folds_of(source_anchors, target_anchors, scale=settings.scale, seed=settings.seed, folds=folds)
    translated = torch.empty_like(folds[0].y)
    for fold in folds:
        translated[fold.held_out] = fold.translated(settings)
    return translated


def mean_cosine(
    translated: Float[Tensor, "n d"], target: Float[Tensor, "n d"], *, centre: Float[Tensor, " d"]
) -> float:
    """Mean cosine between translated and true latents, both seen from `centre`; 1 is perfect."""
    cosines = directions(translated, centre=centre) * directions(target, centre=centre)
    return float(cosines.sum(-1).mean())


def mean_reciprocal_rank(
    translated: Float[Tensor, "n d"], target: Float[Tensor, "n d"], *, centre: Float[Tensor, " d"]
) -> float:
    """Mean of 1/rank of the true latent among all targets, by cosine to the translated one; 1 is perfect."""
    return float((1 / retrieval_ranks(translated, target, centre=centre)).mean())


def retrieval_ranks(
    translated: Float[Tensor, "n d"], target: Float[Tensor, "n d"], *, centre: Float[Tensor, " d"]
) -> Int[Tensor, " n"]:
    """Rank of the true latent among all targets, by cosine to the translated one: 1 is first, ties count against it."""
    queries, keys = directions(translated, centre=centre), directions(target, centre=centre)
    ranks = []
    for start in range(0, len(queries), BLOCK):
        similarity = queries[start : start + BLOCK] @ keys.T
        ranks.append((similarity >= similarity.diagonal(start)[:, None]).sum(-1))
    return torch.cat(ranks)


def relative_error(
    translated: Float[Tensor, "n d"], target: Float[Tensor, "n d"], *, centre: Float[Tensor, " d"]
) -> float:
    """`‖Ŷ − Y‖ / ‖Y − μ‖` over all rows: 0 is perfect, and 1 is no better than giving the centre μ for every row."""
    return float((translated - target).norm() / (target - centre).norm())


def agreement(
    translated_logits: Float[Tensor, "n classes"],
    target_logits: Float[Tensor, "n classes"],
    *,
    multi_label: bool = False,
) -> float:
    """Share of answers that the head gives alike on translated and on true latents.

    An answer is the class of the largest logit or, with `multi_label`, each class's yes (logit above 0) or no.
    """
    if multi_label:
        return float(((translated_logits > 0) == (target_logits > 0)).double().mean())
    return float((translated_logits.argmax(-1) == target_logits.argmax(-1)).double().mean())
