"""A change of encoder from the texts in an index: planned, done, checked, and searched in two stages."""

import json
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import assets
import chromadb
import lancedb
import numpy as np
import pico
import psycopg
import pyarrow as pa
import pytest
import torch
from chromadb.config import Settings
from pymilvus import MilvusClient
from sentence_transformers import SentenceTransformer
from test_sentence_modules import repo

from hf_relstitch import CallableEncoder, Encoder, StitchError
from hf_relstitch.bulk import (
    Reranker,
    SearchTranslation,
    check_moved,
    move_table,
    plan_migration,
    probe,
    sample_index,
)
from hf_relstitch.bulk.migration import move_sampled
from hf_relstitch.cli import app

TEXTS = pico.texts(400)
QUIET = Settings(anonymized_telemetry=False)


@pytest.fixture
def new(source: Encoder) -> Encoder:
    """An encoder whose space is the source's, turned and bent a little."""
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))

    def encode(texts: list[str]) -> torch.Tensor:
        latents = source.encode(texts, progress=False) @ turn
        return latents + 0.1 * latents.tanh()

    return CallableEncoder(encode, model_id="turned")


@pytest.fixture
def lance(source: Encoder, tmp_path: Path) -> Path:
    """A table of texts with the source's vectors, and two rows that lack something."""
    vectors = [*source.encode(TEXTS, progress=False).numpy()]
    rows = {"id": [*range(402)], "text": [*TEXTS, None, "no vector"], "vector": [*vectors, vectors[0], None]}
    types = pa.schema({"id": pa.int64(), "text": pa.string(), "vector": pa.list_(pa.float32(), 16)})
    lancedb.connect(tmp_path / "lance").create_table("docs", pa.table(rows, schema=types), on_bad_vectors="null")
    return tmp_path / "lance"


@pytest.fixture
def chroma(source: Encoder, tmp_path: Path) -> Path:
    """A collection of the same texts, searched by cosine."""
    client = chromadb.PersistentClient(str(tmp_path / "chroma"), settings=QUIET)
    made = client.create_collection("docs", embedding_function=None, configuration={"hnsw": {"space": "cosine"}})
    ids = [str(row) for row in range(len(TEXTS))]
    made.add(ids=ids, documents=TEXTS, embeddings=source.encode(TEXTS, progress=False).numpy())
    return tmp_path / "chroma"


@pytest.fixture
def rows(source: Encoder, postgres_address: str) -> Iterator[str]:
    """A PostgreSQL table of the same texts, searched by inner product, and a row without a vector."""
    latents = source.encode(TEXTS, progress=False).tolist()
    with psycopg.connect(postgres_address, autocommit=True) as db:
        db.execute("DROP TABLE IF EXISTS docs, docs_new")
        db.execute("CREATE TABLE docs (text text, vector vector(16))")
        values = [*zip(TEXTS, map(str, latents), strict=True), ("no vector", None)]
        db.cursor().executemany("INSERT INTO docs VALUES (%s, %s)", values)
        db.execute("CREATE INDEX ON docs USING hnsw ((vector::halfvec(16)) halfvec_ip_ops)")
        yield postgres_address


@pytest.fixture
def milvus(source: Encoder, tmp_path: Path) -> Iterator[str]:
    """A Milvus collection of the same texts, searched by cosine."""
    client, latents = MilvusClient(str(tmp_path / "milvus.db")), source.encode(TEXTS, progress=False).tolist()
    client.create_collection("docs", dimension=16)
    client.insert("docs", [{"id": row, "text": TEXTS[row], "vector": latents[row]} for row in range(len(TEXTS))])
    yield str(tmp_path / "milvus.db")
    client.close()


TOTALS = {"lance": (402, "l2"), "chroma": (400, "cosine"), "rows": (401, "ip"), "milvus": (400, "cosine")}


@pytest.mark.parametrize("kind", TOTALS)
def test_a_sample_is_rows_of_the_index(kind: str, source: Encoder, request: pytest.FixtureRequest) -> None:
    store = request.getfixturevalue(kind)
    sample = sample_index(store, "docs", text="text", vector="vector", count=100)
    assert (sample.total, sample.metric) == TOTALS[kind]
    assert 98 <= len(set(sample.texts)) == len(sample.texts) <= 100
    np.testing.assert_allclose(
        sample.vectors, source.encode(sample.texts, progress=False).numpy(), rtol=1e-4, atol=1e-5
    )
    again = sample_index(store, "docs", text="text", vector="vector", count=100)
    assert again.texts == sample.texts
    with pytest.raises(StitchError, match="docs_new"):
        sample_index(store, "docs_new", text="text", vector="vector", count=100)


@pytest.mark.parametrize("kind", ["rows", "milvus"])
def test_an_index_of_a_server_is_migrated(
    kind: str, new: Encoder, source_folder: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    store = request.getfixturevalue(kind)
    plan = plan_migration(sample_index(store, "docs", text="text", vector="vector", count=400), new, progress=False)
    assert move_sampled(plan, store, "docs", "docs_new", vector="vector") == TOTALS[kind][0]
    moved = sample_index(store, "docs_new", text="text", vector="vector", count=400)
    assert moved.metric == TOTALS[kind][1]
    assert check_moved(moved, new, progress=False)["recall"] == pytest.approx(plan.documents.report["recall"], abs=0.25)
    app(["migrate", store, "docs", "--new", source_folder, "--check", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["recall"] > 0.99
    app(["migrate", store, "docs", "--new", source_folder, "--check"], standalone_mode=False)
    shown = r"Of the \d+ nearest .* among [\d,]+ documents, the moved index finds (1\.000|0\.99\d) ±"
    assert re.match(shown, capsys.readouterr().out)


def test_a_column_that_holds_no_texts_is_named(lance: Path) -> None:
    (lance / "docs.faiss").write_bytes(b"")
    with pytest.raises(StitchError, match=r"docs\.faiss is a file: .* move_index"):
        sample_index(lance / "docs.faiss", "docs", text="text", vector="vector", count=100)
    with pytest.raises(StitchError, match="table docs has no column 'body': it has id, text, vector"):
        sample_index(lance, "docs", text="body", vector="vector", count=100)
    with pytest.raises(StitchError, match="column 'id' of docs does not hold texts"):
        sample_index(lance, "docs", text="id", vector="vector", count=100)


def test_an_index_is_planned_moved_and_checked(lance: Path, new: Encoder) -> None:
    sample = sample_index(lance, "docs", text="text", vector="vector", count=400)
    plan = plan_migration(sample, new, progress=False)
    assert plan.total == 402
    assert plan.documents.metric == plan.queries.metric == "l2"
    ways = {way: finds for way, finds, _ in plan.rows()}
    assert ways["the index is moved"] == plan.documents.report["recall"]
    assert ways["all documents are encoded anew"] == 1
    table = lancedb.connect(lance).open_table("docs")
    table.delete("vector IS NULL")
    assert move_table(plan.documents, lance, "docs", "docs-new", progress=False) == 401
    moved = sample_index(lance, "docs-new", text="text", vector="vector", count=400)
    found = check_moved(moved, new, progress=False)
    assert found["recall"] == pytest.approx(plan.documents.report["recall"], abs=0.25)
    assert found["encode_anew"] is (found["recall"] < 0.5)
    true = new.encode(moved.texts, progress=False).numpy()
    same = type(moved)(moved.texts, true, moved.total, moved.metric)
    assert check_moved(same, new, progress=False)["recall"] == 1
    other = Encoder(pico.classifier("DistilBert", dim=24, hidden_dim=48).base_model, pico.tokenizer())
    with pytest.raises(StitchError, match="the index has vectors 16 wide and the encoder gives 24"):
        check_moved(moved, other, progress=False)


def test_queries_and_documents_have_their_own_prompts(lance: Path, tmp_path: Path) -> None:
    """Those that encode_query and encode_document of sentence-transformers put there."""
    place = repo(tmp_path)
    prompts = {"query": "storm hits: ", "document": "quiet day: "}
    Path(place, "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    theirs = SentenceTransformer(place, device="cpu")
    sample = sample_index(lance, "docs", text="text", vector="vector", count=64)
    plan = plan_migration(sample, place, progress=False)
    documents = theirs.encode_document(sample.texts, convert_to_tensor=True)
    moved = plan.documents(torch.from_numpy(sample.vectors)).mean(0)  # of any length, by the metric
    near, asked = (torch.cosine_similarity(one, documents.mean(0), dim=0) for one in (moved, plan.queries.centre))
    assert near > 0.999 > asked  # where queries are
    assert (plan.documents.target.prompt, plan.queries.source.prompt) == ("quiet day: ", "storm hits: ")
    plan.queries.save(tmp_path / "queries.safetensors")
    exported = SearchTranslation.load(tmp_path / "queries.safetensors").after(place)
    own = plan.queries(theirs.encode_query(TEXTS[:9], convert_to_tensor=True))
    torch.testing.assert_close(exported.encode(TEXTS[:9], convert_to_tensor=True), own, rtol=1e-3, atol=1e-4)
    anew = type(sample)(sample.texts, documents.numpy(), sample.total, sample.metric)
    assert check_moved(anew, place, progress=False)["recall"] == 1
    ((found,),) = Reranker(place, lambda keys: [TEXTS[key] for key in keys])(TEXTS[:1], [[5]])
    asked, stored = theirs.encode_query(TEXTS[0]), theirs.encode_document(TEXTS[5])
    assert found == (5, pytest.approx(float(theirs.similarity(asked, stored)), abs=1e-4))


def test_candidates_are_ranked_by_the_new_encoder(new: Encoder) -> None:
    queries, asked = TEXTS[:3], []

    def read(ids: Any) -> list[str]:
        asked.extend(ids)
        return [TEXTS[key] for key in ids]

    rerank = Reranker(new, read)
    candidates = [[5, 0, 9, 7], [1, 7], []]
    ranked = rerank(queries, candidates, nearest=3)
    assert [row[0][0] for row in ranked[:2]] == [0, 1]
    assert ranked[2] == []
    assert ranked[0][0][1] == pytest.approx(1, abs=1e-5)
    latents = torch.nn.functional.normalize(
        new.encode([TEXTS[0], *(TEXTS[key] for key in candidates[0])], progress=False)
    )
    order = (latents[1:] @ latents[0]).argsort(descending=True)[:3]
    assert [key for key, _ in ranked[0]] == [candidates[0][at] for at in order.tolist()]
    assert asked == [5, 0, 9, 7, 1]
    rerank(queries[:1], [[9, 3]])
    assert asked[5:] == [3]
    torch.testing.assert_close(rerank.latents[3], new.encode([TEXTS[3]], progress=False)[0])
    with pytest.raises(StitchError, match="there are 1 queries and 2 lists of candidates"):
        rerank(queries[:1], [[1], [2]])
    with pytest.raises(StitchError, match="read returned 0 inputs for 1 ids"):
        Reranker(new, lambda ids: [])(queries[:1], [[1]])


def test_a_probe_compares_two_encoders(source: Encoder, new: Encoder) -> None:
    def randn(seed: int) -> torch.Tensor:
        return torch.randn(8, generator=torch.Generator().manual_seed(seed))

    class Blind(Encoder):
        """An encoder that sees nothing but a hash."""

        def encode(self, inputs: Any, **_: Any) -> torch.Tensor:
            return torch.stack([randn(zlib.crc32(each.encode())) for each in inputs])

    blind = Blind(source.model, source.processor)
    queries = [f"{text} {text}" for text in TEXTS[:100]]
    found = probe(queries, TEXTS, range(100), old=blind, new=source)
    assert found["old"] < 0.1
    assert found["new"] > 0.3
    assert found["gain"] == pytest.approx(found["new"] - found["old"])
    assert found["better"]
    assert not probe(queries, TEXTS, range(100), old=source, new=source)["better"]
    with pytest.raises(StitchError, match="relevant holds 2 rows for 100 queries among 400 documents"):
        probe(queries, TEXTS, [0, 1], old=source, new=source)


def run(*arguments: Any, status: int = 0) -> str:
    command = [sys.executable, "-c", "from hf_relstitch.cli import main; main()", "migrate", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lance", "chroma"])
def test_migrate_in_one_command(kind: str, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(assets.wordnet_glosses()[0]))[:1500]
    old, new = Encoder.from_pretrained(str(assets.minilm())), assets.mpnet()
    vectors = old.encode(texts, progress=False).numpy()
    if kind == "lance":
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        lancedb.connect(tmp_path).create_table("docs", pa.table({"text": texts, "vector": column}))
    else:
        made = chromadb.PersistentClient(str(tmp_path), settings=QUIET).create_collection(
            "docs", embedding_function=None
        )
        made.add(ids=[str(row) for row in range(1500)], documents=texts, embeddings=vectors)
    outputs = ("--move-to", "docs-new", "--queries-to", tmp_path / "q.safetensors")
    shown = run(tmp_path, "docs", "--new", new, "--pairs", 1000, *outputs)
    assert "Verdict: " in shown
    assert SearchTranslation.load(tmp_path / "q.safetensors").translates == "queries"
    assert "Moved 1,500 documents to docs-new; docs is as it was." in shown
    checked = json.loads(run(tmp_path, "docs-new", "--new", new, "--pairs", 400, "--check", "--json"))
    assert checked["recall"] > 0.5
