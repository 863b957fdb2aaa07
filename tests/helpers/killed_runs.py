"""Kill saves and runs, and look at what is left: `python tests/helpers/killed_runs.py COUNT [KIND …]`.

Kills at every step, or, with a COUNT above 0, so many times at random. Prints counts as JSON. Forked children do the
work and read what is left, so that each run takes milliseconds. All that they import is imported here; nothing of it is
used here, since no thread survives a fork.
"""

import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pico
import pytest
import torch
import transformers
from killed_moves import ADDRESS, AT_RANDOM, MOVES, QDRANTS, Move
from postgres import postgres
from safetensors.numpy import save_file
from tqdm import tqdm

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError
from hf_relstitch.benchmarks import run_suite
from hf_relstitch.bulk import SearchTranslation, translate_files, translation_between

LATE = ("chromadb", "faiss", "lancedb", "psycopg", "pymilvus", "qdrant_client.local.qdrant_local")
"""What the package and the moves import when they need it."""
STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.copyfile", "open"}
"""What Python reports before it does it; each is a moment to be killed at."""


@dataclass
class Work:
    """A way to write a folder: how it is before, what is done, and how to read the outcome.

    `read` returns something that differs between the old and the new content, and raises StitchError for neither.
    """

    before: Callable[[Path], None]
    run: Callable[[Path], None]
    read: Callable[[Path], bytes | None]


def model(seed: int, folder: Path) -> RelativeStitcher:
    """A stitched model; of another seed, another encoder, tokenizer and head."""
    source = Encoder.from_pretrained(pico.saved("Bert", folder / f"source-{seed}", seed=seed))
    target = pico.saved("Roberta", folder / f"target-{seed}", seed=seed + 1)
    return RelativeStitcher.from_parts(source, target, pico.texts(60, seed=seed), progress=False)


def read_model(place: Path) -> bytes | None:
    """Return the answers of a model."""
    if not place.exists():
        return None
    loaded = RelativeStitcher.from_pretrained(place)
    return loaded.predict(pico.texts(3)).numpy().tobytes()


def read_set(place: Path) -> bytes | None:
    """Return the latents of an anchor set."""
    return AnchorSet.from_pretrained(place).latents.numpy().tobytes() if place.exists() else None


def read_translation(place: Path) -> bytes:
    """Return the weight of a translation."""
    return SearchTranslation.load(place).translation.weight.numpy().tobytes()


def read_folder_of_translation(place: Path) -> bytes:
    """Return the weight of a translation in a folder."""
    return SearchTranslation.from_pretrained(place).translation.weight.numpy().tobytes()


def read_exported(place: Path) -> bytes:
    """Return the vectors of an exported encoder, as sentence-transformers loads it."""
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(str(place), device="cpu").encode(pico.texts(3), show_progress_bar=False).tobytes()
    except (OSError, ValueError) as error:  # what that library raises without a config
        raise StitchError(str(error)) from error


def export(translation: SearchTranslation, folder: Path) -> Callable[[Path], Any]:
    """Write the first source encoder and a translation as a sentence-transformers model."""
    return lambda place: translation.after(str(folder / "source-1"), folder=place)


def move_work(kind: Move, translation: SearchTranslation) -> Work:
    """The move of an index; its content is that of the old index and, once it is named, of all there."""

    def read(place: Path) -> bytes:
        found = kind.there(place)
        return json.dumps(found if "moved" in found else found["docs"], sort_keys=True).encode()

    def run(place: Path) -> None:
        was_there = "moved" in kind.there(place)
        with pytest.raises(StitchError, match="already") if was_there else nullcontext():
            kind.move(translation, place)

    return Work(kind.make, run, read)


def nothing(place: Path) -> None:
    """There is nothing before."""


def works(folder: Path) -> dict[str, Work]:
    """Everything that writes a folder or a file, with an old and a new content."""
    old, new = model(1, folder), model(5, folder)
    old_set, new_set = (AnchorSet.encode(Encoder(each.encoder, each.processor), pico.texts(40)) for each in (old, new))
    x = np.random.default_rng(0).normal(size=(80, 8)).astype(np.float32)
    first, second = (translation_between(x, x @ np.roll(np.eye(8), each, 0)) for each in (0, 1))
    latents = old_set.latents
    wide = [translation_between(latents, latents.roll(each, 1)) for each in (0, 1)]
    inputs = folder / "inputs"
    inputs.mkdir()
    for number in range(6):
        np.save(inputs / f"{number}.npy", x + number)
    save_file(
        {"a": np.tile(x, (3, 1)), "b": np.tile(x[:, ::-1], (3, 1)), "labels": np.arange(240) % 2},
        folder / "latents.safetensors",
    )
    spaces = {
        "path": str(folder / "latents.safetensors"),
        "label": "labels",
        "latents": {"a": "a", "b": "b"},
        "head_rows": 80,
        "test_rows": 80,
        "pairs": [["a", "b"]],
    }
    suite = {"name": "toy", "data": {"toy": spaces}, "methods": ["auto", "absolute"], "anchors": [40]}

    def read_outputs(place: Path) -> bytes:
        translate_files(first, inputs, place, progress=False)
        return b"".join(np.load(file).tobytes() for file in sorted(place.glob("*.npy")))

    def read_results(place: Path) -> bytes:
        return json.dumps(run_suite(suite, place, progress=False), sort_keys=True).encode()

    def translated(place: Path) -> None:
        translate_files(first, inputs, place, progress=False)

    def measured(place: Path) -> None:
        run_suite(suite, place, progress=False)

    return {
        "model": Work(old.save_pretrained, new.save_pretrained, read_model),
        "new model": Work(nothing, new.save_pretrained, read_model),
        "anchor set": Work(old_set.save_pretrained, new_set.save_pretrained, read_set),
        "new anchor set": Work(nothing, new_set.save_pretrained, read_set),
        "translate": Work(nothing, translated, read_outputs),
        "benchmark": Work(nothing, measured, read_results),
        "search translation": Work(first.save, second.save, read_translation),
        "folder of a translation": Work(first.save_pretrained, second.save_pretrained, read_folder_of_translation),
        "exported encoder": Work(export(wide[0], folder), export(wide[1], folder), read_exported),
        **{name: move_work(kind, first) for name, kind in MOVES.items()},
    }


def killed_at(step: int, work: Work, place: Path) -> bool:
    """Run in a child that kills itself before its `step`th step below the folder; False if it ended before."""

    def run() -> None:
        left = [step]

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            named = [str(each) for each in arguments if isinstance(each, str | os.PathLike)]
            if event in STEPS and any(each.startswith(str(place.parent)) for each in named):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work.run(place)

    return _in_a_child(run)


def killed_after(seconds: float, work: Work, place: Path) -> bool:
    """Run in a child that is killed after some time; False if it ended before."""
    return _in_a_child(lambda: work.run(place), seconds=seconds)


def apart(run: Callable[[], bytes | None]) -> bytes | None:
    """Run in a child, and return what it returns.

    Raises:
        StitchError: the child raised one.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = run()
            told = b"none" if answer is None else b"some" + (answer if isinstance(answer, bytes) else b"")
        except StitchError as error:
            told = b"fail" + str(error).encode()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        with os.fdopen(writing, "wb") as stream:
            stream.write(told)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read()
    status = os.waitpid(child, 0)[1]
    assert status == 0, "the work failed"
    if told.startswith(b"fail"):
        raise StitchError(told[4:].decode())
    return None if told == b"none" else told[4:]


def _in_a_child(run: Callable[[], None], *, seconds: float | None = None) -> bool:
    child = os.fork()
    if child == 0:
        run()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed"
    return os.WIFSIGNALED(status)


def look(work: Work, place: Path, old: bytes | None, new: bytes) -> str:
    """Say what a kill has left: the old content, the new one, or a folder that says that it is not whole.

    Raises:
        AssertionError: it is neither, or the next run does not make it whole, or something is left behind.
    """
    try:
        found = apart(lambda: work.read(place))
        assert found in (old, new), "the content is neither the old nor the new one"
        left = "old" if found == old else "new"
    except StitchError as error:
        left = f"says: {str(error).replace(str(place), 'FOLDER')[:60]}"
    apart(lambda: work.run(place))
    assert apart(lambda: work.read(place)) == new, "the next run did not write the new content"
    files = [file for root in (place.parent, place) for file in root.glob("*")]
    hidden = [file for file in files if "partial" in file.name or (file.suffix == ".lock" and file.name != QDRANTS)]
    assert not hidden, f"left behind: {hidden}"
    return left


def main(kinds: list[str], random_kills: int) -> dict[str, Counter[str]]:
    """Kill each kind at every step, or so many times at random, and count what is left."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its usual lock is one for all processes, and a killed child keeps it
    transformers.utils.logging.set_verbosity_error()
    counts: dict[str, Counter[str]] = {}
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as temporary, postgres() as os.environ[ADDRESS]:
        every = works(Path(temporary))
        with warnings.catch_warnings(action="ignore"):
            for name in (*LATE, "sentence_transformers"):
                importlib.import_module(name)
        for kind in kinds or [kind for kind in every if random_kills or kind not in AT_RANDOM]:
            work, counts[kind] = every[kind], Counter()
            base = Path(temporary, kind.replace(" ", "-"))
            made = None if kind in AT_RANDOM else base / "made"

            def begin(number: int | str, base: Path = base, made: Path | None = made, work: Work = work) -> Path:
                place = base / str(number) / "out"
                if made is not None and made.is_dir():
                    shutil.copytree(made, place.parent)
                else:
                    place.parent.mkdir(parents=True)
                    apart(lambda: work.before(place))
                return place

            if made is not None:
                begin(made.name)

            place = begin(0)
            old = apart(lambda place=place, work=work: work.read(place)) if place.exists() else None
            start = time.monotonic()
            apart(lambda place=place, work=work: work.run(place))
            took, new = time.monotonic() - start, apart(lambda place=place, work=work: work.read(place))
            assert old != new
            for step in range(1, random_kills // AT_RANDOM.get(kind, 1) + 1 if random_kills else 10_000):
                place = begin(step)
                if random_kills:
                    was_killed = killed_after(generator.uniform(0, 0.9 * took), work, place)  # the first takes longer
                elif not (was_killed := killed_at(step, work, place)):
                    break
                counts[kind]["killed" if was_killed else "ended"] += 1
                counts[kind][look(work, place, old, new)] += 1
                shutil.rmtree(place.parent)
    return counts


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[2:], int(sys.argv[1])), indent=2))
