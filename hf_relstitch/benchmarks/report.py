"""Reports of results as Markdown with pictures, and comparisons of two runs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.hub.files import atomic_write, check_format, read_json

FORMAT_VERSION = 1
RESULTS_NAME = "results.json"
REPORT_NAME = "report.md"
PAIR = ("data", "head", "source", "target")


class Results(dict[str, Any]):
    """Hold what a run measured: a dict that prints as a table, with means over pairs, heads and seeds for each method.

    A notebook shows an HTML table. `write_report` writes the tables of each pair, and pictures.
    """

    def __repr__(self) -> str:
        titles, rows = _method_rows(self["cells"])
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in (titles, *rows))
        return "\n".join([*lines, _counts(self)])

    def _repr_html_(self) -> str:
        titles, rows = _method_rows(self["cells"])
        head = "".join(f"<th>{escape(title)}</th>" for title in titles)
        body = "".join(f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table><p>{escape(_counts(self))}</p>"


def read_results(place: str | Path) -> Results:
    """Read the results in a folder that `run_suite` wrote, or in its `results.json`.

    Raises:
        StitchError: there are no results, or they have a newer format.
    """
    path = Path(place)
    if not path.exists():
        raise StitchError(f"there is no {path}: give the folder of a benchmark, or its results.json")
    results = read_json(path / RESULTS_NAME if path.is_dir() else path)
    what, written_by = f"the results in {path}", results.get("versions", {}).get("hf-relstitch")
    check_format(results.get("format_version"), supported=FORMAT_VERSION, what=what, written_by=written_by)
    if not isinstance(results.get("cells"), list):
        raise StitchError(f"{path} has no cells: run the benchmark again")
    return Results(results)


def write_report(folder: str | Path) -> Path:
    """Write `report.md` and its pictures beside `results.json`, and return the path of the report.

    Raises:
        StitchError: there are no results.
    """
    from hf_relstitch.benchmarks.plots import draw_all  # matplotlib, an extra

    results, report = read_results(folder), Path(folder, REPORT_NAME)
    pictures = draw_all(results, Path(folder))
    with atomic_write(report) as written:
        written.write_text(_markdown(results, pictures), encoding="utf-8")
    return report


def _markdown(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the report as Markdown."""
    suite, cells, failures = results["suite"], results["cells"], results["failures"]
    parts = [f"# {suite['name']}", *([suite["description"]] if suite["description"] else []), _counts(results)]
    for count in sorted({cell["anchors"] for cell in cells}, reverse=True):
        parts += [f"## Accuracy, {count} anchors", _pair_table([cell for cell in cells if cell["anchors"] == count])]
    if cells:
        parts += ["## Mean over pairs, heads and seeds", table(*_method_rows(cells))]
    if expected := [cell for cell in cells if cell.get("expected_agreement") is not None]:
        parts += ["## Agreement with the head on its own encoder: expected and found", _agreement_table(expected)]
    if raw := results.get("raw_inputs"):
        parts += ["## From raw inputs, driven by `evaluate`", _raw_table(raw)]
    for name, (title, shown) in EXPERIMENTS.items():
        if found := [one for one in results.get("experiments", []) if one["experiment"] == name]:
            parts += [f"## {title}", shown(found)]
    if models := results.get("models"):
        parts += ["## Stitched models as they are", _model_table(models)]
    parts += [f"![{caption}]({file})\n\n{caption}." for file, caption in pictures.items()]
    if failures:
        parts += ["## Failed", _failure_table(failures)]
    parts += ["## Data and encoders", _data_table(results["data"])]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return "\n\n".join([*parts, f"Made with {versions}, on {results['device']}."]) + "\n"


def _counts(results: Mapping[str, Any]) -> str:
    """Say how many cells were measured and how many failed."""
    seeds = ", ".join(map(str, results["suite"]["seeds"]))
    return f"{len(results['cells'])} cells measured, {len(results['failures'])} failed; seeds {seeds}."


def _pair_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate mean accuracy over seeds ± standard deviation, with a row for each pair and the best method in bold."""
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    rows = []
    for (data, head, source, target), group in _grouped(cells, PAIR).items():
        values = {method: [cell["accuracy"] for cell in group if cell["method"] == method] for method in methods}
        best = max(fmean(each) for each in values.values() if each)
        native = fmean(cell["native_accuracy"] for cell in group)
        shown = [_spread(each, bold=bool(each) and fmean(each) == best) for each in values.values()]
        rows.append([data, f"{source} → {target}", head, _decimal(native), *shown])
    return table(["data", "source → target", "head", "native", *methods], rows)


def _method_rows(cells: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the titles and rows of a table of methods: accuracy by number of anchors, other scores at the most."""
    counts, rows = sorted({cell["anchors"] for cell in cells}), []
    entities = ["entity_f1"] if any("entity_f1" in cell for cell in cells) else []
    for (method,), group in _grouped(cells, ("method",)).items():
        by_count = {count: [cell for cell in group if cell["anchors"] == count] for count in counts}
        last = by_count[counts[-1]] or group
        index = [cell["accuracy"] / cell["native_accuracy"] for cell in last if cell["native_accuracy"]]
        names = ("f1", *entities, "agreement", "ece", "native_ece")
        means = [fmean(values) if (values := [cell[name] for cell in last if name in cell]) else None for name in names]
        accuracies = [_spread([cell["accuracy"] for cell in each], deviation=False) for each in by_count.values()]
        rows.append(
            [
                method,
                *accuracies,
                _decimal(fmean(index)) if index else "–",
                *("–" if mean is None else _decimal(mean) for mean in means),
            ]
        )
    titles = ["method", *(f"accuracy, {count}" for count in counts), "stitching index", "F1"]
    titles += [*(["F1 of entities"] if entities else []), "agreement", "ECE", "native ECE"]
    return titles, rows


def _agreement_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate, by method and number of anchors, how near the forecast is and how often its interval holds."""
    rows = []
    for (method, count), group in _grouped(cells, ("method", "anchors")).items():
        off = [abs(cell["expected_agreement"] - cell["agreement"]) for cell in group]
        intervals = [(*cell["expected_interval"], cell["agreement"]) for cell in group if cell.get("expected_interval")]
        inside = [low <= found <= high for low, high, found in intervals]
        expected, found = (fmean(cell[name] for cell in group) for name in ("expected_agreement", "agreement"))
        rows.append([method, str(count), *map(_decimal, (expected, found, fmean(off))), f"{fmean(inside):.0%}"])
    return table(["method", "anchors", "expected", "found", "mean difference", "inside its interval"], rows)


def _raw_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate stitched models on raw inputs, beside the cached latents of the same rows."""
    rows = [
        [
            cell["data"],
            f"{cell['source']} → {cell['target']}",
            *(str(cell[name]) for name in ("anchors", "rows")),
            *(_decimal(cell[name]) for name in ("accuracy", "accuracy_from_latents")),
        ]
        for cell in cells
    ]
    return table(["data", "source → target", "anchors", "rows", "from raw inputs", "from kept latents"], rows)


def _model_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate the results of finished stitched models."""
    rows = [
        [one["data"], one["model"], f"`{one['commit'] or 'a folder'}`", str(one["rows"])]
        + [_decimal(one[name]) for name in ("accuracy", "f1", "ece")]
        for one in measured
    ]
    return table(["data", "model", "commit", "rows", "accuracy", "F1", "ECE"], rows)


def _reconstruction_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate the cosine of returned and true latents by number of anchors, and what pruning keeps at the most."""
    counts = sorted({row["num_anchors"] for one in found for row in one["rows"]})
    rows = []
    for one in found:
        for (pruning,), group in _grouped(one["rows"], ("pruning",)).items():
            by_count = {count: [row for row in group if row["num_anchors"] == count] for count in counts}
            last = by_count[counts[-1]] or group
            kept, condition = (fmean(row[name] for row in last) for name in ("kept", "condition_number"))
            cosines = [_spread([row["cosine"] for row in each]) for each in by_count.values()]
            said = "all" if pruning is None else f"pruned at {pruning}"
            rows.append([one["data"], one["encoder"], said, *cosines, f"{kept:.0f}", f"{condition:.3g}"])
    titles = [f"cosine, {count}" for count in counts]
    return table(["data", "encoder", "anchors", *titles, "anchors kept", "condition number"], rows)


def _angles_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate how similar in shape two spaces are."""
    rows = [
        [one["data"], f"{row['a']}, {row['b']}", _decimal(row["cosine_correlation"]), _decimal(row["cka"])]
        for one in found
        for row in one["rows"]
    ]
    return table(["data", "encoders", "correlation of pairwise cosines", "CKA"], rows)


def _scale_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate the spread of norms, and the share of answers that a head keeps when its latents are scaled."""
    factors = sorted({row["factor"] for one in found for row in one["rows"]} - {1.0})
    rows = []
    for one in found:
        kept = {row["factor"]: row["agreement"] for row in one["rows"]}
        norms = [one["norms"][name] for name in ("spread", "quantile_0.05", "quantile_0.95")]
        agreements = [_decimal(kept[factor]) if factor in kept else "–" for factor in factors]
        rows.append([one["data"], one["encoder"], one["head"], *map(_decimal, norms), *agreements])
    titles = [f"answers kept, × {factor:g}" for factor in factors]
    return table(["data", "encoder", "head", "spread of norms", "5 % quantile", "95 % quantile", *titles], rows)


EXPERIMENTS = {
    "reconstruction": ("A space from its own relative representation, by the paper's inversion", _reconstruction_table),
    "angles": ("How alike the spaces are in shape", _angles_table),
    "scale": ("Norms about the mean, relative to their mean, and answers that heads keep under a scale", _scale_table),
}


def _failure_table(failures: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate the failures and their errors."""
    rows = []
    for one in failures:
        what = ", ".join(f"{name} {value}" for name, value in one.items() if name != "error")
        rows.append([each.replace("|", "\\|").replace("\n", " ")[:200] for each in (what, one["error"])])
    return table(["what", "error"], rows)


def _data_table(data: Mapping[str, Any]) -> str:
    """Tabulate the origin of all data and encoders."""
    rows = [
        [
            name,
            one,
            of["model_id"],
            f"`{of['revision'][:20]}`",
            Provenance.from_dict(of).describe(),
            f"{about['head_rows']} / {about['test_rows']}",
        ]
        for name, about in data.items()
        for one, of in about["encoders"].items()
    ]
    return table(["data", "encoder", "model", "revision", "pooling", "rows for head / test"], rows)


def compare(first: str | Path, second: str | Path) -> str:
    """Compare two runs as Markdown: the accuracy of each pair, head, method and number of anchors that both have.

    Raises:
        StitchError: there are no results, or the runs have no cell in common.
    """
    keys = ("data", "head", "source", "target", "method", "anchors")
    one, other = (read_results(place) for place in (first, second))
    groups = [_grouped(results["cells"], keys) for results in (one, other)]
    common = [key for key in groups[0] if key in groups[1]]
    if not common:
        raise StitchError(f"{first} and {second} have no cell in common: compare runs of suites that share pairs")
    rows, differences = [], []
    for key in common:
        seeds = [{cell["seed"]: cell["accuracy"] for cell in group[key]} for group in groups]
        shared = [seed for seed in seeds[0] if seed in seeds[1]]
        if not shared:
            continue
        means = [fmean(each[seed] for seed in shared) for each in seeds]
        differences.append(means[1] - means[0])
        data, head, source, target, method, count = key
        pair = [data, f"{source} → {target}", head, method, str(count), str(len(shared))]
        rows.append([*pair, *map(_decimal, means), f"{differences[-1]:+.3f}"])
    rows.sort(key=lambda row: -abs(float(row[-1])))
    only = [sum(key not in groups[1 - side] for key in groups[side]) for side in (0, 1)]
    summary = (
        f"A is {first}, B is {second}. {sum(one != 0 for one in differences)} of {len(rows)} differ, B − A "
        f"is {fmean(differences):+.4f} on average; {only[0]} are only in A and {only[1]} only in B."
        if rows
        else f"A is {first}, B is {second}. They share no seed."
    )
    changed = [
        f"{name} {one['versions'].get(name)} → {number}"
        for name, number in other["versions"].items()
        if one["versions"].get(name) != number
    ]
    titles = ["data", "source → target", "head", "method", "anchors", "seeds", "A", "B", "B − A"]
    parts = [summary, *([f"Versions: {', '.join(changed)}."] if changed else []), table(titles, rows)]
    return "\n\n".join(parts) + "\n"


def _grouped(cells: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Group cells by the values of some keys, in the cells' order."""
    groups = defaultdict(list)
    for cell in cells:
        groups[tuple(cell[key] for key in keys)].append(cell)
    return dict(groups)


def _spread(values: Sequence[float], *, bold: bool = False, deviation: bool = True) -> str:
    """Format the mean ± standard deviation."""
    if not values:
        return "–"
    mean = f"**{_decimal(fmean(values))}**" if bold else _decimal(fmean(values))
    return f"{mean} ± {_decimal(pstdev(values))}" if deviation and len(values) > 1 else mean


def _decimal(value: float) -> str:
    """Format three decimals without the zero before them."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
