"""A vector index moved to another encoder's space: LanceDB and a Chroma server, whole after whatever happens."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import assets
import chromadb
import lancedb
import pyarrow as pa
import pytest
import torch
from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.config import Settings
from filelock import FileLock
from lancedb.db import LanceDBConnection
from torch.nn import functional

from hf_relstitch import Encoder, StitchError
from hf_relstitch.bulk import move_collection, move_table, translation_between
from hf_relstitch.core.translation import Translation

ROWS, D_OLD, D_NEW = 600, 12, 20
QUIET = Settings(anonymized_telemetry=False)
names = (f"docs-{number}" for number in count())


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def translation(seed: int = 5) -> Translation:
    made = Translation(D_OLD, D_NEW, norm="keep")
    made.weight, made.bias, made.centre = randn(D_OLD, D_NEW, seed=seed), randn(D_NEW, seed=6), torch.zeros(D_OLD)
    return made


def test_a_translation_of_queries_moves_no_index(db: LanceDBConnection, client: ClientAPI) -> None:
    old = randn(80, D_OLD)
    back = translation_between(old, old @ randn(D_OLD, D_NEW, seed=1), translates="queries")
    made = client.create_collection(next(names), embedding_function=None)
    made.add(ids=["a"], embeddings=randn(1, D_OLD).numpy())
    for move, place, old in ((move_table, db, "docs"), (move_collection, client, made.name)):
        with pytest.raises(StitchError, match="this translation is of queries, which stay out of an index"):
            move(back, place, old, "moved")


def rows(start: int = 0, stop: int = ROWS) -> pa.Table:
    vectors = randn(ROWS, D_OLD)[start:stop]
    return pa.table(
        {
            "id": pa.array(range(start, stop)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1).numpy()), D_OLD),
            "document": [f"document {row}" if row % 3 else None for row in range(start, stop)],
            "about": [{"year": row, "tags": ["a"] * (row % 3)} for row in range(start, stop)],
        }
    )


@pytest.fixture
def db(tmp_path: Path) -> LanceDBConnection:
    """A database with a table of three fragments, of which some rows were deleted."""
    db = lancedb.connect(tmp_path / "db")
    table = db.create_table("docs", rows(0, 200))
    for start in (200, 400):
        table.add(rows(start, start + 200))
    table.delete("id % 7 = 3")
    return db


def in_order(table: Any) -> pa.Table:
    return table.to_arrow().sort_by("id")


def vectors_of(content: pa.Table) -> torch.Tensor:
    return torch.tensor(content["vector"].to_pylist())


def tables(db: LanceDBConnection) -> list[str]:
    return sorted(db.list_tables().tables)


def test_a_table_is_moved_with_all_its_columns(db: LanceDBConnection) -> None:
    before = in_order(db.open_table("docs"))
    assert move_table(translation(), db, "docs", "moved", batch_size=128, progress=False) == len(before) == 514
    after = in_order(db.open_table("moved"))
    assert torch.allclose(vectors_of(after), translation()(vectors_of(before)), atol=1e-5)
    assert after.schema.field("vector").type == pa.list_(pa.float32(), D_NEW)
    assert after.drop(["vector"]).to_pylist() == before.drop(["vector"]).to_pylist()
    assert after.schema.remove(1).remove_metadata() == before.schema.remove(1).remove_metadata()
    assert in_order(db.open_table("docs")) == before
    assert tables(db) == ["docs", "moved"]
    nearest = db.open_table("moved").search(translation()(randn(ROWS, D_OLD)[44:45])[0].numpy()).limit(1).to_list()
    assert nearest[0]["id"] == 44


KILLED = """
import os, signal, sys
import chromadb, lancedb
from chromadb.config import Settings
from hf_relstitch.bulk import move_collection, move_table
from test_stores import translation
made, calls = translation(), []
def killed(module, given):
    calls.append(given)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
made.register_forward_pre_hook(killed)
where, *names = sys.argv[1:]
if where.isdigit():
    client = chromadb.HttpClient(port=int(where), settings=Settings(anonymized_telemetry=False))
    move_collection(made, client, *names, batch_size=100, progress=False)
else:
    move_table(made, lancedb.connect(where), *names, batch_size=100, progress=False)
"""


def move_and_be_killed(*arguments: Any) -> None:
    folders = Path(__file__).parent, Path(assets.__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    done = subprocess.run(command, check=False, env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_move_of_a_table_goes_on_with_what_is_missing(db: LanceDBConnection) -> None:
    before = db.open_table("docs").to_arrow()
    move_and_be_killed(db.uri, "docs", "moved")
    assert tables(db) == ["docs", "moved-partial"]
    assert db.open_table("moved-partial").count_rows() == 300
    with pytest.raises(StitchError, match=r"moved-partial was begun with .*weights:.* and not .*drop it"):
        move_table(translation(seed=7), db, "docs", "moved", progress=False)
    assert tables(db) == ["docs", "moved-partial"]
    write(db.open_table("docs"))
    rest: list[int] = []
    watched = translation()
    watched.register_forward_pre_hook(lambda _, given: rest.append(len(given[0])))
    move_table(watched, db, "docs", "moved", batch_size=100, progress=False)
    assert sum(rest) == 214
    after = db.open_table("moved").to_arrow()
    assert after["id"] == before["id"]
    assert torch.allclose(vectors_of(after), translation()(vectors_of(before)), atol=1e-5)


def write(table: Any) -> None:
    table.add(rows(0, 50))
    table.delete("id = 100")


def test_rows_written_during_the_move_of_a_table_are_told_of(
    db: LanceDBConnection, caplog: pytest.LogCaptureFixture
) -> None:
    written = translation()
    written.register_forward_pre_hook(lambda *_: write(db.open_table("docs")))
    assert move_table(written, db, "docs", "moved", batch_size=100, progress=False) == 514
    assert "docs was written to since the move to moved began" in caplog.text
    assert len(set(db.open_table("moved").to_arrow()["id"].to_pylist())) == 514


def test_what_lancedb_knows_of_the_old_encoder_is_not_kept(tmp_path: Path) -> None:
    db = lancedb.connect(tmp_path / "db")
    metadata = {"embedding_functions": "[]", "owner": "alice"}
    db.create_table("docs", schema=rows(0, 50).schema.with_metadata(metadata)).add(rows(0, 50))
    move_table(translation(), db, "docs", "moved", progress=False)
    assert db.open_table("moved").schema.metadata.keys() == {b"owner", b"hf_relstitch"}


def spoiled(value: float | None) -> pa.Table:
    content = rows(0, 50)
    vectors = content["vector"].to_pylist()
    vectors[30] = None if value is None else [value] * D_OLD
    return content.set_column(1, content.schema.field(1), pa.array(vectors, content.schema.field(1).type))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (spoiled(float("inf")), r"from its row 0 on: row 30 has not-a-number"),
        (spoiled(None), r"from its row 0 on: row 30 has no latent \(null\)"),
        (rows().drop(["vector"]), "table docs: there is no single column 'vector': its columns are id, document"),
        (
            pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array([1.0] * 8, pa.float32()), 4)}),
            "table docs: column 'vector' is 4 wide and the model translates latents of width 12",
        ),
    ],
)
def test_a_table_that_cannot_be_translated_is_refused(tmp_path: Path, content: pa.Table, message: str) -> None:
    db = lancedb.connect(tmp_path / "db")
    db.create_table("docs", schema=content.schema).add(content)
    with pytest.raises(StitchError, match=message):
        move_table(translation(), db, "docs", "moved", progress=False)
    assert "moved" not in tables(db)


def test_names_that_do_not_fit_and_two_moves_at_once_are_refused(db: LanceDBConnection) -> None:
    with pytest.raises(StitchError, match="has no table nothing: it has docs"):
        move_table(translation(), db, "nothing", "moved", progress=False)
    with pytest.raises(StitchError, match="has a table docs already: give another name, or drop it"):
        move_table(translation(), db, "docs", "docs", progress=False)
    with pytest.raises(StitchError, match="is not in a local folder"):
        move_table(translation(), lancedb.connect("memory://"), "docs", "moved", progress=False)
    with FileLock(Path(db.uri, ".moved.lock")), pytest.raises(StitchError, match="another run is making moved"):
        move_table(translation(), db, "docs", "moved", progress=False)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientAPI]:
    """A client of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("chroma")), "run", "--port", str(port)]
    command += ["--path", str(tmp_path_factory.mktemp("chroma"))]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as server:
        yield connected(port)
        server.terminate()


def connected(port: int) -> ClientAPI:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with suppress(ValueError):
            client = chromadb.HttpClient(port=port, settings=QUIET)
            client.heartbeat()
            return client
        time.sleep(0.1)
    pytest.fail("chroma run did not answer")


def collection(client: ClientAPI, name: str, **options: Any) -> Collection:
    made = client.create_collection(name, embedding_function=None, **options)
    made.add(
        ids=[f"id {row}" for row in range(ROWS)],
        embeddings=randn(ROWS, D_OLD).numpy(),
        documents=[f"document {row}" for row in range(ROWS)],
        metadatas=[{"row": row, "even": row % 2 == 0} if row % 3 else None for row in range(ROWS)],
    )
    return made


def records(client: ClientAPI, name: str) -> dict[str, Any]:
    found = client.get_collection(name, embedding_function=None)
    got = found.get(include=["embeddings", "documents", "metadatas", "uris"])
    assert len(set(got["ids"])) == len(got["ids"])
    columns = (got["documents"], got["metadatas"], got["uris"], got["embeddings"])
    return {one: rest for one, *rest in sorted(zip(got["ids"], *columns, strict=True), key=lambda row: row[0])}


def listed(client: ClientAPI, name: str) -> list[str]:
    return sorted(one.name for one in client.list_collections() if one.name.startswith(name))


@pytest.mark.parametrize(
    "options",
    [
        {"configuration": {"hnsw": {"space": "cosine", "ef_construction": 50}}, "metadata": {"owner": "alice"}},
        {"metadata": {"hnsw:space": "ip", "owner": "alice"}},
        {},
    ],
)
def test_a_collection_is_moved_with_all_that_is_in_it(client: ClientAPI, options: dict[str, Any]) -> None:
    name = next(names)
    old = collection(client, name, **options)
    before = records(client, name)
    assert move_collection(translation(), client, name, f"{name}-moved", batch_size=250, progress=False) == ROWS
    after = records(client, f"{name}-moved")
    assert after.keys() == before.keys()
    for one, (*kept, vector) in after.items():
        assert kept == before[one][:3]
        true = translation()(torch.tensor(before[one][3], dtype=torch.float32)[None])[0]
        assert torch.allclose(torch.tensor(vector, dtype=torch.float32), true, atol=1e-5)
    moved = client.get_collection(f"{name}-moved", embedding_function=None)
    assert moved.configuration_json["hnsw"] == old.configuration_json["hnsw"]
    assert moved.metadata.items() >= (old.metadata or {}).items()
    assert listed(client, name) == [name, f"{name}-moved"]
    query = translation()(randn(ROWS, D_OLD)[44:45]).numpy()
    space = old.configuration_json["hnsw"]["space"]
    assert space == "ip" or moved.query(query_embeddings=query, n_results=1)["ids"] == [["id 44"]]


def test_documents_without_a_letter_stay_documents(client: ClientAPI) -> None:
    name = next(names)
    old = client.create_collection(name, embedding_function=None)
    old.add(ids=["a", "b"], embeddings=randn(2, D_OLD).numpy(), documents=["", ""])
    old.add(ids=["c", "d"], embeddings=randn(2, D_OLD).numpy())
    move_collection(translation(), client, name, f"{name}-moved", batch_size=2, progress=False)
    kept = {one: document for one, (document, *_) in records(client, f"{name}-moved").items()}
    assert kept == {"a": "", "b": "", "c": None, "d": None}


def test_a_killed_move_of_a_collection_goes_on_and_follows_the_old_one(client: ClientAPI) -> None:
    name = next(names)
    old = collection(client, name)
    port = client.get_settings().chroma_server_http_port
    move_and_be_killed(port, name, f"{name}-moved")
    assert listed(client, name) == [name, f"{name}-moved-partial"]
    assert client.get_collection(f"{name}-moved-partial", embedding_function=None).count() == 300
    old.add(ids=["later"], embeddings=randn(1, D_OLD, seed=9).numpy(), documents=["a later document"])
    old.delete(ids=["id 0", "id 599"])
    with pytest.raises(StitchError, match=r"-moved-partial was begun with .*weights:.* and not .*drop it"):
        move_collection(translation(seed=7), client, name, f"{name}-moved", progress=False)
    assert move_collection(translation(), client, name, f"{name}-moved", progress=False) == ROWS - 1
    assert records(client, f"{name}-moved").keys() == records(client, name).keys()
    assert listed(client, name) == [name, f"{name}-moved"]


def test_a_collection_that_cannot_be_moved_is_refused(client: ClientAPI) -> None:
    name = next(names)
    narrow = client.create_collection(name, embedding_function=None)
    narrow.add(ids=["one"], embeddings=[[1.0, 2.0]], documents=["d"])
    with pytest.raises(StitchError, match=r"'one' on: collection .* is 2 wide and the model translates latents of"):
        move_collection(translation(), client, name, f"{name}-moved", progress=False)
    assert f"{name}-moved" not in listed(client, name)
    with pytest.raises(StitchError, match="the server has no collection nothing: it has docs-"):
        move_collection(translation(), client, "nothing", "moved", progress=False)
    with pytest.raises(StitchError, match=f"the server has a collection {name} already"):
        move_collection(translation(), client, name, name, progress=False)


def nearest_of(queries: torch.Tensor, documents: torch.Tensor) -> list[set[int]]:
    """The ten nearest documents of each query by cosine, exactly."""
    similarity = functional.normalize(queries, dim=1) @ functional.normalize(documents, dim=1).T
    return [set(row) for row in similarity.topk(10).indices.tolist()]


def recall(found: list[set[int]], true: list[set[int]]) -> float:
    return sum(len(ours & theirs) for ours, theirs in zip(found, true, strict=True)) / (10 * len(true))


@pytest.fixture(scope="module")
def glosses() -> tuple[torch.Tensor, torch.Tensor]:
    """800 glosses as MiniLM sees them, normalised as such indexes have them, and as mpnet does; 100 are queries."""
    texts, _ = assets.wordnet_glosses()
    some = [texts[row] for row in torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:800]]
    folders = assets.minilm(), assets.mpnet()
    latents = [Encoder.from_pretrained(str(folder)).encode(some, progress=False) for folder in folders]
    old, new = (functional.normalize(one, dim=1) for one in latents)
    return old, new


@pytest.mark.slow
@pytest.mark.parametrize("store", ["lancedb", "chroma"])
def test_an_index_of_glosses_in_use(
    glosses: tuple[torch.Tensor, torch.Tensor], store: str, tmp_path: Path, client: ClientAPI
) -> None:
    """Recall@10 of what an index that mpnet encodes anew finds: translated, as it was, and with queries cut to size."""
    (old, new), (ask_old, ask) = zip(*((side[:700], side[700:]) for side in glosses), strict=True)
    to_new = translation_between(old[:500], new[:500])
    to_old = translation_between(new[:500], old[:500], translates="queries")
    name = next(names)
    if store == "lancedb":
        db = lancedb.connect(tmp_path / "db")
        values = pa.FixedSizeListArray.from_arrays(pa.array(old.reshape(-1).numpy()), old.shape[1])
        db.create_table(name, pa.table({"id": pa.array(range(len(old))), "vector": values}))
        move_table(to_new, db, name, "moved", progress=False)

        def search(place: str, queries: torch.Tensor) -> list[set[int]]:
            asked = [db.open_table(place).search(query).distance_type("cosine") for query in queries.numpy()]
            return [{row["id"] for row in one.limit(10).to_list()} for one in asked]
    else:
        cosine = {"hnsw": {"space": "cosine"}}
        made = client.create_collection(name, embedding_function=None, configuration=cosine)
        made.add(ids=[str(row) for row in range(len(old))], embeddings=old.numpy())
        move_collection(to_new, client, name, "moved", progress=False)

        def search(place: str, queries: torch.Tensor) -> list[set[int]]:
            found = client.get_collection(place, embedding_function=None)
            answers = found.query(query_embeddings=queries.numpy(), n_results=10)
            return [set(map(int, ids)) for ids in answers["ids"]]

    best = nearest_of(ask, new)
    told = {
        "the old index, the old encoder": recall(search(name, ask_old), best),
        "the old index, queries cut to size": recall(search(name, ask[:, : old.shape[1]]), best),
        "the old index, queries translated": recall(search(name, to_old(ask)), best),
        "the index moved": recall(search("moved", ask), best),
    }
    print(*(f"{store}: {way}: recall@10 {found:.3f}" for way, found in told.items()), sep="\n")
    before, cut_to_size, translated, moved = told.values()
    assert cut_to_size < 0.05
    assert translated > before + 0.05
    assert moved > before + 0.1


def begun_and_killed(db: LanceDBConnection) -> pa.Table:
    before = db.open_table("docs").to_arrow()
    move_and_be_killed(db.uri, "docs", "moved")
    return before


def test_a_table_made_again_in_another_order_is_not_gone_on_with(db: LanceDBConnection) -> None:
    """Neither under the same version number nor under another one is it the table that the move began with."""
    content = begun_and_killed(db)
    for versions in (0, 3):
        db.drop_table("docs")
        table = db.create_table("docs", content.take(pa.array(range(len(content) - 1, -1, -1))))
        for _ in range(versions):
            table.add(rows(0, 1))
            table.delete("id = 0")
        with pytest.raises(StitchError, match=r"begun from another docs than there is now.* Drop moved-partial"):
            move_table(translation(), db, "docs", "moved", batch_size=100, progress=False)
    assert tables(db) == ["docs", "moved-partial"]
    db.drop_table("moved-partial")
    move_table(translation(), db, "docs", "moved", batch_size=100, progress=False)
    assert len(set(db.open_table("moved").to_arrow()["id"].to_pylist())) >= 513


def test_vectors_that_were_replaced_are_not_gone_on_with(db: LanceDBConnection) -> None:
    content = begun_and_killed(db)
    db.drop_table("docs")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(randn(len(content) * D_OLD, seed=8).numpy()), D_OLD)
    db.create_table("docs", content.set_column(1, content.schema.field(1), vectors))
    with pytest.raises(StitchError, match="was begun from another docs"):
        move_table(translation(), db, "docs", "moved", batch_size=100, progress=False)


@pytest.mark.filterwarnings("ignore:optimize")
def test_a_move_goes_on_after_old_versions_were_removed(db: LanceDBConnection) -> None:
    before = begun_and_killed(db)
    db.open_table("docs").optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
    rest: list[int] = []
    watched = translation()
    watched.register_forward_pre_hook(lambda _, given: rest.append(len(given[0])))
    assert move_table(watched, db, "docs", "moved", batch_size=100, progress=False) == 514
    after = db.open_table("moved").to_arrow()
    assert after["id"] == before["id"]
    assert torch.allclose(vectors_of(after), translation()(vectors_of(before)), atol=1e-5)


def test_a_move_goes_on_once_rows_without_a_vector_are_removed(tmp_path: Path) -> None:
    db = lancedb.connect(tmp_path / "db")
    db.create_table("docs", schema=rows().schema).add(rows(0, 300))
    db.open_table("docs").add(spoiled(None).set_column(0, "id", pa.array(range(300, 350))))
    with pytest.raises(StitchError, match=r"from its row 300 on: row 30 has no latent \(null\)"):
        move_table(translation(), db, "docs", "moved", batch_size=100, progress=False)
    db.open_table("docs").delete("vector IS NULL")
    assert move_table(translation(), db, "docs", "moved", batch_size=100, progress=False) == 349
    moved = db.open_table("moved").to_arrow()["id"].to_pylist()
    assert moved == [row for row in range(350) if row != 330]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x y", "é"])
def test_a_name_that_no_table_can_have_is_refused_first(name: str, db: LanceDBConnection) -> None:
    with pytest.raises(StitchError, match="cannot name a LanceDB table: use letters"):
        move_table(translation(), db, "docs", name, progress=False)
    assert tables(db) == ["docs"]


@pytest.mark.parametrize("name", ["", "a", "..", "x..y", "ab-", "1.2.3.4", "x y", "a" * 505])
def test_a_name_that_no_collection_can_have_is_refused_first(name: str, client: ClientAPI) -> None:
    old = next(names)
    collection(client, old)
    with pytest.raises(StitchError, match="cannot name a Chroma collection: use 3 to 504 letters"):
        move_collection(translation(), client, old, name, progress=False)
    assert listed(client, f"{name}-partial") == []


def square(seed: int = 5) -> Translation:
    made = Translation(D_OLD, D_OLD, norm="keep")
    made.weight, made.bias, made.centre = randn(D_OLD, D_OLD, seed=seed), randn(D_OLD, seed=6), torch.zeros(D_OLD)
    return made


def test_the_same_translation_is_not_applied_twice(db: LanceDBConnection, client: ClientAPI) -> None:
    name = next(names)
    collection(client, name)
    for move, place, old in ((move_table, db, "docs"), (move_collection, client, name)):
        move(square(), place, old, f"{old}-new", progress=False)
        with pytest.raises(StitchError, match=f"{old}-new was translated by this model already"):
            move(square(), place, f"{old}-new", f"{old}-newer", progress=False)
        move(square(seed=8), place, f"{old}-new", f"{old}-newer", progress=False)


def test_the_same_translation_is_applied_to_a_second_column(tmp_path: Path) -> None:
    """And to neither of both again."""
    db, rows = lancedb.connect(tmp_path), {"title": randn(9, D_OLD).tolist(), "body": randn(9, D_OLD, seed=1).tolist()}
    types = pa.schema({column: pa.list_(pa.float32(), D_OLD) for column in rows})
    db.create_table("docs", pa.table(rows, schema=types))
    move_table(square(), db, "docs", "one", column="title", progress=False)
    move_table(square(), db, "one", "both", column="body", progress=False)
    for column, vectors in rows.items():
        with pytest.raises(StitchError, match="both was translated by this model already"):
            move_table(square(), db, "both", "again", column=column, progress=False)
        moved = torch.tensor(db.open_table("both").to_arrow()[column].to_pylist())
        torch.testing.assert_close(moved, square()(torch.tensor(vectors)), rtol=1e-4, atol=1e-4)


def test_rows_of_zeros_stay_zeros_and_are_counted(
    tmp_path: Path, client: ClientAPI, caplog: pytest.LogCaptureFixture
) -> None:
    db, name = lancedb.connect(tmp_path / "db"), next(names)
    db.create_table("docs", spoiled(0.0))
    move_table(translation(), db, "docs", "moved", progress=False)
    vectors = vectors_of(in_order(db.open_table("moved")))
    assert [row for row, vector in enumerate(vectors) if not vector.any()] == [30]
    assert "1 rows of docs are zeros" in caplog.text
    old = client.create_collection(name, embedding_function=None)
    old.add(ids=["zeros", "else"], embeddings=[[0.0] * D_OLD, [1.0] * D_OLD])
    move_collection(translation(), client, name, f"{name}-moved", progress=False)
    found = {record: any(vector) for record, (*_, vector) in records(client, f"{name}-moved").items()}
    assert found == {"zeros": False, "else": True}
    assert f"1 rows of {name} are zeros" in caplog.text


def test_records_with_a_uri_and_without_metadata_are_moved(client: ClientAPI) -> None:
    name = next(names)
    old = client.create_collection(name, embedding_function=None)
    old.add(ids=["a"], embeddings=randn(1, D_OLD).numpy(), uris=["file:///a"])
    old.add(ids=["b"], embeddings=randn(1, D_OLD).numpy(), uris=["file:///b"], metadatas=[{"row": 1}])
    old.add(ids=["c"], embeddings=randn(1, D_OLD).numpy(), documents=["a document"])
    before = records(client, name)
    move_collection(translation(), client, name, f"{name}-moved", progress=False)
    after = records(client, f"{name}-moved")
    assert {record: kept[:3] for record, kept in after.items()} == {record: kept[:3] for record, kept in before.items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:create_fts_index is deprecated")
def test_what_is_not_moved_is_named(
    tmp_path: Path, db: LanceDBConnection, client: ClientAPI, caplog: pytest.LogCaptureFixture
) -> None:
    db.open_table("docs").create_fts_index("document")
    move_table(translation(), str(db.uri), db.open_table("docs"), "moved", progress=False)
    assert "moved gets none of the indexes of docs: make them in it: document_idx (FTS of document)" in caplog.text
    name = next(names)
    old = client.create_collection(name)  # with Chroma's own embedding function
    old.add(ids=["a"], embeddings=randn(1, D_OLD).numpy())
    move_collection(translation(), client, old, f"{name}-moved", progress=False)
    assert f"{name} is filled by the embedding function 'default', which is not the new encoder" in caplog.text


def test_a_metric_that_the_translation_was_not_made_for_is_told(
    db: LanceDBConnection, client: ClientAPI, caplog: pytest.LogCaptureFixture
) -> None:
    """LanceDB and Chroma search by L2 unless they are told otherwise; among vectors of norm 1 it is all one."""
    old = randn(400, D_OLD)
    new = old @ randn(D_OLD, D_NEW, seed=1) + 0.1 * randn(400, D_NEW, seed=2)
    name = next(names)
    collection(client, name)
    inner = collection(client, f"{name}-ip", configuration={"hnsw": {"space": "ip"}}).name
    cases: list[Any] = [("cosine", False, True), ("l2", False, False), ("cosine", True, False)]
    for number, (metric, unit, told) in enumerate(cases):
        made = translation_between(old, functional.normalize(new, dim=1) if unit else new, metric=metric)
        caplog.clear()
        move_table(made, db, "docs", f"moved-{number}", progress=False)
        move_collection(made, client, name, f"{name}-{number}", progress=False)
        said = [record.message for record in caplog.records if "was chosen and reported for" in record.message]
        assert len(said) == 2 * told
        assert all("is searched by l2, and the translation was chosen and reported for cosine" in each for each in said)
    caplog.clear()
    move_collection(translation_between(old, new, metric="l2"), client, inner, f"{inner}-moved", progress=False)
    assert f"{inner} is searched by ip, and the translation was chosen and reported for l2" in caplog.text
