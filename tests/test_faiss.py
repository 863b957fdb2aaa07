"""A FAISS index moved to another encoder's space, in memory and in files, of each type that is known."""

from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from torch.nn import functional

from hf_relstitch import StitchError
from hf_relstitch.bulk import SearchTranslation, move_index, translate_index, translation_between

D_OLD, D_NEW, ROWS = 16, 24, 2000


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sides() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of norm 1 in two spaces, of which the second one is a turn of the first, and some noise."""
    old = randn(ROWS + 200, 8, seed=1) @ randn(8, D_OLD, seed=2)
    new = old @ randn(D_OLD, D_NEW, seed=3)
    return functional.normalize(old, dim=1), functional.normalize(new + 0.1 * randn(*new.shape, seed=4), dim=1)


@pytest.fixture(scope="module")
def made(sides: tuple[torch.Tensor, torch.Tensor]) -> SearchTranslation:
    return translation_between(*(side[:500] for side in sides))


def filled(
    words: str, vectors: torch.Tensor, ids: np.ndarray | None = None, metric: int = faiss.METRIC_L2
) -> faiss.Index:
    index = faiss.index_factory(D_OLD, words, metric)
    index.train(vectors.numpy())
    if ids is None:
        index.add(vectors.numpy())
    else:
        index.add_with_ids(vectors.numpy(), ids)
    return index


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize(
    "words",
    ["Flat", "HNSW8,Flat", "IVF10,Flat", "IVF10,PQ8x6", "PQ8x6", "IDMap,Flat", "IDMap2,HNSW8", "IDMap,IVF10,Flat"],
)
def test_an_index_of_each_type_finds_in_the_new_space(
    words: str, metric: int, sides: tuple[torch.Tensor, torch.Tensor], made: SearchTranslation
) -> None:
    ids = 7 * np.arange(ROWS) + 3 if words.startswith(("IDMap", "IVF")) else None
    index = filled(words, sides[0][:ROWS], ids, metric)
    moved = translate_index(made, index, batch_size=300, progress=False)
    assert (moved.ntotal, moved.d, moved.metric_type) == (ROWS, D_NEW, metric)
    assert type(moved) is type(index)
    if isinstance(moved, faiss.IndexIVF):
        moved.nprobe = 10
    found = moved.search(sides[1][ROWS:].numpy(), 10)[1]
    true = filled_exactly(sides[1][:ROWS], ids, metric).search(sides[1][ROWS:].numpy(), 10)[1]
    recall = np.mean([len(set(ours) & set(theirs)) / 10 for ours, theirs in zip(found, true, strict=True)])
    assert recall > (0.25 if "PQ" in words else 0.6)
    assert index.ntotal == ROWS


def filled_exactly(vectors: torch.Tensor, ids: np.ndarray | None, metric: int) -> faiss.Index:
    index = faiss.index_factory(D_NEW, "IDMap,Flat", metric)
    index.add_with_ids(vectors.numpy(), np.arange(len(vectors)) if ids is None else ids)
    return index


def test_vectors_keep_their_ids_and_settings_are_kept(
    sides: tuple[torch.Tensor, torch.Tensor], made: SearchTranslation
) -> None:
    ids = np.arange(ROWS)[::-1].copy() + 5
    index = filled("IVF10,Flat", sides[0][:ROWS], ids)
    index.nprobe = 7
    moved = translate_index(made, index, progress=False)
    assert (moved.nlist, moved.nprobe) == (10, 7)
    moved.set_direct_map_type(faiss.DirectMap.Hashtable)
    assert np.allclose(moved.reconstruct(int(ids[42])), made(sides[0][42:43])[0].numpy(), atol=1e-5)
    graph = filled("HNSW8,Flat", sides[0][:ROWS])
    graph.hnsw.efSearch = 99
    assert translate_index(made, graph, progress=False).hnsw.efSearch == 99


def test_a_file_is_moved_once(
    sides: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    square = translation_between(sides[0][:500], sides[0][:500] @ torch.linalg.qr(randn(D_OLD, D_OLD))[0])
    vectors = sides[0][:100].clone()
    vectors[3] = 0
    faiss.write_index(filled("Flat", vectors), str(tmp_path / "old.faiss"))
    assert move_index(square, tmp_path / "old.faiss", tmp_path / "new.faiss", progress=False) == 100
    moved = faiss.read_index(str(tmp_path / "new.faiss"))
    assert [row for row in range(100) if not moved.reconstruct(row).any()] == [3]
    assert "1 rows of" in caplog.text
    with pytest.raises(StitchError, match=r"new\.faiss was translated by this model already"):
        move_index(square, tmp_path / "new.faiss", tmp_path / "twice.faiss", progress=False)
    with pytest.raises(StitchError, match=r"there is a file .*new\.faiss already: give another one"):
        move_index(square, tmp_path / "old.faiss", tmp_path / "new.faiss", progress=False)
    (tmp_path / "no.faiss").write_bytes(b"no index")
    with pytest.raises(StitchError, match=r"no\.faiss cannot be read as an index of FAISS"):
        move_index(square, tmp_path / "no.faiss", tmp_path / "made.faiss", progress=False)


def test_what_cannot_be_moved_is_told(sides: tuple[torch.Tensor, torch.Tensor], made: SearchTranslation) -> None:
    with pytest.raises(StitchError, match="the index is of type IndexLSH: known are IndexFlat, "):
        translate_index(made, filled("LSH", sides[0][:ROWS]), progress=False)
    narrow = faiss.IndexFlatL2(3)
    with pytest.raises(StitchError, match="the index is 3 wide and the model translates latents of width 16"):
        translate_index(made, narrow, progress=False)
    with pytest.raises(StitchError, match=r"the index cannot be PQ16x6 with 24 dimensions"):
        translate_index(made, filled("PQ16x6", sides[0][:ROWS]), progress=False)
