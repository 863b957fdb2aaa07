"""A Qdrant collection moved to another encoder's space, in an embedded database in a folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from qdrant_client import QdrantClient, models
from torch.nn import functional
from vectors import D_OLD, NEW, OLD, ROWS, randn, stopped

from hf_relstitch import StitchError
from hf_relstitch.bulk import SearchTranslation, move_points, translation_between

DISTANCES = {"cosine": models.Distance.COSINE, "l2": models.Distance.EUCLID, "ip": models.Distance.DOT}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[QdrantClient]:
    client = QdrantClient(path=str(tmp_path / "db"))
    yield client
    client.close()


def filled(client: QdrantClient, name: str, *, distance: models.Distance = models.Distance.COSINE, **more: Any) -> None:
    client.create_collection(name, vectors_config=models.VectorParams(size=D_OLD, distance=distance), **more)
    points = [models.PointStruct(id=row, vector=OLD[row].tolist(), payload={"row": row}) for row in range(ROWS)]
    client.upsert(name, points)


def everything(client: QdrantClient, name: str) -> dict[Any, Any]:
    points, _ = client.scroll(name, limit=10 * ROWS, with_payload=True, with_vectors=True)
    return {point.id: point for point in points}


@pytest.mark.parametrize("metric", DISTANCES)
def test_a_collection_is_moved_with_all_that_is_in_it(metric: Any, client: QdrantClient) -> None:
    made = translation_between(OLD, NEW, metric=metric)
    filled(client, "docs", distance=DISTANCES[metric], metadata={"owner": "alice"})
    before = everything(client, "docs")
    assert move_points(made, client, "docs", "moved", batch_size=70, progress=False) == ROWS
    after = everything(client, "moved")
    assert {key: point.payload for key, point in after.items()} == {key: point.payload for key, point in before.items()}
    true = made(torch.tensor([before[row].vector for row in range(ROWS)]))
    true = functional.normalize(true, dim=1) if metric == "cosine" else true
    assert torch.allclose(torch.tensor([after[row].vector for row in range(ROWS)]), true, atol=1e-4)
    config = client.get_collection("moved").config
    assert config.params.vectors.distance == DISTANCES[metric]
    assert config.metadata.keys() == {"owner", "hf_relstitch"}
    assert everything(client, "docs") == before
    found = [client.query_points("moved", query=NEW[row].tolist(), limit=1).points[0].id for row in range(0, ROWS, 10)]
    assert metric == "ip" or sum(row == 10 * place for place, row in enumerate(found)) > 24


def test_a_named_vector_is_moved_beside_others(made: SearchTranslation, client: QdrantClient) -> None:
    vectors = {
        "text": models.VectorParams(size=D_OLD, distance=models.Distance.COSINE),
        "image": models.VectorParams(size=4, distance=models.Distance.EUCLID),
    }
    client.create_collection(
        "docs", vectors_config=vectors, sparse_vectors_config={"words": models.SparseVectorParams()}
    )
    key, image, words = (
        "5c56c793-69f3-4fbf-87e6-c4bf54c28c26",
        [1.0, 2.0, 3.0, 4.0],
        models.SparseVector(indices=[1], values=[2.0]),
    )
    client.upsert("docs", [models.PointStruct(id=1, vector={"text": OLD[1].tolist(), "image": image, "words": words})])
    client.upsert("docs", [models.PointStruct(id=key, vector={"image": image}, payload={"kind": "picture"})])
    with pytest.raises(StitchError, match="collection docs has no vector '': say vector=, one of 'text', 'image'"):
        move_points(made, client, "docs", "moved", progress=False)
    assert move_points(made, client, "docs", "moved", vector="text", progress=False) == 2
    after = everything(client, "moved")
    true = functional.normalize(made(functional.normalize(OLD[1:2], dim=1)), dim=1)[0]
    assert torch.allclose(torch.tensor(after[1].vector["text"]), true, atol=1e-4)
    assert (after[1].vector["image"], after[1].vector["words"]) == (image, words)
    assert (after[key].vector, after[key].payload) == ({"image": image}, {"kind": "picture"})


def test_the_same_translation_is_applied_to_a_second_vector(client: QdrantClient) -> None:
    """And to neither of both again."""
    square = translation_between(OLD, OLD @ torch.linalg.qr(randn(D_OLD, D_OLD))[0])
    size = models.VectorParams(size=D_OLD, distance=models.Distance.DOT)
    client.create_collection("docs", vectors_config={"title": size, "body": size})
    vectors = {"title": OLD[0].tolist(), "body": OLD[1].tolist()}
    client.upsert("docs", [models.PointStruct(id=0, vector=vectors)])
    move_points(square, client, "docs", "one", vector="title", progress=False)
    move_points(square, client, "one", "both", vector="body", progress=False)
    for name in vectors:
        with pytest.raises(StitchError, match="both was translated by this model already"):
            move_points(square, client, "both", "again", vector=name, progress=False)
    moved = everything(client, "both")[0].vector
    assert torch.allclose(torch.tensor([moved["title"], moved["body"]]), square(OLD[:2]), atol=1e-4)


def test_a_move_that_was_stopped_goes_on(made: SearchTranslation, client: QdrantClient) -> None:
    filled(client, "docs")
    with stopped(made, at=3) as calls:
        move_points(made, client, "docs", "moved", batch_size=70, progress=False)
    assert not client.collection_exists("moved")
    assert client.count("moved-points").count == 140
    other = translation_between(OLD, NEW.flip(1))
    with pytest.raises(StitchError, match=r"moved-points was begun with .* drop it, or give another name"):
        move_points(other, client, "docs", "moved", progress=False)
    hook = made.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    assert move_points(made, client, "docs", "moved", batch_size=70, progress=False) == ROWS
    hook.remove()
    assert sum(calls[3:]) == ROWS - 140 + 2 * 32  # some that were moved are compared
    assert everything(client, "moved").keys() == everything(client, "docs").keys()


def test_what_cannot_be_moved_is_refused(made: SearchTranslation, client: QdrantClient) -> None:
    filled(client, "docs")
    square = translation_between(OLD, OLD @ torch.linalg.qr(randn(D_OLD, D_OLD))[0])
    move_points(square, client, "docs", "moved", progress=False)
    with pytest.raises(StitchError, match="collection moved was translated by this model already"):
        move_points(square, client, "moved", "again", progress=False)
    with pytest.raises(StitchError, match="there is no collection nothing: there are docs, moved, moved-points"):
        move_points(square, client, "nothing", "again", progress=False)
    for name in ("docs", "moved"):
        with pytest.raises(StitchError, match=f"there is a collection {name} already"):
            move_points(square, client, "docs", name, progress=False)
    for name in ("", "..", "a/b", "x" * 300):
        with pytest.raises(StitchError, match="cannot name a collection"):
            move_points(square, client, "docs", name, progress=False)
    client.create_collection("narrow", vectors_config=models.VectorParams(size=3, distance=models.Distance.COSINE))
    with pytest.raises(StitchError, match="collection narrow is 3 wide and the model translates latents of width 12"):
        move_points(made, client, "narrow", "again", progress=False)


def test_a_collection_that_was_made_anew_is_not_gone_on_with(made: SearchTranslation, client: QdrantClient) -> None:
    filled(client, "docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "update_collection_aliases", lambda _: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception):
            move_points(made, client, "docs", "moved", progress=False)
    client.delete_collection("docs")
    client.create_collection("docs", vectors_config=models.VectorParams(size=D_OLD, distance=models.Distance.COSINE))
    points = [models.PointStruct(id=row, vector=OLD[ROWS - 1 - row].tolist(), payload={}) for row in range(ROWS)]
    client.upsert("docs", points)
    with pytest.raises(StitchError, match="moved-points was begun from another docs than there is now: delete moved"):
        move_points(made, client, "docs", "moved", progress=False)
