"""Moves of a PostgreSQL table with a pgvector column to another encoder's space.

The move makes a new table in one transaction, so that it appears whole or not at all.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from hf_relstitch.bulk.moves import check_metric, document_translator, explain, stopped_moves, tell_zeros
from hf_relstitch.bulk.translator import NOTE, AnyModel, Translator, check_not_translated, note_of
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.options import Metric

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded

DTYPES = {"vector": None, "halfvec": "float16"}
"""Types of columns of vectors, and the dtype that translated vectors have to fit."""
LONGEST_NAME = 63
"""Number of bytes that PostgreSQL keeps of a name; it cuts off the rest without an error."""
COLUMNS = """
    SELECT c.oid, n.nspname, c.relname, c.relkind, coalesce(obj_description(c.oid, 'pg_class'), ''),
           a.attnum, a.attname, a.atttypmod, tn.nspname, t.typname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace
    WHERE c.relname = %(name)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND CASE WHEN %(schema)s = '' THEN pg_table_is_visible(c.oid) ELSE n.nspname = %(schema)s END
"""
INDEXES = """
    SELECT i.indisunique, o.opcname, substr(pg_get_indexdef(i.indexrelid), 1 + length(format(
               'CREATE %%sINDEX %%I ON %%I.%%I', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, c.relname,
               n.nspname, t.relname
           ))), EXISTS (
               SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
               AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.refobjsubid = %(number)s
           )
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace JOIN pg_opclass o ON o.oid = i.indclass[0]
    WHERE t.oid = %(table)s AND i.indisvalid
    AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = t.oid)
    ORDER BY c.relname
"""
"""Each index that is not a constraint's: its definition after the table's name, and whether it is of the column."""
CONSTRAINTS = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s AND contype IN ('p','u','x','f')"
OTHERS = """
    SELECT attname, attidentity <> '' FROM pg_attribute
    WHERE attrelid = %s AND attnum > 0 AND attnum <> %s AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
SEQUENCE = """
    SELECT setval(pg_get_serial_sequence(%(new)s, %(name)s),
                  pg_sequence_last_value(pg_get_serial_sequence(%(old)s, %(name)s)::regclass))
"""
LEFT_OUT = """
    SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgrelid = %(table)s AND NOT tgisinternal
    UNION ALL SELECT 'policy ' || polname FROM pg_policy WHERE polrelid = %(table)s
    UNION ALL SELECT 'privileges' FROM pg_class WHERE oid = %(table)s AND relacl IS NOT NULL
    UNION ALL SELECT format('foreign key %%s of %%s', conname, conrelid::regclass) FROM pg_constraint
        WHERE confrelid = %(table)s AND contype = 'f'
    UNION ALL SELECT format('ownership of %%s', objid::regclass) FROM pg_depend
        WHERE classid = 'pg_class'::regclass AND refclassid = classid AND refobjid = %(table)s AND refobjsubid > 0
        AND deptype = 'a' AND objid IN (SELECT oid FROM pg_class WHERE relkind = 'S')
"""


@dataclass(frozen=True)
class _Column:
    """Hold what the catalogue says of a column and its table; `width` is below 1 where the type has none."""

    table: int
    schema: str
    name: str
    kind: str
    comment: str
    number: int
    column: str
    width: int
    type_schema: str
    type: str

    def sql(self, template: str, new: str, **literals: Any) -> Any:
        """Fill in names, quoted, and literals."""
        from psycopg import sql  # noqa: PLC0415 (an extra)

        names = {
            "old": sql.Identifier(self.schema, self.name),
            "new": sql.Identifier(self.schema, new),
            "column": sql.Identifier(self.column),
            "type": sql.Identifier(self.type_schema, self.type),
            "vector": sql.Identifier(self.type_schema, "vector"),
        }
        more = {
            name: each if isinstance(each, sql.Composable) else sql.Literal(each) for name, each in literals.items()
        }
        return sql.SQL(template).format(**names, **more)


@stopped_moves
def move_rows(
    model: AnyModel,
    connection: "Connection[Any] | str",
    old: str,
    new: str,
    *,
    column: str = "embedding",
    batch_size: int = 1000,
    progress: bool = True,
) -> int:
    """Copy a PostgreSQL table with a pgvector column translated and all else unchanged, and return its number of rows.

    Other columns, defaults, identities, constraints and comments are kept, and all indexes are built again with their
    types and settings; an index on a cast, such as `embedding::halfvec(384)`, gets the new width. A log line names
    what is not kept: triggers, policies, privileges, other tables' foreign keys, ownership of sequences. The old table
    does not change, and can be read and written to meanwhile; what is written after the move began is not moved. All
    is one transaction: a move that was stopped leaves nothing, and begins again. The new table's comment says which
    translation and table it comes from. Null vectors stay null, and rows of zeros stay zeros.

    Args:
        model: a translation that `translation_between` returned, or its file; or a stitched model: a folder, a Hub
            id, or a model in memory.
        connection: a psycopg connection that is not in a transaction, or a string to connect with, such as
            `postgresql://user@host/database`.
        old: the table to read, or `schema.table`.
        new: the name of the table to make, in the schema of the old one.
        column: the column to translate, of type `vector` or `halfvec`.
        batch_size: rows to translate at a time.
        progress: show a progress bar.

    Raises:
        StitchError: the table or column does not exist, the vectors cannot be translated or were translated by this
            model already, the new name is taken or not allowed, or the connection is in a transaction.
    """
    with _transaction(connection) as cursor:
        found = _find(cursor, old, column)
        _check_name(cursor, found.schema, new)
        translator = replace(document_translator(model, column, batch_size), dtype=DTYPES[found.type])
        lines, prefix = found.comment.splitlines(), f"{NOTE} {column}: "
        notes = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
        check_not_translated({NOTE: "".join(notes)}, translator, f"column {column} of {old}")
        indexes = _index_commands(cursor, found, translator)
        cursor.execute(found.sql("CREATE TABLE {new} (LIKE {old} INCLUDING ALL EXCLUDING INDEXES)", new))
        if found.width > 0:
            translator.check_width(found.width, f"column {column} of {old}")
            width = translator.d_target
            cursor.execute(found.sql("ALTER TABLE {new} ALTER {column} TYPE {type}({width})", new, width=width))
        with cursor.connection.transaction(force_rollback=True):  # an index that cannot be is found out first
            for command in indexes:
                cursor.execute(found.sql(command, new))
        moved = _copy(cursor, found, new, translator, progress=progress)
        constraints = cursor.execute(CONSTRAINTS, (found.table,)).fetchall()
        for command in [f"ALTER TABLE {{new}} ADD {_escape(each)}" for (each,) in constraints] + indexes:
            cursor.execute(found.sql(command, new))
        note = prefix + note_of(translator, table=f"{found.schema}.{found.name}", column=column)
        comment = "\n".join([*(line for line in lines if not line.startswith(prefix)), note])
        cursor.execute(found.sql("COMMENT ON TABLE {new} IS {comment}", new, comment=comment))
        cursor.execute(found.sql("ANALYZE {new}", new))
        left_out = [name for (name,) in cursor.execute(LEFT_OUT, {"table": found.table}).fetchall()]
    if left_out:
        logger.warning(f"{new} does not get all that {old} has; it lacks: {', '.join(left_out)}")
    tell_zeros(translator, old)
    return moved


def read_columns(
    connection: "Connection[Any] | str", name: str, *, text: str, vector: str, count: int
) -> tuple[list[str | None], list[Any], int, Metric]:
    """Return texts and vectors of some rows of a table, its number of rows, and the metric of its index.

    Without an index the metric is cosine.

    Raises:
        StitchError: the database, the table or a column does not exist.
    """
    with _transaction(connection) as cursor:
        from psycopg import sql  # noqa: PLC0415 (an extra)

        found = _find(cursor, name, vector)
        others = [each for each, _ in cursor.execute(OTHERS, (found.table, found.number)).fetchall()]
        if text not in others:
            raise StitchError(f"table {name} has no column {text!r}: it has {', '.join(others)}")
        metrics = [metric for metric in _metrics(cursor, found) if metric != "l1"]
        total = cursor.execute(found.sql("SELECT count(*) FROM ONLY {old}", name)).fetchone()[0]
        # an order as good as random, and the same each time
        query = "SELECT {text}, {column}::real[] FROM ONLY {old} ORDER BY hashtext(ctid::text) LIMIT {count}"
        rows = cursor.execute(found.sql(query, name, text=sql.Identifier(text), count=count)).fetchall()
    return [row[0] for row in rows], [row[1] for row in rows], total, (metrics or ["cosine"])[0]


@contextmanager
def _transaction(connection: "Connection[Any] | str") -> Iterator["Cursor[Any]"]:
    """Begin a transaction that sees the database as it is now, and all rows of a table."""
    try:
        import psycopg  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise StitchError("a table of PostgreSQL needs psycopg: pip install 'hf-relstitch[pgvector]'") from error
    if isinstance(connection, str):
        with psycopg.connect(connection) as opened, _transaction(opened) as cursor:
            yield cursor
        return
    if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        raise StitchError("the connection is in a transaction: commit it or roll it back before the move")
    with connection.transaction(), connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SET LOCAL row_security = off")  # makes it an error if a policy hides rows
        yield cursor


def _find(cursor: "Cursor[Any]", old: str, column: str) -> _Column:
    schema, _, name = old.rpartition(".")
    columns = [_Column(*row) for row in cursor.execute(COLUMNS, {"schema": schema, "name": name}).fetchall()]
    if not columns:
        raise StitchError(f"there is no table {old}: give the name of a table, or schema.table")
    if columns[0].kind != "r":
        raise StitchError(f"{old} is a view, foreign or partitioned: give a table that holds rows, as a partition does")
    vectors = {each.column: each for each in columns if each.type in DTYPES}
    if column not in vectors:
        raise StitchError(
            f"table {old} has no column {column!r} of type vector or halfvec: say column=, one of "
            f"{', '.join(vectors) or 'none'}"
        )
    return vectors[column]


def _check_name(cursor: "Cursor[Any]", schema: str, new: str) -> None:
    if not new.strip() or "." in new or "\0" in new or len(new.encode()) > LONGEST_NAME:
        raise StitchError(f"{new[:80]!r} cannot name a table: use 1 to {LONGEST_NAME} letters, digits and underscores")
    query = "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relname = %s AND nspname = %s"
    if cursor.execute(query, (new, schema)).rowcount:
        raise StitchError(f"there is a table {new} already: give another name, or drop it")


def _index_commands(cursor: "Cursor[Any]", found: _Column, translator: Translator) -> list[str]:
    """Return templates of the commands that make the indexes of the new table, and check the metrics of searches."""
    for metric in _metrics(cursor, found):
        check_metric(translator, metric, f"column {found.column} of {found.name}")
    casts = re.compile(rf"\b((?:vector|halfvec|bit)\(){translator.d_source}\)")
    commands = []
    for is_unique, _, definition, is_of_column in _indexes(cursor, found):
        widened = casts.sub(rf"\g<1>{translator.d_target})", definition) if is_of_column else definition
        commands.append(f"CREATE {'UNIQUE ' if is_unique else ''}INDEX ON {{new}}{_escape(widened)}")
    return commands


def _indexes(cursor: "Cursor[Any]", found: _Column) -> list[Any]:
    return cursor.execute(INDEXES, {"table": found.table, "number": found.number}).fetchall()


def _metrics(cursor: "Cursor[Any]", found: _Column) -> list[Any]:
    """Return the metrics of the column's indexes, which are in the names of their operators' classes."""
    classes = [operators for _, operators, _, is_of_column in _indexes(cursor, found) if is_of_column]
    return [known[1] for known in (re.search("_(l1|l2|ip|cosine)_ops$", each) for each in classes) if known]


def _escape(text: str) -> str:
    """Escape braces, for a template."""
    return text.replace("{", "{{").replace("}", "}}")


def _copy(cursor: "Cursor[Any]", found: _Column, new: str, translator: Translator, *, progress: bool) -> int:
    """Copy the rows, all but the vectors inside of the server, and let identities go on where the old ones are."""
    from pgvector import Vector  # noqa: PLC0415 (an extra)
    from pgvector.psycopg.vector import register_vector_info  # noqa: PLC0415 (an extra)
    from psycopg import sql  # noqa: PLC0415 (an extra)
    from psycopg.types import TypeInfo  # noqa: PLC0415 (an extra)

    others = cursor.execute(OTHERS, (found.table, found.number)).fetchall()
    columns = [sql.Identifier(name) for name, _ in others]
    listed = sql.SQL("").join(sql.SQL("{}, ").format(each) for each in columns)
    qualified = sql.SQL("").join(sql.SQL("old.{}, ").format(each) for each in columns)
    insert = found.sql("INSERT INTO {new} (", new) + listed + found.sql("{column}) OVERRIDING SYSTEM VALUE ", new)
    insert += sql.SQL("SELECT ") + qualified
    without = insert + found.sql("NULL FROM ONLY {old} AS old WHERE old.{column} IS NULL", new)
    # a cast of the server's brings the vectors to the column's type; the places are those of rows in the old table
    into = (insert + found.sql("moved.vector::{type} FROM ONLY {old} AS old ", new)).as_string(cursor)
    into = into.replace("%", "%%") + (
        "JOIN unnest(%s::tid[], %b) AS moved (place, vector) ON old.ctid = moved.place WHERE old.ctid = ANY(%s::tid[])"
    )
    moved = cursor.execute(without).rowcount
    total = moved + cursor.execute(found.sql("SELECT count({column}) FROM ONLY {old}", new)).fetchone()[0]
    reader = cursor.connection.cursor("hf_relstitch", row_factory=cursor.row_factory, binary=True)
    info = TypeInfo.fetch(cursor.connection, sql.Identifier(found.type_schema, "vector"))
    register_vector_info(cursor, info)
    register_vector_info(reader, info)
    query = "SELECT ctid::text, {column}::{vector} FROM ONLY {old} WHERE {column} IS NOT NULL"
    with reader, logging.tqdm(total=total, initial=moved, desc=f"moving to {new}", disable=not progress) as bar:
        reader.execute(found.sql(query, new))
        while rows := reader.fetchmany(translator.batch_size):
            places = [place for place, _ in rows]
            with explain(f"table {found.name}, from its row with the ctid {places[0]} on"):
                for width in {vector.dimensions() for _, vector in rows}:
                    translator.check_width(width, f"column {found.column}")
                latents = torch.from_numpy(np.stack([vector.to_numpy() for _, vector in rows]))
                vectors = [Vector(each) for each in translator(latents, first_row=0).float().numpy()]
            moved += cursor.execute(into, (places, vectors, places)).rowcount
            bar.update(len(rows))
    if moved != total:
        raise StitchError(f"{moved} rows of {total} in {found.name} were moved: nothing was kept; run again")
    tables = {side: found.sql(f"{{{side}}}", new).as_string(cursor) for side in ("old", "new")}
    for name in (name for name, is_identity in others if is_identity):
        cursor.execute(SEQUENCE, tables | {"name": name})
    return moved
