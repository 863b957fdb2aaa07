"""A save that is killed leaves the old or the new folder, whole, or one that says that it was cut off."""

import json
import subprocess
import sys
from pathlib import Path

import pico
import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForSequenceClassification

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError
from hf_relstitch.hub.files import LOCK, MOVING, NEW, WHOLE


def run(count: int) -> dict[str, dict[str, int]]:
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, script, str(count)], check=False, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_kill_at_every_step_leaves_the_old_or_the_new() -> None:
    counts = run(0)
    for kind in ("model", "anchor set"):
        assert counts[kind]["old"] >= 10, kind
        assert counts[kind]["new"] >= 3, kind
        assert counts[kind]["killed"] == counts[kind]["old"] + counts[kind]["new"], kind
    assert all(count["killed"] >= 4 for count in counts.values())


@pytest.mark.slow
def test_a_hundred_random_kills_leave_the_old_or_the_new() -> None:
    counts = run(15)
    assert sum(count["killed"] for count in counts.values()) >= 50
    for kind in ("model", "anchor set", "search translation"):
        assert not any("says" in left for left in counts[kind]), kind


@pytest.fixture
def half_moved(stitched: RelativeStitcher, source: Encoder, target_folder: str, tmp_path: Path) -> Path:
    """An older model's folder, with all of `stitched` in it, of which the weights have been moved."""
    folder = tmp_path / "model"
    RelativeStitcher.from_parts(source, target_folder, pico.texts(40), progress=False).save_pretrained(folder)
    stitched.save_pretrained(folder / MOVING)
    (folder / MOVING / "model.safetensors").replace(folder / "model.safetensors")
    return folder


def test_a_model_that_was_half_moved_is_finished_when_it_is_loaded(
    half_moved: Path, stitched: RelativeStitcher
) -> None:
    loaded = RelativeStitcher.from_pretrained(half_moved)
    assert torch.equal(loaded.predict(pico.texts(5)), stitched.predict(pico.texts(5)))
    assert not [*half_moved.glob(".partial-*")]


def test_a_config_that_was_read_before_the_save_is_finished_is_not_used(half_moved: Path) -> None:
    with pytest.raises(StitchError, match=r"had been cut off and is finished now: load the model again"):
        AutoModelForSequenceClassification.from_pretrained(half_moved)
    assert len(AutoModelForSequenceClassification.from_pretrained(half_moved).anchors.ids) == 100


def test_files_of_a_link_are_not_moved(half_moved: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (half_moved / MOVING).rename(elsewhere)
    (half_moved / MOVING).symlink_to(elsewhere)
    names = sorted(file.name for file in elsewhere.iterdir())
    with pytest.raises(StitchError):
        RelativeStitcher.from_pretrained(half_moved)
    assert sorted(file.name for file in elsewhere.iterdir()) == names


def test_one_save_at_a_time(anchor_set: AnchorSet, tmp_path: Path) -> None:
    anchor_set.save_pretrained(tmp_path)
    with FileLock(tmp_path / LOCK), pytest.raises(StitchError, match="another run is saving to"):
        anchor_set.save_pretrained(tmp_path)
    assert len(AnchorSet.from_pretrained(tmp_path)) == len(anchor_set)


def test_a_folder_whose_first_save_was_cut_off_says_so(anchor_set: AnchorSet, tmp_path: Path) -> None:
    (tmp_path / NEW).mkdir()
    with pytest.raises(StitchError, match=r"has no file anchor_config.json: a save to it was cut off, so save again"):
        AnchorSet.from_pretrained(tmp_path)
    anchor_set.save_pretrained(tmp_path)
    assert not [*tmp_path.glob(".partial-*")]
    anchor_set.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole").rename(tmp_path / WHOLE)
    assert len(AnchorSet.from_pretrained(tmp_path)) == len(anchor_set)
