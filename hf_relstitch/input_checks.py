"""What inputs have to be: a list, with no empty cells, of the kind that a model takes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_relstitch.core.errors import StitchError

INPUTS: dict[str, tuple[str, tuple[type, ...]]] = {
    "text": ("texts", (str,)),
    "image": ("PIL images or Paths of images", (Image.Image, Path)),
    "audio": ("numpy arrays of sound or Paths of sound files", (np.ndarray, Path)),
}


def check_some(inputs: Sequence[Any], *, batch_size: int = 1) -> None:
    """Refuse an empty list, a text or a generator where a list is expected, and batches of nothing.

    Raises:
        StitchError: there is such a one.
    """
    if isinstance(inputs, str):
        raise StitchError(f"the inputs are one text, {inputs[:40]!r}, where a list of inputs is expected: give [text]")
    kind = type(inputs).__name__
    if isinstance(inputs, Mapping) or hasattr(inputs, "columns") or hasattr(inputs, "column_names"):
        raise StitchError(f"the inputs are a {kind}, which has columns: give one of them, a list of inputs")
    if isinstance(inputs, (Path, Image.Image)):
        raise StitchError(f"the inputs are one {kind}, where a list of inputs is expected: give [it]")
    if not hasattr(inputs, "__len__"):
        raise StitchError(f"the inputs are a {kind}, which is read once: give a list of them")
    if not hasattr(inputs, "__getitem__"):
        raise StitchError(f"the inputs are a {kind}, which has no order: give a list of them")
    if not len(inputs):
        raise StitchError("there are no inputs to encode: give at least one")
    if batch_size < 1:
        raise StitchError(f"batch_size is {batch_size}: expected 1 or more")


def check_filled(inputs: Sequence[Any], *, what: str, rows: Sequence[int] | None = None) -> None:
    """Refuse empty cells of tables, None and not a number; `rows` are the numbers of rows drawn from more.

    Raises:
        StitchError: there is such a one.
    """
    numbered = zip(rows or range(len(inputs)), inputs, strict=True)
    if empty := [row for row, one in numbered if one is None or (isinstance(one, float) and math.isnan(one))]:
        raise StitchError(f"{what} empty in {row_names(empty)}: fill in or remove them")


def row_names(rows: Sequence[int]) -> str:
    """The first of these rows, and how many others there are."""
    others = {1: "", 2: " and 1 other"}.get(len(rows), f" and {len(rows) - 1} others")
    return f"row {rows[0]} (counted from 0){others}"


def encoded(text: str, *, row: int) -> bytes:
    """A text's UTF-8.

    Raises:
        StitchError: it has half a character, a surrogate, as of a file that was read with another encoding.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StitchError(
            f"the text in {row_names([row])} has half a character, {text[error.start]!r}, which UTF-8 cannot say: read "
            "it with its own encoding, or remove it"
        ) from error


def check_kinds(inputs: Sequence[Any], *, modality: str | None, who: str = "model") -> None:
    """Refuse inputs of another kind than a model of this modality takes; None stands for one that is not known.

    Raises:
        StitchError: there is such an input.
    """
    check_filled(inputs, what=f"the {who}'s inputs are")
    expected, kinds = INPUTS.get(modality or "", ("anything", (object,)))
    strange = {row: one for row, one in enumerate(inputs) if not isinstance(one, kinds)}
    if strange:
        names = sorted({type(one).__name__ for one in strange.values()})
        came = " or ".join(f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}" for name in names)
        known = tuple(kind for _, kinds in INPUTS.values() for kind in kinds)
        anchors = who != "model" and any(isinstance(one, known) for one in strange.values())
        pairs = "; anchors of two kinds are pairs, (what the source takes, what the target takes)" if anchors else ""
        raise StitchError(
            f"the {who} takes {expected} and what came in {row_names(list(strange))} is {came}: give it its own kind "
            f"of input{pairs}"
        )
