"""The examples, as a user runs them, and the cards in model_cards/ that they make."""

import re
import subprocess
import sys
from pathlib import Path

import lancedb
import pico
import pytest
from datasets import Dataset
from example_runs import FOLDER, pushed_card, run, shuffled_digits
from hub_server import HubServer
from test_cards import MODEL_CARDS, alike
from transformers import pipeline

from hf_relstitch import AnchorSet


def check_card(name: str, arguments: dict[str, object]) -> None:
    """The kept card is the one that was pushed; numbers may differ a little from one processor to another."""
    kept, kept_numbers = alike((MODEL_CARDS / name).with_suffix(".md").read_text())
    made, made_numbers = alike(pushed_card(arguments))
    assert made == kept, "python scripts/make_model_cards.py renders model_cards/ anew"
    assert made_numbers == pytest.approx(kept_numbers, rel=0.02, abs=0.02)


@pytest.mark.slow
def test_text(tmp_path: Path, hub: HubServer) -> None:
    lines, arguments = run("text.py", tmp_path, hub)
    own, stitched = map(float, re.findall(r"[01]\.\d{3}", lines[1]))
    assert own > 0.85
    assert stitched > own - 0.1
    assert pipeline("text-classification", model="alice/minilm-glosses")("a small bird")[0]["label"] in {"0", "1", "2"}
    check_card("text", arguments)


@pytest.mark.slow
def test_images(tmp_path: Path, hub: HubServer) -> None:
    lines, arguments = run("images.py", tmp_path, hub)
    assert lines[0].startswith("expected agreement")
    assert {line.split()[1] for line in lines[1:4]} <= set("0123456789")
    images, classes = shuffled_digits()
    answers = pipeline("image-classification", model="alice/lite0-digits")(images[1000:1030], top_k=1)
    right = [answer[0]["label"] == str(digit) for answer, digit in zip(answers, classes[1000:1030], strict=True)]
    assert sum(right) > 15
    check_card("images", arguments)


@pytest.mark.slow
def test_anchors(tmp_path: Path, hub: HubServer) -> None:
    lines, arguments = run("anchors.py", tmp_path, hub)
    assert lines[0].startswith("120 anchors, each 384 wide")
    published = AnchorSet.from_pretrained("alice/minilm-gloss-anchors")
    assert published.provenance.data == "wordnet-glosses.txt"
    assert AnchorSet.find(AnchorSet.from_pretrained(arguments["out"])) == ["alice/minilm-gloss-anchors"]
    check_card("anchors", arguments)


@pytest.mark.slow
def test_index(tmp_path: Path, hub: HubServer) -> None:
    lines, arguments = run("index.py", tmp_path, hub)
    recalls = {line.split(": recall@10 ")[0]: float(line.split()[-1]) for line in lines if "recall@10" in line}
    assert recalls.keys() == {"the old index, queries translated", "the index moved", "the old index, the old encoder"}
    assert min(recalls.values()) > 0.3
    (expected,) = (line for line in lines if line.startswith("expected: "))
    assert 0 < float(expected.split()[1]) <= 1
    moved = lancedb.connect(arguments["out"]).open_table("moved")
    assert (moved.count_rows(), moved.schema.field("vector").type.list_size) == (160, 768)


@pytest.mark.slow
def test_labels_that_are_texts_are_taken(source_folder: str, target_folder: str, tmp_path: Path) -> None:
    texts = pico.texts(300)
    labels = ["storm" if "storm" in text else "coast" if "coast" in text else "none" for text in texts]
    (tmp_path / "data").mkdir()
    Dataset.from_dict({"text": texts, "label": labels}).to_parquet(tmp_path / "data" / "train.parquet")
    options = {"source": source_folder, "target": target_folder, "data": tmp_path / "data", "rows": 100}
    arguments = [f"--{name}={value}" for name, value in (options | {"out": tmp_path / "out"}).items()]
    command = [sys.executable, str(FOLDER / "text.py"), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    own, stitched = map(float, re.findall(r"[01]\.\d{3}", done.stdout.splitlines()[-1]))
    assert own > 0.4
    assert stitched > 0  # an answer can be right
