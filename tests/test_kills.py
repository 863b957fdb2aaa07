"""A save that is killed leaves the old or the new folder, whole, or one that says that it was cut off."""

import json
import subprocess
import sys
from pathlib import Path

import killed_moves
import pico
import pytest
import torch
from filelock import FileLock
from killed_moves import AT_RANDOM, MOVES
from transformers import AutoModelForSequenceClassification

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError
from hf_relstitch.bulk import SearchTranslation, translation_between
from hf_relstitch.hub.files import LOCK, MOVING, NEW, WHOLE, finish_save

FOLDERS = ("model", "anchor set", "new anchor set", "folder of a translation")
FILES = ("search translation", "translate", "benchmark")
INDEXES = tuple(kind for kind in MOVES if kind not in AT_RANDOM)


def run(count: int, *kinds: str) -> dict[str, dict[str, int]]:
    script = Path(killed_moves.__file__).with_name("killed_runs.py")
    command = [sys.executable, script, str(count), *kinds]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [FOLDERS, FILES, INDEXES], ids=["folders", "files", "moves"])
def test_a_kill_at_every_step_leaves_the_old_or_the_new(kinds: tuple[str, ...]) -> None:
    counts = run(0, *kinds)
    for kind in {"model", "anchor set"} & {*kinds}:
        assert counts[kind]["old"] >= 10, kind
        assert counts[kind]["new"] >= 3, kind
        assert counts[kind]["killed"] == counts[kind]["old"] + counts[kind]["new"], kind
    assert all(count.get("killed", 0) >= 4 for kind, count in counts.items() if kind != "Chroma")  # it is Rust


@pytest.mark.slow
def test_random_kills_leave_the_old_or_the_new() -> None:
    counts = run(4)
    assert sum(count.get("killed", 0) for count in counts.values()) >= 15  # the others ended before
    for kind in ("model", "anchor set", "search translation", "folder of a translation", *MOVES):
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


def test_a_translation_whose_save_was_cut_off_is_finished_when_it_is_loaded(tmp_path: Path) -> None:
    x = torch.randn(60, 3)
    translation_between(x, x.roll(1, 1)).save_pretrained(tmp_path)
    new = translation_between(x, x.roll(2, 1))
    new.save_pretrained(tmp_path / WHOLE)
    assert torch.equal(SearchTranslation.from_pretrained(tmp_path)(x), new(x))
    assert not [*tmp_path.glob(".partial-*")]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_exported_encoder_that_is_half_moved_is_no_model_to_others(
    source_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    x, folder = Encoder.from_pretrained(source_folder).encode(pico.texts(60), progress=False), tmp_path / "out"
    old, new = (translation_between(x, x.roll(each, 1)) for each in (1, 2))
    old.after(source_folder, folder=folder)
    wanted = new.after(source_folder, folder=folder / WHOLE).encode(["a quiet day"])
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finish_save(folder)
    with pytest.raises(ValueError, match=r"config\.json"):
        SentenceTransformer(str(folder), device="cpu")
    Encoder.from_pretrained(str(folder))
    assert (SentenceTransformer(str(folder), device="cpu").encode(["a quiet day"]) == wanted).all()


@pytest.mark.parametrize("first", ["model", "anchors", "translation", "encoder", "other"])
@pytest.mark.parametrize("second", ["model", "anchors", "translation", "encoder"])
def test_nothing_is_saved_over_something_else(
    first: str, second: str, stitched: RelativeStitcher, anchor_set: AnchorSet, source_folder: str, tmp_path: Path
) -> None:
    x = anchor_set.latents
    to_itself = translation_between(x, x)
    saves = {
        "model": stitched.save_pretrained,
        "anchors": anchor_set.save_pretrained,
        "translation": to_itself.save_pretrained,
        "encoder": lambda folder: to_itself.after(source_folder, folder=folder),
        "other": lambda folder: (folder / "modules.json").write_text("[]"),
    }
    saves[first](tmp_path)
    before = sorted(file.name for file in tmp_path.rglob("*"))
    if first != second:
        with pytest.raises(StitchError, match="which saving there would spoil: give another folder"):
            saves[second](tmp_path)
    else:
        saves[second](tmp_path)
    assert sorted(file.name for file in tmp_path.rglob("*")) == before
