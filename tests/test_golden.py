"""Artifacts that an older format wrote answer as they did then."""

from pathlib import Path

import pico
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_relstitch import AnchorSet, RelativeStitcher
from hf_relstitch.bulk.search import SearchTranslation

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
