"""Accuracy of a stitched model on raw inputs, measured by `evaluate`'s own evaluators."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from evaluate import EvaluationModule, evaluator
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import TEXT_PAIR, are_text_pairs
from hf_relstitch.data.modality import MODALITIES
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.heads.head import Head
from hf_relstitch.metrics import Accuracy
from hf_relstitch.model.anchors import AnchorSet
from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher

SUPPORTED = ("text", "image")


def _evaluate_model(
    model: RelativeStitcher,
    data: Dataset,
    metric: str | EvaluationModule,
    *,
    inputs: str,
    text_pair: str | None = None,
    label: str = "label",
) -> dict[str, Any]:
    """Return the scores of a stitched model from raw inputs to answers, as `evaluate.evaluator` counts them.

    Args:
        model: a stitched model of texts or images.
        data: a data set with a column of inputs and a column of labels, which are the numbers of the head's classes.
        metric: a metric of predictions and references: a module, the path of a module, or a name on the Hub.
        inputs: the column of inputs.
        text_pair: the column of the second texts, if inputs are pairs of texts.
        label: the column of labels.

    Raises:
        StitchError: the model reads sounds, which `evaluate` cannot drive, or a column is missing.
    """
    modality = model.config.modality
    if modality not in SUPPORTED:
        raise StitchError(f"the model takes {modality}: `evaluate` drives models of {' and '.join(SUPPORTED)} here")
    for column in (inputs, label):
        if column not in data.column_names:
            raise StitchError(f"the data have no column {column!r}: they have {', '.join(data.column_names)}")
    processor = {"tokenizer": model.processor} if modality == "text" else {"feature_extractor": model.processor}
    if text_pair is not None:
        processor["second_input_column"] = text_pair
    return evaluator(MODALITIES[modality].task).compute(
        model_or_pipeline=model,
        data=data,
        metric=metric,
        input_column=inputs,
        label_column=label,
        label_mapping=model.config.label2id,
        **processor,
    )


@torch.no_grad()
def raw_accuracy(
    encoder: Encoder,
    anchors: Sequence[AnchorSet],
    head: Head,
    *,
    inputs: Sequence[Any],
    latents: Tensor,
    labels: Tensor,
) -> dict[str, Any]:
    """Return the accuracy of the stitched model on raw inputs, and on their latents.

    `anchors` holds the source's anchors and the target's.

    Raises:
        StitchError: anchors and head cannot be stitched, or `evaluate` cannot drive the model.
    """
    source, target = anchors
    model = RelativeStitcher.from_anchor_sets(encoder, source, target, head)
    first, second = TEXT_PAIR
    pairs = are_text_pairs(inputs)
    columns = {name: [one[name] for one in inputs] for name in TEXT_PAIR} if pairs else {first: list(inputs)}
    data = Dataset.from_dict({**columns, "label": labels.tolist()})
    metric, text_pair = Accuracy(keep_in_memory=True), second if pairs else None
    found = _evaluate_model(model, data, metric, inputs=first, text_pair=text_pair)
    answers = model.classify(latents.to(model.device)).argmax(-1).cpu()
    return {
        "rows": len(labels),
        "accuracy": float(found["accuracy"]),
        "accuracy_from_latents": float((answers == labels).double().mean()),
    }
