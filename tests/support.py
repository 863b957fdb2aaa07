"""The support table: every classifier of transformers that can be built tiny is cut, and tried on new inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pico
import tiny_models
import torch
import transformers
from PIL import Image
from transformers import PreTrainedModel

from hf_relstitch import Encoder, Head, StitchError, split_classifier
from hf_relstitch.encoders.processors import preprocess
from hf_relstitch.encoders.words import token_rows
from hf_relstitch.heads.cutting import logits_of

BLIND = {
    "MraForTokenClassification",
    "MraForSequenceClassification",
}  # whose attention gives zeros where its CUDA kernel is not built
VERSION = transformers.__version__
BATCHES = {"padded": "yes", "equal length": "yes, batches of one length", "one by one": "yes, one by one"}
PAIRS = [
    {"text": first, "text_pair": second}
    for first, second in zip(pico.texts(4, seed=7), pico.texts(4, seed=8), strict=True)
]
TOLERANCE = 1e-5
HEADINGS = {"sequence": "Text", "token": "Tokens", "image": "Image", "audio": "Audio"}


@dataclass(frozen=True)
class Row:
    """What became of one architecture: built or not, where it is cut, and why not if it is not."""

    model_type: str
    architecture: str
    layer: str = ""
    row: str = ""
    batches: str = ""
    pairs: str = ""
    built: bool = True
    reason: str = ""

    @property
    def exact(self) -> bool:
        return bool(self.layer)


def architectures(task: str) -> Iterator[tuple[str, str]]:
    """Model types and architectures of a task's mapping."""
    for model_type, names in tiny_models.TASKS[task].items():
        for name in [names] if isinstance(names, str) else names:
            yield model_type, name


def inputs(task: str) -> list[object]:
    """Four inputs that the cut has not seen, of different lengths."""
    random = np.random.default_rng(7)
    if task in ("sequence", "token"):
        return pico.texts(4, seed=7)
    if task == "image":
        return [Image.fromarray(random.integers(256, size=(32, 32, 3), dtype=np.uint8)) for _ in range(4)]
    return [random.normal(0, 0.1, length).astype(np.float32) for length in (4_000, 5_000, 6_000, 8_000)]


def try_cut(task: str, model_type: str, architecture: str) -> Row:
    """Build one architecture, cut it, and compare head(latent) with its own logits on new inputs."""
    try:
        model = tiny_models.classifier(task, model_type, architecture)
    except ImportError as error:
        library = str(error).split("requires the ")[1].split(" ")[0]
        return Row(model_type, architecture, built=False, reason=f"not built: needs {library}")
    processor = tiny_models.processor(task, model_type)
    try:
        encoder, head = split_classifier(model, processor)
    except StitchError as error:
        return Row(model_type, architecture, reason=str(error).split(", so its head")[0])
    own, difference = compare(model, encoder, head, processor, inputs(task))
    differ = own.std(0).min() > 1e-3 * float(own.abs().max())
    assert differ or architecture in BLIND, f"{architecture}: logits that hardly differ would prove nothing"
    if difference > TOLERANCE:
        return Row(model_type, architecture, reason=f"differs by {difference:.1e} on new inputs")
    layer, row = encoder.provenance.pooling.removeprefix("input of ").split(", ")
    pairs = ""
    if task == "sequence":
        _, difference = compare(model, encoder, head, processor, PAIRS)
        pairs = "yes" if difference <= TOLERANCE else f"differs by {difference:.1e}"
    return Row(model_type, architecture, layer, row, BATCHES[encoder.batching], pairs)


@torch.no_grad()
def compare(
    model: PreTrainedModel, encoder: Encoder, head: Head, processor: Any, some: list[Any]
) -> tuple[torch.Tensor, float]:
    """A model's own logits of inputs, each alone, and the largest difference, as a share of the largest logit."""
    batches = [preprocess(model, processor, [each]) for each in some]
    own = torch.cat([_rows(logits_of(model(**batch)), batch) for batch in batches])
    batch = preprocess(model, processor, some)
    found = head.module(_rows(encoder.latents(batch), batch))
    return own, float((found - own).abs().max()) / max(1.0, float(own.abs().max()))


def _rows(values: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """A row for each input, or for each token."""
    return values if values.ndim == 2 else token_rows(values, batch)


def rows(task: str) -> list[Row]:
    """A row for each architecture of a task."""
    return [try_cut(task, *one) for one in architectures(task)]


def render(tables: dict[str, list[Row]]) -> str:
    """docs/support.md."""
    lines = [
        "# Which classifiers give a head",
        "",
        "Each architecture of transformers' classification mappings as a tiny random model: cut by the one general",
        "rule (`hf_relstitch/heads/cutting.py`), then compared with the model's own logits, to 1e-5 of the largest, on",
        "new inputs of different lengths, one at a time. Made by `python tests/make_support_table.py` with",
        f"transformers {VERSION}.",
        "",
        "| task | architectures | built | exact |",
        "| --- | --- | --- | --- |",
    ]
    everything = [row for table in tables.values() for row in table]
    for name, table in [*((HEADINGS[task], table) for task, table in tables.items()), ("all", everything)]:
        built, exact = sum(row.built for row in table), sum(row.exact for row in table)
        lines.append(f"| {name.lower()} | {len(table)} | {built} | {exact} |")
    lines += [
        "",
        "*Row*: what the layer takes of each input: it is `pooled` already, or the row of the `first` or the `last`",
        "token that is not padding, the `next` one (of a decoder whose input is shifted by one), or the `mean`; of",
        "a head that labels tokens it is `each`. Two layers: the logits are their mean. What gives no head by itself",
        "does with the parts by hand: `target=` an `Encoder` of what the head takes, and `head=` a module.",
        "*Alone = in a batch*: an input's logits do not depend on the others that are encoded with it. Models that see",
        "padding get batches of inputs of one length, in a stock pipeline too. *Pairs*: as exact on pairs of texts, by",
        "the tokenizer's pair encoding.",
    ]
    for task, table in tables.items():
        lines += ["", f"## {HEADINGS[task]}", ""]
        pairs = task == "sequence"
        lines += [
            f"| type | architecture | cut at the input of | row | exact | alone = in a batch |{' pairs |' * pairs}",
            f"| --- | --- | --- | --- | --- | --- |{' --- |' * pairs}",
        ]
        for row in table:
            exact = row.reason or "yes"
            layer = " and ".join(f"`{name}`" for name in row.layer.split(" and ")) if row.layer else ""
            cells = [row.model_type, row.architecture, layer, row.row, exact, row.batches, *([row.pairs] * pairs)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
