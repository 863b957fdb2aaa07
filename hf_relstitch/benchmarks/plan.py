"""Plan of a suite: all its measurements, and how to take them from its rows and latents."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any

import torch
from torch import Tensor

from hf_relstitch.benchmarks.end_to_end import raw_accuracy
from hf_relstitch.benchmarks.experiments import (
    angle_preservation,
    head_scale_invariance,
    reconstruction,
    scale_distribution,
)
from hf_relstitch.benchmarks.hub_results import Stitched, numbers_of
from hf_relstitch.benchmarks.latent_cache import Sources, Space, distinct, key_of
from hf_relstitch.benchmarks.methods import Problem, answer, train_head
from hf_relstitch.benchmarks.report import FORMAT_VERSION
from hf_relstitch.benchmarks.rows import Rows
from hf_relstitch.benchmarks.scores import score
from hf_relstitch.benchmarks.suite import Suite
from hf_relstitch.core.decomposition import Frame
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.core.relative import relative_projection
from hf_relstitch.heads.head import Head
from hf_relstitch.hub.processes import accelerate_state
from hf_relstitch.layers import flatten_layers
from hf_relstitch.model.anchors import AnchorSet

KINDS = ("cells", "raw_inputs", "experiments", "models")
RAW = "auto, raw inputs"
PRUNINGS = (None, 0.4, 0.2)
LIBRARIES = ("hf-relstitch", "torch", "transformers", "datasets", "scikit-learn", "scipy", "numpy")


@dataclass(frozen=True)
class Cell:
    """Hold the settings of a measurement: pair, head, method, number of anchors and seed."""

    data: str
    source: str
    target: str
    head: str
    anchors: int
    seed: int
    method: str


@dataclass(frozen=True, eq=False)
class Task:
    """Hold a measurement that is still to do.

    `kind` names the list of results that its numbers go to. `about` describes it. `key` stands for everything that the
    numbers depend on. `measure` returns the numbers.
    """

    kind: str
    about: dict[str, Any]
    key: str
    measure: Callable[[], dict[str, Any]]

    def __str__(self) -> str:
        return f"{self.kind}: " + ", ".join(f"{name} {value}" for name, value in self.about.items())


class Bench:
    """Hold a suite with its rows and latents, and train heads when they are first needed."""

    def __init__(
        self,
        suite: Suite,
        tables: Mapping[str, Rows],
        spaces: Mapping[tuple[str, str], Space],
        sources: Sources,
        models: Sequence[Stitched],
    ) -> None:
        self.suite, self.tables, self.spaces, self.sources = suite, tables, spaces, sources
        self.models = {model: model.reads(spaces) for model in models}
        self.heads: dict[tuple[Any, ...], Any] = {}
        self.spoiled = {
            name: {one for one in suite.encoders_of(name) if not spaces[name, one].latents.isfinite().all()}
            for name in tables
        }
        self.pools = {
            name: distinct([spaces[name, one].latents[rows.candidates] for one in suite.encoders_of(name)])
            for name, rows in tables.items()
        }

    def space(self, data: str, encoder: str) -> Space:
        """Return the space of a data set and an encoder.

        Raises:
            StitchError: some latents are not finite.
        """
        space = self.spaces[data, encoder]
        if encoder in self.spoiled[data]:
            row = int((~space.latents.isfinite()).any(dim=1).nonzero()[0])
            raise StitchError(
                f"{encoder} has latents of {data} with not-a-number or infinite values, the first in row {row} "
                "(counted from 0, after shuffling): mend or leave out such rows"
            )
        return space

    def tasks(self) -> Iterator[Task]:
        """Yield every task of the suite."""
        for cell in self.cells():
            yield Task("cells", asdict(cell), self.key(cell), partial(self.measure, cell))
        for cell in self.raw_cells():
            key = self.key(cell, self.suite.raw_rows)
            yield Task("raw_inputs", asdict(cell), key, partial(self.measure_raw, cell))
        for experiment in self.suite.experiments:
            yield from self.experiments(experiment)
        for model, where in self.models.items():
            for data, encoder in where:
                about = {"model": model.repo.name, "commit": model.repo.commit, "data": data, "encoder": encoder}
                key = key_of("model", self.spaces[data, encoder].key, self.rows_key(data), model.content, _versions())
                yield Task("models", about, key, partial(self.measure_model, model, data, encoder))

    def cells(self) -> Iterator[Cell]:
        """Yield every cell of the suite; cells that share a target and a set of anchors follow each other."""
        for name, kind in product(self.suite.data, self.suite.heads):
            pairs = sorted(self.suite.pairs(name), key=lambda pair: pair[::-1])
            for count, seed, (source, target) in product(self.suite.anchors, self.suite.seeds, pairs):
                if kind != "own" or self.spaces[name, target].head is not None:
                    yield from (Cell(name, source, target, kind, count, seed, one) for one in self.suite.methods)

    def raw_cells(self) -> Iterator[Cell]:
        """Yield a cell for each pair that has raw inputs, grouped by source, so that each model is loaded once."""
        names = [name for name, rows in self.tables.items() if rows.inputs and not rows.by_word and self.suite.raw_rows]
        count, seed, kind = max(self.suite.anchors), self.suite.seeds[0], self.suite.heads[0]
        pairs = [(source, target, name) for name in names for source, target in self.suite.pairs(name)]
        for source, target, name in sorted(pairs):
            if kind != "own" or self.spaces[name, target].head is not None:
                yield Cell(name, source, target, kind, count, seed, RAW)

    def experiments(self, experiment: str) -> Iterator[Task]:
        """Yield the tasks of the paper's experiment of this name.

        Each data set has a task for each of its encoders; for angles, a single task. The scale experiment has a task
        for each head too.
        """
        for name in self.suite.data:
            encoders = self.suite.encoders_of(name)
            spaces = [self.spaces[name, one] for one in encoders]
            if experiment == "angles":
                about: dict[str, Any] = {"experiment": experiment, "data": name}
                key = key_of(experiment, encoders, [space.key for space in spaces], self.rows_key(name), _versions())
                yield Task("experiments", about, key, partial(self.angles, name))
                continue
            for encoder, space in zip(encoders, spaces, strict=True):
                about = {"experiment": experiment, "data": name, "encoder": encoder}
                if experiment == "reconstruction":
                    how = [self.suite.anchors, self.suite.seeds, PRUNINGS]
                    key = key_of(experiment, space.key, how, len(space.latents), _versions())
                    yield Task("experiments", about, key, partial(self.reconstruction, name, encoder))
                    continue
                for kind in self.suite.heads:
                    if kind != "own" or space.head is not None:
                        key = key_of(experiment, encoder, space.key, kind, self.rows_key(name), _versions())
                        yield Task("experiments", about | {"head": kind}, key, partial(self.scale, name, encoder, kind))

    def reconstruction(self, data: str, encoder: str) -> dict[str, Any]:
        """Measure a space's return from its own relative representation, by number of anchors, pruning and seed."""
        latents = self.space(data, encoder).latents
        counts, seeds = self.suite.anchors, self.suite.seeds
        return {"rows": reconstruction(latents, anchor_counts=counts, prunings=PRUNINGS, seeds=seeds)}

    def angles(self, data: str) -> dict[str, Any]:
        """Measure how similar in shape the encoders' spaces are, on the test rows."""
        tests = self.tables[data].tests
        names = [one for one in self.suite.encoders_of(data) if one not in self.spoiled[data]]
        spaces = {one: self.space(data, one).latents[tests] for one in names}
        return {"rows": angle_preservation(spaces)}

    def scale(self, data: str, encoder: str, kind: str) -> dict[str, Any]:
        """Measure the spread of the test latents' norms, and the share of answers a head keeps when they are scaled."""
        tests = {encoder: self.space(data, encoder).latents[self.tables[data].tests]}
        heads = {encoder: self.head(data, encoder, kind).module}
        return {"norms": scale_distribution(tests)[0], "rows": head_scale_invariance(heads, tests)}

    def rows_key(self, data: str) -> str:
        """Return a hash of the rows' labels, classes and division."""
        rows = self.tables[data]
        return key_of(rows.labels.tolist(), rows.classes, rows.head_rows, rows.test_rows)

    def key(self, cell: Cell, *more: object) -> str:
        """Return a hash of everything that a cell's numbers depend on."""
        sides = [self.spaces[cell.data, one].key for one in (cell.source, cell.target)]
        all_sides = [self.spaces[cell.data, one].key for one in self.suite.encoders_of(cell.data)]  # anchors are shared
        how = [cell.head, cell.anchors, cell.seed, cell.method, *more]
        return key_of("cell", sides, sorted(all_sides), self.rows_key(cell.data), how, FORMAT_VERSION, _versions())

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Measure a cell.

        Raises:
            StitchError: there are too few rows for so many anchors, or the anchors cannot be stitched.
        """
        rows, target = self.tables[cell.data], self.space(cell.data, cell.target)
        source = self.space(cell.data, cell.source)
        head = self.head(cell.data, cell.target, cell.head)
        anchors = self.anchors(cell.data, cell.anchors, cell.seed)
        problem = Problem(
            source=source,
            target=target,
            anchors=anchors,
            ids=rows.ids(anchors),
            tests=rows.tests,
            head=head,
            labels=rows.labels[anchors],
            decoder=lambda anchors: self.decoder(cell, anchors),
        )
        made = answer(cell.method, problem)
        native = apply_head(head.module, target.latents[rows.tests].double())
        entities = rows.entity_f1(made.logits.argmax(-1))
        known = made.known if entities is None else made.known | {"entity_f1": entities}
        return score(made.logits, native, rows.labels[rows.tests]) | known

    def measure_raw(self, cell: Cell) -> dict[str, Any]:
        """Measure the stitched model's accuracy on raw inputs, and on the cached latents of the same rows.

        Raises:
            StitchError: as in `measure`, or the model does not load.
        """
        rows, spaces = self.tables[cell.data], [self.space(cell.data, one) for one in (cell.source, cell.target)]
        anchors = self.anchors(cell.data, cell.anchors, cell.seed)
        tests = slice(rows.tests.start, min(rows.tests.start + self.suite.raw_rows, rows.tests.stop))
        encoder = self.sources.load(cell.source)
        return raw_accuracy(
            encoder,
            [AnchorSet(space.latents[anchors], anchors, space.provenance) for space in spaces],
            self.head(cell.data, cell.target, cell.head),
            inputs=rows.inputs[self.suite.encoders[cell.source].input or encoder.modality][tests],
            latents=spaces[0].latents[tests],
            labels=rows.labels[tests],
        )

    def measure_model(self, model: Stitched, data: str, encoder: str) -> dict[str, Any]:
        """Measure a stitched model on the test rows."""
        rows = self.tables[data]
        return model.measure(self.space(data, encoder).latents[rows.tests], rows.labels[rows.tests], rows.classes)

    def anchors(self, data: str, count: int, seed: int) -> Tensor:
        """Draw the rows of `count` anchors by a seed; a larger draw of the same seed includes every smaller draw."""
        pool = self.pools[data] + self.tables[data].candidates.start
        if count > len(pool):
            raise StitchError(f"{data} has {len(pool)} different rows left for anchors: {count} are asked for")
        return pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:count]]

    def head(self, data: str, encoder: str, kind: str) -> Head:
        """Return the target's own head, or train a head on its latents.

        Raises:
            StitchError: the target's own head has other classes than the data.
        """
        key = (data, encoder, kind)
        if key not in self.heads:
            rows, space = self.tables[data], self.spaces[data, encoder]
            if kind == "own" and space.head:
                numbers = numbers_of(rows.classes, space.head.id2label, name=encoder)
                self.heads[key] = _reordered(space.head, numbers.tolist())
            else:
                latents, labels = space.latents[rows.heads], rows.labels[rows.heads]
                linear = train_head(kind, latents, labels, classes=len(rows.classes))
                self.heads[key] = Head.from_module(linear, labels=rows.classes)
        return self.heads[key]

    def decoder(self, cell: Cell, anchors: Tensor) -> Any:
        """Train a head on the target's latents relative to the anchors, or return the head of an earlier call."""
        key = (cell.data, cell.target, cell.head, cell.anchors, cell.seed)
        if key not in self.heads:
            rows, space = self.tables[cell.data], self.spaces[cell.data, cell.target]
            relative = relative_projection(space.latents[rows.heads].double(), anchors=anchors.double())
            kind = "logistic" if cell.head == "own" else cell.head
            self.heads[key] = train_head(kind, relative, rows.labels[rows.heads], classes=len(rows.classes))
        return self.heads[key]

    def about(self) -> dict[str, Any]:
        """Describe the suite, the versions, the device and the data that the numbers belong to."""
        names = self.suite.data
        return {
            "suite": asdict(self.suite),
            "versions": _versions(),
            "device": str(accelerate_state().device),
            "data": {name: self._about(self.tables[name]) for name in names},
            "singular_values": {
                name: {one: self._singular_values(name, one) for one in self.suite.encoders_of(name)} for name in names
            },
        }

    def _about(self, rows: Rows) -> dict[str, Any]:
        encoders = {one: self.spaces[rows.name, one].provenance.to_dict() for one in self.suite.encoders_of(rows.name)}
        return {
            "revision": rows.revision,
            "classes": rows.classes,
            "head_rows": rows.head_rows,
            "test_rows": rows.test_rows,
            "anchor_candidates": len(self.pools[rows.name]),
            "encoders": encoders,
        }

    def _singular_values(self, data: str, encoder: str) -> list[float]:
        """Return the singular values of centred and normalised anchors.

        Anchors are drawn with the first seed, at most as many as the suite asks for. Latents that are not finite have
        no singular values.
        """
        if encoder in self.spoiled[data]:
            return []
        count = min(max(self.suite.anchors), len(self.pools[data]))
        latents = self.spaces[data, encoder].latents[self.anchors(data, count, self.suite.seeds[0])]
        return Frame.from_anchors(latents).singular_values.tolist()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def _reordered(head: Head, first: Sequence[int]) -> Head:
    """Reorder a head that ends in a linear layer: the classes in `first`, in this order, then the other classes."""
    order = [*first, *(number for number in head.id2label if number not in first)]
    if order == list(head.id2label):
        return head
    module = deepcopy(head.module)
    last = flatten_layers(module)[-1]
    for parameter in last.parameters():
        parameter.data = parameter.data[order]
    labels = {number: head.id2label[old] for number, old in enumerate(order)}
    return replace(head, module=module, id2label=labels)
