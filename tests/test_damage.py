"""Damage in a saved model is found before it answers, and no config takes memory for what its files do not hold."""

import json
import stat
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError
from hf_relstitch.hub.repo import locate


@pytest.fixture
def saved(stitched: RelativeStitcher, tmp_path: Path) -> Path:
    stitched.save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_an_altered_file_of_the_processor_is_found(name: str, saved: Path, altered: Callable[[Path], None]) -> None:
    altered(saved / name)
    with pytest.raises(StitchError, match=f"{name} is damaged or was altered"):
        RelativeStitcher.from_pretrained(saved)


@pytest.mark.parametrize(
    ("field", "value"), [("pooling", "cls"), ("logit_temperature", 2.0), ("batching", "one by one")]
)
def test_an_altered_setting_is_found(field: str, value: object, saved: Path) -> None:
    edit(saved, **{field: value})
    with pytest.raises(StitchError, match=rf"config.json is damaged or was altered: one of .*{field}"):
        RelativeStitcher.from_pretrained(saved)


def test_what_changes_no_answer_may_be_edited(saved: Path) -> None:
    edit(saved, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert RelativeStitcher.from_pretrained(saved).config.id2label[1] == "b"


@pytest.mark.parametrize("temperature", [0, -3, float("nan"), "1", None])
def test_a_temperature_that_cannot_be_is_refused(temperature: object, saved: Path) -> None:
    edit(saved, logit_temperature=temperature)
    with pytest.raises(StitchError, match=r"logit_temperature is .*: expected a number above 0"):
        RelativeStitcher.from_pretrained(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_target": 100_000_000}, "the config's d_target is 100000000"),
        ({"num_labels": 500_000_000}, "the config's num_labels is 500000000"),
        ({"num_anchors": 9_000_000}, "is not a whole stitched model|asks for more weights than its files hold"),
        ({"after_pooling": [{"layer": "normalize"}] * 100_000}, "a chain of 100000 layers"),
        ({"d_source": 9_000_000}, "is not a whole stitched model|asks for more weights than its files hold"),
    ],
)
def test_numbers_in_a_config_take_no_memory(fields: dict[str, Any], message: str, saved: Path) -> None:
    edit(saved, **fields)
    with pytest.raises(StitchError, match=message):
        RelativeStitcher.from_pretrained(saved)


BOMB = "---\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghi")
)


def test_metadata_that_would_not_end_are_not_read(stitched: RelativeStitcher, saved: Path) -> None:
    (saved / "README.md").write_text(f"{BOMB}license: *i\n---\ntext\n")
    assert len(BOMB) < 700
    assert locate(saved).license() is None
    with pytest.raises(StitchError, match=r"metadata at the top of README.md has YAML aliases"):
        stitched.save_pretrained(saved)


def test_logs_heed_the_verbosity_of_transformers(caplog: pytest.LogCaptureFixture, source_folder: str) -> None:
    transformers.utils.logging.set_verbosity_info()
    try:
        encoder = Encoder.from_pretrained(source_folder)
    finally:
        transformers.utils.logging.set_verbosity_warning()
    assert "tiny-bert: pooling is 'mean'" in caplog.text
    assert repr(encoder) == "Encoder('tiny-bert', 'mean', text, padded)"


def test_files_have_the_usual_mode(saved: Path, anchor_set: AnchorSet, tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    anchor_set.save_pretrained(tmp_path / "anchors")
    for file in (*saved.glob("*.*"), *(tmp_path / "anchors").iterdir()):
        assert stat.filemode(file.stat().st_mode) == stat.filemode(usual.stat().st_mode), file.name
