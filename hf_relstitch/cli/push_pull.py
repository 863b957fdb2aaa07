"""Pushing, pulling and finding what a folder or a Hub repo holds."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_relstitch.bulk.search import SearchTranslation
from hf_relstitch.core.errors import StitchError
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.encoders.sentence_transformers_folder import copy_exported
from hf_relstitch.hub.card_edits import edits
from hf_relstitch.hub.cards import CARD_NAME, read_card
from hf_relstitch.hub.files import (
    ANCHOR_SET,
    EXPORTED,
    PARTIAL,
    STITCHED_MODEL,
    TRANSLATION,
    Kind,
    atomic_folder,
    check_kind,
    read_json,
    write_json,
)
from hf_relstitch.hub.repo import Repo, locate_kind, push_folder
from hf_relstitch.model.anchors import AnchorSet
from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded
SHARED = Path(".cache", "huggingface", "hf_relstitch.json")
"""Where a folder notes which edits of its card a repo has had; the Hub's client pushes nothing of these folders."""


LOADERS: dict[Kind, Callable[..., Any]] = {
    STITCHED_MODEL: RelativeStitcher.from_pretrained,
    ANCHOR_SET: AnchorSet.from_pretrained,
    TRANSLATION: SearchTranslation.from_pretrained,
    EXPORTED: Encoder.from_pretrained,
}


def locate_artifact(place: str, *, revision: str | None = None) -> tuple[Repo, Kind]:
    """Locate a folder or a repo, and return which of the kinds it holds; what is none of them reads as a model.

    Raises:
        StitchError: neither a folder nor a repo has this name.
    """
    repo, kind = locate_kind(place, revision=revision)
    return repo, kind if kind in LOADERS else STITCHED_MODEL


def push(place: str, repo_id: str, *, share: str, private: bool | None, revision: str | None) -> str:
    """Push what a folder holds, or a file's translation, whole and checked; return the commit's address.

    The folder's card is pushed too if people have edited it since it was pulled from the repo or pushed to it.
    Otherwise the edits of the repo's card stay.

    Raises:
        StitchError: the folder holds none of these kinds, the Hub refuses, or both cards were edited.
    """
    if Path(place).is_file():
        return SearchTranslation.load(place).push_to_hub(repo_id, private=private, revision=revision)
    repo, kind = locate_artifact(place)
    artifact, card, shared = LOADERS[kind](place), read_card(repo.folder()), _shared_edits(repo.folder())
    how: dict[str, Any] = {"share": share} if kind == STITCHED_MODEL else {}
    sent: dict[str, Any] = {}

    def write(folder: Path, name: str) -> None:
        theirs, branch = read_card(folder), f"{name}@{revision}" if revision else name
        before = edits(None) if theirs is None else shared.get(branch, shared.get(name, edits(None)))
        if card is not None and edits(card) != before:
            if edits(theirs) not in (before, edits(card)):
                raise StitchError(
                    f"{CARD_NAME} was edited both in {repo.name} and on the Hub: move the folder's away, push, and add "
                    "its edits to the one on the Hub"
                )
            (folder / CARD_NAME).write_text(card, encoding="utf-8")
            sent[branch] = edits(card)
        if kind == EXPORTED:
            copy_exported(repo.folder(), folder, repo_id=name)
        else:
            artifact.save_pretrained(folder, repo_id=name, **how)

    message = f"Push {kind.name}"
    address = push_folder(write, repo_id, owned=kind.owned, message=message, private=private, revision=revision)
    if sent and repo.commit is None:
        with suppress(OSError):  # of a folder that cannot be written, nor can its card be edited
            (repo.folder() / SHARED).parent.mkdir(parents=True, exist_ok=True)
            write_json(repo.folder() / SHARED, shared | sent)
    return address


def pull(repo_id: str, folder: Path, *, revision: str | None = None, force: bool = False) -> str | None:
    """Copy what a repo holds, whole and checked, into a folder; return its commit.

    A folder that was pulled from this repo, or pushed to it, is updated. Other contents are overwritten only with
    `force`.

    Raises:
        StitchError: the repo holds none of these kinds, the folder holds something of another kind, or its card has
            edits that the repo's card lacks and no push has sent.
    """
    repo, kind = locate_artifact(repo_id, revision=revision)
    check_kind(folder, kind)
    is_taken = (folder / kind.last).is_file()
    pulled = {name.partition("@")[0] for name in _shared_edits(folder)}
    if is_taken and not force and repo.name not in pulled and repo.folder().resolve() != folder.resolve():
        raise StitchError(
            f"{folder} holds something that is not of {repo.name}: give another folder, or --force to write over it"
        )
    card, mine = read_card(repo.folder()), read_card(folder)
    if edits(mine) not in (edits(None), edits(card), *_shared_edits(folder).values()):
        raise StitchError(f"{folder / CARD_NAME} has edits that pulling would lose: push them, or move the file away")
    LOADERS[kind](repo.place, revision=repo.commit)
    _check_links(repo)
    with atomic_folder(folder, kind) as written:
        shutil.copytree(repo.folder(), written, ignore=shutil.ignore_patterns(f"{PARTIAL}*"), dirs_exist_ok=True)
        (written / SHARED).parent.mkdir(parents=True, exist_ok=True)
        write_json(written / SHARED, {repo.name: edits(card)})
    return repo.commit


def _check_links(repo: Repo) -> None:
    """Refuse links out of a folder, whose targets would be copied; a repo of the Hub has none.

    Raises:
        StitchError: a link leads elsewhere.
    """
    folder = repo.folder()
    for file in () if repo.commit else folder.rglob("*"):
        if not file.resolve().is_relative_to(folder.resolve()):
            raise StitchError(f"{file} is a link out of its folder: put the file itself there, or take the link away")


def _shared_edits(folder: Path) -> dict[str, Any]:
    """The edits of a folder's card when it was pulled from a repo or pushed to it, by repo or branch."""
    return read_json(folder / SHARED) if (folder / SHARED).is_file() else {}


def find(place: str) -> list[dict[str, Any]]:
    """Find the published anchor sets over the same inputs as this set: their repos, models and sizes."""
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
        provenance = found.provenance
        origin = provenance.to_dict() | {"pooling": provenance.describe(), "prompt": provenance.prompt}
        rows.append({"repo": repo_id, "anchors": len(found), "dim": found.dim, **origin})
    return rows
