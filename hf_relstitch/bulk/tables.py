"""Latents in a column of a Parquet or Arrow table, translated batch by batch; all other columns are kept."""

import json
from collections.abc import Iterator
from io import BytesIO
from itertools import chain, islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from hf_relstitch.bulk.sources import Source
from hf_relstitch.bulk.translator import NOTE, Translator, check_not_translated, note_of
from hf_relstitch.core.errors import StitchError

ARROW_TYPES = {torch.float16: pa.float16(), torch.float32: pa.float32(), torch.float64: pa.float64()}
TORCH_DTYPES = {arrow: dtype for dtype, arrow in ARROW_TYPES.items()}
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
BUFFERS = {True: 1 << 20, False: 1 << 22}  # bytes that are read at a time of a column, here and from afar


def translate_parquet(source: Source, sink: BinaryIO, translator: Translator) -> Iterator[tuple[int, int]]:
    """Translate a Parquet file, and yield rows and bytes of each finished batch."""
    options = {"pre_buffer": False, "buffer_size": BUFFERS[source.is_local]}
    with source.open_for_arrow(cache="none") as opened, pq.ParquetFile(opened, **options) as file:
        schema = translated_schema(file.schema_arrow, translator)
        stored = file.iter_batches(translator.batch_size)
        first = list(islice(stored, 1))  # fails for a damaged file whose metadata end the process if they are read
        options = _parquet_options(file if first else None, schema, translator.column)
        with pq.ParquetWriter(sink, schema, **options) as writer:
            for batch in translated_batches(chain(first, stored), schema, translator):
                writer.write_batch(batch)
                yield batch.num_rows, batch.nbytes


def _parquet_options(file: pq.ParquetFile | None, schema: pa.Schema, column: str) -> dict[str, Any]:
    """Return the compression of each column, if there is a file, and dictionaries for all but the latents."""
    named = BytesIO()  # the elements of lists may have other names in the file
    pq.write_table(schema.empty_table(), named)
    written = pq.ParquetFile(named).schema
    paths = [written.column(index).path for index in range(len(written))]
    others = [path for path in paths if path.split(".")[0] != column]
    options: dict[str, Any] = {"use_dictionary": others or False}
    if file is not None:
        group = file.metadata.row_group(0)
        names = {path: group.column(index).compression for index, path in enumerate(paths)}
        options["compression"] = {path: "NONE" if name == "UNCOMPRESSED" else name for path, name in names.items()}
    return options


def translate_arrow(source: Source, sink: BinaryIO, translator: Translator) -> Iterator[tuple[int, int]]:
    """Translate an Arrow file, stream (as `datasets` saves) or Feather file, and yield rows and bytes of each batch."""
    is_file = source.read(0, 6) == b"ARROW1"
    if not is_file and source.read(max(source.size - len(END_OF_STREAM), 0), source.size) != END_OF_STREAM:
        raise StitchError("it is cut short, or no Arrow file: copy or write it again")
    with source.open_for_arrow() as opened:
        reader = pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)
        schema = translated_schema(reader.schema, translator)
        stored = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        options = pa.ipc.IpcWriteOptions(compression="lz4" if source.suffix == ".feather" else None)
        with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(sink, schema, options=options) as writer:
            pieces = (batch.slice(at, translator.batch_size) for batch in stored for at in _starts(batch, translator))
            for batch in translated_batches(pieces, schema, translator):
                writer.write_batch(batch)
                yield batch.num_rows, batch.nbytes


def _starts(batch: pa.RecordBatch, translator: Translator) -> range:
    return range(0, max(batch.num_rows, 1), translator.batch_size)


def translated_batches(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, translator: Translator
) -> Iterator[pa.RecordBatch]:
    """Yield batches with their column of latents translated."""
    place, row = schema.get_field_index(translator.column), 0
    for batch in batches:
        columns = batch.columns
        latents = _as_matrix(columns[place], translator, first_row=row)
        columns[place] = _as_column(translator(latents, first_row=row), schema.field(place).type)
        row += batch.num_rows
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def translated_schema(schema: pa.Schema, translator: Translator) -> pa.Schema:
    """Return the schema of the translated table: its latents have the target's width and the output's dtype.

    Raises:
        StitchError: the column does not exist, or does not hold lists of floats of the source's width.
    """
    lists = [field.name for field in schema if _is_list(field.type)]
    if schema.names.count(translator.column) != 1:
        raise StitchError(
            f"there is no single column {translator.column!r}: its columns are {', '.join(schema.names)}; "
            f"those that could hold latents, for column=, are {', '.join(lists) or 'none'}"
        )
    field = schema.field(translator.column)
    if not _is_list(field.type):
        raise StitchError(f"column {field.name!r} holds {field.type}: expected lists of float16, float32 or float64")
    if pa.types.is_fixed_size_list(field.type):
        translator.check_width(field.type.list_size, f"column {field.name!r}")
    dtype = translator.output_dtype(TORCH_DTYPES[field.type.value_type])
    if dtype not in ARROW_TYPES:
        raise StitchError(f"tables cannot hold {dtype}: use float16, float32 or float64")
    value = field.type.value_field.with_type(ARROW_TYPES[dtype])
    kind = _with_value(field.type, value, translator.d_target)
    metadata = dict(schema.metadata or {})
    check_not_translated(metadata, translator, "it")
    if translator.fingerprint:
        metadata[NOTE.encode()] = note_of(translator, metadata).encode()
    if b"huggingface" in metadata:
        written = json.loads(metadata[b"huggingface"])
        written.pop("fingerprint", None)
        retype_features(written.get("info", {}), translator, str(dtype).removeprefix("torch."))
        metadata[b"huggingface"] = json.dumps(written).encode()
    return schema.set(schema.get_field_index(field.name), field.with_type(kind)).with_metadata(metadata or None)


def retype_features(info: dict[str, Any], translator: Translator, dtype: str | None) -> None:
    """Set the latents' new width in the features that `datasets` stores, and their dtype if it changes."""
    feature = (info.get("features") or {}).get(translator.column)
    if not isinstance(feature, dict):
        return
    if feature.get("length", -1) != -1:
        feature["length"] = translator.d_target
    if dtype and isinstance(feature.get("feature"), dict):
        feature["feature"]["dtype"] = dtype


def _is_list(kind: pa.DataType) -> bool:
    known = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_one(kind) for is_one in known) and kind.value_type in TORCH_DTYPES


def _with_value(kind: pa.DataType, value: pa.Field, width: int) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(value, width)
    return pa.large_list(value) if pa.types.is_large_list(kind) else pa.list_(value)


def _as_matrix(column: pa.Array, translator: Translator, *, first_row: int) -> Tensor:
    """Return the rows of a column of lists, `(n, d_source)`, on the column's own memory.

    Raises:
        StitchError: a row is missing, has another width, or has missing values.
    """
    if column.null_count:
        row = first_row + pc.index(column.is_null(), True).as_py()
        raise StitchError(f"row {row} has no latent (null): fill in or remove such rows")
    lengths = pc.list_value_length(column)
    wrong = pc.index(pc.not_equal(lengths, translator.d_source), True).as_py()
    if wrong >= 0:
        translator.check_width(lengths[wrong].as_py(), f"row {first_row + wrong}")
    values = column.flatten()
    if values.null_count:
        row = first_row + pc.index(values.is_null(), True).as_py() // translator.d_source
        raise StitchError(f"row {row} has missing values (null) in its latent: fill in or remove such rows")
    return from_dlpack(values).view(len(column), translator.d_source)


def _as_column(latents: Tensor, kind: pa.DataType) -> pa.Array:
    """Return the rows of a matrix as a column of lists, on the matrix's own memory."""
    values = pa.array(latents.contiguous().view(-1).numpy())
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    made, offsets = (pa.LargeListArray, torch.int64) if pa.types.is_large_list(kind) else (pa.ListArray, torch.int32)
    if latents.numel() > torch.iinfo(offsets).max:
        raise StitchError(f"{len(latents):,} translated rows are more than one list column holds: lower the batch_size")
    starts = torch.arange(len(latents) + 1, dtype=offsets) * latents.shape[1]
    return made.from_arrays(pa.array(starts.numpy()), values, type=kind)
