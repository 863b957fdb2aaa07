"""Exported encoders in the libraries of others, which load them with no code of ours."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from sentence_transformers import SentenceTransformer
from test_exported_encoders import affine, search
from test_sentence_modules import repo

from hf_relstitch import Encoder

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
TEXTS = pico.texts(12, seed=4)


def module(name: str) -> Any:
    """A module of an optional library; without it the test is skipped."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):  # one that it needs itself
            raise
        pytest.skip(f"{error.name} is not there: pip install --no-deps -r tests/integrations.txt")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray]:
    """The folder of an exported encoder, and the translation of its source's latents of the texts."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    place, translation = repo(folder), search(affine(16), row_norm=1.0)
    translation.after(place, folder=folder / "out")
    return str(folder / "out"), translation(Encoder.from_pretrained(place).encode(TEXTS, progress=False)).numpy()


def langchain(folder: str) -> Any:
    model = module("langchain_huggingface").HuggingFaceEmbeddings(model_name=folder, model_kwargs={"device": "cpu"})
    return [*model.embed_documents(TEXTS[:6]), *map(model.embed_query, TEXTS[6:])]


def llamaindex(folder: str) -> Any:
    model = module("llama_index.embeddings.huggingface").HuggingFaceEmbedding(model_name=folder, device="cpu")
    return [*model.get_text_embedding_batch(TEXTS[:6]), *map(model.get_query_embedding, TEXTS[6:])]


def chroma(folder: str) -> Any:
    functions = module("chromadb.utils.embedding_functions")
    return functions.SentenceTransformerEmbeddingFunction(model_name=folder, device="cpu")(TEXTS)


def lancedb(folder: str) -> Any:
    registry = module("lancedb.embeddings").get_registry()
    return registry.get("sentence-transformers").create(name=folder, device="cpu").generate_embeddings(TEXTS)


@pytest.mark.parametrize("library", [langchain, llamaindex, chroma, lancedb], ids=lambda library: library.__name__)
def test_their_vectors_are_those_of_the_translation(
    library: Callable[[str], Any], exported: tuple[str, np.ndarray]
) -> None:
    folder, expected = exported
    np.testing.assert_allclose(np.array(library(folder)), expected, atol=1e-5)


def test_chroma_searches_an_index_of_the_old_encoder(exported: tuple[str, np.ndarray]) -> None:
    """Its documents are vectors of the target; its queries are texts that the exported encoder reads."""
    folder, vectors = exported
    chromadb = module("chromadb")
    function = module("chromadb.utils.embedding_functions").SentenceTransformerEmbeddingFunction
    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    table = client.create_collection("texts", embedding_function=function(model_name=folder, device="cpu"))
    table.add(ids=[str(row) for row in range(12)], embeddings=vectors)
    assert table.query(query_texts=TEXTS, n_results=1)["ids"] == [[str(row)] for row in range(12)]


def test_lancedb_searches_by_text(exported: tuple[str, np.ndarray], tmp_path: Path) -> None:
    folder, _ = exported
    lancedb, pydantic = module("lancedb"), module("lancedb.pydantic")
    model = module("lancedb.embeddings").get_registry().get("sentence-transformers").create(name=folder, device="cpu")

    class Row(pydantic.LanceModel):
        text: str = model.SourceField()
        vector: pydantic.Vector(model.ndims()) = model.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(str(tmp_path)).create_table("texts", schema=Row)
    table.add([{"text": text} for text in TEXTS])
    assert [table.search(text).limit(1).to_list()[0]["text"] for text in TEXTS] == TEXTS


def test_mteb_evaluates_it(exported: tuple[str, np.ndarray]) -> None:
    """Each query has the words of one document, in which the translation finds it; mteb scores what it finds."""
    mteb, abstasks = module("mteb"), module("mteb.abstasks")
    from datasets import Dataset

    class Texts(abstasks.AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name="Texts",
            description="Texts",
            type="Retrieval",
            eval_langs=["eng-Latn"],
            main_score="mrr_at_10",
            dataset={"path": "none", "revision": "1"},
        )

        def load_data(self, **_: Any) -> None:
            rows = range(len(TEXTS))
            split = {
                "corpus": Dataset.from_list([{"id": str(row), "title": "", "text": TEXTS[row]} for row in rows]),
                "queries": Dataset.from_list([{"id": f"q{row}", "text": TEXTS[row]} for row in rows]),
                "relevant_docs": {f"q{row}": {str((row + 1) % len(TEXTS)): 1} for row in rows},
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    folder, vectors = exported
    model = SentenceTransformer(folder, device="cpu")
    result = mteb.evaluate(model, Texts(), cache=None, show_progress_bar=False).task_results[0]
    ranks = (-vectors @ vectors.T).argsort(1).argsort(1)
    reciprocals = [1 / (rank + 1) if rank < 10 else 0 for rank in ranks[np.arange(12), (np.arange(12) + 1) % 12]]
    assert result.get_score() == pytest.approx(np.mean(reciprocals), abs=1e-4)
