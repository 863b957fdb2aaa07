"""Manifest: what an output folder is made of and by which model, so that a run can go on and be checked."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_relstitch.bulk.sources import Source
from hf_relstitch.bulk.translator import Translator
from hf_relstitch.core.errors import StitchError
from hf_relstitch.files import check_format, checksum, read_json, whole_file, write_json
from hf_relstitch.version import __version__

MANIFEST_NAME = ".translation.json"  # hidden, so that `load_dataset` of the folder reads the shards alone
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """A file that is translated and in its place."""

    rows: int
    size: int
    checksum: str

    def fault(self, file: Path) -> str | None:
        """What is wrong with the file, if anything is."""
        if not file.is_file():
            return "it is not there"
        if file.stat().st_size != self.size or checksum(file) != self.checksum:
            return "it is damaged or was altered"
        return None


@dataclass
class Manifest:
    """The content of an output folder.

    Attributes:
        model: name, revision, fingerprint, scale and sharpness of the translation.
        settings: how it was applied.
        inputs: size and etag of each input, by its name.
        shards: rows, size and checksum of each output that is there, by its name.
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    shards: dict[str, Shard] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, model: dict[str, Any], translator: Translator, sources: Sequence[Source]) -> "Manifest":
        """The manifest of a folder, empty where it has none, with these inputs added.

        Raises:
            StitchError: the folder was begun with another model or other settings, or an input has changed since.
        """
        settings = {name: value for name, value in vars(translator).items() if name != "translation"}
        now = cls(model, settings)
        manifest = cls.read(folder) if (folder / MANIFEST_NAME).is_file() else now
        if manifest.identity != now.identity and manifest.shards:
            then = manifest.identity
            differences = [
                f"{name} {then.get(name)!r} and not {value!r}"
                for name, value in now.identity.items()
                if then.get(name) != value
            ]
            raise StitchError(
                f"{folder} was begun with {', '.join(differences)}: "
                "give another output folder, or the same model and settings"
            )
        manifest.model, manifest.settings = model, settings
        for source in sources:
            manifest.add(source, folder)
        return manifest

    def add(self, source: Source, folder: Path) -> None:
        """Note an input.

        Raises:
            StitchError: it is another than the one that was translated, or its output's place is taken.
        """
        now = {"size": source.size, "etag": source.etag}
        before = self.inputs.get(source.name)
        if before is None and (folder / source.name).exists():
            raise StitchError(
                f"{folder / source.name} is there and no translation of these inputs: give another output folder"
            )
        if source.name in self.shards and before != now:
            raise StitchError(
                f"{source.path} has changed since it was translated: size and etag were {before} and are {now}; "
                "give another output folder"
            )
        self.inputs[source.name] = now

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs into one folder have to have in common."""
        model = {name: self.model[name] for name in ("scale", "sharpness")}
        return {"model": self.model["fingerprint"], **model, **self.settings}

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest that a folder has.

        Raises:
            StitchError: it has none, or one that is damaged or of a newer format.
        """
        content = read_json(folder / MANIFEST_NAME)
        version = content.pop("format_version", None)
        written_by = content.pop("hf_relstitch_version", None)
        check_format(version, supported=FORMAT_VERSION, what=f"{folder / MANIFEST_NAME}", written_by=written_by)
        try:
            shards = {name: Shard(**shard) for name, shard in content.pop("shards").items()}
            return cls(**content, shards=shards)
        except (KeyError, TypeError, AttributeError) as error:
            raise StitchError(
                f"{folder / MANIFEST_NAME} is damaged ({error!r}): translate into another folder"
            ) from error

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest in one step."""
        content = {"format_version": FORMAT_VERSION, "hf_relstitch_version": __version__, **asdict(self)}
        with whole_file(folder / MANIFEST_NAME) as written:
            write_json(written, content)
