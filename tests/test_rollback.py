"""After a move, the old index of each store answers as before, and is there when the new one is dropped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_moves import ADDRESS, MOVES, VECTORS, chroma_at, lancedb_at, milvus_at, postgres_at, qdrant_at

from hf_relstitch.bulk import SearchTranslation, translation_between


@pytest.fixture(autouse=True)
def _server(postgres_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, postgres_address)


@pytest.fixture(scope="module")
def made() -> SearchTranslation:
    return translation_between(VECTORS, VECTORS @ np.roll(np.eye(8), 1, 0), metric="l2")


def in_qdrant(place: Path, ask: Callable[[Any], Any]) -> Any:
    client = qdrant_at(place)
    found = ask(client)
    client.close()
    return found


def in_milvus(place: Path, ask: Callable[[Any], Any]) -> Any:
    client = milvus_at(place)
    client.load_collection("docs")
    found = ask(client)
    client.close()
    return found


def in_postgres(place: Path, query: str, *more: Any) -> Any:
    with postgres_at() as db:
        db.execute(f'SET search_path TO "{place.parent.name}", public')
        return db.execute(query, more)


def read_faiss(place: Path) -> Any:
    import faiss

    return faiss.read_index(str(place / "docs"))


QUERY = VECTORS[3] + 0.1
SEARCHES: dict[str, Callable[[Path], Any]] = {
    "LanceDB": lambda place: lancedb_at(place).open_table("docs").search(QUERY).limit(5).to_list(),
    "Chroma": lambda place: chroma_at(place).get_collection("docs").query(query_embeddings=[QUERY], n_results=5)["ids"],
    "Qdrant": lambda place: in_qdrant(place, lambda client: client.query_points("docs", query=QUERY, limit=5).points),
    "Milvus": lambda place: in_milvus(place, lambda client: list(client.search("docs", [QUERY.tolist()], limit=5)[0])),
    "pgvector": lambda place: in_postgres(
        place, "SELECT id FROM docs ORDER BY embedding <-> %s::vector LIMIT 5", str(QUERY.tolist())
    ).fetchall(),
    "FAISS": lambda place: read_faiss(place).search(QUERY[None], 5)[1].tolist(),
}
DROPS: dict[str, Callable[[Path], Any]] = {
    "LanceDB": lambda place: lancedb_at(place).drop_table("moved"),
    "Chroma": lambda place: chroma_at(place).delete_collection("moved"),
    "Qdrant": lambda place: in_qdrant(place, lambda client: client.delete_collection("moved-points")),
    "Milvus": lambda place: in_milvus(place, lambda client: client.drop_collection("moved")),
    "pgvector": lambda place: in_postgres(place, "DROP TABLE moved"),
    "FAISS": lambda place: (place / "moved").unlink(),
}


@pytest.mark.parametrize("kind", MOVES)
def test_the_old_index_is_the_way_back(kind: str, made: SearchTranslation, tmp_path: Path) -> None:
    store, place = MOVES[kind], tmp_path / kind / "out"
    place.parent.mkdir()
    store.make(place)
    before, found = store.there(place), SEARCHES[kind](place)
    assert found
    store.move(made, place)
    assert store.there(place)["docs"] == before["docs"]
    assert SEARCHES[kind](place) == found
    DROPS[kind](place)
    assert store.there(place) == before
    assert SEARCHES[kind](place) == found
    store.move(made, place)
    assert "moved" in store.there(place)
