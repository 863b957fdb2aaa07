"""Moves of a Qdrant collection to another encoder's space.

The move makes a new collection, whose name appears when it is complete.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers.utils import logging

from hf_relstitch.bulk.moves import check_metric, check_note, document_translator, explain, stopped_moves, tell_zeros
from hf_relstitch.bulk.translator import NOTE, AnyModel, Translator, check_not_translated, note_of
from hf_relstitch.core.errors import StitchError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded

POINTS = "-points"
"""End of the name of the collection that the new name is an alias of."""
METRICS = {"Cosine": "cosine", "Euclid": "l2", "Dot": "ip"}
COMPARED = 32
"""Number of moved points in a batch that are translated again, to check that they are the same."""
TOLERANCE = 1e-3
KEPT = ("hnsw_config", "quantization_config")


@stopped_moves
def move_points(
    model: AnyModel,
    client: "QdrantClient",
    old: str,
    new: str,
    *,
    vector: str = "",
    batch_size: int = 1000,
    progress: bool = True,
) -> int:
    """Copy a Qdrant collection with a single vector translated and all else unchanged, and return its number of points.

    Ids, payload, other vectors (named and sparse), distances, index and quantization settings are kept. Points are
    gathered in the collection `<new>-points`. When it is complete, `<new>` becomes its alias, as in Qdrant's own
    migrations. A move that was stopped continues with the missing points. The user has to create payload indexes again.
    The new collection's metadata says under `hf_relstitch` which translation and collection it comes from. Rows of
    zeros stay zeros.

    Args:
        model: a translation that `translation_between` returned, or its file; or a stitched model: a folder, a Hub
            id, or a model in memory.
        client: a client of a server, or of a folder: `QdrantClient(path=…)`.
        old: the collection to read.
        new: the name of the new collection.
        vector: the name of the vector to translate, if vectors have names; points without it are copied.
        batch_size: points to translate at a time.
        progress: show a progress bar.

    Raises:
        StitchError: the collection or vector does not exist, the vectors cannot be translated or were translated by
            this model already, the new name is taken or not allowed, or this name has an unfinished move of something
            else.
    """
    name = f"{new}{POINTS}"
    names = {known.name for known in client.get_collections().collections}
    aliases = {known.alias_name for known in client.get_aliases().aliases}
    if not client.collection_exists(old):
        raise StitchError(f"there is no collection {old}: there are {', '.join(sorted(names | aliases)) or 'none'}")
    if new in names | aliases:
        raise StitchError(f"there is a collection {new} already: give another name, or delete it")
    if not new.strip() or new in (".", "..") or any(letter in new for letter in '<>:"/\\|?*\0') or len(name) > 255:
        raise StitchError(f"{new[:80]!r} cannot name a collection: use letters, digits, - and _")
    config = client.get_collection(old).config
    translator = document_translator(model, vector, batch_size)
    check_not_translated(config.metadata, translator, f"collection {old}")
    parameters = _parameters_of(config, vector, old)
    translator.check_width(parameters.size, f"collection {old}")
    check_metric(translator, METRICS.get(parameters.distance.value, parameters.distance.value), f"collection {old}")
    source = {"collection": old, "vector": vector}
    if name not in names:
        _create(client, name, config, vector, translator, source)
    else:
        check_note((client.get_collection(name).config.metadata or {}).get(NOTE), translator, source, name)
    total = client.count(old).count
    with logging.tqdm(total=total, desc=f"moving to {new}", disable=not progress) as bar:
        page: Any = None
        while True:
            points, page = client.scroll(old, limit=batch_size, offset=page, with_payload=True, with_vectors=True)
            _move(client, name, points, vector, translator, old)
            bar.update(len(points))
            if page is None:
                break
    moved = int(client.count(name).count)
    if moved != client.count(old).count:
        raise StitchError(f"{old} was written to during the move: {name} has {moved} points; run again")
    _name(client, name, new)
    tell_zeros(translator, old)
    return moved


def _parameters_of(config: Any, vector: str, old: str) -> Any:
    vectors = config.params.vectors
    known = vectors if isinstance(vectors, dict) else {"": vectors}
    if vector not in known:
        named = ", ".join(repr(name) for name in known)
        raise StitchError(f"collection {old} has no vector {vector!r}: say vector=, one of {named}")
    if known[vector].multivector_config is not None:
        raise StitchError(f"vector {vector!r} of {old} is many vectors a point: only one a point can be translated")
    return known[vector]


def _create(client: Any, name: str, config: Any, vector: str, translator: Translator, source: dict[str, str]) -> None:
    """Create the new collection with the old collection's settings and the new dimension."""
    vectors = config.params.vectors
    is_named = isinstance(vectors, dict)
    changed = _parameters_of(config, vector, name).model_copy(update={"size": translator.d_target})
    settings = {key: getattr(config, key) for key in KEPT}
    hnsw = settings.pop("hnsw_config")
    from qdrant_client.models import HnswConfigDiff  # noqa: PLC0415 (an extra)

    fields = HnswConfigDiff.model_fields
    diff = HnswConfigDiff(**{key: value for key, value in hnsw.model_dump().items() if key in fields}) if hnsw else None
    client.create_collection(
        name,
        vectors_config={**vectors, vector: changed} if is_named else changed,
        sparse_vectors_config=config.params.sparse_vectors,
        hnsw_config=diff,
        on_disk_payload=config.params.on_disk_payload,
        metadata={**(config.metadata or {}), NOTE: note_of(translator, config.metadata, **source)},
        **settings,
    )


def _move(client: Any, name: str, points: list[Any], vector: str, translator: Translator, old: str) -> None:
    """Translate the points that the new collection lacks."""
    from qdrant_client.models import PointStruct  # noqa: PLC0415 (an extra)

    ids = [point.id for point in points]
    there = {point.id: point.vector for point in client.retrieve(name, ids, with_payload=False, with_vectors=True)}
    _compare([point for point in points if point.id in there][:COMPARED], there, vector, translator, name, old)
    missing = [point for point in points if point.id not in there]
    vectors = [point.vector.get(vector) if vector else point.vector for point in missing]
    rows = [row for row, latent in enumerate(vectors) if latent is not None]
    if rows:
        latents = torch.tensor([vectors[row] for row in rows], dtype=torch.float32)
        with explain(f"collection {old}, from its point {missing[rows[0]].id!r} on"):
            translated = translator(latents, first_row=0).tolist()
        for row, latent in zip(rows, translated, strict=True):
            missing[row].vector = {**missing[row].vector, vector: latent} if vector else latent
    if missing:
        client.upsert(name, [PointStruct(id=each.id, vector=each.vector, payload=each.payload) for each in missing])


def _compare(
    points: list[Any], moved: dict[Any, Any], vector: str, translator: Translator, name: str, old: str
) -> None:
    """Compare some moved points with a second translation: a collection has no identity of its own.

    Raises:
        StitchError: the vectors in the new collection differ.
    """

    def rows(vectors: list[Any]) -> torch.Tensor:
        return torch.tensor([each[vector] if vector else each for each in vectors], dtype=torch.float32)

    points = [point for point in points if not vector or (vector in point.vector and vector in moved[point.id])]
    if not points:
        return
    again = replace(translator)(rows([point.vector for point in points]), first_row=0)  # its zeros are counted already
    stored = rows([moved[point.id] for point in points])
    if not torch.allclose(functional.normalize(again, dim=1), functional.normalize(stored, dim=1), atol=TOLERANCE):
        raise StitchError(f"{name} was begun from another {old} than there is now: delete {name} to begin again")


def _name(client: Any, name: str, alias: str) -> None:
    from qdrant_client.models import CreateAlias, CreateAliasOperation  # noqa: PLC0415 (an extra)

    client.update_collection_aliases(
        [CreateAliasOperation(create_alias=CreateAlias(collection_name=name, alias_name=alias))]
    )
