"""The examples, as a user runs them, on the packaged models instead of Hub ids."""

import re

import pytest
from example_runs import run_once, shuffled_digits
from transformers import pipeline

from hf_relstitch import AnchorSet

pytestmark = pytest.mark.slow


def test_text(tmp_path_factory: pytest.TempPathFactory) -> None:
    lines, _ = run_once("text.py", tmp_path_factory)
    own, stitched = map(float, re.findall(r"[01]\.\d{3}", lines[-1]))
    assert own > 0.85
    assert stitched > own - 0.1


def test_images(tmp_path_factory: pytest.TempPathFactory) -> None:
    lines, folder = run_once("images.py", tmp_path_factory)
    assert lines[0].startswith("foretold agreement")
    assert {line.split()[1] for line in lines[-3:]} <= set("0123456789")
    images, classes = shuffled_digits()
    answers = pipeline("image-classification", model=str(folder))(images[1000:1030], top_k=1)
    right = [answer[0]["label"] == str(digit) for answer, digit in zip(answers, classes[1000:1030], strict=True)]
    assert sum(right) > 15


def test_anchors(tmp_path_factory: pytest.TempPathFactory) -> None:
    (line,), folder = run_once("anchors.py", tmp_path_factory)
    assert line.startswith("120 anchors, each 384 wide")
    assert AnchorSet.from_pretrained(folder).provenance.data == "wordnet-glosses.txt"
