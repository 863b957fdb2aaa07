"""Rows of a data set, shuffled and divided into rows for heads, for tests and for anchors."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hf_relstitch.benchmarks.suite import DataSpec
from hf_relstitch.benchmarks.yaml_schema import Document, Path_
from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.ids import input_ids
from hf_relstitch.data.inputs import TABLES, TEXT_PAIR, inputs_at
from hf_relstitch.data.reading import read_table
from hf_relstitch.data.words import Word, entity_f1, has_entities
from hf_relstitch.hub.cards import dataset_id
from hf_relstitch.hub.repo import HUB_ERRORS, is_commit

CANDIDATES = 4
"""How many rows anchors are drawn from, relative to the largest number of anchors."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Hold the rows of a data set: first the rows for heads, then for tests, then for anchors.

    `inputs` and `latents` have the rows of each name in the suite; either of them is empty. A row is a word if
    words have labels. `revision` is the commit of a data set on the Hub.
    """

    name: str
    labels: Tensor
    classes: list[str]
    inputs: dict[str, list[Any]]
    latents: dict[str, Tensor]
    head_rows: int
    test_rows: int
    revision: str | None = None

    @property
    def by_word(self) -> bool:
        """Tell whether a row is a word in its text."""
        return any(isinstance(rows[0], Word) for rows in self.inputs.values())

    def select(self, kept: Tensor) -> "Rows":
        """Return only the rows of a mask `(n,)`."""
        rows = kept.nonzero().flatten().tolist()
        return replace(
            self,
            labels=self.labels[kept],
            inputs={name: [inputs[row] for row in rows] for name, inputs in self.inputs.items()},
            head_rows=int(kept[self.heads].sum()),
            test_rows=int(kept[self.tests].sum()),
        )

    def ids(self, rows: Tensor) -> Tensor:
        """Return ids of these rows: of words those that say their texts, else the rows' numbers."""
        return input_ids(inputs_at(self._words, rows.tolist())) if self.by_word else rows

    def entity_f1(self, answers: Tensor) -> float | None:
        """Return the F1 of entities, of answers to the tests, if the labels are those of entities of words."""
        if not self.by_word or not has_entities(self.classes):
            return None
        labels = [[self.classes[label] for label in each.tolist()] for each in (answers, self.labels[self.tests])]
        return entity_f1(labels[0], labels[1], [word.text for word in self._words[self.tests]])

    @property
    def _words(self) -> list[Word]:
        return next(iter(self.inputs.values()))

    @property
    def heads(self) -> slice:
        """Return the rows that train the heads."""
        return slice(0, self.head_rows)

    @property
    def tests(self) -> slice:
        """Return the rows for the tests."""
        return slice(self.head_rows, self.head_rows + self.test_rows)

    @property
    def candidates(self) -> slice:
        """Return the rows that anchors are drawn from."""
        return slice(self.head_rows + self.test_rows, len(self.labels))


def read_rows(name: str, spec: DataSpec, document: Document, *, most_anchors: int, given: Dataset | None) -> Rows:
    """Read the rows that a suite needs from a data set.

    Pairs of texts with the same first text are either all for heads, for tests, or for anchors: rows of such a group
    that are too many are left out.

    Raises:
        StitchError: the data, a column or a tensor does not exist, or there are too few rows; the error names the line.
    """
    at: Path_ = ("data", name)
    if spec.latents:
        return _stored(name, spec, document, at, most_anchors=most_anchors)
    if given is None and spec.path is None:
        raise document.error(at, f"data {name!r} has no path: give one, or the rows by run_suite(data=…)")
    spec = replace(spec, revision=_commit(spec) or spec.revision) if given is None else spec
    train = given if given is not None else _split(spec, spec.split, document, at)
    columns = {(*at, "inputs", key): column for key, column in spec.inputs.items()}
    columns |= {(*at, "text_pairs", key): column for key, column in spec.text_pairs.items()}
    for place, column in {**columns, (*at, "label"): spec.label}.items():
        _needs(train, column, document, place, of=spec.path or name)
    train = train.shuffle(seed=0)
    first = next((spec.inputs[key] for key in spec.text_pairs), None)
    tests = None
    if spec.test_split is not None:
        tests = _some(_split(spec, spec.test_split, document, at).shuffle(seed=0), 0, spec.test_rows)
    if first is not None:
        train = _in_groups(train, first, without=tests)
    rest = _group_end(train, first, spec.head_rows)
    if tests is None:
        tests = _some(train, rest, spec.test_rows)
        rest = _group_end(train, first, rest + spec.test_rows)
    parts = [_some(train, 0, spec.head_rows), tests, _some(train, rest, CANDIDATES * most_anchors)]
    if len(parts[0]) < spec.head_rows or len(tests) < spec.test_rows:
        raise document.error(
            at, f"{spec.path or name} has too few rows: {len(parts[0])} for heads and {len(tests)} for tests"
        )
    inputs = {key: [one for part in parts for one in part[column]] for key, column in spec.inputs.items()}
    for key, column in spec.text_pairs.items():
        seconds = [one for part in parts for one in part[column]]
        inputs[key] = [dict(zip(TEXT_PAIR, pair, strict=True)) for pair in zip(inputs[key], seconds, strict=True)]
    values, feature = [one for part in parts for one in part[spec.label]], train.features[spec.label]
    sizes = spec.head_rows, spec.test_rows
    if values and isinstance(values[0], list):
        inputs, values, sizes = _by_word(
            inputs, values, sizes, most=CANDIDATES * most_anchors, document=document, at=at
        )
        feature = feature.feature
    labels, classes = _labels(values, feature)
    revision = spec.revision if is_commit(spec.revision or "") else None
    return Rows(name, labels, classes, inputs, {}, *sizes, revision)


def _by_word(
    inputs: Mapping[str, list[Any]],
    labels: list[list[Any]],
    sizes: tuple[int, int],
    *,
    most: int,
    document: Document,
    at: Path_,
) -> tuple[dict[str, list[Any]], list[Any], tuple[int, int]]:
    """Return the words of texts and the label of each, and how many are for heads and for tests.

    A text is its words with spaces between them. Of the others, `most` words are kept, for anchors.

    Raises:
        StitchError: an input is not a list of words, as many as there are labels.
    """
    made: dict[str, list[Any]] = {name: [] for name in inputs}
    for name, texts in inputs.items():
        for row, (words, each) in enumerate(zip(texts, labels, strict=True)):
            if not isinstance(words, list) or len(words) != len(each):
                raise document.error(
                    (*at, "inputs", name),
                    f"the labels in row {row} are a list of {len(each)}, one a word: expected a list of as many words",
                )
            ends = list(accumulate(len(word) + 1 for word in words))
            text = " ".join(words)
            made[name] += [Word(text, end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]
    counts = [sum(map(len, labels[: sizes[0]])), sum(map(len, labels[sizes[0] : sum(sizes)]))]
    count = sum(counts) + most
    flat = [label for each in labels for label in each]
    return {name: words[:count] for name, words in made.items()}, flat[:count], (counts[0], counts[1])


def _stored(name: str, spec: DataSpec, document: Document, at: Path_, *, most_anchors: int) -> Rows:
    """Read the rows of a safetensors file with latents and labels."""
    try:
        tensors = load_file(spec.path or "")
    except (OSError, SafetensorError) as error:
        raise document.error((*at, "path"), f"{spec.path} is no safetensors file of latents: {error}") from error
    for place, key in {(*at, "label"): spec.label, **{(*at, "latents", k): v for k, v in spec.latents.items()}}.items():
        if key not in tensors:
            raise document.error(place, f"{spec.path} has no tensor {key!r}: it has {', '.join(sorted(tensors))}")
    _check_stored(tensors, spec, document, at)
    order = torch.randperm(len(tensors[spec.label]), generator=torch.Generator().manual_seed(0))
    order = order[: spec.head_rows + spec.test_rows + CANDIDATES * most_anchors]
    if len(order) < spec.head_rows + spec.test_rows:
        raise document.error(at, f"{spec.path} has {len(order)} rows: too few for heads and tests")
    latents = {key: tensors[tensor][order].float() for key, tensor in spec.latents.items()}
    labels, classes = _labels(tensors[spec.label][order].tolist(), None)
    return Rows(name, labels, classes, {}, latents, spec.head_rows, spec.test_rows)


def _check_stored(tensors: Mapping[str, Tensor], spec: DataSpec, document: Document, at: Path_) -> None:
    """Check that labels have the shape `(n,)`, and that latents are `(n, d)` floats with as many rows.

    Raises:
        StitchError: the labels or the latents have another shape or dtype.
    """
    labels = tensors[spec.label]
    if labels.ndim != 1:
        shape = tuple(labels.shape)
        raise document.error((*at, "label"), f"{spec.label!r} is of shape {shape}: expected (n,), one label a row")
    for key, name in spec.latents.items():
        latents, place = tensors[name], (*at, "latents", key)
        if latents.ndim != 2 or not latents.is_floating_point():
            raise document.error(
                place, f"{name!r} is {latents.dtype} of shape {tuple(latents.shape)}: expected (n, d) floats"
            )
        if len(latents) != len(labels):
            raise document.error(
                place,
                f"{name!r} has {len(latents)} rows and {spec.label!r} has {len(labels)}: expected the same inputs, row "
                "for row",
            )


def _commit(spec: DataSpec) -> str | None:
    """Return the commit of a data set on the Hub; None for files and folders, and if the Hub does not answer."""
    place = str(spec.path)
    if Path(place).suffix in TABLES or Path(place).exists() or dataset_id(place) is None:
        return None
    with suppress(*HUB_ERRORS):
        return HfApi().dataset_info(place, revision=spec.revision).sha
    return None


def _split(spec: DataSpec, split: str, document: Document, at: Path_) -> Dataset:
    """Load a split, with the suite's columns of other configs; rows missing in any of them are left out."""
    table = _load(spec, split, document, at)
    for key, column in spec.inputs.items():
        if ":" not in column:
            continue
        config, name = column.split(":", 1)
        other, match = _load(replace(spec, config=config), split, document, at), str(spec.match)
        _needs(table, match, document, (*at, "match"), of=f"{spec.path}")
        _needs(other, match, document, (*at, "match"), of=f"{spec.path}, {config},")
        _needs(other, name, document, (*at, "inputs", key), of=f"{spec.path}, {config},")
        values = dict(zip(other[match], other[name], strict=True))
        table = table.select([row for row, one in enumerate(table[match]) if one in values])
        table = table.add_column(column, [values[one] for one in table[match]])
    return table


def _needs(table: Dataset, column: str, document: Document, at: Path_, *, of: str) -> None:
    if column not in table.column_names:
        raise document.error(at, f"{of} has no column {column!r}: it has {', '.join(table.column_names)}")


def _load(spec: DataSpec, split: str, document: Document, at: Path_) -> Dataset:
    place = str(spec.path)
    suffix = Path(place).suffix
    try:
        if suffix in TABLES:
            return read_table(
                place, TABLES[suffix], [*spec.inputs.values(), *spec.text_pairs.values(), spec.label], split
            )
        return load_dataset(place, spec.config, split=split, revision=spec.revision)
    except (DatasetsError, ValueError, OSError) as error:
        raise document.error((*at, "path"), f"{place} (split {split!r}) cannot be loaded: {error}") from error


def _some(table: Dataset, start: int, count: int) -> Dataset:
    return table.select(range(start, min(start + count, len(table))) if start < len(table) else [])


def _in_groups(table: Dataset, column: str, *, without: Dataset | None) -> Dataset:
    """Bring rows with the same text in a column together, and leave out rows whose text another table has."""
    texts, left_out = list(table[column]), set(without[column] if without else [])
    group = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    order = sorted(range(len(texts)), key=lambda row: group[texts[row]])
    return table.select([row for row in order if texts[row] not in left_out])


def _group_end(table: Dataset, column: str | None, row: int) -> int:
    """Return the first row from this one on whose text in a column differs from the row's before it."""
    if column is None:
        return row
    texts = table[column]
    while 0 < row < len(texts) and texts[row] == texts[row - 1]:
        row += 1
    return row


def _labels(values: list[Any], feature: Any) -> tuple[Tensor, list[str]]:
    """Return labels as numbers from 0, and the names of the classes."""
    if any(value is None or (isinstance(feature, ClassLabel) and value < 0) for value in values):
        raise StitchError("some rows have no label: leave them out of the data")
    if isinstance(feature, ClassLabel):
        return torch.tensor(values), list(feature.names)
    names = sorted(set(values))
    place = {value: index for index, value in enumerate(names)}
    return torch.tensor([place[value] for value in values]), [str(value) for value in names]
