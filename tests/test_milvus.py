"""A Milvus collection moved to another encoder's space, in Milvus Lite."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pymilvus import DataType, MilvusClient
from vectors import D_NEW, D_OLD, NEW, OLD, ROWS, randn, stopped

from hf_relstitch import StitchError
from hf_relstitch.bulk import SearchTranslation, move_entities, translation_between


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MilvusClient]:
    client = MilvusClient(str(tmp_path / "milvus.db"))
    yield client
    client.close()


def filled(client: Any, name: str = "docs", *, metric: str = "COSINE", width: int = D_OLD) -> None:
    client.create_collection(name, dimension=width, metric_type=metric)
    client.insert(name, [{"id": row, "vector": OLD[row, :width].tolist(), "row": row} for row in range(ROWS)])


def everything(client: Any, name: str, **more: Any) -> dict[Any, Any]:
    return {each["id"]: each for each in client.query(name, filter="", limit=1000, output_fields=["*"], **more)}


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_a_collection_is_moved_with_all_that_is_in_it(metric: Any, client: MilvusClient) -> None:
    made = translation_between(OLD, NEW, metric=metric)
    filled(client, metric=metric.upper())
    before = everything(client, "docs")
    assert move_entities(made, client, "docs", "moved", batch_size=70, progress=False) == ROWS
    after = everything(client, "moved")
    assert {key: row["row"] for key, row in after.items()} == {row: row for row in range(ROWS)}
    true = made(torch.tensor([before[row]["vector"] for row in range(ROWS)]))
    assert torch.allclose(torch.tensor([after[row]["vector"] for row in range(ROWS)]), true, atol=1e-4)
    assert client.describe_index("moved", "vector")["metric_type"] == metric.upper()
    assert client.describe_collection("moved")["properties"].keys() == {"hf_relstitch"}
    assert everything(client, "docs") == before
    found = [client.search("moved", [NEW[row].tolist()], limit=1)[0][0]["id"] for row in range(0, ROWS, 10)]
    assert metric == "ip" or sum(row == 10 * place for place, row in enumerate(found)) > 24


def test_fields_partitions_functions_and_indexes_are_kept(made: SearchTranslation, client: MilvusClient) -> None:
    from pymilvus import Function, FunctionType

    schema = client.create_schema(auto_id=True, enable_dynamic_field=True)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("text", DataType.VARCHAR, max_length=100, enable_analyzer=True)
    schema.add_field("tags", DataType.ARRAY, element_type=DataType.INT64, max_capacity=5)
    schema.add_field("kind", DataType.JSON, nullable=True)
    schema.add_field("one", DataType.FLOAT_VECTOR, dim=D_OLD)
    schema.add_field("other", DataType.FLOAT_VECTOR, dim=3)
    schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(Function("bm25", FunctionType.BM25, input_field_names=["text"], output_field_names=["words"]))
    indexes = client.prepare_index_params()
    indexes.add_index("one", index_type="HNSW", metric_type="COSINE")
    indexes.add_index("other", index_type="FLAT", metric_type="IP")
    indexes.add_index("words", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    client.create_collection("docs", schema=schema, index_params=indexes, properties={"owner": "alice"})
    client.create_partition("docs", "part")
    row = {"text": "a quiet day", "tags": [1, 2], "kind": {"a": None}, "other": [1.0, 2.0, 3.0], "more": "dynamic"}
    client.insert("docs", [row | {"one": OLD[0].tolist()}])
    client.insert("docs", [row | {"one": [0.0] * D_OLD, "kind": None}], partition_name="part")
    client.release_collection("docs")
    with pytest.raises(
        StitchError, match="collection docs has no field 'vector' of type FLOAT_VECTOR: say vector=, one"
    ):
        move_entities(made, client, "docs", "moved", progress=False)
    assert move_entities(made, client, "docs", "moved", vector="one", progress=False) == 2
    assert client.get_load_state("docs")["state"].name == "NotLoad"
    client.load_collection("docs")
    for part in ("_default", "part"):
        (before,), (after,) = (everything(client, name, partition_names=[part]).values() for name in ("docs", "moved"))
        assert {**after, "one": before["one"]} == before
        zero = part == "part"
        true = torch.zeros(D_NEW) if zero else made(OLD[:1])[0]
        assert torch.allclose(torch.tensor(after["one"]), true, atol=1e-4)
    described = client.describe_collection("moved")
    assert described["functions"][0]["name"] == "bm25"
    assert described["properties"]["owner"] == "alice"
    for index in ("one", "other", "words"):
        assert client.describe_index("moved", index) == client.describe_index("docs", index)
    assert client.search("moved", ["quiet"], anns_field="words", limit=1)[0][0]["id"]


def test_a_move_that_was_stopped_begins_again(made: SearchTranslation, client: MilvusClient) -> None:
    filled(client)
    with stopped(made, at=3):
        move_entities(made, client, "docs", "moved", batch_size=70, progress=False)
    assert sorted(client.list_collections()) == ["docs", "moved_partial"]
    other = translation_between(OLD, NEW.flip(1))
    with pytest.raises(StitchError, match=r"moved_partial was begun with .* drop it, or give another name"):
        move_entities(other, client, "docs", "moved", progress=False)
    assert move_entities(made, client, "docs", "moved", batch_size=70, progress=False) == ROWS
    assert sorted(client.list_collections()) == ["docs", "moved"]
    assert everything(client, "moved").keys() == everything(client, "docs").keys()


def test_what_cannot_be_moved_is_refused(
    made: SearchTranslation, client: MilvusClient, caplog: pytest.LogCaptureFixture
) -> None:
    filled(client, metric="L2")
    square = translation_between(OLD, OLD @ torch.linalg.qr(randn(D_OLD, D_OLD))[0])
    move_entities(square, client, "docs", "moved", progress=False)
    assert "collection docs is searched by l2, and the translation was chosen and reported for cosine" in caplog.text
    client.create_alias("moved", "known")
    for name in ("moved", "known"):
        with pytest.raises(StitchError, match=f"collection {name} was translated by this model already"):
            move_entities(square, client, name, "again", progress=False)
    with pytest.raises(StitchError, match="there is no collection nothing: there are docs, moved"):
        move_entities(square, client, "nothing", "again", progress=False)
    for name in ("docs", "moved", "known"):
        with pytest.raises(StitchError, match=f"there is a collection {name} already"):
            move_entities(square, client, "docs", name, progress=False)
    for name in ("", "..", "a-b", "1a", "x" * 300):
        with pytest.raises(StitchError, match="cannot name a Milvus collection"):
            move_entities(square, client, "docs", name, progress=False)
    filled(client, "narrow", width=3)
    with pytest.raises(StitchError, match=r"field vector of narrow is 3 wide and the model translates .* width 12"):
        move_entities(made, client, "narrow", "again", progress=False)
