"""Translation of many files: finished files stay, missing files are written, and each file appears whole."""

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import xxhash
from transformers.utils import logging

from hf_relstitch.bulk.manifest import Manifest, Shard
from hf_relstitch.bulk.matrices import translate_npy, translate_safetensors
from hf_relstitch.bulk.outputs import LOCK_NAME, Output
from hf_relstitch.bulk.ray_cluster import each_on_cluster
from hf_relstitch.bulk.sources import Source, find_sources
from hf_relstitch.bulk.tables import retype_features, translate_arrow, translate_parquet
from hf_relstitch.bulk.translator import AnyModel, Translator, load_translation
from hf_relstitch.core.errors import StitchError
from hf_relstitch.encoders.devices import fingerprint
from hf_relstitch.hub.files import checksum

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded


@dataclass(frozen=True)
class BulkResult:
    """Hold the counts and the time of a run.

    Attributes:
        rows: the rows translated in this run.
        files: the files written in this run.
        kept: the files of an earlier run that are unchanged, by checksum or, if remote, by size.
        zeros: the translated rows that are zeros, which a failed encoding leaves; they stay zeros.
        seconds: the time of the run.
    """

    rows: int
    files: int
    kept: int
    seconds: float
    zeros: int = 0

    @property
    def rows_per_second(self) -> float:
        """Return the number of rows that this run translated in a second."""
        return self.rows / self.seconds

    def __str__(self) -> str:
        made = (
            f"{self.rows:,} rows in {self.files} files, {self.rows_per_second:,.0f} rows/s" if self.files else "nothing"
        )
        zeros = f"; {self.zeros:,} rows of zeros stay zeros" if self.zeros else ""
        return f"translated {made}; {self.kept} files were there already{zeros}"


def translate_files(
    model: AnyModel,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    column: str = "latents",
    batch_size: int = 16384,
    dtype: str | None = None,
    keep_nonfinite: bool = False,
    revision: str | None = None,
    verify: bool = False,
    ray: bool = False,
    progress: bool = True,
) -> BulkResult:
    """Translate files of stored latents into the target's space, to a folder with the same files, in constant memory.

    Every other column, tensor and row stays unchanged. A file appears whole or not at all. A manifest in the folder
    lists the finished files. A run after a stopped run continues with the first file that is missing or damaged; the
    files are the same as the files of a single run.

    Args:
        model: a stitched model: a folder, a Hub id (its encoder is not loaded), or a model in memory; or a translation
            alone, which `translation_between` returned, or its file.
        inputs: Parquet, Arrow, Feather, safetensors or npy files: paths, folders (also of a saved `datasets` data set),
            globs, anything that fsspec opens, like `hf://` and `s3://`, or a data set's name on the Hub.
        output: a folder, or the URL of a folder that fsspec can write to, like `s3://` and `hf://datasets/ME/REPO`.
        column: the column, or the tensor of a safetensors file, that holds the latents.
        batch_size: rows to translate at a time, and rows of a row group in Parquet.
        dtype: `float16`, `bfloat16`, `float32` or `float64`, for the translated latents; None for the stored dtype.
        keep_nonfinite: keep rows that have not-a-number or infinite values, instead of refusing them.
        revision: the revision of a model on the Hub.
        verify: translate nothing, and raise an error unless all files exist and are unchanged. This reads remote files
            again; other runs compare their sizes.
        ray: translate the files on a Ray cluster, whose nodes all see the inputs and the output folder and have this
            package; the files and the manifest are the same.
        progress: show a progress bar.

    Raises:
        StitchError: the model or the inputs do not exist, or the latents cannot be translated; the output folder was
            begun with another model, other settings or other inputs, or cannot be written.
    """
    begun = time.perf_counter()
    translation, which = load_translation(model, revision=revision)
    translator = Translator(translation, column, batch_size, dtype, keep_nonfinite, which["fingerprint"])
    folder = Output.at(output)
    sources = find_sources([inputs] if isinstance(inputs, str | Path) else inputs, folder)

    Manifest.check_inputs(sources, translator.fingerprint)

    def look(*, read: bool) -> tuple[Manifest, dict[Source, str]]:
        there = folder.sizes()
        manifest = Manifest.open(folder, which, translator, sources, there=there)
        return manifest, _missing(manifest, sources, folder, there, read=read)

    manifest, missing = look(read=verify)
    if not missing and folder.is_local and not verify:
        manifest, missing = look(read=True)
    if verify and missing:
        faults = "; ".join(f"{source.name}: {fault}" for source, fault in missing.items())
        raise StitchError(f"{folder} is not what was translated: {faults}: run again without verify to mend it")
    if missing:  # what is done needs no lock, and may be where nobody can write
        with folder.run_lock():
            if folder.is_local:  # another run may have written until now
                manifest, missing = look(read=True)
            for source, fault in missing.items():
                if source.name in manifest.shards:
                    logger.warning(f"{folder.place(source.name)}: {fault}")
            if missing:
                manifest.write(folder)
                translate = _translate_on_cluster if ray else _translate_missing
                translate(manifest, missing, translator, folder, progress=progress)
    elif folder.is_local and Path(folder.path, LOCK_NAME).exists():
        with suppress(StitchError), folder.run_lock():  # which removes what a run left that was killed at its end
            pass
    shards = [manifest.shards[source.name] for source in missing]
    rows, zeros = sum(shard.rows for shard in shards), sum(shard.zeros for shard in shards)
    return BulkResult(rows, len(missing), len(sources) - len(missing), time.perf_counter() - begun, zeros)


def _missing(
    manifest: Manifest, sources: Sequence[Source], folder: Output, there: Mapping[str, int], *, read: bool
) -> dict[Source, str]:
    """Return the inputs whose translation is missing or has changed, and why."""
    faults = {}
    for source in sources:
        shard = manifest.shards.get(source.name)
        size = there.get(source.name)
        fault = shard.fault(source.name, folder, size=size, read=read) if shard else "it is not translated yet"
        if fault:
            faults[source] = fault
    return faults


def _translate_missing(
    manifest: Manifest, missing: Collection[Source], translator: Translator, folder: Output, *, progress: bool
) -> None:
    """Translate each file, and record it in the manifest as soon as it is in the folder."""
    total = sum(source.size for source in missing)
    with logging.tqdm(total=total, desc="translating", unit="B", unit_scale=True, disable=not progress) as bar:
        begun, rows, size, shown = time.perf_counter(), 0, 0, 0

        def advance(more_rows: int, more_bytes: int) -> None:
            nonlocal rows, shown
            rows += more_rows
            bar.set_postfix_str(f"{rows / (time.perf_counter() - begun):,.0f} rows/s", refresh=False)
            step = min(more_bytes, size - shown)  # compressed, a file is smaller than what is in it
            bar.update(step)
            shown += step

        for source in missing:
            size += source.size
            manifest.shards[source.name] = _translate_file(source, folder, translator, advance=advance)
            bar.update(size - shown)
            shown = size
            manifest.write(folder)


def _translate_on_cluster(
    manifest: Manifest, missing: Collection[Source], translator: Translator, folder: Output, *, progress: bool
) -> None:
    """Translate files on a Ray cluster, in the order of completion; its nodes need not have the model's GPU."""
    translator = replace(translator, translation=deepcopy(translator.translation).cpu())
    total = sum(source.size for source in missing)
    with logging.tqdm(total=total, desc="translating", unit="B", unit_scale=True, disable=not progress) as bar:
        for source, shard in each_on_cluster(_translate_file, missing, folder, translator):
            manifest.shards[source.name] = shard
            manifest.write(folder)
            bar.update(source.size)


def _translate_file(
    source: Source, folder: Output, translator: Translator, *, advance: Callable[[int, int], None] | None = None
) -> Shard:
    """Translate a file into a folder, where it appears whole or not at all; `advance` gets finished rows and bytes.

    Raises:
        StitchError: the file cannot be read or translated, or its translation cannot be written.
    """
    rows, translator = 0, replace(translator)  # with a tally of its own
    with _explained(source.path, folder.place(source.name)), folder.whole(source.name) as written:
        with written.open("wb") as sink:
            for more_rows, more_bytes in FORMATS[source.suffix](source, sink, translator):
                rows += more_rows
                if advance:
                    advance(more_rows, more_bytes)
        return Shard(rows, written.stat().st_size, checksum(written), translator.tally.get("zeros", 0))


def _translate_sidecar(source: Source, sink: BinaryIO, translator: Translator) -> Iterator[tuple[int, int]]:
    """Translate a file that `Dataset.save_to_disk` writes beside its shards: set the latents' new width and dtype."""
    with source.open() as stream:
        content = json.load(stream)
    retype_features(content, translator, translator.dtype)
    if "_fingerprint" in content:
        digest = f"{content['_fingerprint']} {fingerprint(translator.translation)}"
        content["_fingerprint"] = xxhash.xxh64(digest.encode()).hexdigest()
    sink.write(json.dumps(content, indent=2, sort_keys=True).encode())
    yield 0, source.size


FORMATS = {
    ".parquet": translate_parquet,
    ".arrow": translate_arrow,
    ".feather": translate_arrow,
    ".safetensors": translate_safetensors,
    ".npy": translate_npy,
    ".json": _translate_sidecar,
}


@contextmanager
def _explained(reading: str, writing: str) -> Iterator[None]:
    """Raise errors that name their file."""
    try:
        yield
    except StitchError as error:
        raise StitchError(f"{reading}: {error}") from error
    except Exception as error:  # whatever a library raises for a damaged file or a place that cannot be written
        raise StitchError(
            f"{reading} cannot be translated to {writing} ({error}): check that the one is whole and that the other "
            "can be written, and run again"
        ) from error
