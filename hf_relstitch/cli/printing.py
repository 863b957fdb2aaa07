"""What commands print: a few lines with the verdict last, or JSON; and the options that many commands have."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from shlex import quote
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[
    str | None, typer.Option(help="Where models run: cpu, cuda, cuda:1, mps; by default accelerate says.")
]
SHOWN = 3
"""Candidates of the choice that are shown, the best first."""


def use_device(name: str | None) -> None:
    """Choose the device on which accelerate places models.

    Raises:
        typer.BadParameter: torch has no such device here.
    """
    if name is None:
        return
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        message = f"device {name!r} cannot be used here ({reason}): give cpu, cuda, cuda:1 or mps"
        raise typer.BadParameter(message) from error
    os.environ["ACCELERATE_TORCH_DEVICE"] = name
    from hf_relstitch.encoders.devices import accelerate_state

    accelerate_state().device = torch.device(name)


def print_json(content: Any) -> None:
    """Print plain values as JSON."""
    typer.echo(json.dumps(content, indent=2))


def show(description: dict[str, Any], *, place: str | None = None) -> None:
    """Print a nested description, one line for each part; a stitched model's verdict and the next command come last.

    Lines are as long as their content, so that no id is cut off.
    """
    lines = {name: _plain(value) for name, value in description.items() if name != "kind" and value is not None}
    if "report" in description:
        lines = _verdict_last(description)
        if place is not None:
            lines["next"] = f'hf-relstitch predict {quote(place)} "…"'
    width = max(map(len, lines), default=0)
    typer.echo("\n".join([description["kind"], *(f"  {name:<{width}}  {line}" for name, line in lines.items())]))


def _verdict_last(description: dict[str, Any]) -> dict[str, str]:
    """Return the lines of a stitched model: its parts, its report, what to expect of it, its verdict."""
    report = dict(description["report"])
    verdict = report.pop("verdict", {"grade": "none: measure the model on labels"})
    expected = _expected(
        report.pop("agreement", None), report.pop("agreement_interval", None), report.pop("agreement_of", "inputs")
    )
    parts = {name: value for name, value in description.items() if name not in ("kind", "report", "best candidates")}
    parts["best candidates"] = dict(list(description["best candidates"].items())[:SHOWN])
    parts |= {"report": report, "anchors": report.pop("num_anchors", None), "expected agreement": expected}
    parts |= {"verdict": verdict["grade"], "reason": verdict.get("reason"), "remedy": verdict.get("remedy")}
    return {name: _plain(value) for name, value in parts.items() if value not in (None, {})}


def _expected(agreement: float | None, interval: list[float] | None, of: str) -> str | None:
    """Return an agreement with its interval, as whole percents."""
    if agreement is None or interval is None:
        return None
    share, low, high = (f"{100 * value:.0f}" for value in (agreement, *interval))
    return f"{share} % ({low}–{high} %) of {of}"


def _plain(value: Any) -> str:
    """Return a value as text, its numbers rounded to 4 digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with its cells unchanged: text in brackets is not markup, and long cells are folded, not cut.

    Without a terminal, lines are as long as the cells.
    """
    table = Table(*(Column(name, overflow="fold") for name in columns))
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False)
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
