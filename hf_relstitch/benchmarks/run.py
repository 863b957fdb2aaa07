"""Runs of a suite: each cell is computed once and kept, and a single file holds all results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from datasets import Dataset
from filelock import FileLock
from transformers.utils import logging

from hf_relstitch.benchmarks.hub_results import Stitched
from hf_relstitch.benchmarks.latent_cache import Sources, all_spaces, check_models, keep_common_words
from hf_relstitch.benchmarks.plan import KINDS, Bench, Task
from hf_relstitch.benchmarks.report import FORMAT_VERSION, RESULTS_NAME, Results
from hf_relstitch.benchmarks.rows import read_rows
from hf_relstitch.benchmarks.suite import check_suite, load_suite
from hf_relstitch.benchmarks.yaml_schema import Document
from hf_relstitch.encoders.devices import gather
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.hub.files import atomic_write, check_output, read_json, run_lock, write_json
from hf_relstitch.hub.processes import accelerate_state

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded


def run_suite(
    suite: str | Path | dict[str, Any],
    out: str | Path,
    *,
    encoders: Mapping[str, Encoder] | None = None,
    data: Mapping[str, Dataset] | None = None,
    models: Sequence[str] = (),
    progress: bool = True,
) -> Results:
    """Run a suite, write `results.json`, and return its content, a dict that prints as a table.

    Results of a stopped run, or of another suite in the same folder, are not computed again. Latents are kept by their
    model and inputs, cells by everything that they depend on. A cell that fails is reported, and the next run
    tries it again. Under `accelerate launch` the processes share the encoding, and the first process computes the
    cells.

    Args:
        suite: a YAML file, the name of a shipped suite, or the suite as a dict.
        out: the folder for latents, cells and results.
        encoders: encoders of the suite, by name, of any kind; the suite needs no model for them.
        data: data sets of the suite, by name; the suite needs no path for them.
        models: finished stitched models, folders or Hub ids, to measure on the data that their encoders read.
        progress: show progress bars, with the time left.

    Raises:
        StitchError: the suite, data or models cannot be used, and the error names the line; or the folder cannot be
            written. The other processes of `accelerate launch` also raise it when the first process failed.
    """
    if isinstance(suite, dict):
        document = Document(suite)
        plan = check_suite(document)
    else:
        plan, document = load_suite(suite)
    folder, given = Path(out), encoders or {}
    check_output(folder)
    found = [Stitched.find(place) for place in models]
    check_models(plan, document, given)
    tables = {
        name: read_rows(name, spec, document, most_anchors=max(plan.anchors), given=(data or {}).get(name))
        for name, spec in plan.data.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    state, results = accelerate_state(), folder / RESULTS_NAME
    lock = run_lock(folder / ".lock", doing=f"writing to {folder}", instead="give another folder")
    with lock if state.is_main_process else nullcontext():
        spaces = all_spaces(plan, document, tables, folder / "latents", given=given, progress=progress)
        tables, spaces = keep_common_words(tables, spaces)
        bench = Bench(plan, tables, spaces, Sources(plan, document, given), found)

        def write_results() -> None:
            numbers, failures = compute(bench.tasks(), folder / "cells", progress=progress)
            content = {"format_version": FORMAT_VERSION, **bench.about(), **numbers, "failures": failures}
            with atomic_write(results) as written:
                write_json(written, content)

        gather(lambda: _by_first(write_results, FileLock(folder / ".computing")))
    return Results(read_json(results))


def _by_first(work: Callable[[], None], lock: FileLock) -> list[None]:
    """Let the first process work while the others wait for its lock: a collective operation would time out."""
    state = accelerate_state()
    with lock if state.is_main_process else nullcontext():
        state.wait_for_everyone()  # until the first has the lock
        if state.is_main_process:
            work()
    with lock.acquire(poll_interval=1):
        return []


def compute(tasks: Iterable[Task], folder: Path, *, progress: bool) -> tuple[dict[str, list[Any]], list[Any]]:
    """Compute the tasks that the folder lacks, and return all numbers by their kind, and the failures."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {task: folder / f"{task.key}.json" for task in tasks}
    failures: dict[Task, str] = {}
    todo = [task for task, file in files.items() if not file.is_file()]
    for task in logging.tqdm(todo, desc="cells", unit="cell", disable=not progress):
        try:
            content = task.measure()
            with atomic_write(files[task]) as written:
                write_json(written, content)
        except Exception as error:
            failures[task] = f"{type(error).__name__}: {error}"
            logger.warning(f"{task} failed: {failures[task]}")
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for task, file in files.items():
        if task not in failures:
            found[task.kind].append(task.about | read_json(file))
    return found, [task.about | {"error": error} for task, error in failures.items()]
