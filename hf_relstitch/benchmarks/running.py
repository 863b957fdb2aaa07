"""Running a suite: cells, each computed once and kept, and what comes out as one file."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from hf_relstitch.anchors import AnchorSet
from hf_relstitch.benchmarks.latents import Sources, Space, all_spaces, check_models, distinct, key_of
from hf_relstitch.benchmarks.methods import Problem, answer, train_head
from hf_relstitch.benchmarks.raw_inputs import raw_accuracy
from hf_relstitch.benchmarks.reporting import FORMAT_VERSION, RESULTS_NAME
from hf_relstitch.benchmarks.schema import Document
from hf_relstitch.benchmarks.scores import score
from hf_relstitch.benchmarks.suite import Suite, check_suite, load_suite
from hf_relstitch.benchmarks.tables import Rows, read_rows
from hf_relstitch.core.confidence import apply_head
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.inversion import Frame
from hf_relstitch.core.relative import relative_projection
from hf_relstitch.devices import accelerate_state
from hf_relstitch.encoders import Encoder
from hf_relstitch.files import only_run, read_json, whole_file, write_json
from hf_relstitch.heads import Head

logger = logging.get_logger(__name__)

RAW = "auto, raw inputs"
LIBRARIES = ("hf-relstitch", "torch", "transformers", "datasets", "scikit-learn", "scipy", "numpy")


@dataclass(frozen=True)
class Cell:
    """One thing to measure."""

    data: str
    source: str
    target: str
    head: str
    anchors: int
    seed: int
    method: str

    def __str__(self) -> str:
        what = f"{self.method}, {self.anchors} anchors, seed {self.seed}"
        return f"{self.source} → {self.target} on {self.data}, {what}"


def run_suite(
    suite: str | Path | dict[str, Any],
    out: str | Path,
    *,
    encoders: Mapping[str, Encoder] | None = None,
    data: Mapping[str, Dataset] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure all that a suite asks for, and write `results.json`; gives its content.

    What is there from a run that was stopped, or of another suite in the same folder, is not computed again: latents
    are kept by the model and the inputs that they are of, cells by all that they depend on. A cell that fails is
    reported, and tried again the next time. Under `accelerate launch` the processes share the encoding, and the
    first one computes the cells.

    Args:
        suite: a YAML file, the name of a suite that is shipped, or the same as a dict.
        out: the folder.
        encoders: encoders of the suite that are given here, by name, whatever they are made of.
        data: data sets of the suite that are given here, by name.
        progress: whether to show progress bars, with the time left.

    Raises:
        StitchError: a suite, data or models that cannot be used; the error names the line.
    """
    if isinstance(suite, dict):
        document = Document(suite)
        plan = check_suite(document)
    else:
        plan, document = load_suite(suite)
    folder, given = Path(out), encoders or {}
    check_models(plan, document, given)
    tables = {
        name: read_rows(name, spec, document, most_anchors=max(plan.anchors), given=(data or {}).get(name))
        for name, spec in plan.data.items()
    }
    spaces = all_spaces(plan, document, tables, folder / "latents", given=given, progress=progress)
    bench = Bench(plan, tables, spaces, folder)
    sources = Sources(plan, document, given)
    state, results = accelerate_state(), folder / RESULTS_NAME
    if state.is_main_process:
        with only_run(folder / ".lock", doing=f"writing to {folder}", instead="give another folder"):
            content = bench.results(sources, progress=progress)
            with whole_file(results) as written:
                write_json(written, content)
    state.wait_for_everyone()
    return read_json(results)


class Bench:
    """A suite with its rows and latents; heads are trained when they are first needed."""

    def __init__(
        self, suite: Suite, tables: Mapping[str, Rows], spaces: Mapping[tuple[str, str], Space], folder: Path
    ) -> None:
        self.suite, self.tables, self.spaces = suite, tables, spaces
        self.cells_folder = folder / "cells"
        self.cells_folder.mkdir(parents=True, exist_ok=True)
        self.heads: dict[tuple[Any, ...], Any] = {}
        self.pools = {
            name: distinct([spaces[name, one].latents[rows.candidates] for one in suite.encoders_of(name)])
            for name, rows in tables.items()
        }

    def cells(self) -> Iterator[Cell]:
        """All cells of the suite; those of one target and one set of anchors follow each other."""
        for name, kind in product(self.suite.data, self.suite.heads):
            pairs = sorted(self.suite.pairs(name), key=lambda pair: pair[::-1])
            for count, seed, (source, target) in product(self.suite.anchors, self.suite.seeds, pairs):
                if kind != "own" or self.spaces[name, target].head is not None:
                    yield from (Cell(name, source, target, kind, count, seed, one) for one in self.suite.methods)

    def raw_cells(self) -> Iterator[Cell]:
        """One of each pair that has raw inputs, grouped by source, so that each model is loaded once."""
        names = [name for name, rows in self.tables.items() if rows.inputs and self.suite.raw_rows]
        count, seed, kind = max(self.suite.anchors), self.suite.seeds[0], self.suite.heads[0]
        pairs = [(source, target, name) for name in names for source, target in self.suite.pairs(name)]
        for source, target, name in sorted(pairs):
            if kind != "own" or self.spaces[name, target].head is not None:
                yield Cell(name, source, target, kind, count, seed, RAW)

    def key(self, cell: Cell) -> str:
        """A hash of all that a cell's numbers depend on."""
        rows = self.tables[cell.data]
        sides = [self.spaces[cell.data, one].key for one in (cell.source, cell.target)]
        all_sides = [self.spaces[cell.data, one].key for one in self.suite.encoders_of(cell.data)]  # anchors are shared
        split = [rows.head_rows, rows.test_rows, len(rows.labels)]
        labels = key_of(rows.labels.tolist(), rows.classes)
        how = [cell.head, cell.anchors, cell.seed, cell.method, self.suite.raw_rows if cell.method == RAW else 0]
        return key_of("cell", sides, sorted(all_sides), split, labels, how, FORMAT_VERSION, _versions())

    def results(self, sources: Sources, *, progress: bool) -> dict[str, Any]:
        """Compute the cells that are not there, and put all together."""
        keys = {cell: self.key(cell) for cell in [*self.cells(), *self.raw_cells()]}
        failures: dict[Cell, str] = {}
        todo = [cell for cell, key in keys.items() if not self.file(key).is_file()]
        for cell in logging.tqdm(todo, desc="cells", unit="cell", disable=not progress):
            try:
                content = self.measure(cell) if cell.method != RAW else self.measure_raw(cell, sources)
                with whole_file(self.file(keys[cell])) as written:
                    write_json(written, content)
            except Exception as error:
                failures[cell] = f"{type(error).__name__}: {error}"
                logger.warning(f"{cell} failed: {failures[cell]}")
        found = {cell: asdict(cell) | read_json(self.file(key)) for cell, key in keys.items() if cell not in failures}
        return {
            "format_version": FORMAT_VERSION,
            "suite": asdict(self.suite),
            "versions": _versions(),
            "device": str(accelerate_state().device),
            "data": {name: self._about(rows) for name, rows in self.tables.items()},
            "cells": [content for cell, content in found.items() if cell.method != RAW],
            "raw_inputs": [content for cell, content in found.items() if cell.method == RAW],
            "failures": [asdict(cell) | {"error": error} for cell, error in failures.items()],
            "singular_values": {
                name: {one: self._singular_values(name, one) for one in self.suite.encoders_of(name)}
                for name in self.tables
            },
        }

    def file(self, key: str) -> Path:
        """Where a cell is kept."""
        return self.cells_folder / f"{key}.json"

    def measure(self, cell: Cell) -> dict[str, Any]:
        """The numbers of one cell.

        Raises:
            StitchError: there are too few rows for so many anchors, or they cannot be stitched.
        """
        rows, target = self.tables[cell.data], self.spaces[cell.data, cell.target]
        head = self.head(cell.data, cell.target, cell.head)
        problem = Problem(
            source=self.spaces[cell.data, cell.source],
            target=target,
            anchors=self.anchors(cell.data, cell.anchors, cell.seed),
            tests=rows.tests,
            head=head,
            decoder=lambda anchors: self.decoder(cell, anchors),
        )
        made = answer(cell.method, problem)
        native = apply_head(head.module, target.latents[rows.tests].double())
        return score(made.logits, native, rows.labels[rows.tests]) | made.known

    def measure_raw(self, cell: Cell, sources: Sources) -> dict[str, Any]:
        """The accuracy of the stitched model on raw inputs, and what the latents that are kept give on the same rows.

        Raises:
            StitchError: as in `measure`, or a model that does not load.
        """
        rows, spaces = self.tables[cell.data], [self.spaces[cell.data, one] for one in (cell.source, cell.target)]
        anchors = self.anchors(cell.data, cell.anchors, cell.seed)
        tests = slice(rows.tests.start, min(rows.tests.start + self.suite.raw_rows, rows.tests.stop))
        encoder = sources.load(cell.source)
        return raw_accuracy(
            encoder,
            [AnchorSet(space.latents[anchors], anchors, space.provenance) for space in spaces],
            self.head(cell.data, cell.target, cell.head),
            inputs=rows.inputs[self.suite.encoders[cell.source].input or encoder.modality][tests],
            latents=spaces[0].latents[tests],
            labels=rows.labels[tests],
        )

    def anchors(self, data: str, count: int, seed: int) -> Tensor:
        """Rows of so many anchors, drawn by a seed; more anchors of one seed hold the fewer."""
        pool = self.pools[data] + self.tables[data].candidates.start
        if count > len(pool):
            raise StitchError(f"{data} has {len(pool)} different rows left for anchors: {count} are asked for")
        return pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:count]]

    def head(self, data: str, encoder: str, kind: str) -> Head:
        """The target's own head, or one trained on its latents.

        Raises:
            StitchError: a head of its own that has fewer classes than the data.
        """
        key = (data, encoder, kind)
        if key not in self.heads:
            rows, space = self.tables[data], self.spaces[data, encoder]
            if kind == "own" and space.head:
                if (classes := len(space.head.id2label)) < len(rows.classes):
                    raise StitchError(f"the head of {encoder} has {classes} classes, {data} has {len(rows.classes)}")
                self.heads[key] = space.head
            else:
                latents, labels = space.latents[rows.heads], rows.labels[rows.heads]
                linear = train_head(kind, latents, labels, classes=len(rows.classes))
                self.heads[key] = Head.of(linear, labels=rows.classes)
        return self.heads[key]

    def decoder(self, cell: Cell, anchors: Tensor) -> Any:
        """A head on the target's latents relative to the anchors."""
        key = (cell.data, cell.target, cell.head, cell.anchors, cell.seed)
        if key not in self.heads:
            rows, space = self.tables[cell.data], self.spaces[cell.data, cell.target]
            relative = relative_projection(space.latents[rows.heads].double(), anchors=anchors.double())
            kind = "logistic" if cell.head == "own" else cell.head
            self.heads[key] = train_head(kind, relative, rows.labels[rows.heads], classes=len(rows.classes))
        return self.heads[key]

    def _about(self, rows: Rows) -> dict[str, Any]:
        encoders = {one: asdict(self.spaces[rows.name, one].provenance) for one in self.suite.encoders_of(rows.name)}
        return {
            "classes": rows.classes,
            "head_rows": rows.head_rows,
            "test_rows": rows.test_rows,
            "anchor_candidates": len(self.pools[rows.name]),
            "encoders": encoders,
        }

    def _singular_values(self, data: str, encoder: str) -> list[float]:
        """Of centred and normalised anchors, as many as there are and the suite asks for, with the first seed."""
        count = min(max(self.suite.anchors), len(self.pools[data]))
        latents = self.spaces[data, encoder].latents[self.anchors(data, count, self.suite.seeds[0])]
        return Frame.of_anchors(latents).singular_values.tolist()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
