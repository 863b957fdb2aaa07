"""What commands print: a few lines with the verdict last, or JSON; and the options that many commands have."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from shlex import quote
from textwrap import indent
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from hf_relstitch.data.report import Report, aligned, as_text

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
    from hf_relstitch.hub.processes import accelerate_state

    accelerate_state().device = torch.device(name)


def print_json(content: Any) -> None:
    """Print plain values as JSON."""
    typer.echo(json.dumps(content, indent=2))


def show(description: dict[str, Any], *, place: str | None = None) -> None:
    """Print a nested description, one line for each part; a stitched model's verdict and the next command come last.

    Lines are as long as their content, so that no id is cut off.
    """
    lines = {name: as_text(value) for name, value in description.items() if name != "kind" and value is not None}
    if "report" in description:
        lines = _verdict_last(description)
        if place is not None:
            is_bad = (description["report"].get("verdict") or {}).get("grade") == "do not use"
            command, after = ("plot", "stitched.png") if is_bad else ("predict", '"…"')
            lines["next"] = f"hf-relstitch {command} {quote(place)} {after}"
    typer.echo(description["kind"] + "\n" + indent(aligned(lines), "  "))


def _verdict_last(description: dict[str, Any]) -> dict[str, str]:
    """Return the lines of a stitched model: its parts, the choice, its report, which ends in the verdict."""
    parts = {name: value for name, value in description.items() if name not in ("kind", "report")}
    parts["best candidates"] = dict(list(description["best candidates"].items())[:SHOWN])
    measured = {"verdict": {"grade": "none: measure the model on labels"}} | description["report"]
    lines = {name: as_text(value) for name, value in parts.items() if value not in (None, {})}
    return lines | Report(measured).lines()


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
