"""Pairs of latents from a user: read, checked row by row, paired by ids, and tested for correspondence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from hf_relstitch.core.errors import StitchError

ROW = "expected rows of floats, (k, d)"
BYTE_INTEGERS = (torch.int8, torch.uint8)


def read_side(latents: Any, side: str) -> Tensor:
    """Return latents `(k, d)` in float32, from a tensor, an array, a table's column or a list of rows.

    Raises:
        StitchError: rows are missing, not finite, of other lengths than the first row, or not real numbers.
    """
    if isinstance(latents, str | bytes | Mapping):
        raise StitchError(f"the {side} is a {type(latents).__name__}: {ROW}")
    if hasattr(latents, "to_pylist"):  # a column of pyarrow
        latents = latents.to_pylist()
    if not isinstance(latents, Tensor):
        array = latents if isinstance(latents, np.ndarray) else None
        if array is None and hasattr(latents, "to_numpy"):  # a column or a frame of pandas
            array = latents.to_numpy()
        latents = _stack(latents if array is None else array, side) if array is None or array.dtype == object else array
    tensor = _check_numbers(latents, f"the {side}").detach().cpu().float()
    if not tensor.isfinite().all() and tensor.ndim == 2:
        row = int((~tensor.isfinite()).any(dim=1).nonzero()[0])
        raise StitchError(f"row {row} of the {side} has not-a-number or infinite values: leave such pairs out")
    return tensor


def _stack(rows: Any, side: str) -> Tensor:
    """Check each row, and stack the rows to a matrix."""
    tensors: list[Tensor] = []
    for row, latent in enumerate(rows):
        what = f"row {row} of the {side}"
        if latent is None:
            raise StitchError(f"{what} is None, as of a failed encoding: leave such pairs out")
        if isinstance(latent, str | bytes | bytearray | memoryview):
            hint = "encode texts first" if isinstance(latent, str) else "np.frombuffer(row, dtype) reads bytes"
            raise StitchError(f"{what} is {type(latent).__name__}: {ROW}; {hint}")
        tensor = _check_numbers(latent, what)
        if tensor.ndim != 1 or len(tensor) != len(tensors[0] if tensors else tensor):
            first = f", and row 0 has {len(tensors[0])}" if tensors else ""
            raise StitchError(f"{what} has shape {tuple(tensor.shape)}{first}: {ROW}, all of one length")
        tensors.append(tensor.detach().cpu().float())
    return torch.stack(tensors) if tensors else torch.empty(0)


def _check_numbers(latents: Any, what: str) -> Tensor:
    """Return latents as a tensor of real numbers.

    Raises:
        StitchError: the latents are complex, packed, or not numbers at all.
    """
    if not isinstance(latents, Tensor):
        try:
            array = np.asarray(latents)
        except ValueError as error:
            raise StitchError(f"{what} is not a row of numbers ({error}): {ROW}") from error
        if array.dtype.kind not in "fiubc":
            raise StitchError(f"{what} has values that are not numbers ({array.dtype}): {ROW}")
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        latents = torch.from_numpy(np.array(array, order="C"))
    if latents.is_complex():
        raise StitchError(f"{what} has complex numbers ({latents.dtype}): {ROW}")
    if latents.dtype == torch.bool or latents.dtype in BYTE_INTEGERS:
        raise StitchError(
            f"{what} is {latents.dtype}, quantised or packed bits: {ROW}; encode without quantising, or take "
            "np.unpackbits(latents, axis=1).astype(np.float32)"
        )
    return latents


def read_ids(file: Path, column: str) -> list[Any]:
    """Return the ids in a column of a Parquet file, or in a tensor of a safetensors file.

    Raises:
        StitchError: the file is of another kind, does not exist, or has no column of this name.
    """
    try:
        if file.suffix == ".parquet":
            return parquet.read_table(file, columns=[column])[column].to_pylist()
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(column).tolist()
    except (OSError, KeyError, SafetensorError, pa.ArrowException) as error:
        raise StitchError(
            f"{file} has no ids {column!r} ({error}): give a Parquet file with such a column, or a safetensors file "
            "with such a tensor"
        ) from error


def pair_by_ids(x: Tensor, y: Tensor, ids: tuple[Sequence[Any], Sequence[Any]]) -> tuple[Tensor, Tensor]:
    """Return the rows of both sides that have an id in common, in the order of the first side.

    Raises:
        StitchError: the number of ids is not the number of rows, an id appears twice, or the sides share no id.
    """
    places: list[dict[Any, int]] = []
    for side, latents, given in zip(("source", "target"), (x, y), ids, strict=True):
        known = {key: row for row, key in reversed(list(enumerate(given)))}
        if len(given) != len(latents):
            raise StitchError(f"the {side} has {len(latents)} rows and {len(given)} ids: expected one id a row")
        if len(known) < len(given):
            twice = next(row for row, key in enumerate(given) if known[key] != row)
            raise StitchError(f"id {given[twice]!r} of the {side} stands in rows {known[given[twice]]} and {twice}")
        places.append(known)
    shared = [key for key in ids[0] if key in places[1]]
    if not shared:
        raise StitchError(f"source and target have no id in common: {ids[0][0]!r} and {ids[1][0]!r} are the first ones")
    rows = [[known[key] for key in shared] for known in places]
    return x[rows[0]], y[rows[1]]


def mismatched(translated: Tensor, target: Tensor, groups: Sequence[Tensor]) -> tuple[float, float]:
    """Estimate the share of rows that do not correspond, and its standard error, from held-out translations.

    Each group holds the rows of a split. In each group, a translation is ranked among all others by its cosine to the
    row's own target. A row that corresponds ranks near the top; any other row ranks anywhere. So the share of rows that
    do not correspond is four times the share in the last quarter of ranks.
    """
    last = []
    for rows in groups:
        centre = target[rows].mean(0)
        directions = [functional.normalize(side[rows] - centre, dim=1) for side in (target, translated)]
        similarity = directions[0] @ directions[1].T
        better = (similarity > similarity.diagonal()[:, None]).sum(1)
        last.append(better > 0.75 * (len(rows) - 1))
    share = float(torch.cat(last).double().mean())
    count = sum(map(len, last))
    return 4 * share, 4 * (max(share * (1 - share), 0.25 / count) / count) ** 0.5
