"""Moves of an index of each kind, in a folder: making the index, moving it, and all that is there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_relstitch.bulk import SearchTranslation, move_collection, move_index, move_points, move_table

VECTORS = np.random.default_rng(0).normal(size=(80, 8)).astype(np.float32)
IDS = [f"id {row}" for row in range(len(VECTORS))]
HOW: Any = {"batch_size": 20, "progress": False}
QDRANTS = ".lock"
"""The file of Qdrant's own lock."""


def lancedb_at(place: Path) -> Any:
    import lancedb

    return lancedb.connect(place)


def chroma_at(place: Path) -> Any:
    from hf_relstitch.bulk.chroma_store import open_folder

    return open_folder(place)


def qdrant_at(place: Path) -> Any:
    from qdrant_client import QdrantClient

    return QdrantClient(path=str(place))


def make_table(place: Path) -> None:
    lancedb_at(place).create_table("docs", [{"id": id_, "vector": VECTORS[row]} for row, id_ in enumerate(IDS)])


def make_collection(place: Path) -> None:
    chroma_at(place).create_collection("docs", embedding_function=None).add(ids=IDS, embeddings=VECTORS)


def make_points(place: Path) -> None:
    from qdrant_client.models import Distance, PointStruct, VectorParams

    client = qdrant_at(place)
    client.create_collection("docs", VectorParams(size=VECTORS.shape[1], distance=Distance.DOT))
    client.upsert("docs", [PointStruct(id=row, vector=vector.tolist()) for row, vector in enumerate(VECTORS)])
    client.close()


def make_index(place: Path) -> None:
    import faiss

    place.mkdir()
    index = faiss.IndexFlatL2(VECTORS.shape[1])
    index.add(VECTORS)
    faiss.write_index(index, str(place / "docs"))


def tables(place: Path) -> dict[str, Any]:
    db = lancedb_at(place)
    return {name: db.open_table(name).to_arrow()["vector"].to_pylist() for name in db.list_tables().tables}


def collections(place: Path) -> dict[str, Any]:
    whole = {each.name: each.get(include=["embeddings"]) for each in chroma_at(place).list_collections()}
    return {name: [sorted(each["ids"]), each["embeddings"].sum().item()] for name, each in whole.items()}


def points(place: Path) -> dict[str, Any]:
    client = qdrant_at(place)
    names = [each.name for each in client.get_collections().collections]
    names += [each.alias_name for each in client.get_aliases().aliases]
    whole = {name: client.scroll(name, limit=1000, with_vectors=True)[0] for name in names}
    client.close()
    return {name: [[each.id, each.vector] for each in found] for name, found in whole.items()}


def indexes(place: Path) -> dict[str, Any]:
    import faiss

    files = [each for each in place.iterdir() if each.suffix != ".json" and not each.name.startswith(".")]
    whole = {each.name: faiss.read_index(str(each)) for each in files}
    return {name: each.reconstruct_n(0, each.ntotal).tolist() for name, each in whole.items()}


@dataclass
class Move:
    """A kind of index: `make` the old one, `move` it, and all the indexes `there` with their content, by name."""

    make: Callable[[Path], None]
    move: Callable[[SearchTranslation, Path], Any]
    there: Callable[[Path], dict[str, Any]]


MOVES = {
    "LanceDB": Move(make_table, lambda model, at: move_table(model, lancedb_at(at), "docs", "moved", **HOW), tables),
    "Chroma": Move(
        make_collection, lambda model, at: move_collection(model, chroma_at(at), "docs", "moved", **HOW), collections
    ),
    "Qdrant": Move(make_points, lambda model, at: move_points(model, qdrant_at(at), "docs", "moved", **HOW), points),
    "FAISS": Move(make_index, lambda model, at: move_index(model, at / "docs", at / "moved", **HOW), indexes),
}
