"""Moves of a Milvus collection to another encoder's space.

The move makes a new collection, which takes its name when it is complete.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from hf_relstitch.bulk.moves import check_metric, check_note, document_translator, explain, stopped_moves, tell_zeros
from hf_relstitch.bulk.translator import NOTE, AnyModel, Translator, check_not_translated, note_of
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.options import Metric
from hf_relstitch.data.reading import draw_rows

if TYPE_CHECKING:
    from pymilvus import MilvusClient

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded

PARTIAL = "_partial"
"""End of a new collection's name until it is complete; Milvus does not allow the hyphen of other stores."""
LONGEST_NAME = 255
LARGEST_BATCH = 16_384
METRICS: dict[str, Metric] = {"COSINE": "cosine", "L2": "l2", "IP": "ip"}
NO_PARAMETERS = ("field_name", "index_name", "index_type", "metric_type", "params", "state")
"""What Milvus tells of an index beside its parameters; numbers of rows are more of it."""
STRONG: Any = {"consistency_level": "Strong"}
"""Reads see all that was written before."""


@stopped_moves
def move_entities(
    model: AnyModel,
    client: "MilvusClient",
    old: str,
    new: str,
    *,
    vector: str = "vector",
    batch_size: int = 1000,
    progress: bool = True,
) -> int:
    """Copy a Milvus collection with a single vector field translated and all else unchanged, and return its size.

    Primary keys, all other fields, dynamic fields, partitions, functions, properties and the indexes with their types
    and parameters are kept. Aliases stay with the old collection, which does not change; if it is not loaded, it is
    loaded for the move. Entities are gathered in the collection `<new>_partial`, which takes its name when it is
    complete; a move that was stopped drops it and begins again. The new collection's property `hf_relstitch` says which
    translation and collection it comes from. Rows of zeros stay zeros, and null vectors stay null where Milvus gives
    null back; Milvus Lite gives zeros.

    Args:
        model: a translation that `translation_between` returned, or its file; or a stitched model: a folder, a Hub
            id, or a model in memory.
        client: a client of a server, or of a file of Milvus Lite: `MilvusClient("docs.db")`.
        old: the collection to read, or an alias of it.
        new: the name of the new collection.
        vector: the field to translate, of type FLOAT_VECTOR.
        batch_size: entities to translate at a time, 16,384 at most. Milvus Lite reads all entities for each batch, so
            that large ones are faster.
        progress: show a progress bar.

    Raises:
        StitchError: the collection or field does not exist, the vectors cannot be translated or were translated by
            this model already, the new name is taken or not allowed, or this name has an unfinished move of something
            else.
    """
    _check_names(client, old, new)
    translator = document_translator(model, vector, batch_size)
    description = client.describe_collection(old)
    check_not_translated(description["properties"], translator, f"collection {old}")
    width = _width_of(description, vector, old)
    translator.check_width(width, f"field {vector} of {old}")
    indexes = _indexes(client, old)
    for metric in _metrics(indexes, vector):
        check_metric(translator, metric, f"collection {old}")
    partial, source = f"{new}{PARTIAL}", {"collection": description["collection_name"], "vector": vector}
    if client.has_collection(partial):
        check_note(client.describe_collection(partial)["properties"].get(NOTE), translator, source, partial)
        client.drop_collection(partial)
    _create(client, partial, description, translator, source)
    with _loaded(client, old):
        moved, total = _copy(client, old, partial, description, translator, progress=progress), _count(client, old)
    if moved != total:
        raise StitchError(f"{old} was written to during the move: {moved} entities of {total} were moved; run again")
    _make_indexes(client, partial, indexes)
    client.rename_collection(partial, new)
    if indexes:
        client.load_collection(new)  # as a new one is; Milvus Lite releases what it renames
    tell_zeros(translator, old)
    return moved


def read_entities(
    address: str | Path, name: str, *, text: str, vector: str, count: int
) -> tuple[list[str | None], list[Any], int, Metric]:
    """Return texts and vectors of some entities of a collection, its number of entities, and the metric of its index.

    Raises:
        StitchError: the collection or a field does not exist.
    """
    client = open_client(address)
    _check_exists(client, name)
    description = client.describe_collection(name)
    _width_of(description, vector, name)
    fields = [each["name"] for each in description["fields"]]
    if text not in fields and not description["enable_dynamic_field"]:
        raise StitchError(f"collection {name} has no field {text!r}: it has {', '.join(fields)}")
    (key,) = (each["name"] for each in description["fields"] if each.get("is_primary"))
    with _loaded(client, name):
        pages = client.query_iterator(name, batch_size=LARGEST_BATCH, output_fields=[key], **STRONG)
        keys = [row[key] for page in iter(pages.next, []) for row in page]
        drawn = [keys[row] for row in draw_rows(len(keys), count)]
        rows = client.get(name, drawn, output_fields=[text, vector], **STRONG)
    texts, latents = [row.get(text) for row in rows], [row[vector] for row in rows]
    return texts, latents, len(keys), (_metrics(_indexes(client, name), vector) or ["cosine"])[0]


def open_client(address: str | Path) -> "MilvusClient":
    """Open a file of Milvus Lite, or connect to a server."""
    try:
        from pymilvus import MilvusClient  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise StitchError("a collection of Milvus needs pymilvus: pip install 'hf-relstitch[milvus]'") from error
    return MilvusClient(str(address))


def _indexes(client: "MilvusClient", name: str) -> list[dict[str, Any]]:
    return [client.describe_index(name, index) for index in client.list_indexes(name)]


def _metrics(indexes: list[dict[str, Any]], vector: str) -> list[Metric]:
    told = [each.get("metric_type") for each in indexes if each["field_name"] == vector]
    return [METRICS[metric] for metric in told if metric in METRICS]


def _check_exists(client: "MilvusClient", name: str) -> None:
    if not name or not client.has_collection(name):
        names = ", ".join(sorted(client.list_collections())) or "none"
        raise StitchError(f"there is no collection {name}: there are {names}")


def _check_names(client: "MilvusClient", old: str, new: str) -> None:
    """Refuse an old name that does not exist, and a new one that is taken or that a server refuses."""
    _check_exists(client, old)
    longest = LONGEST_NAME - len(PARTIAL)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", new) or len(new) > longest:
        raise StitchError(
            f"{new[:80]!r} cannot name a Milvus collection: use up to {longest} letters, digits and underscores, "
            "the first no digit"
        )
    if client.has_collection(new):
        raise StitchError(f"there is a collection {new} already: give another name, or drop it")


def _width_of(description: dict[str, Any], vector: str, old: str) -> int:
    """Return the width of a vector field."""
    widths = {
        each["name"]: each["params"]["dim"] for each in description["fields"] if each["type"].name == "FLOAT_VECTOR"
    }
    if vector not in widths:
        raise StitchError(
            f"collection {old} has no field {vector!r} of type FLOAT_VECTOR: say vector=, one of "
            f"{', '.join(widths) or 'none'}"
        )
    return int(widths[vector])


def _create(
    client: Any, name: str, description: dict[str, Any], translator: Translator, source: dict[str, str]
) -> None:
    """Create a collection with the old collection's schema, the new width, and a note in its properties."""
    from pymilvus import CollectionSchema  # noqa: PLC0415 (an extra)

    fields = [
        each | {"params": each["params"] | {"dim": translator.d_target}} if each["name"] == translator.column else each
        for each in description["fields"]
    ]
    more = {"allow_insert_auto_id": "true"} if description["auto_id"] else {}  # else it would give new keys
    client.create_collection(
        name,
        schema=CollectionSchema.construct_from_dict(description | {"fields": fields}),
        num_shards=description["num_shards"],
        properties=description["properties"] | more | {NOTE: note_of(translator, description["properties"], **source)},
    )


@contextmanager
def _loaded(client: Any, name: str) -> Iterator[None]:
    """Load a collection, without which it cannot be read, and release it if it was not loaded before."""
    was_loaded = client.get_load_state(name)["state"].name == "Loaded"
    client.load_collection(name)
    try:
        yield
    finally:
        if not was_loaded:
            client.release_collection(name)


def _count(client: Any, name: str) -> int:
    return int(client.query(name, filter="", output_fields=["count(*)"], **STRONG)[0]["count(*)"])


def _copy(
    client: Any, old: str, partial: str, description: dict[str, Any], translator: Translator, *, progress: bool
) -> int:
    """Copy all entities, partition by partition, and return their number."""
    computed = [each["name"] for each in description["fields"] if each.get("is_function_output")]
    is_keyed = any(each.get("is_partition_key") for each in description["fields"])
    moved = 0
    with logging.tqdm(total=_count(client, old), desc=f"moving to {partial}", disable=not progress) as bar:
        for partition in [None] if is_keyed else client.list_partitions(old):
            named = {} if partition is None else {"partition_names": [partition]}
            if partition and not client.has_partition(partial, partition):
                client.create_partition(partial, partition)
            pages = client.query_iterator(old, batch_size=translator.batch_size, output_fields=["*"], **named, **STRONG)
            while page := pages.next():
                rows = [{key: cell for key, cell in row.items() if key not in computed} for row in page]
                _translate(rows, translator, f"collection {old}, from the entity {page[0]} on")
                client.insert(partial, rows, partition_name=partition or "")
                moved += len(rows)
                bar.update(len(rows))
            pages.close()
    return moved


def _translate(rows: list[dict[str, Any]], translator: Translator, place: str) -> None:
    """Replace the vectors of rows."""
    filled = [row for row in rows if row[translator.column] is not None]
    if filled:
        latents = torch.tensor([row[translator.column] for row in filled], dtype=torch.float32)
        with explain(place):
            translated = translator(latents, first_row=0).tolist()
        for row, latent in zip(filled, translated, strict=True):
            row[translator.column] = latent


def _make_indexes(client: Any, name: str, indexes: list[dict[str, Any]]) -> None:
    """Make indexes of the same types and parameters."""
    wanted = client.prepare_index_params()
    for index in indexes:
        known = {key: cell for key, cell in index.items() if key not in NO_PARAMETERS and not key.endswith("_rows")}
        wanted.add_index(
            index["field_name"],
            index_type=index["index_type"],
            index_name=index["index_name"],
            metric_type=index.get("metric_type", ""),
            params=known | index.get("params", {}),
        )
    if indexes:
        client.create_index(name, wanted)
