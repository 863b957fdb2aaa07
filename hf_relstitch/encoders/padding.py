"""Padding: an input has one latent, whether it is encoded alone or in a batch with longer ones."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import probe_inputs
from hf_relstitch.encoders.devices import placement
from hf_relstitch.encoders.processors import modality_of, pads_by_itself, preprocess

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded
BATCHINGS = {
    "padded": "inputs of different lengths come together, the shorter ones padded",
    "equal length": "only inputs of one length come together, since the model sees padding",
    "one by one": "each input comes alone, since the model mixes the rows of a batch",
}
Run = Callable[[Mapping[str, Tensor]], Tensor]


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
    allowed = _allowed(alone, dtype=placement(model)[1])

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


def _probes(modality: str) -> list[Any]:
    """Inputs of different lengths, the longest last."""
    _, long = probe_inputs(modality)
    if modality == "text":
        words = long.split()
        return [" ".join(words[:count]) for count in (1, 3, 6, 10, len(words))]
    return [long[:samples] for samples in (4_000, 5_000, 9_000, len(long))]


def _readings(run: Run, model: nn.Module, processor: Any) -> list[tuple[Any, Tensor]]:
    """The probes that run alone, and what each gives."""
    readings = [(probe, _reading(run, model, processor, [probe])) for probe in _probes(modality_of(processor))]
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


def _allowed(alone: Tensor, *, dtype: torch.dtype) -> float:
    """How far apart two readings of one input may be: a share of two inputs' distance, and the dtype's rounding."""
    rounding = max(1e-5, 8 * torch.finfo(dtype).eps)
    apart = float((alone[0] - alone[-1]).float().norm())
    return 1e-3 * apart + rounding * float(alone.float().norm(dim=-1).max())


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
