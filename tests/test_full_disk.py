"""A disk that is full: each way to write says so in one line, and the older content stays whole."""

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_relstitch import AnchorSet, RelativeStitcher, StitchError
from hf_relstitch.bulk import SearchTranslation, move_index, move_table, translate_files, translation_between


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, which fails as a full disk does."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@pytest.fixture(params=["limit", "tmpfs"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """A folder, and what makes it full: a limit to files, or a file system of its own where mounting is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "limit":
        yield folder, lambda: limited(2_000)
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")

    @contextmanager
    def filled() -> Iterator[None]:
        ballast = folder / "ballast"
        ballast.write_bytes(b"x" * (shutil.disk_usage(folder).free - 4096))
        try:
            yield
        finally:
            ballast.unlink()

    yield folder, filled
    subprocess.run(["umount", "-l", folder], check=True)


def rotation(shift: int = 1) -> SearchTranslation:
    x = torch.randn(80, 40)
    return translation_between(x, x.roll(shift, 1))


def test_saves_say_so_and_leave_what_was_there(
    full: tuple[Path, Callable[[], Any]], stitched: RelativeStitcher, anchor_set: AnchorSet, source_folder: str
) -> None:
    folder, fill = full
    to_itself = translation_between(anchor_set.latents, anchor_set.latents)
    saves: dict[str, Callable[[Path], Any]] = {
        "model": stitched.save_pretrained,
        "anchors": anchor_set.save_pretrained,
        "translation": rotation().save_pretrained,
        "file": rotation().save,
        "encoder": lambda place: to_itself.after(source_folder, folder=place),
    }
    for name, save in saves.items():
        with (
            fill(),
            pytest.raises(StitchError, match=r"saving to .* failed .*: free some space, or give another folder"),
        ):
            save(folder / name)
        assert not (folder / name).exists(), name
        save(folder / name)
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        with fill(), pytest.raises(StitchError, match="free some space"):
            save(folder / name)
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before, name
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def test_runs_say_so_and_go_on(full: tuple[Path, Callable[[], Any]], tmp_path: Path) -> None:
    import faiss
    import lancedb

    folder, fill = full
    x, model = np.random.default_rng(0).normal(size=(200, 40)).astype(np.float32), rotation()
    np.save(tmp_path / "x.npy", x)
    index = faiss.IndexFlatL2(40)
    index.add(x)
    faiss.write_index(index, str(tmp_path / "old"))
    db = lancedb.connect(folder / "db")
    db.create_table("docs", [{"vector": row} for row in x])
    runs: dict[str, Callable[[], Any]] = {
        "translate": lambda: translate_files(model, tmp_path / "x.npy", folder / "out", progress=False),
        "FAISS": lambda: move_index(model, tmp_path / "old", folder / "new", progress=False),
        "LanceDB": lambda: move_table(model, db, "docs", "moved", progress=False),
    }
    for name, run in runs.items():
        with fill(), pytest.raises(StitchError, match=r"No space left|File too large") as caught:
            run()
        assert "\n" not in str(caught.value), name
        run()
    assert not [*folder.rglob(".partial-*")]
