"""Where translations go: a folder, here or wherever fsspec reaches, whose files appear whole or not at all."""

import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from hf_relstitch.core.errors import StitchError
from hf_relstitch.hub.files import checksum, only_run, whole_file

LOCK_NAME = ".translation.lock"


@dataclass(frozen=True)
class Output:
    """A folder to write to: a file system of fsspec and a path on it."""

    files: Any
    path: str

    @classmethod
    def at(cls, place: str | Path) -> "Output":
        """The folder at a path or a URL.

        Raises:
            StitchError: fsspec knows no such kind of URL, needs another package for it, or reaches nobody there.
        """
        with _explained(f"{place} cannot be written"):
            files, path = fsspec.url_to_fs(str(place))
        files.invalidate_cache()  # listings that an earlier call of this process had made
        return cls(files, path)

    def __str__(self) -> str:
        return self.path if self.is_local else self.files.unstrip_protocol(self.path)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return isinstance(self.files, LocalFileSystem)

    def place(self, name: str) -> str:
        """Where a file of it is, to be read by people."""
        return f"{self}/{name}"

    def sizes(self) -> dict[str, int]:
        """The size of each file that is there, by its name."""
        with _explained(f"{self} cannot be read"):
            try:
                found = self.files.find(self.path, detail=True)
            except FileNotFoundError:
                return {}
        return {posixpath.relpath(path, self.path): info["size"] for path, info in found.items()}

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        with _explained(f"{self} cannot be read"):
            return self.files.cat_file(posixpath.join(self.path, name))

    def checksum(self, name: str) -> str:
        """The checksum of a file, which is fetched for it."""
        if self.is_local:
            return checksum(Path(self.path, name))
        with tempfile.TemporaryDirectory(prefix="hf_relstitch-") as folder:
            fetched = Path(folder, "fetched")
            with _explained(f"{self} cannot be read"):
                self.files.get_file(posixpath.join(self.path, name), str(fetched))
            return checksum(fetched)

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        """A local file to write, which takes its place under `name` when the block ends without an error."""
        if self.is_local:
            file = Path(self.path, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as written:
                yield written
            return
        with tempfile.TemporaryDirectory(prefix="hf_relstitch-") as folder:
            written = Path(folder, "written")
            yield written
            with _explained(f"{self} cannot be written"):
                self._put(written, posixpath.join(self.path, name))

    def _put(self, file: Path, path: str) -> None:
        """Put a file on a remote place: under another name first, unless it is a store of objects.

        Such a store shows an object when all of it is there, and has no renaming of its own: fsspec copies and deletes.
        """
        if type(self.files).mv is AbstractFileSystem.mv:
            self.files.put_file(str(file), path)
            return
        folder, name = posixpath.split(path)
        partial = posixpath.join(folder, f".partial-{name}")
        self.files.makedirs(folder, exist_ok=True)
        self.files.put_file(str(file), partial)
        self.files.mv(partial, path)

    @contextmanager
    def only_run(self) -> Iterator[None]:
        """Keep the folder for one run, where it is local; it is made if it is not there.

        Raises:
            StitchError: it cannot be written, or another run is writing to it.
        """
        if not self.is_local:
            yield
            return
        with ExitStack() as held:
            try:
                Path(self.path).mkdir(parents=True, exist_ok=True)
                lock = Path(self.path, LOCK_NAME)
                held.enter_context(only_run(lock, doing=f"writing to {self}", instead="give another output folder"))
            except OSError as error:
                raise StitchError(f"{self} cannot be written ({error}): give another output folder") from error
            yield

    def keeps_apart(self, files: Any, folder: str | None, paths: list[str]) -> bool:
        """Whether neither it is in `folder`, nor one of the `paths` in it."""
        if files != self.files:
            return True
        own, *others = map(self._pure, [self.path, *paths])
        inside = folder is not None and own.is_relative_to(self._pure(folder))
        return not inside and not any(other.is_relative_to(own) for other in others)

    def _pure(self, path: str) -> PurePath:
        return Path(path).resolve() if self.is_local else PurePosixPath(path)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say of an error, which can be of any class that a file system brings, what could not be done."""
    try:
        yield
    except Exception as error:
        raise StitchError(
            f"{what} ({error or type(error).__name__}): check that it is there and that you may write to it, "
            "and run again, or give another output folder"
        ) from error
