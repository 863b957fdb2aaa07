"""Latents that were computed elsewhere: matrices in memory, and whole npy, safetensors and Parquet files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import parquet
from safetensors import safe_open
from torch import Tensor

from hf_relstitch.core.errors import StitchError

SUFFIXES = (".npy", ".safetensors", ".parquet")


def as_latents(given: Any, *, column: str = "latents") -> Tensor:
    """Return latents `(n, d)` from a torch tensor, an array-like or a file; `column` names a tensor in the file.

    Raises:
        StitchError: the file cannot be read or lacks the column, or the latents are not a matrix of floats.
    """
    try:
        found = _read_latents(Path(given), column) if isinstance(given, str | Path) else as_tensor(given)
    except Exception as error:  # whatever a library raises for a damaged file
        what = given if isinstance(given, str | Path) else f"a {type(given).__name__}"
        raise StitchError(f"{what} cannot be read as latents, (n, d) floats: {error}") from error
    if found.ndim != 2 or not found.is_floating_point():
        raise StitchError(f"the latents are {found.dtype} of shape {tuple(found.shape)}: expected (n, d) floats")
    return found


def _read_latents(file: Path, column: str) -> Tensor:
    """The latents in a file, all of them.

    Raises:
        StitchError: another kind of file, or none with such a column.
    """
    if file.suffix == ".npy":
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        if (rest := file.stat().st_size - mapped.offset - mapped.nbytes) != 0:
            raise ValueError(f"its header says {mapped.shape}, and {rest} bytes are left: copy or write it again")
        return as_tensor(mapped)
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            return opened.get_tensor(_named(column, names, file))
    if file.suffix == ".parquet":
        names = parquet.read_schema(file).names
        table = parquet.read_table(file, columns=[_named(column, names, file)])
        return as_tensor(np.stack(table[column].to_numpy()))
    raise StitchError(f"{file} is no file of latents: expected one that ends in {', '.join(SUFFIXES)}")


def _named(column: str, names: list[str], file: Path) -> str:
    if column not in names:
        raise StitchError(f"{file} has no {column!r}: say column=, one of {', '.join(names)}")
    return column


def as_tensor(given: Any, dtype: type[np.floating] | None = None) -> Tensor:
    """Return a tensor on the CPU: tensors or a list of them keep their dtype, an array-like gets this dtype.

    Raises:
        ValueError, TypeError: the tensors differ in shape, or numpy makes no array of numbers of the value.
    """
    if isinstance(given, Tensor):
        return given.detach().cpu()
    if isinstance(given, list | tuple) and given and all(isinstance(one, Tensor) for one in given):
        if len(shapes := {tuple(one.shape) for one in given}) > 1:
            raise ValueError(f"its tensors have shapes {' and '.join(map(str, sorted(shapes)))}")
        return torch.stack([one.detach().cpu() for one in given])
    array = np.asarray(given)
    if array.dtype == object and array.ndim:  # a column of vectors
        array = np.stack(list(array))
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.tensor(array if dtype is None else array.astype(dtype))
