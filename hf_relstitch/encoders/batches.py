"""Inputs → latents, batch by batch, so that an input has one latent, whatever else is in its batch."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import inputs_at, probe_inputs, row_names
from hf_relstitch.encoders.devices import placement, prefetched
from hf_relstitch.encoders.pairs import PairLayout, compose
from hf_relstitch.encoders.pooling import FEATURES, LEFT_OUT, features, pool, token_mask
from hf_relstitch.encoders.processors import batch_rows, modality_of, pads_by_itself, preprocess, warn_unknown
from hf_relstitch.encoders.words import WordTokens, padded_rows, token_rows

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded
BATCHINGS = {
    "padded": "inputs of different lengths come together, the shorter ones padded",
    "equal length": "only inputs of one length come together, since the model sees padding",
    "one by one": "each input comes alone, since the model mixes the rows of a batch",
}
Run = Callable[[Mapping[str, Tensor]], Tensor]


def encode_inputs(
    inputs: Sequence[Any],
    run: Run,
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
    run: Run,
    *,
    model: nn.Module,
    processor: Any,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the rows and latents of each batch; a failed batch is encoded row by row, so that the error names the row.

    At the end a warning names the texts of which the tokenizer knows no word.

    Raises:
        StitchError: an input cannot be encoded, or its latent is not finite.
    """
    unknown: set[int] = set()

    def prepare(rows: list[int]) -> Mapping[str, Tensor] | Exception:
        def note(places: list[int]) -> None:
            unknown.update(rows[place] for place in places)

        try:
            return preprocess(model, processor, inputs_at(inputs, rows), unknown=note)
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
    warn_unknown(inputs, sorted(unknown))


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
    config: Any = getattr(model, "config", None)
    has_decoder = getattr(config, "is_encoder_decoder", False) or "decoder" in getattr(config, LEFT_OUT, [])
    encoder: Any = model
    output = (encoder.get_encoder() if has_decoder else encoder)(**batch, **options)
    mask = token_mask(model, output, batch.get("attention_mask"))
    return after_pooling(pool(output, attention_mask=mask, pooling=pooling).to(home)), output


@torch.no_grad()
def choose_batching(run: Run, model: nn.Module, processor: Any, *, name: str) -> str:
    """Return one of `BATCHINGS` with which probes of different lengths have the same latents alone and together.

    The function changes the padding side and token of the processor and the config if that lets padded batches be used.
    `run` computes latents or logits `(n, d)` of a batch.

    Raises:
        StitchError: two passes over one input differ.
    """
    modality = modality_of(processor)
    if modality == "image" or (modality == "audio" and pads_by_itself(processor)):
        return "padded"
    _fix_hashes(model)
    readings = _readings(run, model, processor)
    if len(readings) < 2 and modality == "text" and getattr(_text_config(model), "pad_token_id", 0) is None:
        _text_config(model).pad_token_id = processor.pad_token_id
        readings = _readings(run, model, processor)
    if len(readings) < 2:
        return "padded"  # what does not run on its own says why when it is encoded
    probes, alone = [probe for probe, _ in readings], torch.cat([reading for _, reading in readings])
    rounding = max(1e-5, 8 * torch.finfo(placement(model)[1]).eps)
    apart, largest = (alone[0] - alone[-1]).float().norm(), alone.float().norm(dim=-1).max()
    allowed = 1e-3 * float(apart) + rounding * float(largest)

    def agrees() -> bool:
        return _agree(_reading(run, model, processor, probes), alone, allowed)

    if agrees() or _mend_padding(agrees, model, processor, name=name):
        return "padded"
    last = preprocess(model, processor, probes[-1:])
    if not _agree(run(last), alone[-1:], allowed):
        raise StitchError(
            f"{name} gives different outputs each time it reads the same input: fix what is random in it (its dropout, "
            "or the seed of its hashes), or choose another model"
        )
    if hasattr(processor, "return_attention_mask"):
        processor.return_attention_mask = True
    elif modality == "text" and "attention_mask" not in processor.model_input_names:
        processor.model_input_names = [*processor.model_input_names, "attention_mask"]
    last = preprocess(model, processor, probes[-1:])
    batching = "equal length" if _keeps_rows_apart(run, last, allowed) else "one by one"
    logger.info(f"{name}: {BATCHINGS[batching]}")
    return batching


def _readings(run: Run, model: nn.Module, processor: Any) -> list[tuple[Any, Tensor]]:
    """The probes that run alone, of different lengths, the longest last, and what each gives."""
    _, long = probe_inputs(modality_of(processor))
    if isinstance(long, str):
        words = long.split()
        probes = [" ".join(words[:count]) for count in (1, 3, 6, 10, len(words))]
    else:
        probes = [long[:samples] for samples in (4_000, 5_000, 9_000, len(long))]
    readings = [(probe, _reading(run, model, processor, [probe])) for probe in probes]
    return [(probe, reading) for probe, reading in readings if reading is not None]


def _text_config(model: Any) -> Any:
    """The config that has the padding token of a text model; None where there is none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else None


def _reading(run: Run, model: nn.Module, processor: Any, inputs: list[Any]) -> Tensor | None:
    """What `run` makes of inputs; None where it fails, as for a padding token that the model does not have."""
    try:
        made = run(preprocess(model, processor, inputs))
        return made if made.ndim == 2 else None
    except Exception as error:  # whatever a model raises
        logger.debug(f"{type(model).__name__} does not run on {len(inputs)} probes: {error}")
        return None


def _fix_hashes(model: Any) -> None:
    """Give a model that draws its hashes anew in each pass, as Reformer does, a seed for them."""
    random = [module for module in model.modules() if getattr(module, "hash_seed", 0) is None]
    for module in random:
        module.hash_seed = 0
    if random:
        model.config.hash_seed = 0


def _mend_padding(agrees: Callable[[], bool], model: Any, processor: Any, *, name: str) -> bool:
    """Change the padding side, and the padding token of the tokenizer or the config, until `agrees`; else nothing."""
    text = _text_config(model)
    side, token, pad = (
        processor.padding_side,
        getattr(processor, "pad_token", None),
        getattr(text, "pad_token_id", None),
    )
    pairs = [(token, pad)]
    if isinstance(processor, PreTrainedTokenizerBase):
        special = {index: processor.convert_ids_to_tokens(index) for index in processor.all_special_ids}
        pairs += [(special.get(pad), pad), (token, processor.pad_token_id)]
        pairs += [(name_of, index) for index, name_of in special.items()]
        pairs = [pair for pair in dict.fromkeys(pairs) if pair[0] is not None]
    for pair, padding_side in product(pairs, dict.fromkeys([side, "right", "left"])):
        _set_padding(processor, text, padding_side, *pair)
        if agrees():
            logger.info(
                f"{name}: inputs are padded on the {padding_side} (not the {side}), with {pair[0]!r} (not {token!r}), "
                f"which the config has as {pair[1]} (not {pad}), so that one alone and in a batch has the same latent"
            )
            return True
    _set_padding(processor, text, side, token, pad)
    return False


def _set_padding(processor: Any, config: Any, side: str, token: str | None, pad_token_id: int | None) -> None:
    """Set the padding side and token of a processor, and the token's id in the config of a text model."""
    processor.padding_side = side
    if isinstance(processor, PreTrainedTokenizerBase):
        processor.pad_token = token
        processor.init_kwargs["padding_side"] = side  # or it would not be saved
        if config is not None:
            config.pad_token_id = pad_token_id


def _agree(made: Tensor | None, alone: Tensor, allowed: float) -> bool:
    if made is None or made.shape != alone.shape:
        return False
    return float((made - alone).float().norm(dim=-1).max()) <= allowed


def _keeps_rows_apart(run: Run, batch: Mapping[str, Tensor], allowed: float) -> bool:
    """Whether an input and nearly its reverse, in one batch without padding, have the latents of each alone."""
    places = torch.arange(batch["attention_mask" if "attention_mask" in batch else next(iter(batch))].shape[1])
    other = places.flip(0)
    other[len(other) // 2] = other[len(other) // 2 - 1]  # a model that heeds no order has another latent too
    both = {key: torch.cat([tensor, tensor[:, other.to(tensor.device)]]) for key, tensor in batch.items()}
    try:
        apart = torch.cat([run(part) for _, part in unpadded(both, batching="one by one")])
        together = torch.cat([run(part) for _, part in unpadded(both, batching="equal length")])
    except Exception:  # whatever a model raises that takes one row at a time
        return False
    return _agree(together, apart, allowed)


def unpadded(batch: Mapping[str, Tensor], *, batching: str) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield the rows and the tensors of each part of a batch, without its padding."""
    mask = batch.get("attention_mask")
    rows_of: dict[Any, list[int]] = defaultdict(list)
    for row in range(len(next(iter(batch.values())))):
        length = None if mask is None else int(mask[row].sum())
        rows_of[row if batching == "one by one" else length].append(row)
    for rows in rows_of.values():
        part = {key: tensor[rows] for key, tensor in batch.items()}
        if mask is not None:
            kept = mask[rows].bool()
            part = {
                key: tensor[kept].unflatten(0, (len(rows), -1)) if tensor.shape[:2] == kept.shape else tensor
                for key, tensor in part.items()
            }
        yield rows, part
