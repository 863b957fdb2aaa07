"""The examples, as a user runs them, on the packaged models instead of Hub ids."""

import runpy
import sys
from pathlib import Path

import assets
import efficientnet_lite
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression

from hf_relstitch import Encoder

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
    animal_or_plant = [row for row, name in enumerate(classes) if name in (2, 17)]
    rows = torch.tensor(animal_or_plant)[torch.randperm(len(animal_or_plant))[:360]].tolist()
    (tmp_path / "data").mkdir()
    table = {"text": [texts[row] for row in rows], "label": [int(classes[row] == 17) for row in rows]}
    Dataset.from_dict(table).to_parquet(tmp_path / "data" / "train.parquet")
    arguments = {"source": assets.minilm(), "target": assets.mpnet(), "data": tmp_path / "data", "rows": 120}
    lines = run("text.py", arguments | {"out": tmp_path / "stitched"}, monkeypatch, capsys)
    own, stitched = (float(word) for word in lines[-1].replace(",", "").split() if word.startswith("0."))
    assert own > 0.85
    assert stitched > own - 0.1


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    efficientnet_lite.register()
    images, classes = assets.digits()
    source, target = tmp_path / "lite0", tmp_path / "lite2"
    efficientnet_lite.lite_model(0).save_pretrained(source)
    efficientnet_lite.lite_processor(0).save_pretrained(source)
    lite2_digits(images[:120], classes[:120]).save_pretrained(target)
    efficientnet_lite.lite_processor(2).save_pretrained(target)
    (tmp_path / "anchors").mkdir()
    for row in range(200, 264):
        images[row].save(tmp_path / "anchors" / f"{row}.png")
    images[1000].save(tmp_path / "photo.png")
    arguments = {"source": source, "target": target, "anchors": tmp_path / "anchors"}
    arguments |= {"classify": tmp_path / "photo.png", "out": tmp_path / "stitched"}
    lines = run("images.py", arguments, monkeypatch, capsys)
    assert [line.split()[1] for line in lines[-3:]][0] == str(classes[1000])


def lite2_digits(images: list, classes: list[int]) -> efficientnet_lite.EfficientNetLiteForImageClassification:
    """lite2 with a head that tells digits apart."""
    body = efficientnet_lite.lite_model(2)
    latents = Encoder(body, efficientnet_lite.lite_processor(2)).encode(images, progress=False)
    fitted = LogisticRegression(max_iter=1000).fit(latents.numpy(), classes)
    config = efficientnet_lite.EfficientNetLiteConfig(size=2, id2label={digit: str(digit) for digit in range(10)})
    model = efficientnet_lite.EfficientNetLiteForImageClassification(config)
    model.body = body
    model.classifier.load_state_dict({"weight": torch.tensor(fitted.coef_), "bias": torch.tensor(fitted.intercept_)})
    return model.eval()
