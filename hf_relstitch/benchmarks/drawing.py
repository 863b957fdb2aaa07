"""The pictures of a report, as PNG, legible at the width of a README, in colours that colour-blind readers can tell."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_relstitch.pictures import COLOURS as ALL_COLOURS
from hf_relstitch.pictures import MARKERS

COLOURS = [colour for colour in ALL_COLOURS if colour not in ("#f0e442", "#000000")]
"""Without yellow, which is faint as a line, and black, which is the native encoder's."""

WIDTH = 11.0
"""Inches of a picture, at 150 dots each and letters of 12 points."""
Panel = Callable[[Axes, str], None]


def draw_all(results: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw what the results have; gives what each file shows, by its name."""
    cells, data = results["cells"], list(results["data"])
    most = {name: max((cell["anchors"] for cell in cells if cell["data"] == name), default=0) for name in data}
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    if not cells:
        return {}
    shown = [name for name in data if most[name]]
    best = next((one for one in ("auto", "accuracy") if one in methods), methods[0])
    last = [cell for cell in cells if cell["anchors"] == most[cell["data"]]]
    titles = {
        "stitching.png": f"Accuracy of `{best}` with the most anchors, source (row) before the target's head (column); "
        "on the diagonal the target's own encoder",
        "anchors.png": "Accuracy against anchors: mean over pairs and heads, and its standard deviation over seeds",
        "singular_values.png": "Singular values of centred and normalised anchors, relative to the largest",
        "reliability.png": "How often answers of a confidence are right, with the most anchors; larger: more answers",
    }
    panels: dict[str, Panel] = {
        "stitching.png": lambda axes, name: heat_map(
            axes, [c for c in last if c["data"] == name and c["method"] == best]
        ),
        "anchors.png": lambda axes, name: curves(axes, [c for c in cells if c["data"] == name], methods),
        "singular_values.png": lambda axes, name: spectra(axes, results["singular_values"][name]),
        "reliability.png": lambda axes, name: diagram(axes, [c for c in last if c["data"] == name], methods),
    }
    for file, panel in panels.items():
        draw(shown, panel, folder / file, legend=file in ("anchors.png", "reliability.png"))
    return titles


def draw(names: Sequence[str], panel: Panel, file: Path, *, legend: bool) -> None:
    """A panel for each data set, two or three in a row; one legend for all, where there is to be one."""
    columns = min(len(names), 2 if len(names) in (2, 4) else 3)
    rows = -(-len(names) // columns)
    with rc_context({"font.size": 12, "axes.titlesize": 13}):
        height = min(WIDTH / columns * 0.85, 5) * rows + (1.0 if legend else 0.2)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, columns)).flat
        for axis, name in zip(axes, names, strict=False):
            panel(axis, name)
            axis.set_title(name)
        for axis in list(axes)[len(names) :]:
            axis.set_axis_off()
        if legend:
            handles = {
                label: one for axis in figure.axes for one, label in zip(*axis.get_legend_handles_labels(), strict=True)
            }
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(file, dpi=150)


def heat_map(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    """Sources by targets."""
    sources = sorted({cell["source"] for cell in cells})
    targets = sorted({cell["target"] for cell in cells})
    names = [*sources, *(one for one in targets if one not in sources)]
    matrix = np.full((len(names), len(targets)), np.nan)
    for row, source in enumerate(names):
        for column, target in enumerate(targets):
            found = [cell["accuracy"] for cell in cells if (cell["source"], cell["target"]) == (source, target)]
            if source == target:
                found = [cell["native_accuracy"] for cell in cells if cell["target"] == target]
            if found:
                matrix[row, column] = np.mean(found)
    axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour = "black" if value > 0.5 else "white"
            axes.text(column, row, f"{value:.2f}".lstrip("0"), ha="center", va="center", color=colour, fontsize=13)
    axes.set_xticks(range(len(targets)), targets, rotation=20, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="target's head", ylabel="source encoder")


def curves(axes: Axes, cells: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Accuracy against anchors, a line a method."""
    counts = sorted({cell["anchors"] for cell in cells})
    native = np.mean([cell["native_accuracy"] for cell in cells])
    axes.axhline(native, color="black", linestyle="--", label="native")
    for place, method in enumerate(methods):
        runs = [by_seed([c for c in cells if (c["method"], c["anchors"]) == (method, count)]) for count in counts]
        there = [(count, values) for count, values in zip(counts, runs, strict=True) if values]
        if not there:
            continue
        means = np.array([np.mean(values) for _, values in there])
        spread = np.array([np.std(values) for _, values in there])
        at = [count for count, _ in there]
        style: dict[str, Any] = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 6,
        }
        axes.plot(at, means, label=method, linestyle="-" if place < len(COLOURS) else ":", **style)
        axes.fill_between(at, means - spread, means + spread, color=style["color"], alpha=0.2, linewidth=0)
    axes.set(xscale="log", xlabel="anchors", ylabel="accuracy", ylim=(0, None))
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def by_seed(cells: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean accuracy over pairs and heads, for each seed."""
    seeds = sorted({cell["seed"] for cell in cells})
    return [float(np.mean([cell["accuracy"] for cell in cells if cell["seed"] == seed])) for seed in seeds]


def spectra(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """Singular values of each encoder's anchors."""
    for place, (name, each) in enumerate(values.items()):
        relative = np.array(each) / each[0]
        axes.plot(
            np.arange(1, len(each) + 1),
            relative,
            color=COLOURS[place % len(COLOURS)],
            linestyle=("-", "--", "-.", ":")[place % 4],
            linewidth=2,
            label=name,
        )
    axes.set(yscale="log", xlabel="direction", ylabel="singular value")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=11, frameon=False)


def diagram(axes: Axes, cells: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Accuracy against confidence, of at most four methods."""
    wanted = [one for one in ("auto", "accuracy", "procrustes", "inversion") if one in methods] or list(methods)[:4]
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    for place, method in enumerate(wanted):
        bins = np.array([cell["reliability"] for cell in cells if cell["method"] == method])
        if not len(bins):
            continue
        counts = bins[..., 0].sum(0)
        sure, right = ((bins[..., 0] * bins[..., column]).sum(0) / np.maximum(counts, 1) for column in (1, 2))
        used = counts > 0.005 * counts.sum()
        sizes = 20 + 180 * counts[used] / counts.sum()
        style: dict[str, Any] = {"color": COLOURS[place], "label": method}
        axes.plot(sure[used], right[used], linewidth=1.5, marker=MARKERS[place], markersize=3, **style)
        axes.scatter(sure[used], right[used], s=sizes, marker=MARKERS[place], color=COLOURS[place])
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
