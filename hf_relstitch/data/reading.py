"""Inputs from files, folders and data sets."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, NamedSplit, load_dataset
from PIL import Image

from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.data.inputs import SOUNDS, TABLES, TEXT_PAIR, check_filled, inputs_at, is_here, is_url

STDIN = "-"
"""Stands for the standard input, one input a line."""
CSV_FORM = "expected is UTF-8 with commas between columns, or tabs in a .tsv"


def reads_as_path(name: str) -> bool:
    """Tell whether a name begins like a path of a file or folder, which no Hub id does."""
    return name.startswith(("./", "../", "/", "~"))


def read_inputs(
    place: str,
    *,
    column: str | None = None,
    target_column: str | None = None,
    pair_column: str | None = None,
    split: str = "train",
    count: int | None = None,
) -> list[Any]:
    """Read inputs from a text file, an image or a sound, a folder of them, or a column, see `read_columns`.

    A text file has one input for each line; `-` is the standard input, read the same way. Text files have no columns
    and ignore `column`. With `target_column` the inputs are tuples: the source takes `column`, the target takes
    `target_column`. With `pair_column` they are pairs of texts, each one input: `column` and `pair_column`. From more
    than `count` inputs, `count` are drawn, the same each time, in order.

    Raises:
        StitchError: nothing is at this path, or it holds no input; or there is no table for the second column.
    """
    path = Path(place)
    if pair_column is not None and (column is None or target_column is not None or place == STDIN):
        raise StitchError(
            f"the second texts of pairs are column {pair_column!r}: name the column of the first too, of a Parquet, "
            "CSV or JSON file or a data set, and no column of the target's"
        )
    inputs: list[Any]
    if place == STDIN:
        inputs = [line for line in sys.stdin.read().split("\n") if line.strip()]
    elif target_column is not None:
        inputs = list(zip(*read_columns(place, [column, target_column], split=split, count=count), strict=True))
    elif pair_column is not None:
        texts = read_columns(place, [column, pair_column], split=split, count=count)
        inputs = [dict(zip(TEXT_PAIR, pair, strict=True)) for pair in zip(*texts, strict=True)]
    elif not path.exists() or (column is not None and (path.is_dir() or path.suffix.lower() in TABLES)):
        inputs = read_columns(place, [column], split=split, count=count)[0]
    elif path.is_dir():
        inputs = sorted(file for file in path.rglob("*") if _is_media(file))
    elif _is_media(path):
        inputs = [path]
    elif path.suffix.lower() in TABLES:
        raise StitchError(f"{place} is a table: name its column of inputs (--column), or give a text file, one a line")
    else:
        inputs = [line for line in read_text(path).split("\n") if line.strip()]
    if not inputs:
        raise StitchError(
            f"{place} holds no input: expected a text file with one a line or a folder of images or sounds; of a "
            "table or a data set name the column"
        )
    return inputs_at(inputs, draw_rows(len(inputs), count))


def draw_rows(total: int, count: int | None) -> list[int]:
    """Draw at most `count` of so many rows with a fixed seed, and return them in their order; None draws all."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values.tolist()


def _is_media(path: str | Path) -> bool:
    """Whether a path names an image or a sound, by its suffix."""
    return Path(path).suffix.lower() in Image.registered_extensions().keys() | SOUNDS


def names_file(text: str) -> bool:
    """Tell whether a text reads as the name of a file of inputs, one word with a known suffix, or of a folder."""
    known = _is_media(text) or Path(text).suffix.lower() in {*TABLES, ".txt"} or text.endswith("/")
    return known and not any(letter.isspace() for letter in text)


def read_text(path: Path) -> str:
    """Read the text in a file.

    Raises:
        StitchError: the file is not text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StitchError(
            f"{path} is not text in UTF-8 ({error}): expected a text with one input a line, an image or a sound"
        ) from error


def read_columns(name: str, columns: Sequence[str | None], *, split: str, count: int | None = None) -> list[list[Any]]:
    """Read columns of a Parquet, CSV or JSON file, or of a `datasets` data set; `None` stands for an unnamed column.

    A column of paths of images or sounds is read as Paths, relative to the file that names them; for `count` see
    `read_inputs`.

    Raises:
        StitchError: the file, data set, split or column is missing or cannot be read, or the column has empty cells.
    """
    if len({*columns}) < len(columns):
        raise StitchError(f"both columns are {columns[0]!r}: name two different ones, or leave the second out")
    if not is_here(name) and (names_file(name) or reads_as_path(name)):
        raise StitchError(f"there is no file or folder {name}: check the path")
    path = Path(name)
    reader = TABLES.get(path.suffix.lower()) if path.is_file() else None
    try:
        table = read_table(name, reader, columns, split) if reader else load_dataset(name, split=split)
    except Exception as error:  # whatever a library raises for a damaged file
        unread = f"is empty or cannot be read as {reader or 'a data set'}: {str(error.__cause__ or error).strip()}"
        unread += f"; {CSV_FORM}" if reader == "csv" else ""
        unknown = f"is no text file, no folder, and no data set that could be loaded: {error}"
        raise StitchError(f"{name} {unread if path.exists() else unknown}") from error
    for column in columns:
        if column not in table.column_names:
            has = f"{name} has no column {column!r}: it has {', '.join(table.column_names)}"
            raise StitchError(f"{has}; {CSV_FORM}" if reader == "csv" and len(table.column_names) == 1 else has)
    rows = draw_rows(len(table), count)
    table = table.select(rows)
    with wrap_errors(f"{name} cannot be read"):
        read = [list(table[column]) for column in columns]
    folder = path.parent if reader else path
    for column, values in zip(columns, read, strict=True):
        check_filled(values, rows=rows, what=f"column {column!r} of {name} is")
    return [_paths(values, folder) for values in read] if path.exists() else read


def read_table(name: str, reader: str, columns: Sequence[str | None], split: str) -> Any:
    """Read a Parquet, CSV, TSV or JSON file by its reader's name; words like NA in these columns of a CSV are texts."""
    # `load_dataset` of a file asks the net for a count of downloads first; where no net is, it waits for it.
    read = {"parquet": Dataset.from_parquet, "csv": Dataset.from_csv, "json": Dataset.from_json}[reader]
    tabs = {"sep": "\t"} if name.lower().endswith(".tsv") else {}
    table = read(name, split=NamedSplit(split), **tabs)
    if reader == "csv" and any(table.data[one].null_count for one in columns if one in table.column_names):
        as_texts = {"keep_default_na": False, "na_values": [""]}  # NA, null, None, which pandas takes for empty cells
        return read(name, split=NamedSplit(split), **as_texts, **tabs)
    return table


def _paths(values: list[Any], folder: Path) -> list[Any]:
    named = all(isinstance(one, str) and _is_media(one) for one in values)
    return [one if is_url(one) else folder / one for one in values] if named else values
