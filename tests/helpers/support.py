"""The support table: every classifier of transformers that can be built tiny is cut, and tried on new inputs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pico
import pytest
import tiny_models
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_relstitch import AnchorSet, Encoder, Head, RelativeStitcher, StitchError, split_classifier
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.encoders.processors import preprocess
from hf_relstitch.encoders.words import token_rows
from hf_relstitch.heads.cutting import logits_of

BLIND = {
    "MraForTokenClassification",
    "MraForSequenceClassification",
}  # whose attention gives zeros where its CUDA kernel is not built
TOWERS = ("clip", "metaclip_2", "siglip", "siglip2")
DOUBLE = ("mobilenet_v2",)  # whose random layers make 1e-4 of float32's rounding, alone or in a batch
VERSION = transformers.__version__
BATCHES = {"padded": "yes", "equal length": "yes, batches of one length", "one by one": "yes, one by one"}
PAIRS = [
    {"text": first, "text_pair": second}
    for first, second in zip(pico.texts(4, seed=7), pico.texts(4, seed=8), strict=True)
]
TOLERANCE = 1e-4
"""Rounding of float32 on another CPU, which sums in another order, reaches 2e-5."""
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
    source_batches: str = ""
    saved: str = ""

    @property
    def exact(self) -> bool:
        return bool(self.layer)


def architectures(task: str) -> Iterator[tuple[str, str]]:
    """Model types and architectures of a task's mapping."""
    for model_type, names in tiny_models.TASKS[task].items():
        for name in [names] if isinstance(names, str) else names:
            yield model_type, name


def inputs(task: str, *, seed: int = 7) -> list[object]:
    """Four inputs that the cut has not seen, of different lengths."""
    random = np.random.default_rng(seed)
    if task in ("sequence", "token"):
        return pico.texts(4, seed=seed)
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
    if model_type in DOUBLE:
        model.double()
    processor = tiny_models.processor(task, model_type)
    source_batches, kept = try_source(task, model, processor)
    source = {"source_batches": source_batches, "saved": kept}
    try:
        encoder, head = split_classifier(model, processor)
    except StitchError as error:
        return Row(model_type, architecture, reason=str(error).split(", so its head")[0], **source)
    own, difference = compare(model, encoder, head, processor, inputs(task))
    differ = own.std(0).min() > 1e-3 * float(own.abs().max())
    assert differ or architecture in BLIND, f"{architecture}: logits that hardly differ would prove nothing"
    if difference > TOLERANCE:
        return Row(model_type, architecture, reason=f"differs by {difference:.1e} on new inputs", **source)
    cut = encoder.provenance.cut
    layer, row = (" and " if cut.averaged else " then ").join(cut.layers), cut.row
    pairs = ""
    if task == "sequence":
        _, difference = compare(model, encoder, head, processor, PAIRS)
        pairs = "yes" if difference <= TOLERANCE else f"differs by {difference:.1e}"
    return Row(model_type, architecture, layer, row, BATCHES[encoder.batching], pairs, **source)


def try_source(task: str, model: PreTrainedModel, processor: Any) -> tuple[str, str]:
    """Say whether a saved classifier's encoder gives an input one latent, and whether a stitch of it is kept whole."""
    with TemporaryDirectory() as place:
        folder = Path(place, "model")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        pooling = "tokens" if task == "token" else "image_features" if model.config.model_type in TOWERS else "auto"
        some = inputs(task)
        try:
            with own_tokenizer(processor):
                source = Encoder.from_pretrained(str(folder), pooling=pooling)
            alone = torch.cat([source.encode([each], progress=False) for each in some])
            together = source.encode(some, progress=False)
        except StitchError as error:
            return f"refused: {reason_of(error)}", "refused"
        differs = float((together - alone).abs().max()) / max(1.0, float(alone.abs().max()))
        batches = BATCHES[source.batching] if differs <= TOLERANCE else f"differs by {differs:.1e}"
        try:
            stitched = stitch(source, task)
            stitched.save_pretrained(Path(place, "stitched"))
        except StitchError as error:
            return batches, f"refused: {reason_of(error)}"
        loaded = RelativeStitcher.from_pretrained(Path(place, "stitched"))
        same = torch.allclose(loaded.predict(some), stitched.predict(some), rtol=TOLERANCE, atol=TOLERANCE)
        return batches, "yes" if same else "answers otherwise once loaded"


def stitch(source: Encoder, task: str) -> RelativeStitcher:
    """A stitch of a source to a head of random weights, over random target latents."""
    anchors = AnchorSet.encode(source, [one for seed in range(10) for one in inputs(task, seed=seed)], progress=False)
    made_by = Provenance("head", "random", source.provenance.pooling if task == "token" else "mean")
    target = AnchorSet(torch.randn(len(anchors), 8, generator=torch.manual_seed(0)), anchors.ids, made_by)
    return RelativeStitcher.from_anchor_sets(source, anchors, target, Head(nn.Linear(8, 3), tiny_models.LABELS))


@contextmanager
def own_tokenizer(processor: Any) -> Iterator[None]:
    """Read every tokenizer as the tiny one, which some types of models would be given another class for."""
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(processor, PreTrainedTokenizerBase):
            patch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pico.tokenizer())
        yield


def reason_of(error: StitchError) -> str:
    """Why something is refused, without the folder and what to do."""
    said = re.sub(r"/\S+/model|^model", "it", str(error)).splitlines()[0].replace("|", "/")
    return re.split(r": choose|, thus raising| for this kind|: supported", said)[0]


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
        "new inputs of different lengths, one at a time. Made by `python scripts/make_support_table.py` with",
        f"transformers {VERSION}.",
        "",
        "| task | architectures | built | exact |",
        "| --- | --- | --- | --- |",
    ]
    everything = [row for table in tables.values() for row in table]
    pairs_exact = sum(row.pairs == "yes" for row in everything)
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
        f"the tokenizer's pair encoding; so are {pairs_exact} of those of text.",
        "",
        "*As a source*: what the saved classifier's encoder is as the new encoder of another head: whether an input's",
        "latent depends on the others in its batch, and whether a model that is stitched with it saves, and loads",
        "again with the same answers. What is refused, with its reason, works as a `CallableEncoder`, in memory. Of",
        "models of two towers the image side is the source.",
    ]
    for task, table in tables.items():
        lines += ["", f"## {HEADINGS[task]}", ""]
        pairs = task == "sequence"
        lines += [
            f"| type | architecture | cut at the input of | row | exact | alone = in a batch |{' pairs |' * pairs}"
            " as a source: alone = in a batch | saves and loads again |",
            f"| --- | --- | --- | --- | --- | --- | --- | --- |{' --- |' * pairs}",
        ]
        for row in table:
            exact = row.reason or "yes"
            layer = " and ".join(f"`{name}`" for name in row.layer.split(" and ")) if row.layer else ""
            cells = [row.model_type, row.architecture, layer, row.row, exact, row.batches, *([row.pairs] * pairs)]
            cells += [row.source_batches, row.saved]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
