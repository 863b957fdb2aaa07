"""Moves of a Chroma collection to another encoder's space.

The move makes a new collection, which appears whole or not at all.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
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
from hf_relstitch.bulk.translator import NOTE, AnyModel, Translator, check_not_translated, note_of
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.options import Metric
from hf_relstitch.data.reading import draw_rows

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded

LONGEST_NAME = 512


@stopped_moves
def move_collection(
    model: AnyModel,
    client: "ClientAPI",
    old: "str | Collection",
    new: str,
    *,
    embedding_function: Any = None,
    batch_size: int = 1000,
    progress: bool = True,
) -> int:
    """Copy a Chroma collection with its vectors translated and all else unchanged, and return its number of records.

    The new collection's metadata says under `hf_relstitch` which translation and collection it comes from. The old
    collection does not change. Records are gathered in the collection `<new>-partial`, which takes its name when it is
    complete. A move that was stopped continues with the missing records. The move follows records that are added to the
    old collection or deleted from it meanwhile. It does not follow records that are altered. All ids and a single batch
    are in memory. Rows of zeros stay zeros.

    Args:
        model: a translation that `translation_between` returned, or its file; or a stitched model: a folder, a Hub
            id, or a model in memory.
        client: a Chroma client, for example `chromadb.HttpClient()`.
        old: the collection to read, or its name.
        new: the name of the collection to make.
        embedding_function: the new encoder's function, with which Chroma encodes additions to the new collection.
            Without it the new collection has none, and a log line says so if the old collection has one.
        batch_size: records to translate at a time; a server takes no more than its `get_max_batch_size()`.
        progress: show a progress bar.

    Raises:
        StitchError: the collection does not exist, its vectors cannot be translated or were translated by this model
            already, the new name is taken or not allowed, or this name has an unfinished move of something else.
    """
    old = old if isinstance(old, str) else old.name
    _check_name(new)
    names = {collection.name for collection in _pages(client.list_collections)}
    if old not in names or new in names:
        fault = f"no collection {old}" if old not in names else f"a collection {new} already"
        raise StitchError(f"the server has {fault}: it has {', '.join(sorted(names)) or 'none'}")
    translator = document_translator(model, "embeddings", batch_size)
    source = client.get_collection(old, embedding_function=None)
    check_not_translated(source.metadata, translator, f"collection {old}")
    configuration = _describe_index(source)
    check_metric(translator, _metric_of(source), f"collection {old}")
    _tell_embedding_function(source, embedding_function, new)
    note = {"collection": str(source.id)}
    if f"{new}{PARTIAL}" in names:
        partial = client.get_collection(f"{new}{PARTIAL}", embedding_function=embedding_function)
        check_note((partial.metadata or {}).get(NOTE), translator, note, partial.name)
    else:
        partial = client.create_collection(
            f"{new}{PARTIAL}",
            metadata={**(source.metadata or {}), NOTE: note_of(translator, source.metadata, **note)},
            configuration=configuration,
            embedding_function=embedding_function,
        )
    size = min(batch_size, client.get_max_batch_size())
    while missing := _follow(source, partial):
        with logging.tqdm(total=len(missing), desc=f"moving to {new}", disable=not progress) as bar:
            for start in range(0, len(missing), size):
                ids = missing[start : start + size]
                _move_records(source, partial, ids, translator)
                bar.update(len(ids))
    total = partial.count()
    partial.modify(name=new)
    tell_zeros(translator, old)
    return total


def read_collection(folder: str | Path, name: str, *, count: int) -> tuple[list[str | None], list[Any], int, Metric]:
    """Return texts and vectors of some records of a collection, its number of records, and its metric.

    Raises:
        StitchError: the folder has no such collection.
    """
    client = open_folder(folder)
    names = sorted(collection.name for collection in _pages(client.list_collections))
    if name not in names:
        raise StitchError(f"{folder} has no collection {name}: it has {', '.join(names) or 'none'}")
    collection = client.get_collection(name, embedding_function=None)
    ids = list(_ids(collection))
    drawn = [ids[row] for row in draw_rows(len(ids), count)]
    records = collection.get(ids=drawn, include=["embeddings", "documents"])
    texts = records["documents"] or [None] * len(drawn)
    return list(texts), list(records["embeddings"]), len(ids), _metric_of(collection)


def open_folder(folder: str | Path) -> "ClientAPI":
    """Open the Chroma database in a local folder, without telemetry."""
    import chromadb  # noqa: PLC0415 (an extra)

    return chromadb.PersistentClient(str(folder), settings=chromadb.Settings(anonymized_telemetry=False))


def _metric_of(collection: "Collection") -> Metric:
    """Return the metric of a collection's searches."""
    metrics = [settings["space"] for settings in _describe_index(collection).values() if "space" in settings]
    return (metrics or ["l2"])[0]


def _check_name(name: str) -> None:
    """Refuse a name that a server refuses, before anything is moved."""
    is_allowed = re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]+[a-zA-Z0-9]", name) and ".." not in name
    longest = LONGEST_NAME - len(PARTIAL)
    if not is_allowed or re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", name) or len(name) > longest:
        raise StitchError(
            f"{name[:80]!r} cannot name a Chroma collection: use 3 to {longest} letters, digits, periods, underscores "
            "and hyphens, with a letter or digit at both ends, no two periods in a row, and no IP address"
        )


def _describe_index(collection: "Collection") -> Any:
    """Return the configuration of a collection's index, without the encoder that it knows."""
    known = collection.configuration_json
    return {kind: known[kind] for kind in ("hnsw", "spann") if known.get(kind)}


def _tell_embedding_function(source: "Collection", given: Any, new: str) -> None:
    """Log that the new collection does not have the encoder that Chroma knows of the old collection."""
    known = source.configuration_json.get("embedding_function") or {}
    if given is None and known.get("name"):
        logger.warning(
            f"{source.name} is filled by the embedding function {known['name']!r}, which is not the new encoder: {new} "
            "gets none; give the new encoder's as embedding_function=, and also to get_collection"
        )


def _follow(source: "Collection", partial: "Collection") -> list[str]:
    """List the ids that are still missing, and delete from the new collection the ids that the old one has lost."""
    wanted, moved = (list(_ids(collection)) for collection in (source, partial))
    unlisted = sorted(set(moved) - set(wanted))
    for start in range(0, len(unlisted), 1000):
        ids = unlisted[start : start + 1000]
        kept = source.get(ids=ids, include=[])["ids"]  # a page skips some where another client deletes
        if gone := sorted(set(ids) - set(kept)):
            partial.delete(ids=gone)
    known = set(moved)
    return [record for record in wanted if record not in known]


def _ids(collection: "Collection") -> Iterator[str]:
    return _pages(lambda limit, offset: collection.get(limit=limit, offset=offset, include=[])["ids"])


def _pages(read: Any, size: int = 10_000) -> Iterator[Any]:
    """Yield everything that a paged call returns."""
    offset = 0
    while page := list(read(limit=size, offset=offset)):
        yield from page
        offset += len(page)


def _move_records(source: "Collection", partial: "Collection", ids: list[str], translator: Translator) -> None:
    records = source.get(ids=ids, include=["embeddings", "documents", "metadatas", "uris"])
    if not records["ids"]:
        return  # deleted meanwhile
    latents = torch.from_numpy(np.asarray(records["embeddings"], np.float32))
    with explain(f"collection {source.name}, from its record {records['ids'][0]!r} on"):
        translator.check_width(latents.shape[1], f"collection {source.name}")
        translated = translator(latents, first_row=0)
    columns = {name: records[name] for name in ("documents", "metadatas", "uris")}
    # a record with a URI and no metadata comes with {}, which Chroma does not take back
    columns["metadatas"] = [metadata or None for metadata in columns["metadatas"] or []]
    filled = {name: column for name, column in columns.items() if any(cell is not None for cell in column or [])}
    partial.upsert(ids=records["ids"], embeddings=translated.numpy(), **filled)
