"""Translator: a stitched model's translation without the model, applied to a single block of latents at a time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_relstitch.bulk.search import SearchTranslation, gamma_of
from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.translation import KernelTranslation, Translation, empty_translation
from hf_relstitch.encoders.devices import fingerprint
from hf_relstitch.hub.files import TRANSLATION, verify_checksum, weight_map
from hf_relstitch.hub.repo import Repo, locate_kind
from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher
from hf_relstitch.model.persistence import INDEX, read_config

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}

NOTE = "hf_relstitch"
"""Key in the metadata of a translated file or index, for the translation that it comes from."""
TRANSLATED_TWICE = (
    "was translated by this model already, and a second time gives vectors of neither encoder: give the one that it "
    "was made of"
)

AnyTranslation = Translation | KernelTranslation | SearchTranslation
AnyModel = str | Path | RelativeStitcher | AnyTranslation


@dataclass(frozen=True)
class Translator:
    """Hold a translation and its settings for stored latents.

    Attributes:
        translation: source latents to target latents.
        column: the column, or the tensor of a safetensors file, that holds the latents.
        batch_size: rows to translate at a time.
        dtype: dtype of the translated latents; None for the stored dtype.
        keep_nonfinite: translate rows that are not finite, to rows that are not finite, instead of refusing them.
        fingerprint: fingerprint of the translation, for notes in translated files; empty for no notes.
        tally: "zeros", the number of rows of zeros, which a failed encoding leaves, and which stay zeros.
    """

    translation: AnyTranslation
    column: str = "latents"
    batch_size: int = 16384
    dtype: str | None = None
    keep_nonfinite: bool = False
    fingerprint: str = ""
    tally: dict[str, int] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise StitchError(f"dtype is {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.batch_size < 1:
            raise StitchError(f"batch_size is {self.batch_size}: expected 1 or more")

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings without the translation, its fingerprint and the tally."""
        names = [each.name for each in fields(self) if each.name not in ("translation", "fingerprint", "tally")]
        return {name: getattr(self, name) for name in names}

    @property
    def d_source(self) -> int:
        """Return the width of the source latents."""
        return len(self.translation.centre)

    @property
    def d_target(self) -> int:
        """Return the width of the translated latents."""
        return len(self.translation.bias)

    def output_dtype(self, stored: torch.dtype) -> torch.dtype:
        """Return the dtype of translated latents."""
        return DTYPES[self.dtype] if self.dtype else stored

    @torch.no_grad()
    def __call__(self, latents: Tensor, *, first_row: int) -> Tensor:
        """Translate stored latents `(n, d_source)` to latents `(n, d_target)` on the CPU; `first_row` is for errors.

        Raises:
            StitchError: a row is not finite, or its translation is too large for the output's dtype.
        """
        dtype = self.output_dtype(latents.dtype)
        wide = latents.to(self.translation.bias.device, torch.promote_types(latents.dtype, dtype))
        translated = self.translation(wide).to(dtype)
        zeros = ~wide.any(dim=1)
        if count := int(zeros.sum()):
            translated[zeros] = 0
            self.tally["zeros"] = self.tally.get("zeros", 0) + count
        # one pass says it of nearly every block: a sum of finite values may overflow, one that is not finite stays so
        suspect = not self.keep_nonfinite and not translated.sum().isfinite()
        if suspect and not translated.isfinite().all():
            row = int((~translated.isfinite()).any(dim=1).nonzero()[0])
            if not latents[row].isfinite().all():
                raise StitchError(
                    f"row {first_row + row} has not-a-number or infinite values: mend or remove it, "
                    "or let such rows through with keep_nonfinite"
                )
            raise StitchError(
                f"row {first_row + row} is too large for {dtype} after its translation: use a wider dtype"
            )
        return translated.cpu()

    def check_width(self, width: int, what: str) -> None:
        """Refuse latents of another width than the translation takes."""
        if width != self.d_source:
            raise StitchError(
                f"{what} is {width} wide and the model translates latents of width {self.d_source}: "
                "give latents of the model's own source encoder"
            )


def note_of(translator: Translator, metadata: Mapping[Any, Any] | None = None, **more: Any) -> str:
    """Describe a translation, for the metadata of a translated file or index under `NOTE`.

    The note also lists the translation of each column, of those too that the source's own metadata lists.
    """
    columns = _read_note(metadata).get("columns", {}) | {translator.column: translator.fingerprint}
    return json.dumps({"model": translator.fingerprint, "columns": columns} | more, sort_keys=True)


def check_not_translated(metadata: Mapping[Any, Any] | None, translator: Translator, what: str) -> None:
    """Refuse to translate a column of a file or index that the same translation has made.

    Raises:
        StitchError: the note in the metadata, whose keys are texts or bytes, names this translation for this column.
    """
    if translator.fingerprint and _read_note(metadata).get("columns", {}).get(translator.column) == (
        translator.fingerprint
    ):
        raise StitchError(f"{what} {TRANSLATED_TWICE}")


def _read_note(metadata: Mapping[Any, Any] | None) -> dict[str, Any]:
    """Return the note in the metadata; {} if there is none, or if something else has this key."""
    metadata = metadata or {}
    try:
        content = json.loads(metadata.get(NOTE, metadata.get(NOTE.encode(), "{}")))
    except (TypeError, ValueError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("columns", {}), dict) else {}


def load_translation(model: AnyModel, *, revision: str | None = None) -> tuple[AnyTranslation, dict[str, Any]]:
    """Load the translation of a stitched model, and describe which translation it is.

    Only the translation's tensors are read from a stitched model's folder or Hub repo. A file, or a name that ends like
    a file, is a file that `SearchTranslation.save` wrote; a folder or a repo may hold such a file too.

    Raises:
        StitchError: the model does not exist, or its weights are missing or damaged; a file is passed with `revision`.
    """
    translation: AnyTranslation
    if isinstance(model, str | Path) and (Path(model).is_file() or Path(model).suffix == ".safetensors"):
        if revision is not None:
            raise StitchError(f"{model} is a file, which has no revision {revision}: leave it out")
        translation, name, commit = SearchTranslation.load(model), Path(model).name, None
    elif isinstance(model, AnyTranslation):
        translation, name, commit = model, None, None
    elif isinstance(model, RelativeStitcher):
        translation, name, commit = model.translation, model.config.name_or_path or None, None
    else:
        repo, kind = locate_kind(model, revision=revision)
        translation = (
            SearchTranslation.from_pretrained(repo.place, revision=repo.commit)
            if kind == TRANSLATION
            else _read_translation(repo)
        )
        name, commit = repo.name, repo.commit
    name = Path(name).name if name and Path(name).is_dir() else name
    inner = translation.translation if isinstance(translation, SearchTranslation) else translation
    row_norm = translation.row_norm if isinstance(translation, SearchTranslation) else None
    ending = "" if row_norm is None else f":norm {row_norm:g}"
    which = {
        "fingerprint": fingerprint(translation) + ending,
        "norm": inner.norm,
        "gamma": gamma_of(inner),
    }
    return translation, {"name": name, "revision": commit, **which}


def _read_translation(repo: Repo) -> AnyTranslation:
    config_file = repo.file("config.json")
    if config_file is None:
        raise StitchError(f"{repo.place} has no file config.json: give the place of a stitched model")
    config = read_config(config_file.parent)
    sizes = config.num_anchors, config.d_source, config.d_target
    translation = empty_translation(*sizes, settings=config.translation_settings)
    index = repo.file(INDEX)
    files = weight_map(index) if index else {}
    inside = {name: files.get(f"translation.{name}", "model.safetensors") for name in translation.state_dict()}
    paths = {file: _checked(repo, file, config) for file in sorted(set(inside.values()))}
    tensors = {name: _read_tensor(paths[file], f"translation.{name}") for name, file in inside.items()}
    try:
        translation.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise StitchError(f"{repo.place} is not a whole stitched model: {error}: save or download it again") from error
    return translation


def _checked(repo: Repo, name: str, config: RelativeStitcherConfig) -> Path:
    """Return the path of a file of weights, after a check of its checksum against the config."""
    file = repo.file(name) if name in config.checksums else None
    if file is None:
        raise StitchError(f"{repo.place} has no weights {name} that its config lists: save or download it again")
    verify_checksum(file, config.checksums[name])
    return file


def _read_tensor(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(name)
    except SafetensorError as error:
        raise StitchError(f"{file} has no {name} ({error}): save or download the model again") from error
