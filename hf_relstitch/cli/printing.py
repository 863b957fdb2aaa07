"""What commands print: a table, or JSON where it is asked for."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SHOWN = 3
"""Candidates of the choice that a table shows, the best first."""


def show(description: dict[str, Any]) -> None:
    """A nested description as a table, which begins with what a stitched model is worth."""
    table = Table(*(Column(overflow="fold") for _ in range(3)), show_header=False, title=description["kind"])
    for name, value in _worth_first(description).items():
        fields = value.items() if isinstance(value, dict) else [("", value)]
        for place, (field, one) in enumerate(fields):
            table.add_row(name if place == 0 else "", field, _plain(one))
        table.add_section()
    print_table(table)


def _worth_first(description: dict[str, Any]) -> dict[str, Any]:
    """A description without its kind; of a stitched model verdict, agreement and anchors come first."""
    rest = {name: value for name, value in description.items() if name != "kind"}
    if "report" not in rest:
        return rest
    rest["report"] = report = dict(rest["report"])
    rest["best candidates"] = dict(list(rest["best candidates"].items())[:SHOWN])
    first = {
        "verdict": report.pop("verdict", "none: the head gives values, see values_explained"),
        "expected agreement": _expected(
            report.pop("agreement", None), report.pop("agreement_interval", None), report.pop("agreement_of", "inputs")
        ),
        "anchors": report.pop("num_anchors", None),
    }
    return first | rest


def _expected(agreement: float | None, interval: list[float] | None, of: str) -> str | None:
    """An agreement with its interval, as whole percents."""
    if agreement is None or interval is None:
        return None
    share, low, high = (f"{100 * one:.0f}" for one in (agreement, *interval))
    return f"{share} % ({low}–{high} %) of {of}"


def _plain(value: Any) -> str:
    """A value as text, its numbers rounded to 4 digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(one)}" for name, one in value.items())
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(table: Table) -> None:
    """A table whose cells are shown as they are: what stands in brackets there is no markup."""
    Console(markup=False).print(table)
