"""Latents as a matrix in an npy or safetensors file, translated block by block; other tensors are kept."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from hf_relstitch.bulk.sources import Source
from hf_relstitch.bulk.translator import NOTE, Translator, check_not_translated, note_of
from hf_relstitch.core.errors import StitchError

NPY_DTYPES = {"<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64}
SAFETENSORS_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
LONGEST_HEADER = 100_000_000  # as in the safetensors library
CHUNK = 1 << 22
CUT_SHORT = "it is cut short: copy or write it again"


@dataclass(frozen=True)
class Matrix:
    """Hold the position, shape and dtype of a matrix in a file, where its rows follow each other."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Return the matrix's size in the file, in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def blocks(self, stream: BinaryIO, rows: int) -> Iterator[Tensor]:
        """Yield blocks of `rows` rows; the last block may be shorter."""
        stream.seek(self.offset)
        for start in range(0, self.shape[0], rows):
            count = min(rows, self.shape[0] - start)
            buffer = bytearray(count * self.shape[1] * self.dtype.itemsize)
            if stream.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
                raise StitchError(CUT_SHORT)
            yield torch.frombuffer(buffer, dtype=self.dtype).view(count, self.shape[1])


def translate_npy(source: Source, sink: BinaryIO, translator: Translator) -> Iterator[tuple[int, int]]:
    """Translate a matrix in numpy's format, and yield rows and bytes of each finished block."""
    with source.open() as stream:
        matrix = _read_npy_header(stream)
        translator.check_width(matrix.shape[1], "the matrix")
        if source.size != matrix.offset + matrix.nbytes:
            raise StitchError(
                f"its header says {matrix.nbytes:,} bytes of data and it has {source.size - matrix.offset:,}: copy or "
                "write it again"
            )
        dtype = translator.output_dtype(matrix.dtype)
        names = {torch_dtype: name for name, torch_dtype in NPY_DTYPES.items()}
        if dtype not in names:
            raise StitchError(f"numpy cannot hold {dtype}: use float16, float32 or float64")
        header = {"descr": names[dtype], "fortran_order": False, "shape": (matrix.shape[0], translator.d_target)}
        np.lib.format.write_array_header_1_0(sink, header)
        yield from _translate_blocks(matrix, stream, sink, translator)


def _read_npy_header(stream: BinaryIO) -> Matrix:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise StitchError(f"its format is {version[0]}.{version[1]}: expected 1.0 to 3.0, as np.save writes")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if len(shape) != 2 or dtype.str not in NPY_DTYPES or (is_fortran and min(shape) > 1):
        order = "column by column" if is_fortran else "row by row"
        raise StitchError(
            f"the array is of shape {shape} and dtype {dtype.str}, {order}: "
            "expected (n, d) little-endian floats, row by row, as "
            "np.save(file, np.ascontiguousarray(latents, '<f4')) writes"
        )
    return Matrix(stream.tell(), shape, NPY_DTYPES[dtype.str])


def translate_safetensors(source: Source, sink: BinaryIO, translator: Translator) -> Iterator[tuple[int, int]]:
    """Translate a tensor of a safetensors file, and yield rows and bytes of each finished block."""
    with source.open() as stream:
        header, start = _read_header(stream, source.size)
        matrix = _latents_of(header, start, translator)
        written = _translated_header(header, matrix, translator)
        content = json.dumps(written, separators=(",", ":")).encode()
        content += b" " * (-len(content) % 8)
        sink.write(len(content).to_bytes(8, "little") + content)
        for name in written:
            if name == translator.column:
                yield from _translate_blocks(matrix, stream, sink, translator)
            elif name != "__metadata__":
                begin, end = header[name]["data_offsets"]
                _copy(stream, sink, start + begin, end - begin)


def _translated_header(header: dict[str, Any], matrix: Matrix, translator: Translator) -> dict[str, Any]:
    """Return the header of the translated file, in the order of its data: wide dtypes first, for alignment."""
    dtype = translator.output_dtype(matrix.dtype)
    names = {torch_dtype: name for name, torch_dtype in SAFETENSORS_DTYPES.items()}
    shape = [matrix.shape[0], translator.d_target]
    tensors = _tensors_in(header)
    sizes = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in tensors.items()}
    tensors[translator.column] = {"shape": shape, "dtype": names[dtype]}
    sizes[translator.column] = prod(shape) * dtype.itemsize
    metadata = header.get("__metadata__", {})
    check_not_translated(metadata, translator, "it")
    if translator.fingerprint:
        metadata = metadata | {NOTE: note_of(translator, metadata)}
    written: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name in sorted(tensors, key=lambda name: (-sizes[name] / max(prod(tensors[name]["shape"]), 1), name)):
        written[name] = tensors[name] | {"data_offsets": [position, position + sizes[name]]}
        position += sizes[name]
    return written


def _translate_blocks(
    matrix: Matrix, stream: BinaryIO, sink: BinaryIO, translator: Translator
) -> Iterator[tuple[int, int]]:
    row = 0
    for block in matrix.blocks(stream, translator.batch_size):
        translated = translator(block, first_row=row)
        sink.write(translated.contiguous().view(-1).view(torch.uint8).numpy().data)
        row += len(block)
        yield len(block), block.nbytes


def _read_header(stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Read the header of a safetensors file, and return it with the start of the data."""
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(LONGEST_HEADER, size - 8):
        raise StitchError("it is no safetensors file, or cut short: copy or write it again")
    try:
        header = json.loads(stream.read(length))
        tensors = _tensors_in(header).values()
        if not all(isinstance(text, str) for text in header.get("__metadata__", {}).values()):
            raise TypeError("its metadata are not texts")
        for entry in tensors:
            begin, end = entry["data_offsets"]
            sizes = [*entry["shape"], begin, end - begin]
            if not isinstance(entry["dtype"], str) or not all(isinstance(size, int) and size >= 0 for size in sizes):
                raise TypeError(f"an entry is {entry}")
        end = 0
        for entry in sorted(tensors, key=lambda entry: entry["data_offsets"]):
            if entry["data_offsets"][0] != end:
                raise ValueError(f"an entry begins at byte {entry['data_offsets'][0]} of the data, not at {end}")
            end = entry["data_offsets"][1]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StitchError(f"its header is damaged ({error!r}): copy or write it again") from error
    if size != 8 + length + end:
        raise StitchError(CUT_SHORT)
    return header, 8 + length


def _tensors_in(header: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _latents_of(header: dict[str, Any], start: int, translator: Translator) -> Matrix:
    tensors = _tensors_in(header)
    if translator.column not in tensors:
        raise StitchError(f"there is no tensor {translator.column!r}: its tensors are {', '.join(tensors)}")
    entry = tensors[translator.column]
    if len(entry["shape"]) != 2 or entry["dtype"] not in SAFETENSORS_DTYPES:
        raise StitchError(
            f"{translator.column!r} is {entry['dtype']} of shape {tuple(entry['shape'])}: expected (n, d) floats"
        )
    translator.check_width(entry["shape"][1], f"tensor {translator.column!r}")
    matrix = Matrix(start + entry["data_offsets"][0], tuple(entry["shape"]), SAFETENSORS_DTYPES[entry["dtype"]])
    if matrix.nbytes != entry["data_offsets"][1] - entry["data_offsets"][0]:
        raise StitchError(f"{translator.column!r} does not have the size that its shape says: write the file again")
    return matrix


def _copy(stream: BinaryIO, sink: BinaryIO, start: int, size: int) -> None:
    stream.seek(start)
    while size:
        chunk = stream.read(min(size, CHUNK))
        if not chunk:
            raise StitchError(CUT_SHORT)
        sink.write(chunk)
        size -= len(chunk)
