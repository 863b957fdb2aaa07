"""The examples, as a user runs them, on the packaged models instead of Hub ids."""

import re
import runpy
import sys
from pathlib import Path

import assets
import efficientnet_lite
import pytest
import torch
from datasets import Dataset
from trained import trained_head
from transformers import pipeline

from hf_relstitch import Encoder

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(
    name: str, arguments: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Run an example and give the lines that it prints."""
    options = [part for option, value in arguments.items() for part in (f"--{option}", str(value))]
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(EXAMPLES / name))
    return capsys.readouterr().out.splitlines()


def test_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    texts, classes = assets.wordnet_glosses()
    kept = {2: 0, 11: 1, 17: 2}  # animals, food, plants
    of_three_classes = torch.tensor([row for row, name in enumerate(classes) if name in kept])
    rows = of_three_classes[torch.randperm(len(of_three_classes))[:360]].tolist()
    (tmp_path / "data").mkdir()
    table = {"text": [texts[row] for row in rows], "label": [kept[classes[row]] for row in rows]}
    Dataset.from_dict(table).to_parquet(tmp_path / "data" / "train.parquet")
    arguments = {"source": assets.minilm(), "target": assets.mpnet(), "data": tmp_path / "data", "rows": 120}
    lines = run("text.py", arguments | {"out": tmp_path / "stitched"}, monkeypatch, capsys)
    own, stitched = map(float, re.findall(r"[01]\.\d{3}", lines[-1]))
    assert own > 0.85
    assert stitched > own - 0.1


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    efficientnet_lite.register()
    images, classes = shuffled_digits()
    source, target = tmp_path / "lite0", tmp_path / "lite2"
    efficientnet_lite.lite_model(0).save_pretrained(source)
    efficientnet_lite.lite_processor(0).save_pretrained(source)
    lite2_digits(images[:160], classes[:160]).save_pretrained(target)
    efficientnet_lite.lite_processor(2).save_pretrained(target)
    (tmp_path / "anchors").mkdir()
    for row in range(200, 320):
        images[row].save(tmp_path / "anchors" / f"{row}.png")
    images[1000].save(tmp_path / "photo.png")
    arguments = {"source": source, "target": target, "anchors": tmp_path / "anchors"}
    arguments |= {"classify": tmp_path / "photo.png", "out": tmp_path / "stitched"}
    lines = run("images.py", arguments, monkeypatch, capsys)
    assert lines[0].startswith("foretold agreement")
    assert {line.split()[1] for line in lines[-3:]} <= set("0123456789")
    answers = pipeline("image-classification", model=str(tmp_path / "stitched"))(images[1000:1030], top_k=1)
    right = [answer[0]["label"] == str(digit) for answer, digit in zip(answers, classes[1000:1030], strict=True)]
    assert sum(right) > 15


def shuffled_digits() -> tuple[list, list[int]]:
    """The digits in random order: as they come, one writer follows the other."""
    images, classes = assets.digits()
    rows = torch.randperm(len(images)).tolist()
    return [images[row] for row in rows], [classes[row] for row in rows]


def lite2_digits(images: list, classes: list[int]) -> efficientnet_lite.EfficientNetLiteForImageClassification:
    """lite2 with a head that tells digits apart."""
    body = efficientnet_lite.lite_model(2)
    latents = Encoder(body, efficientnet_lite.lite_processor(2)).encode(images, progress=False)
    config = efficientnet_lite.EfficientNetLiteConfig(size=2, id2label={digit: str(digit) for digit in range(10)})
    model = efficientnet_lite.EfficientNetLiteForImageClassification(config)
    model.body = body
    model.classifier = trained_head(latents, classes)
    return model.eval()
