"""Pushing, pulling and finding what a folder or a Hub repo holds, a stitched model or an anchor set."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError
from transformers.utils import logging

from hf_relstitch.anchors import CONFIG_NAME, LATENTS_NAME, AnchorSet
from hf_relstitch.cards import CARD_NAME, read_card
from hf_relstitch.checkpoints import OWNED
from hf_relstitch.core.errors import StitchError
from hf_relstitch.edits import is_edited
from hf_relstitch.files import PARTIAL, whole_folder
from hf_relstitch.hub import Repo, locate, push_folder
from hf_relstitch.modeling_relative_stitcher import RelativeStitcher

logger = logging.get_logger(__name__)


def locate_artifact(place: str, *, revision: str | None = None) -> tuple[Repo, bool]:
    """Where a stitched model or an anchor set is, and whether it is an anchor set.

    Raises:
        StitchError: there is neither such a folder nor such a repo.
    """
    try:
        repo = locate(place, config=CONFIG_NAME, revision=revision)
    except StitchError as error:
        if not isinstance(error.__cause__, EntryNotFoundError):
            raise
        repo = locate(place, revision=revision)
    return repo, repo.file(CONFIG_NAME) is not None


def push(place: str, repo_id: str, *, share: str, private: bool | None, revision: str | None) -> str:
    """Push a folder's model or anchor set, whole and checked, and give the commit's address.

    The folder's card goes with it where people have edited it; else the edits of the repo's card stay.
    """
    repo, is_anchor_set = locate_artifact(place)
    load: Callable[..., Any] = AnchorSet.from_pretrained if is_anchor_set else RelativeStitcher.from_pretrained
    artifact, card = load(place), read_card(repo.folder())
    how: dict[str, Any] = {} if is_anchor_set else {"share": share}

    def write(folder: Path, name: str) -> None:
        if card is not None and is_edited(card):
            (folder / CARD_NAME).write_text(card, encoding="utf-8")
        artifact.save_pretrained(folder, repo_id=name, **how)

    owned, message = ([LATENTS_NAME], "Push an anchor set") if is_anchor_set else (OWNED, "Push a stitched model")
    return push_folder(write, repo_id, owned=owned, message=message, private=private, revision=revision)


def pull(repo_id: str, folder: Path, *, revision: str | None = None) -> None:
    """Copy a repo's model or anchor set, whole and checked, into a folder."""
    repo, is_anchor_set = locate_artifact(repo_id, revision=revision)
    load: Callable[..., Any] = AnchorSet.from_pretrained if is_anchor_set else RelativeStitcher.from_pretrained
    load(repo.place, revision=repo.commit)
    last, owned = (CONFIG_NAME, [LATENTS_NAME]) if is_anchor_set else ("config.json", OWNED)
    with whole_folder(folder, last=last, owned=owned) as written:
        shutil.copytree(repo.folder(), written, ignore=shutil.ignore_patterns(f"{PARTIAL}*"), dirs_exist_ok=True)


def find(place: str) -> list[dict[str, Any]]:
    """Published anchor sets over the same inputs as this one: their repos, models and sizes."""
    like = AnchorSet.from_pretrained(place)
    rows = []
    for repo_id in AnchorSet.find(like):
        try:
            found = AnchorSet.from_pretrained(repo_id)
            if (found.inputs, found.key) != (like.inputs, like.key):
                raise StitchError("its inputs are not those that it is tagged with")
        except StitchError as error:  # anyone can give a repo the tag
            logger.warning(f"{repo_id} is left out: {error}")
            continue
        rows.append({"repo": repo_id, "anchors": len(found), "dim": found.dim, **asdict(found.provenance)})
    return rows
