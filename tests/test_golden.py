"""Artifacts that an older format wrote answer as they did then."""

import json
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_relstitch import AnchorSet, RelativeStitcher
from hf_relstitch.bulk.search import SearchTranslation
from hf_relstitch.data.provenance import Cut, Provenance

GOLDEN = Path(__file__).parent / "golden" / "format-3"
FORMAT_4 = GOLDEN.with_name("format-4")
EXPECTED = load_file(GOLDEN / "expected.safetensors")


def texts(count: int) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    return [
        " ".join(pico.WORDS[row] for row in torch.randint(len(pico.WORDS), (6,), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", ["linear", "kernel", "mean"])
def test_a_stitched_model_of_format_3_gives_its_logits(name: str, tmp_path: Path) -> None:
    model = RelativeStitcher.from_pretrained(GOLDEN / name)
    assert_close(model.predict(texts(5)), EXPECTED[name], rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert_close(RelativeStitcher.from_pretrained(tmp_path).predict(texts(5)), EXPECTED[name], rtol=1e-5, atol=1e-6)


def test_a_stitched_model_of_format_4_with_a_readout_gives_its_logits(tmp_path: Path) -> None:
    model, expected = (
        RelativeStitcher.from_pretrained(FORMAT_4 / "readout"),
        load_file(FORMAT_4 / "expected.safetensors"),
    )
    assert model.readout is not None
    assert model.config.pairs is None
    assert_close(model.predict(texts(5)), expected["readout"], rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert_close(
        RelativeStitcher.from_pretrained(tmp_path).predict(texts(5)), expected["readout"], rtol=1e-5, atol=1e-6
    )


def test_a_search_translation_of_format_1_gives_its_latents() -> None:
    translation = SearchTranslation.load(GOLDEN / "search.safetensors")
    assert_close(translation(EXPECTED["queries"]), EXPECTED["search"], rtol=1e-5, atol=1e-6)


def test_an_anchor_set_of_format_1_holds_its_latents() -> None:
    assert_close(AnchorSet.from_pretrained(GOLDEN / "anchors").latents, EXPECTED["anchors"], rtol=1e-5, atol=1e-6)


def test_a_stitched_model_of_format_5_says_in_fields_where_its_latents_come_from() -> None:
    folder = GOLDEN.with_name("format-5")
    model = RelativeStitcher.from_pretrained(folder / "pairs")
    inputs = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["inputs"]
    assert_close(model.predict(inputs), load_file(folder / "expected.safetensors")["pairs"], rtol=1e-5, atol=1e-6)
    source, target = (Provenance.from_dict(side) for side in (model.config.source, model.config.target))
    assert (source.pooling, source.pairs) == ("mean", "compose")
    assert target.cut == Cut(("classifier.dense", "tanh", "classifier.out_proj"), "pooled")


@pytest.mark.parametrize(
    ("text", "pooling", "fields"),
    [
        ("mean", "mean", {}),
        ("cls, linear, normalize", "cls", {"after_pooling": ("linear", "normalize")}),
        ("mean, composed pairs", "mean", {"pairs": "compose"}),
        ("none of 461", "none", {"output": "461"}),
        ("input of classifier, pooled", "none", {"cut": Cut(("classifier",), "pooled")}),
        ("input of a.b and c, first", "none", {"cut": Cut(("a.b", "c"), "first", averaged=True)}),
        ("input of score, next", "none", {"cut": Cut(("score",), "next")}),
        ("input of a then gelu then c, each", "tokens", {"cut": Cut(("a", "gelu", "c"), "each")}),
    ],
)
def test_the_pooling_that_older_formats_wrote_is_read_as_fields(
    text: str, pooling: str, fields: dict[str, Any]
) -> None:
    old = {"model_id": "org/model", "revision": "r", "pooling": text, "data": None, "license": "mit"}
    origin = Provenance("org/model", "r", pooling, license="mit", **fields)
    assert Provenance.from_dict(old) == origin
    assert origin.describe() == text
    assert Provenance.from_dict(json.loads(json.dumps(origin.to_dict()))) == origin
