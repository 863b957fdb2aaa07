"""Rows per second and peak memory of translating a Parquet file, against a loop that one would write by hand.

python perf/bulk.py --rows 500000 5000000 --folder /tmp/bulk
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM, CHUNK = 128, 50_000
BATCH = 16_384  # rows at a time, and of a row group that is written, on both sides


def make(file: Path, rows: int) -> None:
    """Random latents with ids, in row groups."""
    generator = np.random.default_rng(0)
    schema = pa.schema([("id", pa.int64()), ("latents", pa.list_(pa.float32(), DIM))])
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            values = pa.array(generator.standard_normal((count, DIM), dtype=np.float32).reshape(-1))
            latents = pa.FixedSizeListArray.from_arrays(values, DIM)
            writer.write_batch(
                pa.RecordBatch.from_arrays([pa.array(range(start, start + count)), latents], schema=schema)
            )


def matrix() -> tuple[np.ndarray, np.ndarray]:
    """A translation."""
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((DIM, DIM), dtype=np.float32) / DIM**0.5
    return weight, generator.standard_normal(DIM, dtype=np.float32)


def by_hand(source: Path, output: Path) -> None:
    """Read a batch, multiply, write it, with the options that `hf_relstitch.bulk` reads and writes Parquet with."""
    weight, bias = matrix()
    options = {"compression": "snappy", "use_dictionary": ["id"]}
    with (
        pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file,
        pq.ParquetWriter(output, file.schema_arrow, **options) as writer,
    ):
        for batch in file.iter_batches(batch_size=BATCH):
            latents = batch.column("latents").flatten().to_numpy().reshape(-1, DIM)
            translated = latents @ weight
            translated += bias
            column = pa.FixedSizeListArray.from_arrays(pa.array(translated.reshape(-1)), DIM)
            writer.write_batch(pa.RecordBatch.from_arrays([batch.column("id"), column], schema=file.schema_arrow))


def by_package(source: Path, output: Path) -> None:
    """The same with `hf_relstitch.bulk`, with checksum, without a model's encoder."""
    import torch

    from hf_relstitch.bulk.outputs import Output
    from hf_relstitch.bulk.sources import find_sources
    from hf_relstitch.bulk.translate import _translate_file
    from hf_relstitch.bulk.translator import Translator
    from hf_relstitch.core.translation import Translation

    weight, bias = (torch.from_numpy(one) for one in matrix())
    translation = Translation(DIM, DIM, norm="keep")
    translation.weight, translation.bias, translation.centre = weight, bias, torch.zeros(DIM)
    folder = Output.at(output.parent / "translated")
    (found,) = find_sources([source], folder)
    _translate_file(found, folder, Translator(translation, batch_size=BATCH))


WAYS = {"by hand": by_hand, "hf_relstitch": by_package}


def measure(way: str, source: Path) -> None:
    """Run once and print the process's peak memory in MB; `ru_maxrss` would start at that of the parent."""
    WAYS[way](source, source.with_name(f"{way}.parquet"))
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def layout(file: Path) -> list[tuple[str, str, int]]:
    """Compression, encodings and values of each column chunk of a Parquet file: whether two were written alike."""
    metadata = pq.read_metadata(file)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(metadata.num_columns)]
    return [(chunk.compression, str(chunk.encodings), chunk.num_values) for chunk in chunks]


def compare(source: Path, rows: int, pairs: int) -> None:
    """Both ways by turns in this process, and the median ratio of the pairs."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    cores: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(pairs + 1):
        for way, run in list(WAYS.items())[:: 1 if number % 2 else -1]:
            for written in (source.with_name(f"{way}.parquet"), source.parent / "translated" / source.name):
                written.unlink(missing_ok=True)
            begun, used = time.perf_counter(), time.process_time()
            run(source, source.with_name(f"{way}.parquet"))
            if number:
                rates[way].append(rows / (time.perf_counter() - begun))
                cores[way].append(rows / (time.process_time() - used))
    if layout(source.with_name("by hand.parquet")) != layout(source.parent / "translated" / source.name):
        raise SystemExit("the two files were not written with the same options: the comparison is not fair")
    for way, found in rates.items():
        print(f"{rows:,} rows, {way}: {statistics.median(found):,.0f} rows/s (median of {pairs})")
    for what, found in (("of the clock", rates), ("of the cores' time", cores)):
        ratios = [ours / theirs for ours, theirs in zip(found["hf_relstitch"], found["by hand"], strict=True)]
        print(
            f"{rows:,} rows, ratio by rows/s {what}: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def peak(way: str, source: Path) -> float:
    """Peak memory in MB of a process of its own."""
    command = [sys.executable, __file__, "--measure", way, "--folder", str(source)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Make the files, compare on the smallest, measure memory on each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[500_000, 5_000_000])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("bulk-files"))
    parser.add_argument("--measure", choices=list(WAYS))
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.folder)
        return
    options.folder.mkdir(exist_ok=True)
    sources = {rows: options.folder / f"{rows}.parquet" for rows in sorted(options.rows)}
    for rows, source in sources.items():
        if not source.is_file():
            make(source, rows)
    compare(next(iter(sources.values())), next(iter(sources)), options.pairs)
    for way in WAYS:
        for rows, source in sources.items():
            print(f"{rows:,} rows, {way}: peak {peak(way, source):,.0f} MB")


if __name__ == "__main__":
    main()
