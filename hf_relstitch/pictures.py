"""Pictures, as PNG; needs matplotlib, which the `quickstart` extra brings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000", "#999999", "#7f3c8d"]
MARKERS = "osD^vP*X<>"


def draw_stitching(
    spaces: Mapping[str, Tensor],
    *,
    labels: Tensor,
    predictions: Tensor,
    names: Sequence[str],
    file: Path,
) -> None:
    """Latents `(n, d_target)` of each space in one plane, and the confusion matrix of the last one's predictions.

    The plane is that of the first space's two principal components, so that panels can be compared; the ten most
    frequent classes are drawn.
    """
    reference = next(iter(spaces.values())).double()
    centre = reference.mean(0)
    plane = torch.linalg.svd(reference - centre, full_matrices=False).Vh[:2].T
    shown = labels.bincount(minlength=len(names)).argsort(descending=True)[:10].sort().values.tolist()
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    axes = figure.subplots(1, len(spaces) + 1)
    for axis, (title, latents) in zip(axes, spaces.items(), strict=False):
        scatter(axis, (latents.double() - centre) @ plane, labels=labels, shown=shown, names=names)
        axis.set_title(title, fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=len(shown), frameon=False)
    draw_confusion(axes[-1], labels=labels, predictions=predictions, names=names)
    figure.savefig(file, dpi=120)


def scatter(axis: Axes, points: Tensor, *, labels: Tensor, shown: Sequence[int], names: Sequence[str]) -> None:
    """Points of some classes, each class in its own colour and shape."""
    for place, label in enumerate(shown):
        chosen = points[labels == label]
        axis.scatter(
            chosen[:, 0].tolist(),
            chosen[:, 1].tolist(),
            s=14,
            c=COLOURS[place],
            marker=MARKERS[place],
            linewidths=0,
            alpha=0.8,
            label=names[label],
        )
    axis.set_xticks([])
    axis.set_yticks([])


def draw_confusion(axis: Axes, *, labels: Tensor, predictions: Tensor, names: Sequence[str]) -> None:
    """How often each true class (row) is answered with each class (column), as shares of the row."""
    counts = torch.zeros(len(names), len(names))
    counts.index_put_((labels, predictions), torch.ones(len(labels)), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    image = axis.imshow(shares.tolist(), cmap="Blues", vmin=0, vmax=1)
    few = len(names) <= 12
    if few:
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(names)), names if few else [""] * len(names))
    axis.set_yticks(range(len(names)), names if few else [""] * len(names))
    axis.set_xlabel("answered")
    axis.set_ylabel("true class")
    axis.set_title("Stitched: confusion matrix", fontsize=11)
    axis.figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
