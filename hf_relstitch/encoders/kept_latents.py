"""Latents that are kept on disk while they are made, so that a run that was stopped goes on from there."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.ids import input_ids
from hf_relstitch.data.inputs import inputs_at, length_of
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.data.words import Word
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.hub.files import LOCK, read_tensors, run_lock, write_tensors
from hf_relstitch.hub.processes import accelerate_state

KIND, FORMAT_VERSION = "kept_latents", 2
BATCHES = 16
"""Batches of a model here that are kept together, so that it can sort their inputs by length; of a callable one."""


class KeptLatents:
    """Wrap an encoder so that each part of its latents is kept in a folder, and no input is encoded a second time.

    Parts are files of their own, whole or not there, of any process. Those of another encoder are left alone.
    """

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        self.encoder = encoder
        self.folder = folder

    @property
    def provenance(self) -> Provenance:
        """Return the encoder's model and its pooling."""
        return self.encoder.provenance

    def words(self, inputs: Sequence[Any]) -> list[Word]:
        """Return the words of texts that have a latent."""
        return self.encoder.words(inputs)

    def missing(self, inputs: Sequence[Any]) -> list[int]:
        """List the rows of the inputs that are still to be encoded, each once."""
        return _missing(input_ids(inputs), self._read())

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 32, progress: bool = True) -> Tensor:
        """Return latents `(n, d)`, row for row with the inputs; see `Encoder.encode`.

        Under `accelerate launch`, nothing is kept.

        Raises:
            StitchError: an input cannot be encoded, or another run encodes into this folder; what was done is kept.
        """
        if accelerate_state().num_processes > 1:
            return self.encoder.encode(inputs, batch_size=batch_size, progress=progress)
        self.folder.mkdir(parents=True, exist_ok=True)
        doing, instead = f"encoding into {self.folder.parent}", "give another folder"
        with run_lock(self.folder / LOCK, doing=doing, instead=instead):
            ids, kept = input_ids(inputs), self._read()
            missing = _missing(ids, kept)
            size = batch_size * (BATCHES if self.encoder.processor is not None else 1)
            parts = [missing[start : start + size] for start in range(0, len(missing), size)]
            for rows in logging.tqdm(parts, desc="encoding", unit="part", disable=not progress):
                latents = self._keep(inputs_at(inputs, rows), ids[rows], batch_size=batch_size)
                kept |= zip(ids[rows].tolist(), latents, strict=True)
        return torch.stack([kept[int(one)] for one in ids])

    def _keep(self, inputs: list[Any], ids: Tensor, *, batch_size: int) -> Tensor:
        """Encode inputs, write their latents into a file of their own, and return them."""
        try:
            latents = self.encoder.encode(inputs, batch_size=batch_size, progress=False).float()
        except StitchError as error:
            raise StitchError(
                f"{error} (of {len(inputs)} inputs, the first {str(inputs[0])[:40]!r}); what was encoded before is "
                "kept: run the same again to go on"
            ) from error
        content = self.provenance.to_dict()
        tensors = {"ids": ids, "latents": latents}
        file = self.folder / f"{int(ids[0]) & (1 << 64) - 1:016x}-{len(ids)}.safetensors"
        write_tensors(file, tensors, content, kind=KIND, format_version=FORMAT_VERSION)
        return latents

    def _read(self) -> dict[int, Tensor]:
        """Return the latents in the folder that this encoder made, by the ids of their inputs."""
        kept: dict[int, Tensor] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            tensors, content = read_tensors(file, kind=KIND, supported=FORMAT_VERSION, otherwise="holds other tensors")
            if not self.provenance.difference(Provenance.from_dict(content)):
                kept |= zip(tensors["ids"].tolist(), tensors["latents"], strict=True)
        return kept

    def discard(self) -> None:
        """Delete the folder, once what was to be made of it is saved."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _missing(ids: Tensor, kept: Mapping[int, Tensor]) -> list[int]:
    """List the first row of each id that has no latent yet."""
    first = {one: row for row, one in reversed(list(enumerate(ids.tolist())))}
    return sorted(row for one, row in first.items() if one not in kept)


BYTES_A_TOKEN = 4
"""About how many bytes of UTF-8 a token of an API's has, in English."""


def estimate_cost(inputs: Sequence[Any], missing: Sequence[int], *, price: float | None = None) -> dict[str, Any]:
    """Count what is to be encoded: inputs, characters, about how many tokens, and about the cost.

    `price` is that of a million tokens.
    """
    todo = inputs_at(inputs, missing)
    characters = sum(length_of(one, modality="text") for one in todo)
    texts = [text for one in todo for text in (one.values() if isinstance(one, dict) else [one])]
    tokens = sum(len(text.encode(errors="replace")) for text in texts if isinstance(text, str)) // BYTES_A_TOKEN
    cost = None if price is None else tokens * price / 1e6
    counts = {"inputs": len(todo), "kept": len(inputs) - len(todo), "characters": characters, "tokens": tokens}
    return counts | {"cost": cost}
