"""Classifying inputs with a stitched model, through the stock pipelines."""

from collections.abc import Sequence
from typing import Any

from transformers import Pipeline, pipeline

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import (
    TEXT_PAIR,
    check_kinds,
    check_pairs,
    is_here,
    is_text_pair,
    is_url,
    load_audio,
    load_image,
    texts_for_tokenizer,
)
from hf_relstitch.data.modality import MODALITIES, WORDS_TASK
from hf_relstitch.data.reading import STDIN, names_file, read_inputs
from hf_relstitch.data.words import entity_spans, has_entities
from hf_relstitch.encoders.processors import unknown_rows, warn_unknown
from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher


def classifier(model: str, *, revision: str | None = None, device: str | None = None) -> Pipeline:
    """Return the stock transformers pipeline of a stitched model, from a folder or a Hub id.

    Raises:
        StitchError: no such model, or a model that is not stitched.
    """
    loaded = RelativeStitcher.from_pretrained(model, revision=revision)
    config = loaded.config
    options = {MODALITIES[config.modality].pipeline_argument: loaded.processor}
    return pipeline(config.task, model=loaded, **options, **({} if device is None else {"device": device}))


def predict(
    model: str,
    arguments: Sequence[str],
    *,
    column: str | None = None,
    pair_column: str | None = None,
    revision: str | None = None,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Return the likeliest class of each input; an argument is a text, a file of texts, an image or a folder of images.

    Of a model that labels tokens, return the entities of each text where labels begin with B- or I-, else the label of
    each word.

    `-` stands for the lines of the standard input. For tables, `column` names the column of the inputs, and of pairs of
    texts `pair_column` that of the second; see `read_inputs`.

    Raises:
        StitchError: the model is not stitched, or an argument names a file that is missing, cannot be read or is of
            another kind than the model takes.
    """
    classify = classifier(model, revision=revision, device=device)
    modality = classify.model.config.modality
    columns = {"column": column, "pair_column": pair_column}
    inputs = [one for argument in arguments for one in _inputs_of(argument, modality=modality, **columns)]
    check_pairs(inputs, pairs=classify.model.config.pairs is not None)
    if classify.task == WORDS_TASK:
        return [row for text in inputs for row in _label(classify.model, text)]
    if modality == "text":
        ids = classify.tokenizer(*texts_for_tokenizer(inputs), truncation=True)["input_ids"]
        warn_unknown(inputs, unknown_rows(classify.tokenizer, ids))
    options = {"truncation": True} if classify.task == MODALITIES["text"].task else {}
    given: Any = inputs
    if modality == "image":
        given = (load_image(one) for one in inputs)
    if modality == "audio":
        given = [load_audio(one, sampling_rate=classify.feature_extractor.sampling_rate) for one in inputs]
    answers = classify(given, top_k=1, **options)
    named = [" | ".join(one[name] for name in TEXT_PAIR) if is_text_pair(one) else str(one) for one in inputs]
    return [{"input": name, **answer[0]} for name, answer in zip(named, answers, strict=True)]


def _label(model: RelativeStitcher, text: str) -> list[dict[str, Any]]:
    """The entities or the words of a text, with their labels; the score of an entity is the mean of its words'."""
    words = model.words([text])
    if not words:
        return []
    scores, classes = model.predict([text]).softmax(-1).max(-1)
    labels = [model.config.id2label[index] for index in classes.tolist()]
    spans = [(label, place, place + 1) for place, label in enumerate(labels)]
    if has_entities(model.config.id2label.values()):
        spans = entity_spans(labels)
    rows = []
    for label, first, last in spans:
        start, end = words[first].start, words[last - 1].end
        score = float(scores[first:last].mean())
        rows.append({"input": text[start:end], "label": label, "score": score, "start": start, "end": end})
    return rows


def _inputs_of(argument: str, *, modality: str, column: str | None = None, pair_column: str | None = None) -> list[Any]:
    """The inputs that an argument names, or the text that it is.

    Raises:
        StitchError: it names a file that is not there, or inputs of another kind than the model takes.
    """
    if argument == STDIN or is_here(argument):
        inputs = read_inputs(argument, column=column, pair_column=pair_column)
        check_kinds(inputs, modality=modality)
        return inputs
    if modality != "text" and is_url(argument):
        return [argument]
    if modality != "text" or names_file(argument):
        raise StitchError(f"there is no file or folder {argument}: check the path")
    return [argument]
