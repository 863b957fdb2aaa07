"""A vector index moved to another encoder's space: a new table or collection, which appears whole or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from transformers.utils import logging

from hf_relstitch.bulk.search import SearchTranslation
from hf_relstitch.bulk.tables import translated_batches, translated_schema
from hf_relstitch.bulk.translator import AnyModel, AnyTranslation, Translator, load_translation
from hf_relstitch.core.errors import StitchError
from hf_relstitch.hub.files import only_run

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection
    from lancedb.db import LanceDBConnection
    from lancedb.table import Table

logger = logging.get_logger(__name__)

NOTE = "hf_relstitch"
"""Under this key of its metadata a new table or collection says what it is made of, unfinished or whole."""
FOR_ANOTHER_MODEL = ("embedding_functions", "embedding_config")
"""What LanceDB notes of the encoder that fills a table, which the new table is not filled by."""


def move_table(
    model: AnyModel,
    db: "LanceDBConnection",
    old: str,
    new: str,
    *,
    column: str = "vector",
    batch_size: int = 16384,
    progress: bool = True,
) -> int:
    """Copy a LanceDB table with its vectors translated, and every other column as it is; gives its number of rows.

    The old table stays as it is, and is read as it was when the move began: what is written to it since is not in the
    new one, and a log line says so. Rows are gathered in the table `<new>-partial`, which takes its name when all are
    there; a move that was stopped goes on with its next batch. Make the new table's indexes after it. To the metadata
    of its schema `hf_relstitch` is added, which says what it was made of.

    Args:
        model: a translation, as of `translation_between`, or its file; or a stitched model: a folder, a Hub id, one
            in memory.
        db: a LanceDB database in a local folder.
        old: the table to read.
        new: the table to make.
        column: its column of vectors.
        batch_size: rows to translate at a time.
        progress: whether to show a progress bar.

    Raises:
        StitchError: no such table or column, vectors that cannot be translated, a name that is taken, an unfinished
            move of something else under this name, or a database that is not in a local folder.
    """
    folder = Path(str(db.uri).removeprefix("file://"))
    if not folder.is_dir():
        raise StitchError(f"the database at {db.uri} is not in a local folder: move it where it is one")
    table = _table(db, old)
    if (folder / f"{new}.lance").exists():
        raise StitchError(f"{db.uri} has a table {new} already: give another name, or drop it")
    translation, which = _of_documents(model)
    translator = Translator(translation, column, batch_size)
    with only_run(folder / f".{new}.lock", doing=f"making {new}", instead="give another name"):
        made, version = _begun_table(db, table, f"{new}-partial", translator, which["fingerprint"])
        table.checkout(version)
        total, done = table.count_rows(), made.count_rows()
        with logging.tqdm(total=total, initial=done, desc=f"moving to {new}", disable=not progress) as bar:
            for start in range(done, total, batch_size):
                rows = range(start, min(start + batch_size, total))
                read = table.take_offsets(list(rows)).to_arrow().combine_chunks()
                with _explained(f"table {old}, from its row {start} on"):
                    batches = list(translated_batches(iter(read.to_batches()), made.schema, translator))
                made.add(pa.Table.from_batches(batches))
                bar.update(len(rows))
        if made.count_rows() != total:
            raise StitchError(f"{new}-partial has {made.count_rows()} rows of {total}: drop it and begin again")
        (folder / f"{new}-partial.lance").rename(folder / f"{new}.lance")
    if _table(db, old).version != version:
        logger.warning(f"{old} was written to since the move to {new} began: what is new in it was not moved")
    return total


def _of_documents(model: AnyModel) -> tuple[AnyTranslation, dict[str, Any]]:
    """`load_translation`, and no translation that was made for queries."""
    translation, which = load_translation(model)
    if isinstance(translation, SearchTranslation) and translation.translates != "documents":
        raise StitchError(
            "this translation is of queries, which stay out of an index: make one of its documents, "
            "translation_between(old, new, translates='documents')"
        )
    return translation, which


def _table(db: "LanceDBConnection", name: str) -> "Table":
    try:
        return db.open_table(name)
    except ValueError as error:
        raise StitchError(f"{db.uri} has no table {name} ({error}): give the name of one that it has") from error


def _begun_table(
    db: "LanceDBConnection", table: "Table", name: str, translator: Translator, fingerprint: str
) -> tuple["Table", int]:
    """The unfinished table and the version of the old one that it is made of."""
    with _explained(f"table {table.name}"):
        schema = translated_schema(table.schema, translator)
    note = {"model": fingerprint, "table": table.name, "column": translator.column}
    if name not in db.list_tables().tables:
        kept = {key: value for key, value in (schema.metadata or {}).items() if key.decode() not in FOR_ANOTHER_MODEL}
        kept[NOTE.encode()] = json.dumps(note | {"version": table.version}).encode()
        return db.create_table(name, schema=schema.with_metadata(kept)), table.version
    made = _table(db, name)
    found = json.loads((made.schema.metadata or {}).get(NOTE.encode(), b"{}"))
    version = found.pop("version", None)
    _check_note(found, note, name)
    return made, version


def move_collection(
    model: AnyModel,
    client: "ClientAPI",
    old: str,
    new: str,
    *,
    embedding_function: Any = None,
    batch_size: int = 1000,
    progress: bool = True,
) -> int:
    """Copy a Chroma collection with its vectors translated, and all else as it is; gives its number of records.

    To the new one's metadata `hf_relstitch` is added, which says what it was made of.

    The old collection stays as it is. Records are gathered in the collection `<new>-partial`, which takes its name
    when all are there; a move that was stopped goes on with the records that are missing. Records that are added to
    the old collection or deleted from it meanwhile are followed to the end of the move, those that are altered are
    not. In memory are all ids and one batch.

    Args:
        model: a translation, as of `translation_between`, or its file; or a stitched model: a folder, a Hub id, one
            in memory.
        client: a Chroma client, such as `chromadb.HttpClient()`.
        old: the collection to read.
        new: the collection to make.
        embedding_function: the new encoder's, with which Chroma is to encode what is added to the new collection.
        batch_size: records to translate at a time; a server takes no more than its `get_max_batch_size()`.
        progress: whether to show a progress bar.

    Raises:
        StitchError: no such collection, vectors that cannot be translated, a name that is taken, or an unfinished move
            of something else under this name.
    """
    names = {collection.name for collection in _pages(client.list_collections)}
    if old not in names or new in names:
        fault = f"no collection {old}" if old not in names else f"a collection {new} already"
        raise StitchError(f"the server has {fault}: it has {', '.join(sorted(names)) or 'none'}")
    translation, which = _of_documents(model)
    translator = Translator(translation, "embeddings", batch_size)
    source = client.get_collection(old, embedding_function=None)
    note = json.dumps({"model": which["fingerprint"], "collection": str(source.id)}, sort_keys=True)
    if f"{new}-partial" in names:
        made = client.get_collection(f"{new}-partial", embedding_function=embedding_function)
        _check_note((made.metadata or {}).get(NOTE), note, made.name)
    else:
        made = client.create_collection(
            f"{new}-partial",
            metadata={**(source.metadata or {}), NOTE: note},
            configuration=_index_of(source),
            embedding_function=embedding_function,
        )
    size = min(batch_size, client.get_max_batch_size())
    while missing := _follow(source, made):
        with logging.tqdm(total=len(missing), desc=f"moving to {new}", disable=not progress) as bar:
            for start in range(0, len(missing), size):
                ids = missing[start : start + size]
                _move_records(source, made, ids, translator)
                bar.update(len(ids))
    total = made.count()
    made.modify(name=new)
    return total


def _index_of(collection: "Collection") -> Any:
    """The configuration of a collection's index, without the encoder that it knows."""
    known = collection.configuration_json
    return {kind: known[kind] for kind in ("hnsw", "spann") if known.get(kind)}


def _follow(source: "Collection", made: "Collection") -> list[str]:
    """The ids that are still missing; those that are in the old collection no more are deleted from the new one."""
    wanted, there = (list(_ids(collection)) for collection in (source, made))
    unlisted = sorted(set(there) - set(wanted))
    for start in range(0, len(unlisted), 1000):
        ids = unlisted[start : start + 1000]
        kept = source.get(ids=ids, include=[])["ids"]  # a page skips some where another client deletes
        if gone := sorted(set(ids) - set(kept)):
            made.delete(ids=gone)
    found = set(there)
    return [one for one in wanted if one not in found]


def _ids(collection: "Collection") -> Iterator[str]:
    return _pages(lambda limit, offset: collection.get(limit=limit, offset=offset, include=[])["ids"])


def _pages(read: Any, size: int = 10_000) -> Iterator[Any]:
    """Everything that a paged call gives."""
    offset = 0
    while page := list(read(limit=size, offset=offset)):
        yield from page
        offset += len(page)


def _move_records(source: "Collection", made: "Collection", ids: list[str], translator: Translator) -> None:
    records = source.get(ids=ids, include=["embeddings", "documents", "metadatas", "uris"])
    if not records["ids"]:
        return  # deleted meanwhile
    latents = torch.from_numpy(np.asarray(records["embeddings"], np.float32))
    with _explained(f"collection {source.name}, from its record {records['ids'][0]!r} on"):
        translator.check_width(latents.shape[1], f"collection {source.name}")
        translated = translator(latents, first_row=0)
    columns = {name: records[name] for name in ("documents", "metadatas", "uris")}
    given = {name: column for name, column in columns.items() if any(one is not None for one in column or [])}
    made.upsert(ids=records["ids"], embeddings=translated.numpy(), **given)


def _check_note(found: object, note: object, name: str) -> None:
    if found != note:
        raise StitchError(f"{name} was begun with {found} and not {note}: drop it, or give another name")


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Say of an error which rows it is about."""
    try:
        yield
    except StitchError as error:
        raise StitchError(f"{place}: {error}") from error
