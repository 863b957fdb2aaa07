"""The kinds of input that encoders take: a row of `MODALITIES` each.

What makes tensors of them is in `encoders/processors.py`, what reads them from files in `data/inputs.py`,
`data/reading.py` and `data/ids.py`, and the classes of their classifiers in `heads/loading.py` and
`model/persistence.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Modality:
    """Describe one kind of input, by the names that transformers has for it.

    Attributes:
        inputs: what people give, in words.
        types: the types of what they give.
        tensors: the names of a model's main input.
        pipeline_argument: the pipeline's argument for what makes tensors of inputs.
        loader: the Auto class that loads it.
        task: the pipeline's task.
    """

    inputs: str
    types: tuple[type, ...]
    tensors: tuple[str, ...]
    pipeline_argument: str
    loader: str
    task: str


MODALITIES = {
    "text": Modality("texts", (str,), ("input_ids",), "tokenizer", "AutoTokenizer", "text-classification"),
    "image": Modality(
        "PIL images or Paths or URLs of images",
        (Image.Image, Path),
        ("pixel_values",),
        "image_processor",
        "AutoImageProcessor",
        "image-classification",
    ),
    "audio": Modality(
        "numpy arrays of sound, dicts of an array and its sampling_rate, or Paths or URLs of sound files",
        (np.ndarray, dict, Path),
        ("input_values", "input_features"),
        "feature_extractor",
        "AutoFeatureExtractor",
        "audio-classification",
    ),
}
WORDS_TASK = "token-classification"
BY_TENSOR = {tensor: name for name, modality in MODALITIES.items() for tensor in modality.tensors}
"""The modality of each main input."""


def task_of(config: Mapping[str, Any]) -> str:
    """Return the task of a stitched model, as transformers' pipelines and the Hub name it, by its config's content."""
    return WORDS_TASK if config.get("pooling") == "tokens" else MODALITIES[config.get("modality", "text")].task
