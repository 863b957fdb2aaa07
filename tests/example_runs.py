"""The examples on the packaged models: what each is run with, and running it."""

import runpy
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import assets
import efficientnet_lite
import pytest
import torch
from datasets import Dataset
from trained import trained_head

from hf_relstitch import Encoder

FOLDER = Path(__file__).parents[1] / "examples"


def shuffled(count: int) -> list[int]:
    """Row numbers in an order that is the same everywhere."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()


def text_arguments(folder: Path) -> dict[str, object]:
    """MiniLM before a head that tells glosses of animals, food and plants apart, trained on mpnet."""
    texts, classes = assets.wordnet_glosses()
    kept = {2: 0, 11: 1, 17: 2}
    of_three_classes = [row for row, name in enumerate(classes) if name in kept]
    rows = [of_three_classes[place] for place in shuffled(len(of_three_classes))[:360]]
    data = folder / "wordnet-glosses"
    data.mkdir()
    table = {"text": [texts[row] for row in rows], "label": [kept[classes[row]] for row in rows]}
    Dataset.from_dict(table).to_parquet(data / "train.parquet")
    models = {"source": assets.minilm(), "target": assets.mpnet()}
    return {**models, "data": data, "rows": 120, "out": folder / "stitched"}


def image_arguments(folder: Path) -> dict[str, object]:
    """EfficientNet-lite0 before the head of a lite2 that tells handwritten digits apart."""
    efficientnet_lite.register()
    images, classes = shuffled_digits()
    source, target = folder / "efficientnet-lite0", folder / "efficientnet-lite2-digits"
    efficientnet_lite.lite_model(0).save_pretrained(source)
    efficientnet_lite.lite_processor(0).save_pretrained(source)
    lite2_digits(images[:160], classes[:160]).save_pretrained(target)
    efficientnet_lite.lite_processor(2).save_pretrained(target)
    anchors = folder / "handwritten-digits"
    anchors.mkdir()
    for row in range(200, 320):
        images[row].save(anchors / f"{row}.png")
    images[1000].save(folder / "photo.png")
    arguments = {"source": source, "target": target, "anchors": anchors, "classify": folder / "photo.png"}
    return arguments | {"out": folder / "stitched"}


def anchor_arguments(folder: Path) -> dict[str, object]:
    """Glosses as MiniLM sees them."""
    texts, _ = assets.wordnet_glosses()
    data = folder / "wordnet-glosses.txt"
    data.write_text("\n".join(texts[row] for row in shuffled(len(texts))[:200]), encoding="utf-8")
    return {"model": assets.minilm(), "data": data, "rows": 120, "out": folder / "anchors"}


def shuffled_digits() -> tuple[list, list[int]]:
    """The digits in random order: as they come, one writer follows the other."""
    images, classes = assets.digits()
    rows = shuffled(len(images))
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


EXAMPLES = {"text.py": text_arguments, "images.py": image_arguments, "anchors.py": anchor_arguments}


def run(name: str, arguments: dict[str, object]) -> list[str]:
    """Run an example and give the lines that it prints."""
    options = [part for option, value in arguments.items() for part in (f"--{option}", str(value))]
    printed = StringIO()
    with patch.object(sys, "argv", [name, *options]), redirect_stdout(printed):
        runpy.run_path(str(FOLDER / name))
    return printed.getvalue().splitlines()


def run_in(folder: Path, name: str) -> tuple[list[str], Path]:
    """Run an example and give the lines that it prints and the folder that it leaves behind."""
    arguments = EXAMPLES[name](folder)
    return run(name, arguments), Path(str(arguments["out"]))


@cache
def run_once(name: str, folders: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The same for all tests, since some take a minute."""
    return run_in(folders.mktemp("example"), name)
