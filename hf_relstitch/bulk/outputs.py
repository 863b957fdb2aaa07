"""Output folders of translations, local or anywhere that fsspec reaches; files appear whole or not at all."""

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
from hf_relstitch.hub.files import atomic_write, checksum, run_lock

LOCK_NAME = ".translation.lock"


@dataclass(frozen=True)
class Output:
    """Hold a folder to write to: a file system of fsspec and a path on it."""

    files: Any
    path: str

    @classmethod
    def at(cls, place: str | Path) -> "Output":
        """Find the folder at a path or a URL.

        Raises:
            StitchError: fsspec does not know this kind of URL, needs another package for it, or gets no answer.
        """
        with _explained(f"{place} cannot be written"):
            files, path = fsspec.url_to_fs(str(place))
        files.invalidate_cache()  # listings that an earlier call of this process had made
        return cls(files, path)

    def __str__(self) -> str:
        return self.path if self.is_local else self.files.unstrip_protocol(self.path)

    @property
    def is_local(self) -> bool:
        """Tell if the folder is on this machine."""
        return isinstance(self.files, LocalFileSystem)

    def place(self, name: str) -> str:
        """Return the path or URL of a file in the folder, for messages to people."""
        return f"{self}/{name}"

    def sizes(self) -> dict[str, int]:
        """Return the size of each file in the folder, by its name."""
        with _explained(f"{self} cannot be read"):
            try:
                found = self.files.find(self.path, detail=True)
            except FileNotFoundError:
                return {}
        return {posixpath.relpath(path, self.path): info["size"] for path, info in found.items()}

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        with _explained(f"{self} cannot be read"):
            return self.files.cat_file(posixpath.join(self.path, name))

    def checksum(self, name: str) -> str:
        """Return the checksum of a file; a remote file is fetched first."""
        if self.is_local:
            return checksum(Path(self.path, name))
        with tempfile.TemporaryDirectory(prefix="hf_relstitch-") as folder:
            fetched = Path(folder, "fetched")
            with _explained(f"{self} cannot be read"):
                self.files.get_file(posixpath.join(self.path, name), str(fetched))
            return checksum(fetched)

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        """Yield a local file to write, and store it under `name` when the block ends without an error."""
        if self.is_local:
            file = Path(self.path, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as written:
                yield written
            return
        with tempfile.TemporaryDirectory(prefix="hf_relstitch-") as folder:
            written = Path(folder, "written")
            yield written
            with _explained(f"{self} cannot be written"):
                self._put(written, posixpath.join(self.path, name))

    def _put(self, file: Path, path: str) -> None:
        """Put a file on a remote file system: under another name first, unless it is a store of objects.

        A store of objects shows an object when it is complete. It cannot rename: fsspec copies and deletes.
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
    def run_lock(self) -> Iterator[None]:
        """Lock a local folder for this run, and create it if it does not exist.

        Raises:
            StitchError: the folder cannot be written, or another run is writing to it.
        """
        if not self.is_local:
            yield
            return
        with ExitStack() as held:
            try:
                Path(self.path).mkdir(parents=True, exist_ok=True)
                lock = Path(self.path, LOCK_NAME)
                held.enter_context(run_lock(lock, doing=f"writing to {self}", instead="give another output folder"))
            except OSError as error:
                raise StitchError(f"{self} cannot be written ({error}): give another output folder") from error
            yield

    def keeps_apart(self, files: Any, folder: str | None, paths: list[str]) -> bool:
        """Tell if the output folder is not in `folder`, and none of `paths` is in the output folder."""
        if files != self.files:
            return True
        own, *others = map(self._pure, [self.path, *paths])
        inside = folder is not None and own.is_relative_to(self._pure(folder))
        return not inside and not any(other.is_relative_to(own) for other in others)

    def _pure(self, path: str) -> PurePath:
        return Path(path).resolve() if self.is_local else PurePosixPath(path)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise a StitchError that says what failed, for any error in the block: each file system has its own classes."""
    try:
        yield
    except Exception as error:
        raise StitchError(
            f"{what} ({error or type(error).__name__}): check that it is there and that you may write to it, "
            "and run again, or give another output folder"
        ) from error
