"""Manifest of an output folder: its inputs and its model, so that a run can continue and be checked."""

import json
import posixpath
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_relstitch.bulk.outputs import Output
from hf_relstitch.bulk.sources import Source
from hf_relstitch.bulk.translator import TRANSLATED_TWICE, Translator
from hf_relstitch.configuration_relative_stitcher import rename_settings
from hf_relstitch.core.errors import StitchError
from hf_relstitch.hub.files import check_format, write_json
from hf_relstitch.version import __version__

MANIFEST_NAME = ".translation.json"  # hidden, so that `load_dataset` of the folder reads the shards alone
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """Hold the facts of a translated file that is in its folder: rows, size and checksum."""

    rows: int
    size: int
    checksum: str
    zeros: int = 0

    def fault(self, name: str, output: Output, *, size: int | None, read: bool) -> str | None:
        """Return the fault of the file of that name and size, or None; check its content only with `read`."""
        if size is None:
            return "it is not there"
        if size != self.size or (read and output.checksum(name) != self.checksum):
            return "it is damaged or was altered"
        return None


@dataclass
class Manifest:
    """Hold the content of an output folder.

    Attributes:
        model: name, revision, fingerprint, norm and gamma of the translation.
        settings: the settings of the translator.
        inputs: size and etag of each input, by its name.
        shards: rows, size and checksum of each finished output, by its name.
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    shards: dict[str, Shard] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        output: Output,
        model: dict[str, Any],
        translator: Translator,
        sources: Sequence[Source],
        *,
        there: Mapping[str, int],
    ) -> "Manifest":
        """Open the manifest of a folder, or begin an empty manifest, and add these inputs.

        `there` maps the folder's files to their sizes.

        Raises:
            StitchError: the folder was begun with another model or other settings, or an input has changed since.
        """
        settings = translator.settings
        now = cls(model, settings)
        manifest = cls.read(output) if MANIFEST_NAME in there else now
        if manifest.identity != now.identity and manifest.shards:
            then = manifest.identity
            differences = [
                f"{name} {then.get(name)!r} and not {value!r}"
                for name, value in now.identity.items()
                if then.get(name) != value
            ]
            raise StitchError(
                f"{output} was begun with {', '.join(differences)}: "
                "give another output folder, or the same model and settings"
            )
        manifest.model, manifest.settings = model, settings
        for source in sources:
            manifest.add(source, output, is_there=source.name in there)
        return manifest

    def add(self, source: Source, output: Output, *, is_there: bool) -> None:
        """Add an input.

        Raises:
            StitchError: the input has changed since its translation, or another file has its output's name.
        """
        now = {"size": source.size, "etag": source.etag}
        before = self.inputs.get(source.name)
        if before is None and is_there:
            raise StitchError(
                f"{output.place(source.name)} is there and no translation of these inputs: give another output folder"
            )
        if source.name in self.shards and before != now:
            raise StitchError(
                f"{source.path} has changed since it was translated: size and etag were {before} and are {now}; "
                "give another output folder"
            )
        self.inputs[source.name] = now

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that two runs into the same folder must share."""
        model = {name: self.model[name] for name in ("norm", "gamma")}
        return {"model": self.model["fingerprint"], **model, **self.settings}

    @classmethod
    def read(cls, output: Output) -> "Manifest":
        """Read the manifest of a folder.

        Raises:
            StitchError: the manifest is damaged, has a newer format, or cannot be read.
        """
        place = output.place(MANIFEST_NAME)
        try:
            content = json.loads(output.read(MANIFEST_NAME))
            version, written_by = content.pop("format_version", None), content.pop("hf_relstitch_version", None)
            check_format(version, supported=FORMAT_VERSION, what=place, written_by=written_by)
            shards = {name: Shard(**shard) for name, shard in content.pop("shards").items()}
            manifest = cls(**content, shards=shards)
            manifest.model = rename_settings(manifest.model)
            if not isinstance(manifest.inputs, dict) or not manifest.identity:
                raise TypeError(f"its inputs are {manifest.inputs!r}")
            return manifest
        except StitchError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StitchError(f"{place} is damaged ({error!r}): translate into another folder") from error

    @staticmethod
    def check_inputs(sources: Sequence[Source], fingerprint: str) -> None:
        """Refuse npy files that this model made.

        These files have no metadata; the manifest beside them says so.

        Raises:
            StitchError: this model made an input.
        """
        matrices = [source for source in sources if source.suffix == ".npy" and "http" not in source.files.protocol]
        for folder in {place for source in matrices for place in source.folders}:
            files, content = matrices[0].files, {}
            with suppress(OSError, ValueError):
                content = json.loads(files.cat_file(posixpath.join(folder, MANIFEST_NAME)))
            made = content.get("shards", {}) if content.get("model", {}).get("fingerprint") == fingerprint else {}
            if names := [source.path for source in matrices if posixpath.relpath(source.path, folder) in made]:
                raise StitchError(f"{names[0]} {TRANSLATED_TWICE}")

    def write(self, output: Output) -> None:
        """Replace the folder's manifest in one step."""
        content = {"format_version": FORMAT_VERSION, "hf_relstitch_version": __version__, **asdict(self)}
        with output.whole(MANIFEST_NAME) as written:
            write_json(written, content)
