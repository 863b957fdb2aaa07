"""Anchor sets: shapes, ids, and latents that carry something."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from hf_relstitch.configuration_relative_stitcher import rename_settings
from hf_relstitch.core.anchor_sampling import choose_anchors
from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.core.projection import decode_relative
from hf_relstitch.core.relative import to_working, without_constants
from hf_relstitch.core.translation import TranslationSettings
from hf_relstitch.data.ids import first_ids, ids_fingerprint, input_ids, key_fingerprint
from hf_relstitch.data.inputs import Side, inputs_at, side_of
from hf_relstitch.data.latents import as_latents
from hf_relstitch.data.provenance import NOT_KNOWN, STORED, Provenance, data_name
from hf_relstitch.data.words import Word
from hf_relstitch.encoders.processors import check_words
from hf_relstitch.hub.cards import ANCHORS_TAG, inputs_tag, write_card
from hf_relstitch.hub.files import (
    ANCHOR_SET,
    atomic_folder,
    check_format,
    check_kind,
    checksum,
    read_json,
    read_tensors,
    verify_checksum,
    write_json,
    write_tensors,
)
from hf_relstitch.hub.processes import accelerate_state
from hf_relstitch.hub.repo import find_tagged, locate, push_folder
from hf_relstitch.version import __version__

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded
MIN_ANCHORS = 32
FORMAT_VERSION = 2
"""Format 1 had the pooling of its provenance as one text."""
ANCHOR_CONFIG = ANCHOR_SET.last
LATENTS_NAME = "anchors.safetensors"
RELATIVE_FORMAT_VERSION = 3
KIND = "relative_latents"


@dataclass(frozen=True, eq=False)
class RelativeLatents:
    """Hold latents as coordinates against anchors; see `RelativeStitcher.relative` and `AnchorSet.invert`.

    Attributes:
        values: `(n, k)` float32, one column for each anchor (pruned subspaces stand side by side).
        ids: `(k,)` int64, the ids of the anchor inputs, in the order of the columns.
        settings: the settings of the translation that they are half of.
        target: the model whose anchors turn them into its latents.
    """

    values: Tensor
    ids: Tensor
    settings: TranslationSettings
    target: Provenance

    def save(self, file: str | Path) -> None:
        """Write one safetensors file; a failure leaves an existing file untouched."""
        content = {"settings": asdict(self.settings), "target": self.target.to_dict()}
        tensors = {"values": self.values, "ids": self.ids}
        write_tensors(file, tensors, content, kind=KIND, format_version=RELATIVE_FORMAT_VERSION)

    @classmethod
    def load(cls, file: str | Path) -> "RelativeLatents":
        """Read a file that `save` wrote.

        Raises:
            StitchError: the file is missing, incomplete, or of a newer format.
        """
        with wrap_errors(f"{file} is not a whole file of relative latents", "ask for it again"):
            tensors, content = read_tensors(
                file, kind=KIND, supported=RELATIVE_FORMAT_VERSION, otherwise="is no file of RelativeLatents.save"
            )
            settings, target = (
                TranslationSettings(**rename_settings(content["settings"])),
                Provenance.from_dict(content["target"]),
            )
            return cls(tensors["values"], tensors["ids"], settings, target)


class LatentSource(Protocol):
    """Encode anchors; `hf_relstitch.Encoder` follows this protocol."""

    @property
    def provenance(self) -> Provenance:
        """Return the model and its pooling."""

    def encode(self, inputs: Sequence[Any], *, batch_size: int, progress: bool) -> Tensor:
        """Return latents `(n, d)`, row for row with the inputs."""

    def words(self, inputs: Sequence[Any]) -> list[Word]:
        """Return the words of texts that have a latent, if the encoder gives a latent for each token."""


@dataclass(frozen=True, eq=False)
class AnchorSet:
    """Hold the latents and ids of anchors in one model's space.

    Attributes:
        latents: `(k, d)` float32, one row for each anchor, straight from the encoder (not centred, not normalised).
        ids: `(k,)` int64, a hash of each input; see `hf_relstitch.data.ids.input_ids`.
        provenance: the model, its pooling, and the name of the data.
        inputs: a fingerprint of all inputs of the caller, in any order; of the ids, without one.
        key: a fingerprint of the key of keyed ids; None if the ids are not keyed.
        groups: `(k,)` int64, the id of each pair's first text, if the inputs are pairs of texts; else None.

    Raises:
        StitchError: the shapes do not fit, there are fewer than 32 anchors, or anchors carry nothing: NaN,
            infinite, repeated, constant, all-zero, or at the centre of the others, without a direction.
    """

    latents: Tensor = field(repr=False)
    ids: Tensor = field(repr=False)
    provenance: Provenance
    inputs: str = ""
    key: str | None = None
    groups: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_ids(self.latents, self.ids)
        if self.groups is not None and (self.groups.shape, self.groups.dtype) != (self.ids.shape, self.ids.dtype):
            raise StitchError(f"the groups of {len(self.ids)} anchors are of shape {tuple(self.groups.shape)}")
        if not isinstance(self.inputs, str) or not isinstance(self.key, str | None):
            raise StitchError(f"the inputs' fingerprint is {self.inputs!r} and the key's {self.key!r}: expected texts")
        object.__setattr__(self, "latents", self.latents.detach().to("cpu", torch.float32).contiguous())
        object.__setattr__(self, "ids", self.ids.detach().to("cpu").contiguous())
        _check_latents(self.latents)
        object.__setattr__(self, "inputs", self.inputs or ids_fingerprint(self.ids))

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def dim(self) -> int:
        """Return the width of the latents."""
        return self.latents.shape[1]

    @classmethod
    def encode(
        cls,
        encoder: "LatentSource",
        inputs: Sequence[Any],
        *,
        side: Side | None = None,
        ids: Tensor | None = None,
        data: str | None = None,
        key: str | None = None,
        batch_size: int = 32,
        progress: bool = True,
    ) -> "AnchorSet":
        """Encode anchor inputs: texts, PIL images, numpy arrays of sound, or Paths or URLs of images or sounds.

        A pair of texts that is one input is a dict, `{"text": …, "text_pair": …}`.

        If two models take no common input, inputs are pairs, like (image, text) or (German, English), and `side` says
        which of each, `first` or `second`, this encoder takes. The id belongs to the pair, so it pairs both sides.

        An encoder that gives a latent for each token takes texts, whose words are the anchors: see `Encoder.words`.

        Inputs that are repeated, or that the encoder cannot tell apart, are kept once; a log line says how many were
        left out. `data` names the data that they come from. An id is a hash of its input, so anyone who has an input
        can find out whether it is in the set. With a `key`, a secret that people who pair anchors share, only they can.
        `ids` is the result of `input_ids` for the inputs, if the caller has it.

        Raises:
            StitchError: too few inputs differ, `side` is missing for pairs, or the latents cannot be anchors.
        """
        if not hasattr(encoder, "provenance"):
            raise StitchError(f"the encoder is a {type(encoder).__name__}: expected an Encoder")
        taken = side_of(inputs, side)
        check_words(getattr(encoder, "processor", None), taken, name=encoder.provenance.model_id)
        if encoder.provenance.by_token:
            inputs = taken = encoder.words(inputs)
            ids = None
        ids = input_ids(inputs, key=key) if ids is None else ids
        rows = sorted(_row_of_each(ids).values())
        check_count(len(rows))
        taken = inputs_at(taken, rows)
        latents = encoder.encode(taken, batch_size=batch_size, progress=progress)
        origin = replace(encoder.provenance, data=data_name(data))
        return cls._distinct(latents, ids, rows, origin, key=key, groups=first_ids(taken, key=key))

    @classmethod
    def from_latents(
        cls,
        latents: Any,
        inputs: Sequence[Any],
        *,
        model: str | Provenance,
        column: str = "latents",
        data: str | None = None,
        key: str | None = None,
    ) -> "AnchorSet":
        """Build anchors from latents computed elsewhere: a numpy or torch matrix, a npy, safetensors or Parquet file.

        `inputs` are the encoded inputs, row for row, or a name for each that both sides use, like a document's id; for
        pairs, the whole pairs. `model` says whose latents they are: a name, or an encoder's `provenance` if the set
        will be stitched with that encoder. `column` is the name of the latents in a file. For the other arguments see
        `encode`.

        Raises:
            StitchError: the rows do not match the inputs, the file cannot be read, or the latents cannot be anchors.
        """
        found, ids = as_latents(latents, column=column), input_ids(inputs, key=key)
        if len(found) != len(ids):
            raise StitchError(f"there are {len(found)} latents and {len(ids)} inputs: give them row for row")
        origin = model if isinstance(model, Provenance) else Provenance(model, NOT_KNOWN, STORED)
        rows = sorted(_row_of_each(ids).values())
        groups = first_ids(inputs_at(inputs, rows), key=key)
        return cls._distinct(found[rows], ids, rows, replace(origin, data=data_name(data)), key=key, groups=groups)

    @classmethod
    def _distinct(
        cls,
        latents: Tensor,
        ids: Tensor,
        rows: list[int],
        origin: Provenance,
        *,
        key: str | None,
        groups: Tensor | None,
    ) -> "AnchorSet":
        """A set of latents of the inputs that `rows` says, of which those are left out that repeat others."""
        _check_finite(latents)  # before repeated rows are left out: rows of nothing else are the same
        kept = first_of_each(latents)
        if len(kept) < len(ids):
            logger.warning(f"{len(ids) - len(kept)} of {len(ids)} anchor inputs repeat others: left out")
        groups = None if groups is None else groups[kept]
        fingerprints: dict[str, Any] = {"inputs": ids_fingerprint(ids), "key": key_fingerprint(key)}
        return cls(latents[kept], ids[rows][kept], origin, **fingerprints, groups=groups)

    def intersect(self, other: "AnchorSet") -> tuple["AnchorSet", "AnchorSet"]:
        """Cut both sets down to the inputs that they share, in the order of this set.

        Raises:
            StitchError: fewer than 32 inputs are shared, or the ids use different keys.
        """
        if self.key != other.key:
            raise StitchError(
                f"the anchor ids of {self.provenance.model_id} were made with {_key_name(self.key)}, those of "
                f"{other.provenance.model_id} with {_key_name(other.key)}: encode both with the same key, or without"
            )
        rows = _row_of_each(other.ids)
        ours = [row for row, one in enumerate(self.ids) if int(one) in rows]
        theirs = [rows[int(self.ids[row])] for row in ours]
        if len(ours) < MIN_ANCHORS:
            raise StitchError(
                f"anchors of source and target share {len(ours)} ids of {len(self)} and {len(other)}; at least "
                f"{MIN_ANCHORS} are needed: encode the same inputs with both models"
            )
        return self._subset(ours), other._subset(theirs)

    def sorted_by_id(self) -> "AnchorSet":
        """Return the same anchors in the order of their ids."""
        return self._subset(self.ids.argsort().tolist())

    def chosen(self, count: int | None) -> "AnchorSet":
        """Choose the most telling of the anchors, by `choose_anchors`; keep all if there are no more, or for None."""
        if count is None or count >= len(self):
            return self
        return self._subset(choose_anchors(self.latents, count).tolist())

    def rows_of(self, ids: Tensor) -> list[int]:
        """Find for each anchor the first row of ids `(n,)` that equals its own."""
        first = _row_of_each(ids)
        return [first[int(one)] for one in self.ids]

    def _subset(self, rows: list[int]) -> "AnchorSet":
        groups = None if self.groups is None else self.groups[rows]
        return AnchorSet(self.latents[rows], self.ids[rows], self.provenance, key=self.key, groups=groups)

    def invert(self, relative: RelativeLatents) -> Tensor:
        """Return target latents `(n, d)` float32 of relative latents from a model stitched to this set's model.

        The folded translation gives the same, but this needs no source anchors (arXiv 2406.15057, sec. 3).

        Raises:
            StitchError: the latents belong to another model, or to anchors that are not in this set.
        """
        if difference := self.provenance.difference(relative.target):
            raise StitchError(f"the relative latents were made for another target than these anchors' ({difference})")
        rows = _row_of_each(self.ids)
        if missing := [int(one) for one in relative.ids if int(one) not in rows]:
            raise StitchError(
                f"{len(missing)} of the {len(relative.ids)} anchors of the relative latents are not in this set: load "
                "the set that the model was stitched with"
            )
        anchors = self.latents[[rows[int(one)] for one in relative.ids]]
        inversion = decode_relative(anchors, settings=relative.settings)
        if relative.values.shape[1:] != inversion.shape[:1]:
            raise StitchError(
                f"the relative latents have shape {tuple(relative.values.shape)}: (n, {len(inversion)}) was expected"
            )
        return (to_working(relative.values) @ inversion + to_working(anchors).mean(0)).float()

    def save_pretrained(self, folder: str | Path, *, repo_id: str | None = None) -> None:
        """Write `anchor_config.json`, `anchors.safetensors` and the card; a failure leaves the folder unchanged.

        Edits of an existing card stay; the card shows `repo_id`. With several processes only the main one writes.

        Raises:
            StitchError: the folder cannot be written, or holds something else.
        """
        check_kind(folder, ANCHOR_SET)
        if not accelerate_state().is_main_process:
            return
        with atomic_folder(folder, ANCHOR_SET) as written:
            groups = {} if self.groups is None else {"groups": self.groups}
            save_file({"latents": self.latents, "ids": self.ids, **groups}, written / LATENTS_NAME, {"format": "pt"})
            config = {
                "format_version": FORMAT_VERSION,
                "hf_relstitch_version": __version__,
                "num_anchors": len(self),
                "dim": self.dim,
                "inputs": self.inputs,
                "key": self.key,
                "provenance": self.provenance.to_dict(),
                "checksums": {LATENTS_NAME: checksum(written / LATENTS_NAME)},
            }
            write_json(written / ANCHOR_CONFIG, config)
            write_card(config, written, folder=folder, repo_id=repo_id)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push an anchor set",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        parent_commit: str | None = None,
    ) -> str:
        """Push the set as one commit, and return the commit's address ("" in other processes than the main one).

        Raises:
            StitchError: the Hub refuses or cannot be reached, or its branch is not at `parent_commit` (by default: has
                moved since this push began).
        """
        return push_folder(
            lambda folder, name: self.save_pretrained(folder, repo_id=name),
            repo_id,
            owned=ANCHOR_SET.owned,
            message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent_commit,
        )

    @staticmethod
    def find(like: "AnchorSet", *, token: str | bool | None = None) -> list[str]:
        """Find the repo ids of the anchor sets on the Hub over the same inputs as this set, with the same key.

        Raises:
            StitchError: the Hub cannot be reached.
        """
        return find_tagged([ANCHORS_TAG, inputs_tag(like.inputs)], token=token)

    @classmethod
    def from_pretrained(
        cls, place: str | Path, *, revision: str | None = None, subfolder: str = "", **options: Any
    ) -> "AnchorSet":
        """Read a folder that `save_pretrained` wrote, or a repo that `push_to_hub` filled.

        `options` are `token`, `cache_dir`, `local_files_only` and `force_download`.

        Raises:
            StitchError: the set or a file of it is missing, damaged or of a newer format.
        """
        repo = locate(place, config=ANCHOR_CONFIG, revision=revision, subfolder=subfolder, **options)
        folder = Path(repo.place, subfolder)
        files = {name: repo.file(name) or folder / name for name in (ANCHOR_CONFIG, LATENTS_NAME)}
        config = read_json(files[ANCHOR_CONFIG])
        check_format(
            config.get("format_version"),
            supported=FORMAT_VERSION,
            what=f"the anchor set in {folder}",
            written_by=config.get("hf_relstitch_version"),
        )
        with wrap_errors(f"{folder} is not a whole anchor set", "save or download it again"):
            verify_checksum(files[LATENTS_NAME], config["checksums"][LATENTS_NAME])
            tensors = load_file(files[LATENTS_NAME])
            provenance = Provenance.from_dict(config["provenance"])
            fingerprints = {"inputs": config.get("inputs", ""), "key": config.get("key")}
            return cls(tensors["latents"], tensors["ids"], provenance, **fingerprints, groups=tensors.get("groups"))


def first_of_each(latents: Tensor) -> list[int]:
    """List the rows whose latent no earlier row has."""
    first: dict[bytes, int] = {}
    for row, latent in enumerate(latents.cpu().float().numpy()):
        first.setdefault(latent.tobytes(), row)
    return list(first.values())


def _check_ids(latents: Tensor, ids: Tensor) -> None:
    """Refuse tensors that are not `(k, d)` floats and `(k,)` integers with k at least 32, and ids that stand twice."""
    if latents.ndim != 2 or not latents.is_floating_point():
        raise StitchError(f"anchor latents are {latents.dtype} of shape {tuple(latents.shape)}: expected (k, d) floats")
    if ids.shape != latents.shape[:1] or ids.dtype != torch.int64:
        raise StitchError(
            f"anchor ids are {ids.dtype} of shape {tuple(ids.shape)} for {len(latents)} latents: "
            f"expected ({len(latents)},) int64, one id a row"
        )
    check_count(len(latents))
    values, counts = torch.unique(ids, return_counts=True)
    if len(values) < len(ids):
        row = int((ids == values[counts.argmax()]).nonzero()[0])
        raise StitchError(
            f"{len(ids) - len(values)} of {len(ids)} anchor ids repeat others (the id of row {row} is one): "
            "each anchor has to be a different input"
        )


def check_count(count: int) -> None:
    """Refuse fewer than 32 anchors, and what is no number."""
    if not hasattr(count, "__index__"):
        raise StitchError(f"num_anchors is {count!r}: expected a whole number, {MIN_ANCHORS} or more")
    if count < MIN_ANCHORS:
        raise StitchError(
            f"{count} anchors: at least {MIN_ANCHORS} different inputs are needed, some hundreds are usual"
        )


def _check_finite(latents: Tensor) -> None:
    """Refuse latents with a value that is not a number, or infinite."""
    finite = latents.isfinite().all(1)
    if not finite.all():
        raise StitchError(
            f"{_rows(~finite)} not-a-number or infinite values: look at these inputs and at the encoder's dtype"
        )


def _check_latents(latents: Tensor) -> None:
    """Refuse latents that carry nothing, or too much."""
    _check_finite(latents)
    centred = latents.double() - latents.double().mean(0)
    lengths = without_constants(latents).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    central = centred.norm(dim=1) <= 1e-6 * lengths
    if central.all():
        raise StitchError(
            f"all {len(latents)} anchors have the same latent: is the encoder trained, and are the inputs different?"
        )
    if not (latents != 0).any(1).all():
        raise StitchError(f"{_rows((latents == 0).all(1))} a zero norm: leave out these inputs")
    if (repeated := len(latents) - len(first_of_each(latents))) > 0:
        raise StitchError(f"{repeated} of {len(latents)} anchors repeat the latent of another: leave out the copies")
    if central.any():
        raise StitchError(
            f"{_rows(central)} a latent at the mean of all, so without a direction: leave out these inputs"
        )


def _rows(mask: Tensor) -> str:
    rows = mask.nonzero().flatten().tolist()
    shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    return f"{len(rows)} of {len(mask)} anchors (rows {shown}) have"


def _row_of_each(ids: Tensor) -> dict[int, int]:
    """The first row that has an id, for each id."""
    return {int(one): row for row, one in reversed(list(enumerate(ids)))}


def _key_name(key: str | None) -> str:
    return f"the key of fingerprint {key}" if key else "no key"
