"""Moves of a FAISS index to another encoder's space.

The move makes a new index of the same type, trained on the translated vectors.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from hf_relstitch.bulk.moves import check_metric, document_translator, stopped_moves, tell_zeros
from hf_relstitch.bulk.translator import NOTE, AnyModel, Translator, check_not_translated, note_of
from hf_relstitch.core.errors import StitchError
from hf_relstitch.hub.files import atomic_write, read_json

if TYPE_CHECKING:
    import faiss

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded

FACTORIES = {
    "IndexFlat": "Flat",
    "IndexFlatL2": "Flat",
    "IndexFlatIP": "Flat",
    "IndexHNSWFlat": "HNSW{links},Flat",
    "IndexIVFFlat": "IVF{index.nlist},Flat",
    "IndexIVFPQ": "IVF{index.nlist},PQ{index.pq.M}x{index.pq.nbits}",
    "IndexPQ": "PQ{index.pq.M}x{index.pq.nbits}",
}
"""Types of index, in the words of FAISS's `index_factory`."""
PARAMETERS = ("nprobe", "hnsw.efSearch", "hnsw.efConstruction")
LOSSY = ("IndexIVFPQ", "IndexPQ")


@stopped_moves
def move_index(
    model: AnyModel, old: str | Path, new: str | Path, *, batch_size: int = 16384, progress: bool = True
) -> int:
    """Copy a FAISS index's file with its vectors translated, and return its number of vectors.

    See `translate_index`. The old file does not change. The new file appears whole or not at all. Beside it,
    `<new>.json` says which translation and index it comes from.

    Args:
        model: a translation that `translation_between` returned, or its file; or a stitched model.
        old: the index's file.
        new: the file to write.
        batch_size: vectors to translate at a time.
        progress: show a progress bar.

    Raises:
        StitchError: the old file does not exist, its index has an unknown type, its vectors cannot be translated or
            were translated by this model already, or the new file exists already.
    """
    faiss, file, note = _import(), Path(new), Path(f"{old}.json")
    if file.exists():
        raise StitchError(f"there is a file {file} already: give another one")
    translator = document_translator(model, "vectors", batch_size)
    check_not_translated(read_json(note) if note.is_file() else None, translator, f"index {old}")
    try:
        index = faiss.read_index(str(old))
    except RuntimeError as error:
        raise StitchError(f"{old} cannot be read as an index of FAISS ({error})") from error
    with atomic_write(file) as written:
        faiss.write_index(_translate(index, translator, str(old), progress=progress), str(written))
        Path(f"{new}.json").write_text(json.dumps({NOTE: note_of(translator)}), encoding="utf-8")
    return int(index.ntotal)


def translate_index(
    model: AnyModel, index: "faiss.Index", *, batch_size: int = 16384, progress: bool = True
) -> "faiss.Index":
    """Return a new index of the same type, with the vectors of `index` translated and its ids.

    The new index keeps the old index's number of lists, neighbours, bytes a code, metric and search parameters. Lists
    and codes are trained on the translated vectors. An index with codes returns other vectors than were added; these
    are translated, and a log line says so. All vectors are in memory.

    Args:
        model: a translation that `translation_between` returned, or its file; or a stitched model.
        index: Flat, HNSW, IVF, IVF with PQ, or PQ; with or without ids of its own (`IndexIDMap`).
        batch_size: vectors to translate at a time.
        progress: show a progress bar.

    Raises:
        StitchError: the index has another type, or its vectors cannot be translated.
    """
    return _translate(index, document_translator(model, "vectors", batch_size), "the index", progress=progress)


def _translate(index: "faiss.Index", translator: Translator, name: str, *, progress: bool) -> "faiss.Index":
    faiss = _import()
    index = faiss.downcast_index(index)
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    kind = type(inner).__name__
    if kind not in FACTORIES:
        raise StitchError(f"{name} is of type {kind}: known are {', '.join(FACTORIES)}; move its vectors as npy files")
    translator.check_width(inner.d, name)
    metric = {faiss.METRIC_L2: "l2", faiss.METRIC_INNER_PRODUCT: "ip"}.get(inner.metric_type, "another metric")
    check_metric(translator, metric, name)
    if kind in LOSSY:
        logger.warning(f"{name} keeps codes of its vectors: what these give back is translated, and coded once more")
    ids, vectors = _read(inner)
    if isinstance(index, faiss.IndexIDMap):
        ids = faiss.vector_to_array(index.id_map)[ids]
    moved = np.empty((len(vectors), translator.d_target), np.float32)
    size = translator.batch_size
    with logging.tqdm(total=len(vectors), desc=f"translating {name}", disable=not progress) as bar:
        for start in range(0, len(vectors), size):
            rows = slice(start, start + size)
            moved[rows] = translator(torch.from_numpy(vectors[rows]), first_row=start).numpy()
            bar.update(len(moved[rows]))
    tell_zeros(translator, name)
    made = _make(inner, translator.d_target, name)
    if not made.is_trained:
        made.train(moved)
    if isinstance(index, faiss.IndexIDMap):
        wrapper = type(index)(made)
        wrapper.add_with_ids(moved, ids)
        made.this.disown()  # the wrapper is all that keeps it from now on
        wrapper.own_fields = True
        return wrapper
    if isinstance(inner, faiss.IndexIVF):
        made.add_with_ids(moved, ids)
    else:
        made.add(moved)
    return made


def _read(index: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and vectors of an index, in the order of its rows, or of its lists."""
    faiss = _import()
    if not isinstance(index, faiss.IndexIVF):
        return np.arange(index.ntotal), index.reconstruct_n(0, index.ntotal)
    ids = np.concatenate([np.empty(0, np.int64), *_lists(index)])
    vectors = np.empty((len(ids), index.d), np.float32)
    row = 0
    for number, members in enumerate(_lists(index)):
        for offset in range(len(members)):
            index.reconstruct_from_offset(number, offset, faiss.swig_ptr(vectors[row]))
            row += 1
    order = np.argsort(ids, kind="stable")
    return ids[order], vectors[order]


def _lists(index: Any) -> Iterator[np.ndarray]:
    """Yield the ids in each list of an IVF index."""
    faiss = _import()
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        yield faiss.rev_swig_ptr(index.invlists.get_ids(number), size).copy() if size else np.empty(0, np.int64)


def _make(index: Any, dimension: int, name: str) -> Any:
    """Make an empty index of the same type for vectors of another dimension."""
    faiss = _import()
    links = index.hnsw.nb_neighbors(1) if hasattr(index, "hnsw") else None
    words = FACTORIES[type(index).__name__].format(index=index, links=links)
    try:
        made = faiss.index_factory(dimension, words, index.metric_type)
    except RuntimeError as error:
        raise StitchError(f"{name} cannot be {words} with {dimension} dimensions: {error}") from error
    for path in PARAMETERS:
        *parents, attribute = path.split(".")
        for parent in parents:
            old, new = getattr(index, parent, None), getattr(made, parent, None)
            if old is not None and new is not None:
                setattr(new, attribute, getattr(old, attribute))
        if not parents and hasattr(index, attribute):
            setattr(made, attribute, getattr(index, attribute))
    return made


def _import() -> Any:
    try:
        import faiss  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise StitchError("an index of FAISS needs faiss: pip install 'hf-relstitch[faiss]'") from error
    return faiss
