"""Any callable from inputs to vectors as an encoder, and a stand-in for an encoder that is absent."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from time import sleep
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import check_some, row_names
from hf_relstitch.data.latents import as_tensor
from hf_relstitch.data.modality import MODALITIES
from hf_relstitch.data.provenance import NOT_KNOWN, Provenance
from hf_relstitch.encoders.encoder import Encoder

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded


class Function(nn.Module):
    """Wrap a callable as a model: it takes raw inputs, and no tensors from a processor."""

    def __init__(self, function: Callable[[list[Any]], Any], *, retries: int = 0) -> None:
        super().__init__()
        self.function = function
        self.retries = retries
        self._done: list[tuple[list[Any], Tensor]] = []  # the batches before the one that failed in the last call

    def forward(self, **batch: Tensor) -> NoReturn:
        """Refuse every call.

        Raises:
            StitchError: always; the message says what takes raw inputs.
        """
        raise StitchError(
            f"the source encoder is a callable of raw inputs and got {', '.join(batch)}: use model.predict(inputs)"
        )

    def latents(self, inputs: Sequence[Any], *, batch_size: int, progress: bool = False) -> Tensor:
        """Return latents `(n, d)` float32 on the CPU, row for row with the inputs.

        After a failure the batches before it are kept. The next call continues from there if its inputs begin with
        them.

        Raises:
            StitchError: there are no inputs, or the callable fails or does not return one finite vector for each;
                the message names the rows.
        """
        check_some(inputs, batch_size=batch_size)
        starts = range(0, len(inputs), batch_size)
        bar = logging.tqdm(starts, desc="encoding", unit="batch", disable=not progress)
        before, self._done = self._done, []
        for place, start in enumerate(bar):
            batch = list(inputs[start : start + batch_size])
            known = place < len(before) and _are_same(before[place][0], batch)
            self._done.append((batch, before[place][1] if known else self._batch(batch, start=start)))
        made, self._done = [vectors for _, vectors in self._done], []
        if len(widths := {one.shape[1] for one in made}) > 1:
            raise StitchError(f"the callable gave vectors of {' and '.join(map(str, sorted(widths)))} numbers")
        return torch.cat(made)

    def _batch(self, inputs: list[Any], *, start: int) -> Tensor:
        """The vectors of a batch that begins at row `start`; where the callable raises, of one input at a time."""
        kept = f"; the {start} inputs before its batch are kept, and calling again goes on from there" if start else ""
        try:
            vectors = self._with_retries(inputs)
        except StitchError:
            raise
        except Exception:  # whatever a callable raises
            singles = []
            for row, single in enumerate(inputs, start):
                try:
                    singles.append(self._with_retries([single]))
                except Exception as error:
                    said = f"{type(error).__name__}: {error}"
                    raise StitchError(f"the callable fails at {row_names([row])}: {said}{kept}") from error
            vectors = torch.cat(singles)
        if strange := (~vectors.isfinite().all(1)).nonzero().flatten().tolist():
            rows = row_names([start + row for row in strange])
            raise StitchError(f"the callable gave numbers that are not finite for {rows}: remove or mend them{kept}")
        return vectors

    def _with_retries(self, inputs: list[Any]) -> Tensor:
        """Return the vectors of inputs; where the callable raises, call it again after a while."""
        for wait in (2**attempt for attempt in range(self.retries)):
            try:
                return self._vectors(inputs)
            except StitchError:
                raise
            except Exception as error:  # whatever a callable raises
                logger.warning(f"the callable failed ({type(error).__name__}: {error}): called again in {wait} s")
                sleep(wait)
        return self._vectors(inputs)

    @torch.no_grad()
    def _vectors(self, inputs: list[Any]) -> Tensor:
        given = self.function(inputs)
        try:
            made = as_tensor(given, np.float32)
        except (TypeError, ValueError) as error:
            raise StitchError(
                f"the callable gave a {type(given).__name__} that is no matrix of numbers ({error}): expected one "
                "vector for each of the list of inputs"
            ) from error
        if made.ndim != 2 or len(made) != len(inputs) or not made.is_floating_point():
            raise StitchError(
                f"the callable gave {made.dtype} of shape {tuple(made.shape)} for {len(inputs)} inputs: expected one "
                f"vector for each, ({len(inputs)}, d) floats"
            )
        return made.float()


def _are_same(before: list[Any], now: list[Any]) -> bool:
    """Whether two batches hold the same objects, or equal texts."""
    pairs = zip(before, now, strict=False)
    return len(before) == len(now) and all(a is b or (isinstance(a, str) and a == b) for a, b in pairs)


class CallableEncoder(Encoder):
    """Wrap any callable from a list of inputs to their vectors as an encoder of a source or of a target.

    A model stitched with it takes raw inputs, by `predict`, or latents; it cannot be saved. Under `accelerate launch`
    every process encodes all inputs.
    """

    def __init__(
        self,
        function: Callable[[list[Any]], Any],
        *,
        model_id: str,
        revision: str = NOT_KNOWN,
        modality: str = "text",
        license: str | None = None,  # noqa: A002  (the name that it has on the Hub)
        retries: int = 0,
    ) -> None:
        """`model_id` and `revision` tell its latents from those of others, and `modality` is what it takes.

        A call that raises, as an API does that is asked too often, is made again up to `retries` times, after a second,
        then two, four and so on.

        Raises:
            StitchError: an unknown modality.
        """
        if modality not in MODALITIES:
            raise StitchError(f"modality is {modality!r}: expected one of {', '.join(MODALITIES)}")
        self.model = self.function = Function(function, retries=retries)
        self.processor = None
        self.modality = modality
        self.pooling = "none"
        self.batching = "padded"
        self.after_pooling = nn.Sequential()
        self.provenance = Provenance(model_id, revision, "none", license=license)

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 32, progress: bool = True) -> Tensor:
        """Return latents `(n, d)` float32 on the CPU, row for row with the inputs.

        The callable gets `batch_size` inputs at a time.

        Raises:
            StitchError: there are no inputs, or the callable does not return one vector for each.
        """
        return self.function.latents(inputs, batch_size=batch_size, progress=progress)


def load_function(name: str) -> Callable[[list[Any]], Any]:
    """Import a function that the user names, MODULE:NAME, from the current folder or what is installed.

    Raises:
        StitchError: there is no such module or function.
    """
    module, _, attribute = name.partition(":")
    try:
        if "" not in sys.path:
            sys.path.insert(0, "")  # the current folder, where a console script does not look
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise StitchError(
            f"{name!r} cannot be imported ({error}): give MODULE:NAME of a function from a list of texts to their "
            "vectors, like my_api:embed for the function embed in my_api.py here"
        ) from error
    if not callable(function):
        raise StitchError(f"{name} is a {type(function).__name__}: give a function from a list of texts to vectors")
    return function


def absent_encoder(provenance: Provenance) -> CallableEncoder:
    """Build a stand-in for the model of latents that were computed elsewhere."""

    def absent(_: list[Any]) -> NoReturn:
        raise StitchError(
            f"the model was stitched from stored latents of {provenance.model_id}, without its encoder: give latents "
            "to model.classify or model.translate"
        )

    encoder = CallableEncoder(absent, model_id=provenance.model_id)
    encoder.provenance = provenance
    return encoder
