"""Sources of stored latents: files, folders and data sets, local or anywhere that fsspec reaches."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from hf_relstitch.bulk.outputs import Output
from hf_relstitch.core.errors import StitchError

SUFFIXES = (".parquet", ".arrow", ".feather", ".safetensors", ".npy")
SIDECARS = ("dataset_info.json", "state.json", "dataset_dict.json")  # what `Dataset.save_to_disk` writes
ETAGS = ("blob_id", "etag", "ETag", "mtime", "created")


@dataclass(frozen=True)
class Source:
    """Hold a file to translate: its path, the name of its translation, and the size and etag that tell of a change."""

    files: Any
    path: str
    name: str
    size: int
    etag: str

    @property
    def suffix(self) -> str:
        """Return the file's suffix in lower case, which tells its kind."""
        return posixpath.splitext(self.name)[1].lower()

    @property
    def folders(self) -> set[str]:
        """Return the folder of the file, and the folder that its name starts from."""
        return {posixpath.dirname(self.path), posixpath.dirname(self.path.removesuffix(self.name) + "_")}

    @property
    def is_local(self) -> bool:
        """Tell if the file is on this machine."""
        return isinstance(self.files, LocalFileSystem)

    def open(self, *, cache: str = "readahead") -> BinaryIO:
        """Open the file for reading from front to back; with a `cache` of `none`, only requested ranges are fetched."""
        return self.files.open(self.path, "rb", cache_type=cache)

    def open_for_arrow(self, *, cache: str = "readahead") -> pa.NativeFile:
        """Open the file for Arrow; a local file is read without Python in between."""
        return pa.OSFile(self.path) if self.is_local else pa.PythonFile(self.open(cache=cache), mode="r")

    def read(self, start: int, end: int) -> bytes:
        """Read the bytes from `start` to `end`, and fetch no others."""
        return self.files.cat_file(self.path, start=start, end=end)


def find_sources(places: Sequence[str | Path], output: Output) -> list[Source]:
    """Find the files at `places`: paths, folders, globs, anything that fsspec opens, or a data set's name on the Hub.

    A folder's files keep their path in the folder. A single file keeps its name.

    Raises:
        StitchError: a place holds nothing to translate, two files would have the same name, or the output folder and
            the inputs are inside each other.
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
        elif not any(letter in path for letter in "*?["):
            raise FileNotFoundError("there is nothing")
        else:
            paths = files.glob(path)
            root = posixpath.commonpath([posixpath.dirname(one) for one in paths]) if paths else ""
        kept = [one for one in sorted(paths) if _is_known(one)]
        sources = [_source(files, one, posixpath.relpath(one, root)) for one in kept]
    except Exception as error:  # each file system has its own
        raise StitchError(
            f"{place} cannot be read ({error or type(error).__name__}): check the place, that you may see it, and the "
            "connection, and run again"
        ) from error
    if not sources:
        raise StitchError(f"{place} holds nothing to translate: expected files that end in {', '.join(SUFFIXES)}")
    if not output.keeps_apart(files, root if root == path else None, kept):
        raise StitchError(f"the output folder {output} and the inputs are in one another: give another output folder")
    return sources


def _kind(files: Any, path: str) -> str | None:
    """Return `file`, `directory`, or None if the path does not exist; unlike `isfile` over HTTP, fetch nothing.

    Over HTTP every failure is a FileNotFoundError, whose cause says what it is.
    """
    try:
        return files.info(path)["type"]
    except FileNotFoundError as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None
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
