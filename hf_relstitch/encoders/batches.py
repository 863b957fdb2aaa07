"""Inputs → latents, batch by batch: a model's output, its pooling, and what comes after it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import inputs_at, row_names
from hf_relstitch.encoders.devices import prefetched
from hf_relstitch.encoders.dual_encoders import FEATURES, LEFT_OUT, features
from hf_relstitch.encoders.padding import unpadded
from hf_relstitch.encoders.pairs import PairLayout, compose
from hf_relstitch.encoders.pooling import pool, token_mask
from hf_relstitch.encoders.processors import batch_rows, preprocess
from hf_relstitch.encoders.words import WordTokens, padded_rows, token_rows


def encode_inputs(
    inputs: Sequence[Any],
    run: Callable[[Mapping[str, Tensor]], Tensor],
    *,
    model: nn.Module,
    processor: Any,
    by_token: bool,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the rows and latents of inputs, batch by batch; `share` is the number of a process, and of how many.

    `run` gives latents `(n, d)` of a batch. With `by_token` it gives `(n, t, d)`, and the inputs are words: their texts
    are encoded, each once.
    """
    words = WordTokens.from_inputs(inputs, tokenizer=processor) if by_token else None
    whole = words.texts if words else inputs
    masked = not by_token or "attention_mask" in processor.model_input_names
    batches = batch_rows(whole, processor=processor, batch_size=batch_size if masked else 1)
    mine = logging.tqdm(batches[share[0] :: share[1]], desc="encoding", unit="batch", disable=not progress)
    flat = run if words is None else lambda batch: token_rows(run(batch), batch)
    encoded = encode_batches(whole, mine, flat, model=model, processor=processor)
    return encoded if words is None else words.pick(encoded)


def encode_batches(
    inputs: Sequence[Any],
    batches: Iterable[list[int]],
    run: Callable[[Mapping[str, Tensor]], Tensor],
    *,
    model: nn.Module,
    processor: Any,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the rows and latents of each batch; a failed batch is encoded row by row, so that the error names the row.

    Raises:
        StitchError: an input cannot be encoded, or its latent is not finite.
    """

    def prepare(rows: list[int]) -> Mapping[str, Tensor] | Exception:
        try:
            return preprocess(model, processor, inputs_at(inputs, rows))
        except Exception as error:  # whatever a processor raises; read by the loop below
            return error

    def encode(batch: Mapping[str, Tensor] | Exception) -> Tensor:
        if isinstance(batch, Exception):
            raise batch
        latents = run(batch)
        if not latents.isfinite().all():
            dtype = "" if latents.dtype != torch.float16 else "load the model in bfloat16 or float32, or "
            raise StitchError(f"its latent holds numbers that are not finite: {dtype}remove the input")
        return latents

    for rows, batch in prefetched(prepare, batches):
        try:
            latents = encode(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever the model raises; a batch of one that fails says it again
            latents = _one_by_one(rows, lambda row: encode(prepare([row])))
        yield rows, latents


def _one_by_one(rows: list[int], encode: Callable[[int], Tensor]) -> Tensor:
    """The latents of inputs each of which is encoded alone.

    Raises:
        StitchError: some cannot be encoded; it names their rows.
    """
    latents, failed = [], {}
    for row in rows:
        try:
            latents.append(encode(row))
        except Exception as error:
            failed[row] = error
    if failed:
        first = failed[min(failed)]
        said = first if isinstance(first, StitchError) else f"{type(first).__name__}: {first}"
        raise StitchError(f"{row_names(sorted(failed))} cannot be encoded: {said}") from first
    return torch.cat(latents)


def in_order(encoded: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Order latents `(n, d)` by the inputs, from batches with their rows."""
    latents = torch.cat([latents for _, latents in encoded])
    return latents[torch.tensor([row for rows, _ in encoded for row in rows]).argsort()]


def encode_batch(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    pooling: str,
    after_pooling: nn.Module,
    batching: str = "padded",
    layout: PairLayout | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Return latents `(n, d)` of one batch, and the output behind them; for an encoder-decoder, its encoder's output.

    With pooling "tokens", latents are `(n, t, d)`. A batch that `batching` splits has an output of its own only if it
    has one part; pairs that are composed, which `layout` splits, have none.
    """
    if layout is not None:
        options |= {"pooling": pooling, "after_pooling": after_pooling, "batching": batching}
        latents, _ = encode_batch(model, layout.split(batch), **options)
        return compose(*latents.chunk(2)), None
    if batching != "padded":
        options |= {"pooling": pooling, "after_pooling": after_pooling}
        parts = [(rows, *encode_batch(model, part, **options)) for rows, part in unpadded(batch, batching=batching)]
        made = [(rows, latents) for rows, latents, _ in parts]
        whole = padded_rows(made, batch) if pooling == "tokens" else in_order(made)
        return whole, parts[0][2] if len(parts) == 1 else None
    home = next(iter(batch.values())).device  # parts of a model that accelerate has spread give latents elsewhere
    if pooling in FEATURES:
        output = features(model, batch, side=pooling, **options)
        return after_pooling(pool(output, attention_mask=None, pooling=pooling).to(home)), output
    output = _encoder_of(model)(**batch, **options)
    mask = token_mask(model, output, batch.get("attention_mask"))
    return after_pooling(pool(output, attention_mask=mask, pooling=pooling).to(home)), output


def _encoder_of(model: Any) -> Any:
    """What gives the hidden states: of an encoder-decoder its encoder, of any other model itself."""
    config = getattr(model, "config", None)
    has_decoder = getattr(config, "is_encoder_decoder", False) or "decoder" in getattr(config, LEFT_OUT, [])
    return model.get_encoder() if has_decoder else model
