"""Processors: tokenizers, image processors and feature extractors of sound; from raw inputs to a model's batches."""

from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import signature
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.data.inputs import (
    check_kinds,
    check_some,
    inputs_at,
    is_text_pair,
    length_of,
    load_audio,
    load_image,
    row_names,
    texts_for_tokenizer,
)
from hf_relstitch.data.modality import BY_TENSOR, MODALITIES
from hf_relstitch.encoders.devices import on_device, placement
from hf_relstitch.encoders.sentence_transformers_repo import SentenceModules
from hf_relstitch.hub.files import read_json
from hf_relstitch.hub.repo import Repo

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded
PIXELS_AS_TOKENS = ("imagegpt",)
"""Whose main input is `input_ids` that an image processor makes."""
TOKENIZER = "tokenizer.json"
MOST_GROWTH = 1_000
KINDS = {"text": PreTrainedTokenizerBase, "image": ImageProcessingMixin, "audio": SequenceFeatureExtractor}


def load_processor(repo: Repo, *, modality: str) -> Any:
    """Load the processor of a repo; a tokenizer without padding token pads with its end token or another special token.

    Raises:
        StitchError: the repo has no processor, or a tokenizer without the files of its vocabulary.
    """
    if modality == "text":
        check_growth(repo.file(TOKENIZER))
    try:
        processor = getattr(transformers, MODALITIES[modality].loader).from_pretrained(repo.place, **repo.loading)
    except Exception as error:  # whatever transformers raises for a file that is missing or damaged
        files = "" if modality != "text" or repo.file(TOKENIZER) else f"it has no {TOKENIZER}; "
        raise StitchError(
            f"{repo.name} has no processor for {modality} that transformers reads ({files}{str(error).strip()}): copy "
            "or download its files again, beside the weights"
        ) from error
    if modality == "text":
        # without its files transformers makes a vocabulary of special tokens alone
        names = list(processor.vocab_files_names.values())
        if names and not any(repo.file(name) for name in dict.fromkeys([TOKENIZER, *names])):
            raise StitchError(
                f"{repo.name} has no tokenizer files, so that every word would be unknown: it lacks {TOKENIZER} (or "
                f"{', '.join(name for name in names if name != TOKENIZER)}): copy them there, or save its "
                "tokenizer there"
            )
        if processor.pad_token is None:
            processor.pad_token = processor.eos_token or next(iter(processor.all_special_tokens), None)
    return processor


def check_growth(file: Path | None) -> None:
    """Refuse a tokenizer.json whose replacements, one after another, make far more of a text than there was.

    Raises:
        StitchError: they may make a thousand letters of one.
    """
    content = read_json(file) if file is not None and file.is_file() else {}
    growth, left = 1, [content.get("normalizer")]
    while left:
        step = left.pop()
        if isinstance(step, dict):
            left += step["normalizers"] if isinstance(step.get("normalizers"), list) else []
            growth *= max(1, len(step["content"])) if isinstance(step.get("content"), str) else 1
    if growth > MOST_GROWTH:
        raise StitchError(f"{file} makes up to {growth:,} letters of one, by its replacements: download it again")


def _num_embeddings(model: Any) -> int | None:
    """How many tokens a model has embeddings for; None where it has no table of them."""
    model = getattr(model, "model", model) if not hasattr(model, "get_input_embeddings") else model
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return None


def _check_tokens(batch: Mapping[str, Tensor], model: Any) -> None:
    """Refuse a text without tokens, or with one that the model has no embedding for."""
    tokens, mask = batch["input_ids"], batch.get("attention_mask")
    if tokens.shape[1] == 0 or (mask is not None and not mask.any(1).all()):
        raise StitchError("the tokenizer makes no tokens of it, as of an empty text: remove it")
    embeddings = _num_embeddings(model)
    if embeddings is not None and int(tokens.max()) >= embeddings:
        raise StitchError(
            f"the tokenizer gives the token {int(tokens.max())} and the model has embeddings of {embeddings}: give the "
            "tokenizer that it was trained with, or model.resize_token_embeddings and train them"
        )


WORDS_OF_MANY = (
    "A storm hits the northern coast and the harbour is closed until the morning",
    "Ein Sturm trifft die Küste",
    "буря на северном побережье",
    "عاصفة تضرب الساحل",
    "תאריך יום חדש",
    "北 海 岸 有 大 風",
    "あ ら し が き た",
    "폭풍 이 왔 다",
    "तूफान तट पर है",
    "M K T A Y I A K Q R",
    "ATGCGT TGCGTA GCGTAC CGTACG",
)
"""Texts in many alphabets, and residues and bases in letters: a tokenizer that reads none of them reads nothing."""
MOSTLY = 0.5
"""The share of unknown tokens from which a tokenizer does not understand a text."""


def check_words(
    tokenizer: Any,
    inputs: Sequence[Any],
    *,
    name: str,
    of: str = "the inputs",
    over: Callable[[Sequence[float]], float] = fmean,
) -> None:
    """Refuse a tokenizer that does not know most words of inputs; a hundred of them are read.

    `over` is of the texts' shares of unknown tokens.

    Raises:
        StitchError: it is another model's, or files are missing.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    some = inputs_at(inputs, range(0, len(inputs), max(1, len(inputs) // 100)))
    texts = [text for one in some for text in (one.values() if is_text_pair(one) else [one]) if isinstance(text, str)]
    if texts and (share := over([_unknown_share(tokenizer, text) for text in texts])) > MOSTLY:
        raise StitchError(
            f"{share:.0%} of the tokens that {name}'s tokenizer makes of {of} are unknown: give the tokenizer that the "
            f"model was trained with (is its {TOKENIZER} there, and its own?)"
        )


def _unknown_share(tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """The share of a text's tokens that are unknown, marks of spaces aside; 1 where it has no tokens."""
    try:
        ids = tokenizer(text, add_special_tokens=False, truncation=True)["input_ids"]
    except Exception:  # of a tokenizer that wants boxes or the like beside a text; encoding says so
        return 0.0
    unknown = ids.count(tokenizer.unk_token_id)
    spaces = sum(not token.strip("▁Ġ ") for token in tokenizer.convert_ids_to_tokens(ids) if token)
    return unknown / max(1, len(ids) - spaces) if len(ids) > spaces else float(bool(text.strip()))


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: Any, *, name: str) -> None:
    """Refuse a tokenizer with far fewer tokens than the model has embeddings, or one that knows no words.

    Raises:
        StitchError: it has less than a tenth of them, or no words of any alphabet: it is another model's, or files are
            missing.
    """
    check_words(tokenizer, WORDS_OF_MANY, name=name, of="words in ten alphabets", over=min)
    embeddings = _num_embeddings(model)
    if embeddings is not None and len(tokenizer) * 10 < embeddings:
        raise StitchError(
            f"{name} has {embeddings} token embeddings and its tokenizer knows {len(tokenizer)} tokens, so that most "
            f"words would be unknown: give the tokenizer that it was trained with (is its {TOKENIZER} there?)"
        )


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, modules: SentenceModules | None, *, model: Any
) -> PreTrainedTokenizerBase:
    """Return a tokenizer that cuts texts at the repo's limit, or else at the end of the model's positions."""
    text = model.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if modules is not None:
        tokenizer = modules.prepare(tokenizer)
    if (modules is None or modules.max_length is None) and isinstance(positions, int) and positions > 0:
        embeddings = (each for name, each in model.named_modules() if name.endswith("position_embeddings"))
        padding = getattr(next(embeddings, None), "padding_idx", None)  # where RoBERTa and its like begin
        unused = 0 if padding is None else padding + 1
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions - unused)
    return tokenizer


def main_modality(model: nn.Module) -> str:
    """Return `text`, `image` or `audio`, by a transformers model's main input."""
    if getattr(getattr(model, "config", None), "model_type", None) in PIXELS_AS_TOKENS:
        return "image"
    name = getattr(model, "main_input_name", None)
    if name not in BY_TENSOR:
        raise StitchError(
            f"{type(model).__name__} takes {name}: supported are {', '.join(BY_TENSOR)} (text, image and audio models)"
        )
    return BY_TENSOR[name]


def modality_of(processor: Any) -> str:
    """Return `text` for a tokenizer, `image` for an image processor, `audio` for a feature extractor of sound."""
    for modality, kind in KINDS.items():
        if isinstance(processor, kind):
            return modality
    raise StitchError(
        f"the processor is a {type(processor).__name__}: expected a tokenizer, an image processor or a "
        "feature extractor of sound"
    )


def unknown_rows(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> list[int]:
    """Return the rows of token ids in which no word is known, only special tokens and marks of spaces."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        return []
    silent = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(["▁", "Ġ"])}
    return [row for row, tokens in enumerate(ids) if unknown in tokens and silent.issuperset(tokens)]


def warn_unknown(inputs: Sequence[Any], rows: Sequence[int]) -> None:
    """Warn of the rows of inputs, if any, of which the tokenizer knows no word."""
    if rows:
        logger.warning(
            f"the tokenizer knows no word of {row_names(rows)}, {inputs_at(inputs, rows[:1])[0]!r:.60}: what the model "
            "answers to it says nothing; leave it out, or take an encoder of its language"
        )


def preprocess(
    model: nn.Module, processor: Any, inputs: Sequence[Any], *, unknown: Callable[[list[int]], None] | None = None
) -> dict[str, Tensor]:
    """Turn a batch of texts, pairs of texts, images or sounds into tensors on the model's device and in its dtype.

    `unknown` is called with the rows of texts of which the tokenizer knows no word.

    Raises:
        StitchError: an input cannot be read; `batch_rows` refuses those of another kind than the processor takes.
    """
    modality = modality_of(processor)
    if modality == "text":
        texts = texts_for_tokenizer(inputs)
        with wrap_errors("the tokenizer cannot read the texts", "download its files again, or mend the texts"):
            batch = processor(*texts, padding=True, truncation=True, return_tensors="pt")
        _check_tokens(batch, model)
        if unknown is not None and isinstance(processor, PreTrainedTokenizerBase):
            unknown(unknown_rows(processor, batch["input_ids"].tolist()))
    elif modality == "image":
        channels = getattr(getattr(model, "config", None), "num_channels", 3)
        images = [load_image(one).convert("L" if channels == 1 else "RGB") for one in inputs]
        batch = processor(images=images, return_tensors="pt")
    else:
        rate = processor.sampling_rate
        sounds = [load_audio(one, sampling_rate=rate) for one in inputs]
        padding = {} if pads_by_itself(processor) else {"padding": True}
        batch = processor(sounds, sampling_rate=rate, return_tensors="pt", **padding)
    device, dtype = placement(model)
    return {name: on_device(tensor, device, dtype) for name, tensor in batch.items()}


def batch_rows(inputs: Sequence[Any], *, processor: Any, batch_size: int) -> list[list[int]]:
    """Group the rows of the inputs into batches by length, so that little of a batch is padding.

    Sounds of different lengths come together only if the processor pads on its own account: in many speech models the
    first layers normalise over the padding too, and a latent must not depend on the other inputs of its batch.

    Raises:
        StitchError: there are no inputs, or an input is of another kind than the processor takes.
    """
    check_some(inputs, batch_size=batch_size)
    modality, rate = modality_of(processor), getattr(processor, "sampling_rate", None)
    check_kinds(inputs, modality=modality)
    lengths = [length_of(one, modality=modality, sampling_rate=rate) for one in inputs]
    order = sorted(range(len(inputs)), key=lambda row: -lengths[row])
    alike = modality == "audio" and not pads_by_itself(processor)
    groups = [list(rows) for _, rows in groupby(order, key=lambda row: lengths[row] if alike else None)]
    return [rows[start : start + batch_size] for rows in groups for start in range(0, len(rows), batch_size)]


def pads_by_itself(processor: Any) -> bool:
    """Tell whether a feature extractor pads a batch by default, as those of fixed length do."""
    padding = signature(processor.__call__).parameters.get("padding")
    return padding is None or padding.default is not False


def check_inputs(given: Collection[str], *, modality: str) -> None:
    """Refuse a batch from another kind of processor.

    Raises:
        StitchError: the main input of this modality is missing, or another modality's is present.
    """
    main = {name for name in given if name in BY_TENSOR}
    if not main or any(BY_TENSOR.get(name, modality) != modality for name in main):
        raise StitchError(
            f"the model takes {MODALITIES[modality].inputs}, and what came is "
            f"{', '.join(sorted(main or given)) or 'nothing'}: make its inputs with model.processor, and use the "
            "pipeline of its modality"
        )
