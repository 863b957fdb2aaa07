"""How good a translation is, measured on anchors that it was not fitted on: no labels needed."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_relstitch.core.cross_validation import SPLITS, Split, make_splits
from hf_relstitch.core.relative import BLOCK, directions
from hf_relstitch.core.translation import TranslationSettings


def translate_held_out(
    source_anchors: Float[Tensor, "k d_source"],
    target_anchors: Float[Tensor, "k d_target"],
    *,
    settings: TranslationSettings,
    splits: int | Sequence[Split] = SPLITS,
    groups: Int[Tensor, " k"] | None = None,
) -> Float[Tensor, "k d_target"]:
    """Translate each source anchor by a fit on the splits that exclude it, drawn from the seed.

    `splits` may be the result of `make_splits` for these anchors, so that nothing is decomposed twice. Anchors with the
    same number in `groups` are held out together.
    """
    if isinstance(splits, int):
        options: dict[str, Any] = {"norm": settings.norm, "seed": settings.seed, "splits": splits, "groups": groups}
        splits = make_splits(source_anchors, target_anchors, **options)
    translated = torch.empty_like(splits[0].y)
    for split in splits:
        translated[split.held_out] = split.translated(settings)
    return translated


def mean_cosine(
    translated: Float[Tensor, "n d"], target: Float[Tensor, "n d"], *, centre: Float[Tensor, " d"]
) -> float:
    """Return the mean cosine between translated and true latents, both measured from `centre`; 1 is perfect."""
    cosines = directions(translated, centre=centre) * directions(target, centre=centre)
    return float(cosines.sum(-1).mean())


def mean_reciprocal_rank(
    translated: Float[Tensor, "n d"], target: Float[Tensor, "n d"], *, centre: Float[Tensor, " d"]
) -> float:
    """Return the mean of 1/rank of the true latent among all targets, by cosine to the translated one; 1 is perfect."""
    return float((1 / retrieval_ranks(translated, target, centre=centre)).mean())


def retrieval_ranks(
    translated: Float[Tensor, "n d"], target: Float[Tensor, "n d"], *, centre: Float[Tensor, " d"]
) -> Int[Tensor, " n"]:
    """Rank the true latent among all targets, by cosine to the translated one: 1 is first, ties count against it."""
    queries, keys = directions(translated, centre=centre), directions(target, centre=centre)
    ranks = []
    for start in range(0, len(queries), BLOCK):
        similarity = queries[start : start + BLOCK] @ keys.T
        ranks.append((similarity >= similarity.diagonal(start)[:, None]).sum(-1))
    return torch.cat(ranks)


def relative_error(
    translated: Float[Tensor, "n d"], target: Float[Tensor, "n d"], *, centre: Float[Tensor, " d"]
) -> float:
    """Return `‖Ŷ − Y‖ / ‖Y − μ‖` over all rows: 0 is perfect, 1 no better than the centre μ for every row."""
    return float((translated - target).norm() / (target - centre).norm())


def agreement(
    translated_logits: Float[Tensor, "n classes"],
    target_logits: Float[Tensor, "n classes"],
    *,
    multi_label: bool = False,
) -> float:
    """Return the share of answers that the head gives alike on translated and on true latents.

    An answer is the class of the largest logit or, with `multi_label`, each class's yes (logit above 0) or no.
    """
    if multi_label:
        return float(((translated_logits > 0) == (target_logits > 0)).double().mean())
    return float((translated_logits.argmax(-1) == target_logits.argmax(-1)).double().mean())


def rank_correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Return Spearman's correlation of two lists of values; NaN if the values of a list are all the same."""
    ranks = [_ranks(each) for each in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the rank of each value, of equal values the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).to(values.dtype)[inverse]


def discounted_gain(
    scores: Float[Tensor, " n"], relevance: Float[Tensor, " n"], groups: Int[Tensor, " n"]
) -> float | None:
    """Return the mean nDCG of groups ranked by `scores`; None if no group has two rows of different relevance.

    The gain of a row is its relevance less the least of all, so that a shift and a factor change nothing; a row at rank
    r counts 1/log2(r + 1) (Järvelin and Kekäläinen 2002).
    """
    gains = relevance - relevance.min()
    found = []
    for group in groups.unique():
        rows = (groups == group).nonzero().flatten()
        gain = gains[rows]
        if gain.max() == gain.min():
            continue
        discounts = 1 / torch.arange(2, len(rows) + 2, dtype=gain.dtype, device=gain.device).log2()
        order = scores[rows].argsort(descending=True, stable=True)
        found.append(float((gain[order] @ discounts) / (gain.sort(descending=True).values @ discounts)))
    return sum(found) / len(found) if found else None


def angle_correlation(x: Float[Tensor, "n d_x"], y: Float[Tensor, "n d_y"]) -> float:
    """Return the Pearson correlation, over all pairs of rows, of the pair's cosine in one space and in the other.

    Each space is measured from its mean. By `Σ_ij (x_i·x_j)(y_i·y_j) = ‖XᵀY‖²` no `(n, n)` matrix is computed. The
    result is NaN if all cosines of a space are the same.
    """
    x_unit, y_unit = (directions(each, centre=each.mean(0)) for each in (x, y))
    x_self, y_self = (each.square().sum(-1) for each in (x_unit, y_unit))
    pairs = len(x) * (len(x) - 1)

    def mean_product(a: Tensor, b: Tensor, self_product: Tensor) -> Tensor:
        return ((a.T @ b).square().sum() - self_product.sum()) / pairs

    x_mean, y_mean = (
        (unit.sum(0).square().sum() - own.sum()) / pairs for unit, own in ((x_unit, x_self), (y_unit, y_self))
    )
    covariance = mean_product(x_unit, y_unit, x_self * y_self) - x_mean * y_mean
    variances = [
        (mean_product(unit, unit, own.square()) - mean**2).clamp(min=0)
        for unit, own, mean in ((x_unit, x_self, x_mean), (y_unit, y_self, y_mean))
    ]
    if min(float(variance) for variance in variances) < torch.finfo(x.dtype).eps:
        return float("nan")
    return float((covariance / (variances[0] * variances[1]).sqrt()).clamp(-1, 1))


def linear_cka(x: Float[Tensor, "n d_x"], y: Float[Tensor, "n d_y"]) -> float:
    """Return linear centred kernel alignment, `‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)` of centred latents (Kornblith et al. 2019).

    The result is 1 if an isometry, a scale and a shift map one space to the other; these change nothing in either. It
    is NaN if a space's latents are all the same.
    """
    a, b = x - x.mean(0), y - y.mean(0)
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))
