"""What a folder or a repo holds: a stitched model, an anchor set, a translation for search, an exported encoder."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub.errors import EntryNotFoundError

from hf_relstitch.core.errors import StitchError
from hf_relstitch.hub.cards import FACTS
from hf_relstitch.hub.files import read_json
from hf_relstitch.hub.repo import Repo, locate

ANCHOR_CONFIG = "anchor_config.json"
TRANSLATION_FILE = "translation.safetensors"
SETTINGS = "config_sentence_transformers.json"
STITCHED = "relative_stitcher"
"""The model type of stitched models."""

ANCHOR_SET, TRANSLATION, EXPORTED, STITCHED_MODEL = (
    "an anchor set",
    "a translation for search",
    "an exported encoder",
    "a stitched model",
)


def locate_kind(place: str | Path, *, revision: str | None = None) -> tuple[Repo, str | None]:
    """Locate a folder or a repo, and return what it holds: one of the kinds above, "a model of type …", or None.

    Raises:
        StitchError: neither a folder nor a repo has this name, or the repo holds none of them.
    """
    missing: StitchError | None = None
    for name in ("config.json", ANCHOR_CONFIG, TRANSLATION_FILE):
        try:
            repo = locate(place, config=name, revision=revision)
            return repo, _kind(repo.file)
        except StitchError as error:
            if not isinstance(error.__cause__, EntryNotFoundError):
                raise
            missing = missing or error
    raise missing or AssertionError


def check_kind(folder: str | Path, kind: str) -> None:
    """Refuse to save over something of another kind.

    Raises:
        StitchError: the folder holds something of another kind.
    """
    found = _kind(lambda name: Path(folder, name) if Path(folder, name).is_file() else None)
    if found not in (None, kind):
        raise StitchError(f"{folder} holds {found}, which saving there would spoil: give another folder")


def _kind(file: Callable[[str], Path | None]) -> str | None:
    """What is held where this function finds a file by its name."""
    if (config := file("config.json")) is not None:
        model_type = read_json(config).get("model_type")
        if model_type == STITCHED:
            return STITCHED_MODEL
        settings = file(SETTINGS)
        is_exported = settings is not None and FACTS in read_json(settings)
        return EXPORTED if is_exported else f"a model of type {model_type}"
    if file(ANCHOR_CONFIG) is not None:
        return ANCHOR_SET
    return TRANSLATION if file(TRANSLATION_FILE) is not None else None
