"""Experiments of arXiv 2406.15057 on latents alone.

Each function returns rows of plain values, ready for a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_relstitch.core.decomposition import Frame
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.expected_agreement import scale_invariance
from hf_relstitch.core.measures import angle_correlation, linear_cka, mean_cosine, relative_error
from hf_relstitch.core.relative import directions, precision_of, to_working
from hf_relstitch.core.translation import TranslationSettings, draw_subsets, fit_translation

PAPER = TranslationSettings(alpha=0.0, ridge=0.0)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@torch.no_grad()
def reconstruction(
    latents: Tensor,
    *,
    anchor_counts: Sequence[int],
    prunings: Sequence[float | None] = (None,),
    seeds: Sequence[int] = (0,),
) -> list[dict[str, Any]]:
    """Measure how well a space returns from its own relative representation, by number of anchors and pruning.

    Anchors are drawn from the latents `(n, d)` by the seed. All other latents are projected and inverted. A row has
    `num_anchors`, `pruning`, `seed`, the mean number of anchors `kept`, their rank and condition number (of the first
    pruning), and `cosine` and `relative_error` of the returned latents.

    Raises:
        StitchError: there are as many anchors as latents or more, or the pruning is no |cosine|.
    """
    if max(anchor_counts) >= len(latents):
        raise StitchError(f"{max(anchor_counts)} anchors of {len(latents)} latents: leave some to be reconstructed")
    return [
        _reconstructed(latents, count=count, settings=replace(PAPER, pruning=pruning, seed=seed))
        for seed in seeds
        for count in anchor_counts
        for pruning in prunings
    ]


def _reconstructed(latents: Tensor, *, count: int, settings: TranslationSettings) -> dict[str, Any]:
    """Return a row of `reconstruction`."""
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(settings.seed))
    anchors, others = latents[order[:count]], to_working(latents[order[count:]])
    returned = fit_translation(anchors, anchors, settings=settings)(others)
    centre = to_working(anchors).mean(0)
    unit = directions(to_working(anchors), centre=centre)
    subsets = draw_subsets(unit, settings)
    frame = Frame.from_directions(unit[subsets[0]], precision=precision_of(anchors))
    return {
        "num_anchors": count,
        "pruning": settings.pruning,
        "seed": settings.seed,
        "kept": sum(map(len, subsets)) / len(subsets),
        "rank": frame.rank,
        "condition_number": frame.condition_number,
        "cosine": mean_cosine(returned, others, centre=centre),
        "relative_error": relative_error(returned, others, centre=centre),
    }


@torch.no_grad()
def angle_preservation(spaces: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Measure how similar in shape the spaces of several models are, two at a time, for latents of the same inputs.

    A row has `a`, `b`, `cosine_correlation` over all pairs of inputs, and `cka`.

    Raises:
        StitchError: the spaces have different numbers of rows.
    """
    if len({len(latents) for latents in spaces.values()}) > 1:
        shown = ", ".join(f"{name} {len(latents)}" for name, latents in spaces.items())
        raise StitchError(f"the spaces have different numbers of latents ({shown}): encode the same inputs")
    names = list(spaces)
    rows = []
    for place, a in enumerate(names):
        for b in names[place + 1 :]:
            x, y = to_working(spaces[a]), to_working(spaces[b])
            rows.append({"a": a, "b": b, "cosine_correlation": angle_correlation(x, y), "cka": linear_cka(x, y)})
    return rows


@torch.no_grad()
def scale_distribution(spaces: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Measure the spread of the norms of each space's latents, taken from the latents' mean.

    A row has `space`, `mean`, `spread` (standard deviation over mean) and quantiles over the mean.
    """
    rows = []
    for name, latents in spaces.items():
        space = to_working(latents)
        norms = (space - space.mean(0)).norm(dim=-1)
        mean = norms.mean()
        quantiles = (norms / mean).quantile(norms.new_tensor(QUANTILES)).tolist()
        rows.append(
            {
                "space": name,
                "mean": float(mean),
                "spread": float(norms.std() / mean),
                **{f"quantile_{q}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
            }
        )
    return rows


@torch.no_grad()
def head_scale_invariance(heads: Mapping[str, nn.Module], latents: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return the share of answers that each head keeps when its own latents are scaled about their mean.

    Each factor has a row, with `head`, `factor` and `agreement` with the answers at factor 1.
    """
    return [
        {"head": name, "factor": float(factor), "agreement": agreement}
        for name, head in heads.items()
        for factor, agreement in scale_invariance(head, to_working(latents[name])).items()
    ]
