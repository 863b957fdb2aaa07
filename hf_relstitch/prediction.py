"""Classifying inputs with a stitched model, through the stock pipelines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Pipeline, pipeline

from hf_relstitch.cards import TASKS
from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.inputs import load_audio, read_inputs


def classifier(model: str) -> Pipeline:
    """The stock transformers pipeline of a stitched model, a folder or a Hub id."""
    config = RelativeStitcherConfig.from_pretrained(model)
    return pipeline(TASKS[config.modality], model=model)


def predict(model: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """The likeliest class of each input, an argument being a text, a file of texts, an image or a folder of images."""
    inputs: list[Any] = []
    for argument in arguments:
        inputs += read_inputs(argument) if Path(argument).exists() else [argument]
    classify = classifier(model)
    options = {"truncation": True} if classify.task == TASKS["text"] else {}
    given = [load_audio(Path(one)) if classify.task == TASKS["audio"] else str(one) for one in inputs]
    answers = classify(given, top_k=1, **options)
    return [{"input": str(one), **answer[0]} for one, answer in zip(inputs, answers, strict=True)]
