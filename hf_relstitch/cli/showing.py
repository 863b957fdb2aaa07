"""What commands print: a table, or JSON where it is asked for."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def show(description: dict[str, Any]) -> None:
    """A nested description as a table."""
    table = Table(show_header=False, title=description["kind"])
    for name, value in description.items():
        fields = value.items() if isinstance(value, dict) else [("", value)]
        for place, (field, one) in enumerate(fields):
            shown = f"{one:.4g}" if isinstance(one, float) else str(one)
            table.add_row(name if place == 0 else "", field, shown)
        table.add_section()
    print_table(table)


def print_table(table: Table) -> None:
    """A table whose cells are shown as they are: what stands in brackets there is no markup."""
    Console(markup=False).print(table)
