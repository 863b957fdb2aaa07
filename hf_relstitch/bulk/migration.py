"""Change the encoder of a vector index: read a sample, encode it anew, and say what each way would find."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_relstitch.bulk.chroma_store import move_collection, open_folder, read_collection
from hf_relstitch.bulk.lancedb_store import move_table, read_rows
from hf_relstitch.bulk.milvus_store import move_entities, open_client, read_entities
from hf_relstitch.bulk.pgvector_store import move_rows, read_columns
from hf_relstitch.bulk.search import SearchTranslation, translation_between
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.options import Metric
from hf_relstitch.core.scoring import HALF, NEAREST, QUERIES, as_compared, search, share_found
from hf_relstitch.encoders.encoder import to_encoder

OLD = "the index's encoder"
"""What a plan calls the encoder of the stored vectors, which it does not know."""


@dataclass(frozen=True)
class IndexSample:
    """Hold some rows of an index.

    Attributes:
        texts: the texts that were encoded.
        vectors: `(n, d)` float32, the stored vectors.
        total: the number of rows of the index.
        metric: the metric of its searches.
    """

    texts: list[str]
    vectors: np.ndarray
    total: int
    metric: Metric


@dataclass(frozen=True)
class MigrationPlan:
    """Hold what each way to a new encoder would find and take.

    Attributes:
        documents: the translation that moves the index.
        queries: the translation of the new encoder's queries into the index as it is.
        seconds: time to encode all documents anew here, from the time for the sample.
        total: the number of documents.
    """

    documents: SearchTranslation
    queries: SearchTranslation
    seconds: float
    total: int

    def rows(self) -> list[tuple[str, float, str]]:
        """Return for each way its name, the share that it finds of what the new encoder finds, and what it takes."""
        moved, asked = self.documents.report, self.queries.report
        return [
            ("the index and the encoder stay", moved["recall_untranslated"], "nothing"),
            ("the index is moved", moved["recall"], "one pass over the vectors"),
            ("new queries are translated", asked["recall"], "nothing in the index"),
            ("all documents are encoded anew", 1.0, f"{_time(self.seconds)} here"),
        ]


def sample_index(store: str | Path, name: str, *, text: str, vector: str, count: int) -> IndexSample:
    """Read texts and vectors of some rows of an index in LanceDB, Chroma, PostgreSQL or Milvus.

    The rows are drawn with a fixed seed. Rows without text or vector are left out.

    Args:
        store: the folder of a LanceDB or Chroma database, `postgresql://…`, or a file of Milvus Lite, `….db`, or a
            Milvus server, `http://…`.
        name: the table or collection.
        text: the column of texts; a Chroma collection has its documents.
        vector: the column of vectors; a Chroma collection has its embeddings.
        count: rows to draw.

    Raises:
        StitchError: the store has no such table or column, or no row has both.
    """
    kind = _kind_of(store)
    if kind == "Chroma":
        texts, vectors, total, metric = read_collection(store, name, count=count)
    else:
        read: Any = {"PostgreSQL": read_columns, "Milvus": read_entities, "LanceDB": read_rows}[kind]
        texts, vectors, total, metric = read(store, name, text=text, vector=vector, count=count)
    rows = [(line, latent) for line, latent in zip(texts, vectors, strict=True) if line and latent is not None]
    if not rows:
        raise StitchError(f"no row of {name} has a text and a vector: name the columns that do")
    if not all(isinstance(line, str) for line, _ in rows):
        raise StitchError(f"column {text!r} of {name} does not hold texts: name the column that was encoded")
    return IndexSample([line for line, _ in rows], np.array([latent for _, latent in rows], "f4"), total, metric)


def plan_migration(sample: IndexSample, new: Any, *, progress: bool = True) -> MigrationPlan:
    """Encode a sample by the new encoder, and fit both translations.

    Where the encoder's repo has prompts for queries and for documents, each translation is of the texts with its own.

    Args:
        sample: rows of the index, 1,000 or more.
        new: the new encoder: a folder, a Hub id, an `Encoder`, a transformers model or a SentenceTransformer.
        progress: show a progress bar.

    Raises:
        StitchError: the encoder cannot be loaded, or the sample is too small or does not belong to its vectors.

    Example:
        >>> sample = sample_index("lancedb-folder", "docs", text="text", vector="vector", count=1000)
        >>> plan = plan_migration(sample, "me/new-encoder")
        >>> move_table(plan.documents, "lancedb-folder", "docs", "docs-new")
    """
    documents, queries = to_encoder(new).for_search()
    began = time.perf_counter()
    latents = documents.encode(sample.texts, progress=progress)
    seconds = (time.perf_counter() - began) / len(sample.texts) * sample.total
    asked = latents if queries is documents else queries.encode(sample.texts, progress=progress)
    return MigrationPlan(
        translation_between(
            sample.vectors, latents, translates="documents", metric=sample.metric, models=(OLD, documents.provenance)
        ),
        translation_between(
            asked, sample.vectors, translates="queries", metric=sample.metric, models=(queries.provenance, OLD)
        ),
        seconds,
        sample.total,
    )


def move_sampled(plan: MigrationPlan, store: str | Path, name: str, new: str, *, vector: str) -> int:
    """Move the index that a plan is for to a new table or collection, and return its number of rows.

    Raises:
        StitchError: as in `move_table`, `move_collection`, `move_rows` and `move_entities`.
    """
    kind = _kind_of(store)
    if kind == "Chroma":
        return move_collection(plan.documents, open_folder(store), name, new)
    if kind == "PostgreSQL":
        return move_rows(plan.documents, str(store), name, new, column=vector)
    if kind == "Milvus":
        return move_entities(plan.documents, open_client(store), name, new, vector=vector)
    return move_table(plan.documents, store, name, new, column=vector)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:,.0f} minutes"


def _kind_of(store: str | Path) -> str:
    """Return what a folder or an address belongs to; a folder of LanceDB has nothing to tell it by."""
    if str(store).startswith(("postgresql://", "postgres://")):
        return "PostgreSQL"
    if str(store).startswith(("http://", "https://")) or Path(store).suffix == ".db":
        return "Milvus"
    return "Chroma" if Path(store, "chroma.sqlite3").is_file() else "LanceDB"


def check_moved(sample: IndexSample, new: Any, *, progress: bool = True) -> dict[str, Any]:
    """Compare the vectors of a moved index with the new encoder's own: as texts change, a translation fits them less.

    Returns:
        `recall`, the share of the nearest hundredth of the sample, by the new encoder, that a search in the moved
        vectors finds, with its `standard_error`; `nearest` and `documents`, of how many nearest among how many; and
        `encode_anew`, whether the recall is below one half.

    Raises:
        StitchError: the encoder cannot be loaded, or its vectors have another width than those of the index.
    """
    true = torch.from_numpy(to_encoder(new).for_search()[0].encode(sample.texts, progress=progress).float().numpy())
    moved = torch.from_numpy(sample.vectors)
    if true.shape != moved.shape:
        raise StitchError(
            f"the index has vectors {moved.shape[1]} wide and the encoder gives {true.shape[1]}: check a moved index, "
            "with the encoder that it was moved to"
        )
    true, moved = (as_compared(side, sample.metric) for side in (true, moved))
    count = max(1, round(NEAREST * (len(true) - 1)))
    wanted, found = (search(true[:QUERIES], side, count, metric=sample.metric) for side in (true, moved))
    recalls = share_found(wanted, found)
    recall, error = float(recalls.mean()), float(recalls.std()) / len(recalls) ** 0.5
    return {
        "recall": recall,
        "standard_error": error,
        "nearest": count,
        "documents": len(moved),
        "encode_anew": recall < HALF,
    }
