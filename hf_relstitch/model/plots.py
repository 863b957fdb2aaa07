"""Draw a stitched model by its anchors: both spaces, its answers, how sure they are, and what more anchors bring."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.core.calibration import reliability
from hf_relstitch.core.head_outputs import apply_head, probabilities
from hf_relstitch.core.relative import to_working
from hf_relstitch.data.ids import ids_of_texts
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.heads.head import Head
from hf_relstitch.model.anchors import MIN_ANCHORS, AnchorSet
from hf_relstitch.model.reporting import expected_score
from hf_relstitch.model.stitching import FREE, AnchorPair, Stitch, stitch

COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000", "#999999", "#7f3c8d"]
"""Colours that colour-blind readers can tell apart (Okabe and Ito)."""
MARKERS = "osD^vP*X<>"
PARTS = (4, 2, 1)
"""Parts that the anchors are split into for the learning curve: the anchors of a part double each time."""


def stitch_parts(config: RelativeStitcherConfig, anchors: AnchorPair, head: Head) -> list[list[Stitch]]:
    """Stitch again through quarters, halves and all of a model's anchors, as the model was stitched; no encoder runs.

    Parts with fewer than 32 anchors are left out. Words of one text stay together.

    Args:
        config: the config of the model.
        anchors: its anchors.
        head: its head.

    Returns:
        The stitches of each splitting; the last is a single one, through all anchors.
    """
    settings = asdict(config.translation_settings)
    if config.selection is not None:
        settings = {name: settings[name] for name in FREE} | {"prefer": config.selection["prefer"]}
    origins = Provenance.from_dict(config.source), Provenance.from_dict(config.target)
    ids = anchors.ids.cpu()
    groups = (ids_of_texts(ids) if config.by_token else ids).unique(return_inverse=True)[1]
    order = torch.randperm(int(groups.max()) + 1, generator=torch.Generator().manual_seed(0))
    stitches: list[list[Stitch]] = []
    for count in PARTS:
        parts = order[groups] % count
        if parts.bincount(minlength=count).min() < MIN_ANCHORS:
            continue
        stitches.append([])
        for part in range(count):
            rows = (parts == part).nonzero()[:, 0]
            source, target = (
                AnchorSet(latents.cpu()[rows], ids[rows], origin)
                for latents, origin in zip((anchors.source, anchors.target), origins, strict=True)
            )
            stitches[-1].append(stitch(source, target, head, source=origins[0], **settings))
    return stitches


def learning_curve(stitches: Sequence[Sequence[Stitch]]) -> dict[int, float]:
    """Return what is expected with each number of anchors, and with twice as many as there are.

    Errors that fall like a constant plus a power of the number of anchors lose the same share of the gain with each
    doubling. So the next doubling is expected to gain `g₂²/g₁`, where `g₁` and `g₂` are the two gains before it. It
    needs 128 anchors; with fewer the curve ends at what there is.
    """
    curve = {
        round(sum(each.report["num_anchors"] for each in parts) / len(parts)): sum(
            expected_score(each.report) for each in parts
        )
        / len(parts)
        for parts in stitches
    }
    if len(curve) == len(PARTS):
        quarter, half, whole = curve.values()
        first, second = half - quarter, whole - half
        gain = second * min(1.0, second / first) if first > 0 and second > 0 else 0.0
        curve[2 * max(curve)] = min(1.0, whole + gain)
    return curve


@torch.no_grad()
def draw_model(made: Stitch, curve: Mapping[int, float], head: Head, file: str | Path) -> None:
    """Draw both spaces, held-out answers beside the head's own, how sure they are, and the learning curve, as PNG.

    Args:
        made: the stitch through all anchors, the last of `stitch_parts`.
        curve: the result of `learning_curve`.
        head: the head that it was stitched to.
        file: where to write the picture.
    """
    source, target = to_working(made.source_anchors.latents), to_working(made.target_anchors.latents)
    own, found = apply_head(head.module, target), made.held_out_logits.cpu() / made.temperature
    figure = Figure(figsize=(16, 9), layout="constrained")
    axes = list(figure.subplots(2, 3).flat)
    (centre, plane), (target_centre, target_plane) = _principal_plane(source), _principal_plane(target)
    spaces = {
        "Source encoder, in its own plane": (source - centre) @ plane,
        "Target encoder": (target - target_centre) @ target_plane,
        "Source, translated (held-out anchors)": (made.held_out.cpu() - target_centre) @ target_plane,
    }
    names = list(head.id2label.values())
    single = head.answers and not head.multi_label
    for axis, (title, points) in zip(axes, spaces.items(), strict=False):
        if single:
            _scatter(axis, points, labels=own.argmax(-1), names=names)
        else:
            _mark(axis, points, colour=own[:, 0].tolist())
        axis.set_title(title, fontsize=12)
    if single:
        row = "the head's own answer"
        axes[0].legend(fontsize=9, title=row, loc="best")
        _confusion(axes[3], labels=own.argmax(-1), predictions=found.argmax(-1), names=names, row=row)
        _reliability(axes[4], probabilities(found), own.argmax(-1))
    else:
        _against(axes[3], own, found)
        axes[4].set_axis_off()
    _curve(axes[5], curve, of="agreement" if head.answers else "variance explained")
    figure.savefig(file, dpi=110)


def _principal_plane(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of latents, and the two directions in which they vary most."""
    centre = latents.mean(0)
    return centre, torch.linalg.svd(latents - centre, full_matrices=False).Vh[:2].T


def draw_stitching(
    spaces: Mapping[str, Tensor],
    *,
    labels: Tensor,
    predictions: Tensor,
    names: Sequence[str],
    file: Path,
) -> None:
    """Draw latents `(n, d_target)` of each space in a common plane, and the confusion matrix of the predictions.

    The first space's two principal components span the plane, so that panels can be compared. The ten most frequent
    classes are drawn. The predictions belong to the last space.
    """
    centre, plane = _principal_plane(next(iter(spaces.values())).double())
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    axes = figure.subplots(1, len(spaces) + 1)
    for axis, (title, latents) in zip(axes, spaces.items(), strict=False):
        _scatter(axis, (latents.double() - centre) @ plane, labels=labels, names=names)
        axis.set_title(title, fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=10, frameon=False)
    _confusion(axes[-1], labels=labels, predictions=predictions, names=names)
    figure.savefig(file, dpi=120)


def _scatter(axis: Axes, points: Tensor, *, labels: Tensor, names: Sequence[str]) -> None:
    """Draw points of the ten most frequent classes, each class in its own colour and shape."""
    shown = labels.bincount(minlength=len(names)).argsort(descending=True)[: len(COLOURS)].sort().values.tolist()
    for place, label in enumerate(shown):
        _mark(axis, points[labels == label], colour=COLOURS[place], marker=MARKERS[place], label=names[label])


def _mark(axis: Axes, points: Tensor, *, colour: Any, marker: str = "o", label: str | None = None) -> None:
    """Draw points without ticks, in one colour or in one for each."""
    style: dict[str, Any] = {"s": 14, "c": colour, "marker": marker, "linewidths": 0, "alpha": 0.8, "label": label}
    axis.scatter(points[:, 0].tolist(), points[:, 1].tolist(), **style)
    axis.set_xticks([])
    axis.set_yticks([])


def _confusion(
    axis: Axes, *, labels: Tensor, predictions: Tensor, names: Sequence[str], row: str = "true class"
) -> None:
    """Draw how often each class (row) is answered with each class (column), as shares of the row."""
    counts = torch.zeros(len(names), len(names))
    counts.index_put_((labels, predictions), torch.ones(len(labels)), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    image = axis.imshow(shares.tolist(), cmap="Blues", vmin=0, vmax=1)
    few = len(names) <= 12
    if few:
        for line, column in counts.nonzero().tolist():
            colour = "white" if shares[line, column] > 0.5 else "black"
            axis.text(column, line, f"{counts[line, column]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    ticks = names if few else [""] * len(names)
    axis.set_xticks(range(len(names)), ticks, rotation=30 if any(len(name) > 3 for name in ticks) else 0, ha="right")
    axis.set_yticks(range(len(names)), ticks)
    axis.set(xlabel="answered by the stitched model", ylabel=row)
    axis.set_title("Confusion matrix", fontsize=12)
    axis.figure.colorbar(image, ax=axis, label="share of the row", shrink=0.8)


def _reliability(axis: Axes, shares: Tensor, answers: Tensor) -> None:
    """Draw how often answers of a confidence are the head's own; larger points have more answers."""
    bins = reliability(shares, answers)
    used = bins.count > 0
    sizes = 20 + 300 * bins.count[used] / bins.count.sum()
    axis.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    axis.scatter(bins.confidence[used].tolist(), bins.accuracy[used].tolist(), s=sizes.tolist(), color=COLOURS[0])
    axis.set(xlabel="confidence", ylabel="share that the head answers alike", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.set_title("How sure, and how often right (held-out anchors)", fontsize=12)
    axis.grid(alpha=0.3)


def _against(axis: Axes, own: Tensor, found: Tensor) -> None:
    """Draw the values of the stitched model against the head's own."""
    axis.scatter(own.flatten().tolist(), found.flatten().tolist(), s=14, color=COLOURS[0], linewidths=0, alpha=0.6)
    ends = [float(own.min()), float(own.max())]
    axis.plot(ends, ends, color="black", linestyle="--", linewidth=1)
    axis.set(xlabel="the head's own value", ylabel="the stitched model's value")
    axis.set_title("Values of held-out anchors", fontsize=12)
    axis.grid(alpha=0.3)


def _curve(axis: Axes, curve: Mapping[int, float], *, of: str) -> None:
    """Draw what is expected with each number of anchors; the last, with twice as many, as a hollow point."""
    counts, values = list(curve), list(curve.values())
    known = len(counts) - 1 if len(counts) > len(PARTS) else len(counts)
    axis.plot(counts[:known], values[:known], color=COLOURS[0], marker="o", label="measured on held-out anchors")
    if known < len(counts):
        style: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "linestyle": ":", "color": COLOURS[0]}
        axis.plot(counts[known - 1 :], values[known - 1 :], label="estimated for twice as many", zorder=0, **style)
    axis.set(xlabel="anchors", ylabel=f"expected {of}", xscale="log", ylim=(min(0.0, *values), 1))
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.legend(loc="lower right", frameon=False)
    axis.set_title("What more anchors bring", fontsize=12)
    axis.grid(alpha=0.3)
