"""Moves of an index of each kind, in a folder: making the index, moving it, and all that is there."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_relstitch.bulk import (
    SearchTranslation,
    move_collection,
    move_entities,
    move_index,
    move_points,
    move_rows,
    move_table,
)

VECTORS = np.random.default_rng(0).normal(size=(80, 8)).astype(np.float32)
IDS = [f"id {row}" for row in range(len(VECTORS))]
HOW: Any = {"batch_size": 20, "progress": False}
QDRANTS = ".lock"
"""The file of Qdrant's own lock."""
ADDRESS = "POSTGRES_OF_THE_TESTS"
"""The variable with the address of a server; each folder has a schema of its own in it."""


def lancedb_at(place: Path) -> Any:
    import lancedb

    return lancedb.connect(place)


def chroma_at(place: Path) -> Any:
    from hf_relstitch.bulk.chroma_store import open_folder

    return open_folder(place)


def qdrant_at(place: Path) -> Any:
    from qdrant_client import QdrantClient

    return QdrantClient(path=str(place))


def milvus_at(place: Path) -> Any:
    from pymilvus import MilvusClient

    return MilvusClient(str(place / "milvus.db"))


def postgres_at() -> Any:
    import psycopg

    return psycopg.connect(os.environ[ADDRESS], autocommit=True)


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


def make_entities(place: Path) -> None:
    place.mkdir()
    client = milvus_at(place)
    client.create_collection("docs", dimension=VECTORS.shape[1])
    client.insert("docs", [{"id": row, "vector": vector.tolist()} for row, vector in enumerate(VECTORS)])
    client.close()


def make_rows(place: Path) -> None:
    place.mkdir()
    with postgres_at() as db:
        db.execute(f'CREATE SCHEMA "{place.parent.name}"')
        db.execute(f'CREATE TABLE "{place.parent.name}".docs (id text PRIMARY KEY, embedding vector(8))')
        rows = [(id_, str(VECTORS[row].tolist())) for row, id_ in enumerate(IDS)]
        db.cursor().executemany(f'INSERT INTO "{place.parent.name}".docs VALUES (%s, %s)', rows)


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


def entities(place: Path) -> dict[str, Any]:
    client = milvus_at(place)
    whole = {}
    for name in client.list_collections():
        client.load_collection(name)
        whole[name] = list(client.query(name, filter="", limit=1000, output_fields=["*"]))
    client.close()
    return whole


def rows(place: Path) -> dict[str, Any]:
    with postgres_at() as db:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
        names = [name for (name,) in db.execute(query, [place.parent.name])]
        read = 'SELECT id, embedding::text FROM "{}".{} ORDER BY id'
        return {name: db.execute(read.format(place.parent.name, name)).fetchall() for name in names}


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
    "Milvus": Move(
        make_entities, lambda model, at: move_entities(model, milvus_at(at), "docs", "moved", **HOW), entities
    ),
    "pgvector": Move(
        make_rows,
        lambda model, at: move_rows(model, os.environ[ADDRESS], f"{at.parent.name}.docs", "moved", **HOW),
        rows,
    ),
    "FAISS": Move(make_index, lambda model, at: move_index(model, at / "docs", at / "moved", **HOW), indexes),
}
AT_RANDOM = {"Milvus": 3, "pgvector": 1}
"""Kinds that are killed at random only, a third as often or as often: a child of Milvus takes seconds, and the files of
a server are not a child's."""
