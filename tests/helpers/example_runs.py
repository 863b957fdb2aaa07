"""The examples as a user runs them: on Hub ids, under which the tests' Hub has the packaged models."""

import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import assets
import efficientnet_lite
import torch
from datasets import Dataset
from hub_server import HubServer
from huggingface_hub import hf_hub_download
from trained import trained_head

from hf_relstitch import Encoder

FOLDER = Path(__file__).parents[2] / "examples"
MODEL_CARDS = FOLDER.with_name("model_cards")


def shuffled(count: int) -> list[int]:
    """Row numbers in an order that is the same everywhere."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()


def publish(hub: HubServer, repo_id: str, folder: Path) -> str:
    """Put a model's folder on the Hub."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix not in {".py", ".pyc"}]
    hub.put_files(repo_id, {str(file.relative_to(folder)): file.read_bytes() for file in files})
    return repo_id


def text_arguments(folder: Path, hub: HubServer) -> dict[str, object]:
    """MiniLM before a head that tells glosses of animals, food and plants apart, trained on mpnet."""
    publish(hub, "sentence-transformers/all-MiniLM-L6-v2", assets.minilm())
    publish(hub, "sentence-transformers/all-mpnet-base-v2", assets.mpnet())
    texts, classes = assets.wordnet_glosses()
    kept = {2: 0, 11: 1, 17: 2}
    of_three_classes = [row for row, name in enumerate(classes) if name in kept]
    rows = [of_three_classes[place] for place in shuffled(len(of_three_classes))[:360]]
    table = {"text": [texts[row] for row in rows], "label": [kept[classes[row]] for row in rows]}
    Dataset.from_dict(table).to_parquet(folder / "train.parquet")
    hub.put_files("alice/glosses", {"train.parquet": (folder / "train.parquet").read_bytes()}, repo_type="dataset")
    return {"data": "alice/glosses", "rows": 120, "out": folder / "stitched", "push": "alice/minilm-glosses"}


def image_arguments(folder: Path, hub: HubServer) -> dict[str, object]:
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
    arguments = {
        "source": publish(hub, "alice/efficientnet-lite0", source),
        "target": publish(hub, "alice/efficientnet-lite2-digits", target),
    }
    arguments |= {"anchors": anchors, "classify": folder / "photo.png"}
    return arguments | {"out": folder / "stitched", "push": "alice/lite0-digits"}


def anchor_arguments(folder: Path, hub: HubServer) -> dict[str, object]:
    """Glosses as MiniLM sees them."""
    publish(hub, "sentence-transformers/all-MiniLM-L6-v2", assets.minilm())
    texts, _ = assets.wordnet_glosses()
    data = folder / "wordnet-glosses.txt"
    data.write_text("\n".join(texts[row] for row in shuffled(len(texts))[:200]), encoding="utf-8")
    return {"data": data, "rows": 120, "out": folder / "anchors", "push": "alice/minilm-gloss-anchors"}


def index_arguments(folder: Path, hub: HubServer) -> dict[str, object]:
    """An index of glosses by MiniLM, to be moved to mpnet."""
    publish(hub, "sentence-transformers/all-MiniLM-L6-v2", assets.minilm())
    publish(hub, "sentence-transformers/all-mpnet-base-v2", assets.mpnet())
    texts, _ = assets.wordnet_glosses()
    Dataset.from_dict({"text": [texts[row] for row in shuffled(len(texts))[:260]]}).to_parquet(folder / "train.parquet")
    hub.put_files("alice/glosses", {"train.parquet": (folder / "train.parquet").read_bytes()}, repo_type="dataset")
    return {"data": "alice/glosses", "rows": 160, "pairs": 80, "out": folder / "index"}


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
"""Those that push a repo with a card."""


def run(name: str, folder: Path, hub: HubServer) -> tuple[list[str], dict[str, object]]:
    """Run an example and give the lines that it prints and what it was run with."""
    arguments = (EXAMPLES | {"index.py": index_arguments})[name](folder, hub)
    options = [part for option, value in arguments.items() for part in (f"--{option}", str(value))]
    printed = StringIO()
    with patch.object(sys, "argv", [name, *options]), redirect_stdout(printed):
        runpy.run_path(str(FOLDER / name))
    return printed.getvalue().splitlines(), arguments


def pushed_card(arguments: dict[str, object]) -> str:
    """The card of the repo that an example pushed to."""
    return Path(hf_hub_download(str(arguments["push"]), "README.md")).read_text()
