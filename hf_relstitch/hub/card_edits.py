"""A README.md that is generated and edited: generating it again keeps people's edits.

Two comment lines stand around the generated part of the text; everything outside them is people's and stays. The
first of the lines holds the metadata as generated, so that an edit is known by its difference: a value that is not the
one generated the last time stays, in lists each entry for itself, and the keys of the licence go together. In a
README.md without the comment lines all is people's, and the generated part is appended.
"""

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from yaml import YAMLError

from hf_relstitch.core.errors import StitchError
from hf_relstitch.hub.files import card_metadata

START = "<!-- hf_relstitch: generated from here, write above or below; the metadata as generated: "
END = "<!-- hf_relstitch: generated to here -->"
LICENSE_KEYS = ("license", "license_name", "license_link")


def keep_edits(text: str, metadata: ModelCardData, existing: str | None) -> str:
    """Return a README.md of a generated text and its metadata that keeps the edits of an existing one.

    Raises:
        StitchError: the metadata of the existing one cannot be read.
    """
    card = read(existing or "")
    before, old, after = split(card.text)
    memory = json.dumps(metadata.to_dict(), sort_keys=True).replace(">", "\\u003e")
    card.text = f"{before}{START}{memory} -->\n\n{text.strip()}\n\n{END}{after}"
    vars(card.data).update(_merge(_remembered(old), vars(card.data), vars(metadata)))
    return str(card)


def read(existing: str) -> ModelCard:
    """Read a README.md with its metadata, if it has any."""
    text = existing.lstrip("\ufeff").replace("\r\n", "\n")
    try:
        card_metadata(text)
        return ModelCard(text if REGEX_YAML_BLOCK.search(text) else f"---\n{{}}\n---\n{text}")
    except (ValueError, TypeError, YAMLError) as error:
        fault = " ".join(str(error).split())
        raise StitchError(
            f"the metadata at the top of README.md cannot be read ({fault}): repair it, or remove the file"
        ) from error


def edits(existing: str | None) -> list[Any]:
    """Return the edits in a README.md as plain values: people's text above and below, and the metadata they changed.

    If the metadata cannot be read, the whole text counts as edits.
    """
    try:
        card = read(existing or "")
    except StitchError:
        return [existing, "", {}]
    before, old, after = split(card.text)
    was, now = _remembered(old), vars(card.data)
    changed = {key: str(now.get(key)) for key in {**was, **now} if now.get(key) != was.get(key)}
    return [before.strip(), after.strip(), changed]


def split(text: str) -> tuple[str, str, str]:
    """Split a text into the parts before, between and after the comment lines."""
    end = text.find(END)
    start = text.rfind(START, 0, max(end, 0))
    if start < 0:
        return f"{text}\n\n" if text.strip() else "", "", "\n"
    return text[:start], text[start + len(START) : end], text[end + len(END) :]


def _remembered(old: str) -> dict[str, Any]:
    """The metadata as generated the last time; nothing if somebody changed that line."""
    try:
        return vars(ModelCardData(**json.loads(old.partition(" -->\n")[0])))
    except (ValueError, TypeError):
        return {}


def _merge(before: Mapping[str, Any], theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as generated now, with every change that was made to what was generated before."""
    merged = {key: _merge_value(before.get(key), theirs.get(key), ours.get(key)) for key in {**theirs, **ours}}
    if any(theirs.get(key) != before.get(key) for key in LICENSE_KEYS):
        merged |= {key: theirs.get(key) for key in LICENSE_KEYS}
    if merged.get("eval_results"):  # they need a name, whoever gives it
        merged["model_name"] = next(one["model_name"] for one in (merged, theirs, ours) if one.get("model_name"))
    return merged


def _merge_value(before: Any, theirs: Any, ours: Any) -> Any:
    """One value, or each entry of a list."""
    if theirs == before:
        return ours
    if not any(isinstance(one, list) for one in (before, theirs, ours)):
        return theirs
    was, kept, new = ([] if one is None else one if isinstance(one, list) else [one] for one in (before, theirs, ours))
    kept = [one for one in kept if one in new or one not in was]
    return [*kept, *(one for one in new if one not in kept and one not in was)] or None
