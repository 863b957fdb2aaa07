"""Pictures of a report, as PNG, legible at the width of a README, in colours that colour-blind readers can tell."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_relstitch.model.plots import COLOURS, MARKERS

LINE_COLOURS = [colour for colour in COLOURS if colour not in ("#f0e442", "#000000")]
"""Without yellow, which is faint as a line, and black, which is the native encoder's."""
WIDTH = 11.0
"""Inches of a picture, at 150 dots each and letters of 12 points."""
LEGEND_COLUMNS = 5
Panel = Callable[..., None]
STYLES = ("-", "--", ":", "-.")


def draw_all(results: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw the pictures of the results, and return what each file shows, by its name."""
    cells, data = results["cells"], list(results["data"])
    most = {name: max((cell["anchors"] for cell in cells if cell["data"] == name), default=0) for name in data}
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    if not cells:
        return {}
    shown = [name for name in data if most[name]]
    best = next((one for one in ("auto", "linear") if one in methods), methods[0])
    last = [cell for cell in cells if cell["anchors"] == most[cell["data"]]]
    titles = {
        "stitching.png": f"Accuracy of `{best}` with the most anchors, source (row) before the target's head (column); "
        "on the diagonal the target's own encoder",
        "anchors.png": "Accuracy against anchors: mean over pairs and heads, and its standard deviation over seeds",
        "singular_values.png": "Singular values of centred and normalised anchors, relative to the largest",
        "reliability.png": "How often answers of a confidence are right, with the most anchors; larger: more answers",
    }
    panels: dict[str, Panel] = {
        "stitching.png": lambda axes, name: _heat_map(
            axes, [c for c in last if c["data"] == name and c["method"] == best]
        ),
        "anchors.png": lambda axes, name: _curves(axes, [c for c in cells if c["data"] == name], methods),
        "singular_values.png": lambda axes, name: _spectra(axes, results["singular_values"][name]),
        "reliability.png": lambda axes, name: _diagram(axes, [c for c in last if c["data"] == name], methods),
    }
    for file, panel in panels.items():
        _draw({name: partial(panel, name=name) for name in shown}, folder / file)
    return titles | _draw_experiments(results.get("experiments", []), folder)


def _draw(panels: Mapping[str, Callable[[Axes], None]], file: Path, *, columns: int | None = None) -> None:
    """Draw a panel for each title, two or three in a row, with a single legend if the lines have labels."""
    columns = columns or min(len(panels), 2 if len(panels) in (2, 4) else 3)
    rows = -(-len(panels) // columns)
    with rc_context({"font.size": 12, "axes.titlesize": 13}):
        figure = Figure(figsize=(WIDTH, min(WIDTH / columns * 0.85, 5) * rows + 0.2), layout="constrained")
        axes = list(np.atleast_1d(figure.subplots(rows, columns)).flat)
        for axis, (title, panel) in zip(axes, panels.items(), strict=False):
            panel(axis)
            axis.set_title(title)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        lines = [
            pair
            for axis in axes
            if not axis.get_legend()
            for pair in zip(*axis.get_legend_handles_labels(), strict=True)
        ]
        handles = {label: line for line, label in lines}
        if handles:
            figure.set_figheight(figure.get_figheight() + 0.4 * -(-len(handles) // LEGEND_COLUMNS))
            place = {"loc": "outside lower center", "ncols": LEGEND_COLUMNS, "frameon": False}
            figure.legend(handles.values(), handles.keys(), **place)
        figure.savefig(file, dpi=150)


def _heat_map(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    """Draw accuracy as a matrix of sources by targets."""
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
    _numbered(axes, matrix, rows=names, columns=targets)
    axes.set(xlabel="target's head", ylabel="source encoder")


def _numbered(axes: Axes, matrix: Any, *, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draw a matrix of shares as colours with numbers on them."""
    axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour = "black" if value > 0.5 else "white"
            shown = f"{value:.2f}".replace("0.", ".", 1)
            axes.text(column, row, shown, ha="center", va="center", color=colour, fontsize=13)
    axes.set_xticks(range(len(columns)), columns, rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), rows)


def _curves(axes: Axes, cells: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Draw accuracy against anchors, with a line for each method."""
    counts = sorted({cell["anchors"] for cell in cells})
    native = np.mean([cell["native_accuracy"] for cell in cells])
    axes.axhline(native, color="black", linestyle="--", label="native")
    for place, method in enumerate(methods):
        runs = [_by_seed([c for c in cells if (c["method"], c["anchors"]) == (method, count)]) for count in counts]
        there = [(count, values) for count, values in zip(counts, runs, strict=True) if values]
        if not there:
            continue
        means = np.array([np.mean(values) for _, values in there])
        spread = np.array([np.std(values) for _, values in there])
        at = [count for count, _ in there]
        style: dict[str, Any] = {
            "color": LINE_COLOURS[place % len(LINE_COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 6,
        }
        axes.plot(at, means, label=method, linestyle="-" if place < len(LINE_COLOURS) else ":", **style)
        axes.fill_between(at, means - spread, means + spread, color=style["color"], alpha=0.2, linewidth=0)
    axes.set(xlabel="anchors", ylabel="accuracy", ylim=(0, None))
    _logarithmic(axes, {count: str(count) for count in counts})


def _by_seed(cells: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the mean accuracy over pairs and heads, for each seed."""
    seeds = sorted({cell["seed"] for cell in cells})
    return [float(np.mean([cell["accuracy"] for cell in cells if cell["seed"] == seed])) for seed in seeds]


def _spectra(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """Draw the singular values of each encoder's anchors."""
    for place, (name, each) in enumerate((name, each) for name, each in values.items() if each):
        relative = np.array(each) / each[0]
        axes.plot(
            np.arange(1, len(each) + 1),
            relative,
            color=LINE_COLOURS[place % len(LINE_COLOURS)],
            linestyle=("-", "--", "-.", ":")[place % 4],
            linewidth=2,
            label=name,
        )
    axes.set(yscale="log", xlabel="direction", ylabel="singular value")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=11, frameon=False)


def _diagram(axes: Axes, cells: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Draw accuracy against confidence, for at most four methods."""
    wanted = [one for one in ("auto", "linear", "procrustes", "inversion") if one in methods] or list(methods)[:4]
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    for place, method in enumerate(wanted):
        bins = np.array([cell["reliability"] for cell in cells if cell["method"] == method])
        if not len(bins):
            continue
        counts = bins[..., 0].sum(0)
        sure, right = ((bins[..., 0] * bins[..., column]).sum(0) / np.maximum(counts, 1) for column in (1, 2))
        used = counts > 0.005 * counts.sum()
        sizes = 20 + 180 * counts[used] / counts.sum()
        style: dict[str, Any] = {"color": LINE_COLOURS[place], "label": method}
        axes.plot(sure[used], right[used], linewidth=1.5, marker=MARKERS[place], markersize=3, **style)
        axes.scatter(sure[used], right[used], s=sizes, marker=MARKERS[place], color=LINE_COLOURS[place])
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)


def _draw_experiments(found: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, str]:
    """Draw each of the paper's experiments in the results, and return what each file shows, by its name."""
    titles = {
        "reconstruction": "How much of a space comes back from its own relative representation, by the paper's "
        "inversion; pruned anchors have no two with a larger |cosine|",
        "angles": "Correlation of the pairwise cosines of two encoders' latents",
        "scale": "Norms about the mean, over their mean: median, half and nine tenths of the latents; below, the share "
        "of answers that a head keeps when latents are scaled about their mean",
    }
    drawn = {}
    for name, title in titles.items():
        by_data: dict[str, list[Mapping[str, Any]]] = {}
        for one in found:
            if one["experiment"] == name:
                by_data.setdefault(one["data"], []).append(one)
        if not by_data:
            continue
        encoders = list(dict.fromkeys(one["encoder"] for each in by_data.values() for one in each if "encoder" in one))
        colours = {encoder: LINE_COLOURS[place % len(LINE_COLOURS)] for place, encoder in enumerate(encoders)}
        if name == "reconstruction":
            panels = {data: partial(_returned, found=each, colours=colours) for data, each in by_data.items()}
            _draw(panels, folder / f"{name}.png")
        elif name == "angles":
            _draw(
                {data: partial(_alike, rows=each[0]["rows"]) for data, each in by_data.items()}, folder / f"{name}.png"
            )
        else:
            panels = {f"{data}: norms": partial(norms, found=each, colours=colours) for data, each in by_data.items()}
            panels |= {f"{data}: heads": partial(kept, found=each, colours=colours) for data, each in by_data.items()}
            _draw(panels, folder / f"{name}.png", columns=len(by_data))
        drawn[f"{name}.png"] = title
    return drawn


def _returned(axes: Axes, found: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Draw the cosine of returned latents against anchors: a colour for each encoder, a style for each pruning."""
    prunings = list(dict.fromkeys(row["pruning"] for one in found for row in one["rows"]))
    for place, pruning in enumerate(prunings):
        style: dict[str, Any] = {"linestyle": STYLES[place % len(STYLES)], "marker": MARKERS[place], "linewidth": 2}
        for one in found:
            rows = [row for row in one["rows"] if row["pruning"] == pruning]
            counts = sorted({row["num_anchors"] for row in rows})
            means = [np.mean([row["cosine"] for row in rows if row["num_anchors"] == count]) for count in counts]
            name = {"label": one["encoder"]} if pruning is None else {}
            axes.plot(counts, means, color=colours[one["encoder"]], **name, **style)
        if pruning is not None:
            axes.plot([], [], color="black", label=f"pruned at {pruning}", **style)
    axes.set(xlabel="anchors", ylabel="cosine", ylim=(None, 1.01))
    _logarithmic(axes, {count: str(count) for count in counts})


def _alike(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the correlation of cosines as a matrix of encoders by encoders."""
    names = list(dict.fromkeys(name for row in rows for name in (row["a"], row["b"])))
    matrix = np.eye(len(names))
    for row in rows:
        a, b = names.index(row["a"]), names.index(row["b"])
        matrix[a, b] = matrix[b, a] = row["cosine_correlation"]
    _numbered(axes, matrix, rows=names, columns=names)


def norms(axes: Axes, found: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Draw quantiles of the norms of each encoder's latents."""
    spaces = {one["encoder"]: one["norms"] for one in found}
    for place, (encoder, quantiles) in enumerate(spaces.items()):
        low, quarter, middle, three, high = (quantiles[f"quantile_{q}"] for q in (0.05, 0.25, 0.5, 0.75, 0.95))
        axes.plot([low, high], [place, place], color=colours[encoder], linewidth=2)
        axes.plot([quarter, three], [place, place], color=colours[encoder], linewidth=9, solid_capstyle="butt")
        axes.plot(middle, place, color="white", marker="|", markersize=9, markeredgewidth=2)
    axes.axvline(1, color="black", linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(spaces)), list(spaces))
    axes.set(xlabel="norm over mean norm", xlim=(0, None), ylim=(len(spaces) - 0.4, -0.6))
    axes.grid(alpha=0.3, axis="x")


def kept(axes: Axes, found: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Draw the share of kept answers against the factor: a colour for each encoder, a style for each kind of head."""
    kinds = list(dict.fromkeys(one["head"] for one in found))
    for one in found:
        factors = [row["factor"] for row in one["rows"]]
        said = one["encoder"] if len(kinds) == 1 else f"{one['encoder']}, {one['head']}"
        style: dict[str, Any] = {"linestyle": STYLES[kinds.index(one["head"]) % len(STYLES)], "marker": "o"}
        axes.plot(
            factors,
            [row["agreement"] for row in one["rows"]],
            color=colours[one["encoder"]],
            label=said,
            linewidth=2,
            **style,
        )
    axes.set(xlabel="factor", ylabel="answers kept", ylim=(0, 1.03))
    _logarithmic(axes, {factor: f"{factor:g}" for factor in factors})


def _logarithmic(axes: Axes, ticks: Mapping[float, str]) -> None:
    """Set a logarithmic x axis with only these ticks, and a grid."""
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
