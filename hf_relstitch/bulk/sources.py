"""Where stored latents lie: files, folders and data sets, here or wherever fsspec reaches."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub.errors import HfHubHTTPError

from hf_relstitch.bulk.outputs import Output
from hf_relstitch.core.errors import StitchError

SUFFIXES = (".parquet", ".arrow", ".feather", ".safetensors", ".npy")
SIDECARS = ("dataset_info.json", "state.json", "dataset_dict.json")  # what `Dataset.save_to_disk` writes
ETAGS = ("blob_id", "etag", "ETag", "mtime", "created")


@dataclass(frozen=True)
class Source:
    """One file to translate: where it is, the name that its translation has, and what tells that it has changed."""

    files: Any
    path: str
    name: str
    size: int
    etag: str

    @property
    def suffix(self) -> str:
        """The kind of file."""
        return posixpath.splitext(self.name)[1].lower()

    @property
    def folders(self) -> set[str]:
        """The folder that it is in, and the one that its name starts from."""
        return {posixpath.dirname(self.path), posixpath.dirname(self.path.removesuffix(self.name) + "_")}

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return isinstance(self.files, LocalFileSystem)

    def open(self, *, cache: str = "readahead") -> BinaryIO:
        """Its bytes, to be read from front to back; with a `cache` of `none` just the ranges that are asked for."""
        return self.files.open(self.path, "rb", cache_type=cache)

    def open_for_arrow(self, *, cache: str = "readahead") -> pa.NativeFile:
        """The same, without Python in between where it is a local file."""
        return pa.OSFile(self.path) if self.is_local else pa.PythonFile(self.open(cache=cache), mode="r")

    def read(self, start: int, end: int) -> bytes:
        """Some of its bytes, and no more than those."""
        return self.files.cat_file(self.path, start=start, end=end)


def find_sources(places: Sequence[str | Path], output: Output) -> list[Source]:
    """The files at `places`: paths, folders, globs, whatever fsspec opens, or a data set's name on the Hub.

    A folder's files keep their path in it, a single file its name.

    Raises:
        StitchError: nothing is there that can be translated, two files would have one name, or `output` is among them.
    """
    found: dict[str, Source] = {}
    for place in places:
        for source in _at(str(place), output):
            if source.name in found:
                raise StitchError(
                    f"{found[source.name].path} and {source.path} would both become {source.name}: "
                    "give the folder that holds both"
                )
            found[source.name] = source
    if not found:
        raise StitchError("there are no inputs: give at least one file, folder or data set")
    return list(found.values())


def _at(place: str, output: Output) -> list[Source]:
    if "://" not in place and not Path(place).exists() and not any(letter in place for letter in "*?["):
        if place.count("/") > 1 or posixpath.splitext(place)[1] in SUFFIXES:
            raise StitchError(f"there is no file or folder {place}: check the path")
        place = f"hf://datasets/{place}"
    try:
        files, path = fsspec.url_to_fs(place)
        kind = _kind(files, path)
        if kind == "file":
            paths, root = [path], posixpath.dirname(path)
        elif kind == "directory":
            paths, root = files.find(path), path
        else:
            paths = files.glob(path)
            root = posixpath.commonpath([posixpath.dirname(one) for one in paths]) if paths else ""
        kept = [one for one in sorted(paths) if _is_known(one)]
        sources = [_source(files, one, posixpath.relpath(one, root)) for one in kept]
    except (OSError, ValueError, ImportError, HfHubHTTPError) as error:
        raise StitchError(f"{place} cannot be read ({error}): check the place and that you may see it") from error
    if not sources:
        raise StitchError(f"{place} holds nothing to translate: expected files that end in {', '.join(SUFFIXES)}")
    if not output.keeps_apart(files, root if root == path else None, kept):
        raise StitchError(f"the output folder {output} and the inputs are in one another: give another output folder")
    return sources


def _kind(files: Any, path: str) -> str | None:
    """`file`, `directory`, or None where nothing is; without fetching it, as `isfile` does over HTTP."""
    try:
        return files.info(path)["type"]
    except FileNotFoundError:
        return None


def _is_known(path: str) -> bool:
    name = posixpath.basename(path)
    return name in SIDECARS or (
        name.lower().endswith(SUFFIXES) and not name.startswith((".", "cache-"))  # `Dataset.map` keeps cache-*.arrow
    )


def _source(files: Any, path: str, name: str) -> Source:
    info = files.info(path)
    etag = next((str(info[key]) for key in ETAGS if info.get(key)), "")
    return Source(files, path, name, info["size"], etag)
