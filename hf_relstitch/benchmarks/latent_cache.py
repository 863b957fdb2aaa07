"""Cache of a suite's latents.

Each model encodes the same inputs once. A hash of model and inputs names the file of their latents.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_relstitch.benchmarks.rows import Rows
from hf_relstitch.benchmarks.suite import EncoderSpec, Suite
from hf_relstitch.benchmarks.yaml_schema import Document
from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.ids import input_ids
from hf_relstitch.data.provenance import NOT_KNOWN, Provenance
from hf_relstitch.encoders.devices import placement
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.heads.head import Head
from hf_relstitch.heads.loading import load_classifier
from hf_relstitch.hub.files import atomic_write
from hf_relstitch.hub.processes import accelerate_state
from hf_relstitch.hub.repo import locate
from hf_relstitch.model.anchors import first_of_each

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded
TOKENIZER_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "pad_token", "model_input_names")


@dataclass(frozen=True, eq=False)
class Space:
    """Hold a data set's latents `(n, d)` from an encoder, and a key that stands for everything they depend on."""

    latents: Tensor
    provenance: Provenance
    key: str
    head: Head | None = None


def key_of(*content: object) -> str:
    """Return a hash of plain values."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()


def _digest_of(tensor: Tensor) -> str:
    """Return a hash of a tensor's values."""
    return hashlib.blake2b(tensor.numpy().tobytes(), digest_size=12).hexdigest()


def check_models(suite: Suite, document: Document, given: Mapping[str, Encoder]) -> None:
    """Check that every model of a suite exists, before anything is computed.

    Raises:
        StitchError: a model does not exist; the error names the line.
    """
    for name, spec in suite.encoders.items():
        if name in given:
            continue
        place = spec.model or spec.classifier
        if place is None:
            raise document.error(
                ("encoders", name),
                f"encoder {name!r} has no model: give model (an encoder) or classifier (with its head), a folder or a "
                "Hub id; or the encoder itself by run_suite(encoders=…); stored latents, the latents: of a data set, "
                "need no encoders: leave it out",
            )
        try:
            if locate(place, revision=spec.revision).file("config.json") is None:
                raise StitchError(f"{place} has no config.json")
        except StitchError as error:
            raise _unloadable(name, spec, document, error) from error


def all_spaces(
    suite: Suite,
    document: Document,
    data: Mapping[str, Rows],
    folder: Path,
    *,
    given: Mapping[str, Encoder],
    progress: bool,
) -> dict[tuple[str, str], Space]:
    """Return the space of each data set and encoder of a suite, with a single model in memory at a time.

    Raises:
        StitchError: a model cannot be loaded, or does not take its inputs; the error names the line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spaces = {}
    for name, rows in data.items():
        for encoder in suite.encoders_of(name) if rows.latents else ():
            latents = rows.latents[encoder]
            digest = _digest_of(latents)
            origin = Provenance(encoder, f"latents:{digest}", "stored")
            spaces[name, encoder] = Space(latents, origin, digest)
    for encoder, spec in suite.encoders.items():
        wanted = [rows for name, rows in data.items() if rows.inputs and encoder in suite.encoders_of(name)]
        if not wanted:
            continue
        model, head = load(encoder, spec, document, given)
        for rows in wanted:
            spaces[rows.name, encoder] = replace(
                _space_of(model, rows, encoder, spec, document, folder, progress=progress), head=head
            )
        del model  # before the next one loads
    return spaces


def load(name: str, spec: EncoderSpec, document: Document, given: Mapping[str, Encoder]) -> tuple[Encoder, Head | None]:
    """Load an encoder of a suite, with the head if the suite names a classifier."""
    if name in given:
        return given[name], None
    encoder: Encoder
    head: Head | None = None
    try:
        if spec.classifier:
            encoder, head = load_classifier(spec.classifier, revision=spec.revision)
        else:
            options: dict[str, Any] = {"pooling": spec.pooling, "pairs": spec.pairs, "revision": spec.revision}
            encoder = Encoder.from_pretrained(str(spec.model), **options)
        return encoder, head
    except (StitchError, OSError, ValueError) as error:
        raise _unloadable(name, spec, document, error) from error


class Sources:
    """Hold the encoders of a suite, with a single encoder in memory at a time."""

    def __init__(self, suite: Suite, document: Document, given: Mapping[str, Encoder]) -> None:
        self.suite, self.document, self.given = suite, document, given
        self.loaded: tuple[str, Encoder] | None = None

    def load(self, name: str) -> Encoder:
        """Load the encoder of this name, or return it if it was the last to load.

        Raises:
            StitchError: the encoder does not load.
        """
        if self.loaded is None or self.loaded[0] != name:
            self.loaded = None
            self.loaded = (name, load(name, self.suite.encoders[name], self.document, self.given)[0])
        return self.loaded[1]


def _space_of(
    model: Encoder, rows: Rows, name: str, spec: EncoderSpec, document: Document, folder: Path, *, progress: bool
) -> Space:
    """Read latents from the cache, or compute and cache them.

    Latents of a callable without a revision are computed each time.
    """
    column = spec.input or model.modality
    if column not in rows.inputs:
        raise document.error(
            ("data", rows.name),
            f"data {rows.name!r} has no input {column!r}, which encoder {name!r} reads: it has "
            f"{', '.join(rows.inputs)}; add it to inputs, say input: of the encoder, or name the pairs",
        )
    inputs, state = rows.inputs[column], accelerate_state()
    if model.provenance.by_token != rows.by_word:
        raise document.error(
            ("encoders", name),
            f"{rows.name!r} has a label for each {'word' if rows.by_word else 'input'}, and encoder {name!r} gives "
            f"a latent for each {'token' if model.provenance.by_token else 'input'}: words are read by models with "
            "pooling: tokens and by classifiers of tokens, whole inputs by others",
        )
    try:
        ids = _digest_of(input_ids(inputs))
    except StitchError as error:
        raise document.error(("data", rows.name, "inputs", column), f"{rows.name}: {error}") from error
    key = key_of("latents", model.provenance.to_dict(), _settings_of(model), ids)
    file = folder / f"{key}.safetensors"
    unnamed = model.provenance.revision == NOT_KNOWN
    there = file.is_file() and not unnamed
    state.wait_for_everyone()  # all look before one writes
    if not there:
        logger.info(f"encoding {len(inputs)} inputs of {rows.name} with {name}")
        latents = _encode(model, inputs, batch_size=spec.batch_size, progress=progress)
        if unnamed:
            return Space(latents, model.provenance, _digest_of(latents))
        if state.is_main_process:
            with atomic_write(file) as written:
                save_file({"latents": latents}, written, {"encoder": name, "data": rows.name})
        state.wait_for_everyone()
    return Space(load_file(file)["latents"], model.provenance, key)


def _encode(model: Encoder, inputs: Sequence[Any], *, batch_size: int, progress: bool) -> Tensor:
    """Return latents `(n, d)`; those of words that have none are NaN."""
    encoded = model.anchor_inputs(inputs)
    latents = model.encode(encoded, batch_size=batch_size, progress=progress).float().contiguous()
    if encoded is inputs:
        return latents
    row_of = {word: row for row, word in enumerate(encoded)}
    nothing = latents.new_full(latents.shape[1:], torch.nan)
    return torch.stack([latents[row_of[word]] if word in row_of else nothing for word in inputs])


def keep_common_words(
    tables: Mapping[str, Rows], spaces: Mapping[tuple[str, str], Space]
) -> tuple[dict[str, Rows], dict[tuple[str, str], Space]]:
    """Leave out, of data with labels of words, the words for which an encoder has no latent."""
    kept_tables, kept_spaces = dict(tables), dict(spaces)
    for name in (name for name, rows in tables.items() if rows.by_word):
        of_data = {key: space for key, space in spaces.items() if key[0] == name}
        kept = torch.stack([space.latents.isfinite().all(1) for space in of_data.values()]).all(0)
        kept_tables[name] = tables[name].select(kept)
        kept_spaces |= {key: replace(space, latents=space.latents[kept]) for key, space in of_data.items()}
    return kept_tables, kept_spaces


def _settings_of(encoder: Encoder) -> list[object]:
    """Return the model's dtype and the processor's rules, which latents depend on too, as plain values."""
    processor, dtype = encoder.processor, str(placement(encoder.model)[1])
    if not isinstance(processor, PreTrainedTokenizerBase):
        return [dtype, processor.to_json_string() if processor else None]  # a callable has none
    if backend := getattr(processor, "backend_tokenizer", None):
        rules = json.loads(backend.to_str()) | {"truncation": None, "padding": None}  # as the last call left them
    else:
        rules = {"vocabulary": processor.get_vocab(), "options": repr(processor.init_kwargs)}
    return [dtype, type(processor).__name__, rules, *(getattr(processor, name) for name in TOKENIZER_SETTINGS)]


def distinct(spaces: list[Tensor]) -> Tensor:
    """Return the rows, in order, whose latents differ from the latents of all earlier rows, in every space."""
    rows = set.intersection(*(set(first_of_each(latents)) for latents in spaces))
    return torch.tensor(sorted(rows), dtype=torch.int64)


def _unloadable(name: str, spec: EncoderSpec, document: Document, error: Exception) -> StitchError:
    field = "classifier" if spec.classifier else "model"
    return document.error(
        ("encoders", name, field),
        f"the {field} of encoder {name!r}, {spec.classifier or spec.model}, does not load ({error}): expected a folder "
        "that save_pretrained wrote, or a Hub id",
    )
