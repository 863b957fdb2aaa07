"""Moves of a LanceDB table to another encoder's space.

The move makes a new table, which appears whole or not at all.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from transformers.utils import logging

from hf_relstitch.bulk.moves import (
    PARTIAL,
    check_metric,
    check_note,
    document_translator,
    explain,
    stopped_moves,
    tell_zeros,
)
from hf_relstitch.bulk.tables import translated_batches, translated_schema
from hf_relstitch.bulk.translator import NOTE, AnyModel, Translator, check_not_translated, note_of
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.options import Metric
from hf_relstitch.data.reading import draw_rows
from hf_relstitch.hub.files import run_lock

if TYPE_CHECKING:
    from lancedb.db import LanceDBConnection
    from lancedb.table import Table

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded

FOR_ANOTHER_MODEL = ("embedding_functions", "embedding_config")
"""Keys of LanceDB's notes on the encoder that fills a table; another encoder fills the new table."""
TOLERANCE = 1e-3
"""Largest distance, relative to its norm, of a vector that is translated again from the stored vector."""


@stopped_moves
def move_table(
    model: AnyModel,
    db: "LanceDBConnection | str | Path",
    old: "str | Table",
    new: str,
    *,
    column: str = "vector",
    batch_size: int = 16384,
    progress: bool = True,
) -> int:
    """Copy a LanceDB table with its vectors translated and every other column unchanged, and return its number of rows.

    The old table does not change. The move reads the version that it began with; the new table lacks later rows, and a
    log line says so. Rows are gathered in the table `<new>-partial`, which takes its name when it is complete. A move
    that was stopped continues with its next batch. It reads the latest version of the old table if that still begins
    with the moved rows, else the version that the move began with. The new table has no indexes; a log line names the
    old table's indexes. The metadata of the new schema says under `hf_relstitch` which translation and table it comes
    from. Rows of zeros stay zeros.

    Args:
        model: a translation that `translation_between` returned, or its file; or a stitched model: a folder, a Hub
            id, or a model in memory.
        db: a LanceDB database in a local folder, or that folder.
        old: the table to read, or its name.
        new: the name of the table to make.
        column: the table's column of vectors.
        batch_size: rows to translate at a time.
        progress: show a progress bar.

    Raises:
        StitchError: the table or column does not exist, the vectors cannot be translated or were translated by this
            model already, the new name is taken or not allowed, this name has an unfinished move of something else, or
            the database is not in a local folder.
    """
    db, old = _connect(db), old if isinstance(old, str) else old.name
    folder = Path(str(db.uri).removeprefix("file://"))
    if not folder.is_dir():
        raise StitchError(f"the database at {db.uri} is not in a local folder: move it where it is one")
    _check_name(new)
    table = _open(db, old)
    translator = document_translator(model, column, batch_size)
    check_not_translated(table.schema.metadata, translator, f"table {old}")
    _tell_indexes(table, translator, new)
    with run_lock(folder / f".{new}.lock", doing=f"making {new}", instead="give another name"):
        if (folder / f"{new}.lance").exists():  # asked under the lock, which a run that was killed at its end has left
            raise StitchError(f"{db.uri} has a table {new} already: give another name, or drop it")
        partial, version = _begin(db, table, f"{new}{PARTIAL}", translator)
        with explain(f"table {old}", ValueError, OSError, RuntimeError):
            table.checkout(version)
        total, done = table.count_rows(), partial.count_rows()
        with logging.tqdm(total=total, initial=done, desc=f"moving to {new}", disable=not progress) as bar:
            for start in range(done, total, batch_size):
                rows = range(start, min(start + batch_size, total))
                with explain(f"table {old}, from its row {start} on", ValueError, OSError, RuntimeError):
                    batches = list(translated_batches(_read(table, rows), partial.schema, translator))
                    partial.add(pa.Table.from_batches(batches))
                bar.update(len(rows))
        if partial.count_rows() != total:
            raise StitchError(f"{new}{PARTIAL} has {partial.count_rows()} rows of {total}: drop it and begin again")
        (folder / f"{new}{PARTIAL}.lance").rename(folder / f"{new}.lance")
    tell_zeros(translator, old)
    if _open(db, old).version != version:
        logger.warning(f"{old} was written to since the move to {new} began: what is new in it was not moved")
    return total


def read_rows(
    db: "LanceDBConnection | str | Path", name: str, *, text: str, vector: str, count: int
) -> tuple[list[str | None], list[Any], int, Metric]:
    """Return texts and vectors of some rows of a table, its number of rows, and the metric of its searches.

    Raises:
        StitchError: the database, the table or a column does not exist.
    """
    table = _open(_connect(db), name)
    for column in (text, vector):
        if column not in table.schema.names:
            raise StitchError(f"table {name} has no column {column!r}: it has {', '.join(table.schema.names)}")
    total = table.count_rows()
    rows = table.take_offsets(draw_rows(total, count)).to_arrow()
    return rows[text].to_pylist(), rows[vector].to_pylist(), total, _metric_of(table, vector)


def _connect(db: "LanceDBConnection | str | Path") -> "LanceDBConnection":
    if not isinstance(db, str | Path):
        return db
    import lancedb  # noqa: PLC0415 (an extra)

    if Path(db).is_file():
        raise StitchError(
            f"{db} is a file: give the folder of a LanceDB database; an index in FAISS has no texts: give "
            "translation_between(…) latents of both encoders, and move it by move_index(…)"
        )
    if not Path(db).is_dir():
        raise StitchError(f"there is no folder {db}: give the folder of a LanceDB database")
    return lancedb.connect(db)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name in (".", ".."):
        raise StitchError(
            f"{name!r} cannot name a LanceDB table: use letters, digits, underscores, hyphens and periods"
        )


def _open(db: "LanceDBConnection", name: str) -> "Table":
    try:
        return db.open_table(name)
    except ValueError as error:
        tables = ", ".join(sorted(db.list_tables().tables)) or "no table"
        raise StitchError(f"{db.uri} has no table {name}: it has {tables}") from error


def _tell_indexes(table: "Table", translator: Translator, new: str) -> None:
    """Log the indexes that the new table will lack, and check the metric of the table's searches."""
    indexes = [(index, table.index_stats(index.name)) for index in table.list_indices()]
    check_metric(translator, _metric_of(table, translator.column), f"table {table.name}")
    if indexes:
        named = ", ".join(
            f"{index.name} ({stats.index_type} of {', '.join(index.columns)})" for index, stats in indexes
        )
        logger.warning(f"{new} gets none of the indexes of {table.name}: make them in it: {named}")


def _metric_of(table: "Table", column: str) -> Metric:
    """Return the metric of searches in a column of vectors: its index's, or L2 as LanceDB searches without one."""
    indexes = [index.name for index in table.list_indices() if index.columns == [column]]
    metric = table.index_stats(indexes[0]).distance_type if indexes else None
    return {"dot": "ip", "cosine": "cosine"}.get(metric or "l2", "l2")  # type: ignore[return-value]


def _read(table: "Table", rows: range) -> Iterator[pa.RecordBatch]:
    return iter(table.take_offsets(list(rows)).to_arrow().combine_chunks().to_batches())


def _begin(db: "LanceDBConnection", table: "Table", name: str, translator: Translator) -> tuple["Table", int]:
    """Return the unfinished table and the version of the old table that it comes from."""
    with explain(f"table {table.name}"):
        schema = translated_schema(table.schema, translator)
    note = {"table": table.name, "column": translator.column}
    if not _is_whole(db, name):
        metadata = {
            key: value for key, value in (schema.metadata or {}).items() if key.decode() not in FOR_ANOTHER_MODEL
        }
        version = {"version": table.version, "written": _written(table, table.version)}
        metadata[NOTE.encode()] = note_of(translator, table.schema.metadata, **note, **version).encode()
        return db.create_table(name, schema=schema.with_metadata(metadata)), table.version
    partial = _open(db, name)
    begun = check_note((partial.schema.metadata or {}).get(NOTE.encode()), translator, note, name)
    return partial, _version_to_go_on_with(table, partial, begun, translator)


def _is_whole(db: "LanceDBConnection", name: str) -> bool:
    """Tell whether there is a table, and remove one that was cut off before it had a version."""
    if name not in db.list_tables().tables:
        return False
    try:
        db.open_table(name)
    except ValueError:
        db.drop_table(name)
        return False
    return True


def _written(table: "Table", version: int) -> float | None:
    """Return when a version was written, which tells it from a version of another table of this name."""
    times = {known["version"]: known["timestamp"].timestamp() for known in table.list_versions()}
    return times.get(version)


def _version_to_go_on_with(table: "Table", partial: "Table", begun: dict[str, Any], translator: Translator) -> int:
    """Return the latest version if it begins with the moved rows, else the version that the move began with.

    Raises:
        StitchError: the latest version does not begin with them, and the first version is gone.
    """
    version = begun["version"]
    is_kept = begun["written"] is not None and _written(table, version) == begun["written"]
    if (is_kept and version == table.version) or _begins_with(table, partial, translator):
        return table.version
    if is_kept:
        return int(version)
    raise StitchError(
        f"{partial.name} was begun from another {table.name} than there is now: the first {partial.count_rows()} rows "
        f"are others. Drop {partial.name} to begin again"
    )


def _begins_with(table: "Table", partial: "Table", translator: Translator) -> bool:
    """Compare the moved rows with the first rows of a table: other columns first, then vectors, translated again."""
    done, size = partial.count_rows(), translator.batch_size
    if table.count_rows() < done:
        return False
    ranges = [range(start, min(start + size, done)) for start in range(0, done, size)]
    pairs = ([pa.Table.from_batches(_read(side, rows)) for side in (table, partial)] for rows in ranges)
    others = (tuple(side.drop_columns([translator.column]).to_pylist() for side in pair) for pair in pairs)
    if any(left != right for left, right in others):
        return False
    return all(_same_vectors(table, partial, rows, translator) for rows in ranges)


def _same_vectors(table: "Table", partial: "Table", rows: range, translator: Translator) -> bool:
    with explain(f"table {table.name}, from its row {rows.start} on"):
        again = pa.Table.from_batches(translated_batches(_read(table, rows), partial.schema, translator))
    stored = pa.Table.from_batches(_read(partial, rows))
    columns = [side[translator.column].combine_chunks().flatten().to_numpy() for side in (again, stored)]
    left, right = (column.astype(np.float64).reshape(len(rows), translator.d_target) for column in columns)
    return bool((np.linalg.norm(left - right, axis=1) <= TOLERANCE * np.linalg.norm(right, axis=1)).all())
