"""Suites: encoders, heads, translations and numbers of anchors to measure, and the data to measure them on."""

from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

from hf_relstitch.benchmarks.yaml_schema import Document, Path_, many, named, nested, number, one_of, text
from hf_relstitch.encoders.pairs import PAIRS
from hf_relstitch.encoders.pooling import POOLINGS
from hf_relstitch.model.anchors import MIN_ANCHORS

METHODS = (
    "auto",
    "linear",
    "inversion",
    "inversion-pruned",
    "parseval",
    "absolute",
    "procrustes",
    "latentis",
    "ortho",
    "least-squares",
    "affine",
    "ridge",
    "distillation",
    "fresh-head",
    "relative-decoder",
)
HEADS = ("logistic", "svm", "own")
EXPERIMENTS = ("reconstruction", "angles", "scale")
SHIPPED = Path(__file__).with_name("suites")


def _pair(document: Document, value: Any, path: Path_) -> tuple[str, str]:
    """Check that a value is `[source, target]`, and return it."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(one, str) for one in value):
        raise document.error(path, f"{'.'.join(map(str, path))} is {value!r}: expected [source, target], two names")
    return (value[0], value[1])


@dataclass(frozen=True)
class EncoderSpec:
    """Hold a model's settings: an encoder, or a classifier, which brings its own head.

    Both are None if Python passes the encoder. `input` is the name, among the `inputs` of the data, of the column that
    it reads; by default its modality. `pairs` says how it reads pairs of texts; by default jointly.
    """

    model: str | None = field(default=None, metadata={"rule": text})
    classifier: str | None = field(default=None, metadata={"rule": text})
    revision: str | None = field(default=None, metadata={"rule": text})
    pooling: str = field(default="auto", metadata={"rule": one_of("auto", *POOLINGS)})
    input: str | None = field(default=None, metadata={"rule": text})
    pairs: str | None = field(default=None, metadata={"rule": one_of(*PAIRS)})
    batch_size: int = field(default=32, metadata={"rule": number(at_least=1)})


@dataclass(frozen=True)
class DataSpec:
    """Hold the settings of labeled rows: a `datasets` data set, files of rows, or latents in a safetensors file.

    Files of rows are Parquet, CSV or JSON. `inputs` maps names to columns; each column is the input of some encoders.
    `CONFIG:COLUMN` is a column of another config, for example another language, whose rows are found by the column
    `match`. `text_pairs` maps names of inputs to columns of a second text: such an input is a pair of texts. `latents`
    maps names, which then stand for encoders, to tensors of the file. Rows are shuffled, always in
    the same order, and divided: `head_rows` train the heads, `test_rows` are for tests (from `test_split` if it is
    set), anchors are drawn from other rows.
    """

    head_rows: int = field(metadata={"rule": number(at_least=2)})
    test_rows: int = field(metadata={"rule": number(at_least=1)})
    path: str | None = field(default=None, metadata={"rule": text})
    config: str | None = field(default=None, metadata={"rule": text})
    split: str = field(default="train", metadata={"rule": text})
    test_split: str | None = field(default=None, metadata={"rule": text})
    revision: str | None = field(default=None, metadata={"rule": text})
    label: str = field(default="label", metadata={"rule": text})
    match: str | None = field(default=None, metadata={"rule": text})
    inputs: dict[str, str] = field(default_factory=dict, metadata={"rule": named(text)})
    text_pairs: dict[str, str] = field(default_factory=dict, metadata={"rule": named(text)})
    latents: dict[str, str] = field(default_factory=dict, metadata={"rule": named(text)})
    pairs: tuple[tuple[str, str], ...] = field(default=(), metadata={"rule": many(_pair)})


@dataclass(frozen=True)
class Suite:
    """Hold a benchmark's settings: every pair of every data set × heads × methods × numbers of anchors × seeds.

    `experiments` names the paper's experiments on the encoders' own spaces. With `raw_rows` the stitched model of each
    pair, with the most anchors, also classifies that many tests from raw inputs, driven by `evaluate`.
    """

    name: str = field(metadata={"rule": text})
    data: dict[str, DataSpec] = field(metadata={"rule": named(nested(DataSpec))})
    methods: tuple[str, ...] = field(metadata={"rule": many(one_of(*METHODS))})
    anchors: tuple[int, ...] = field(metadata={"rule": many(number(at_least=MIN_ANCHORS))})
    encoders: dict[str, EncoderSpec] = field(default_factory=dict, metadata={"rule": named(nested(EncoderSpec))})
    heads: tuple[str, ...] = field(default=("logistic",), metadata={"rule": many(one_of(*HEADS))})
    seeds: tuple[int, ...] = field(default=(0,), metadata={"rule": many(number(at_least=0))})
    experiments: tuple[str, ...] = field(default=(), metadata={"rule": many(one_of(*EXPERIMENTS))})
    raw_rows: int = field(default=0, metadata={"rule": number(at_least=0)})
    description: str = field(default="", metadata={"rule": text})

    def pairs(self, data: str) -> tuple[tuple[str, str], ...]:
        """Return the source and target of each pair on a data set: the pairs that it names, or all pairs."""
        spec = self.data[data]
        return spec.pairs or tuple(permutations(spec.latents or self.encoders, 2))

    def encoders_of(self, data: str) -> list[str]:
        """Return the encoders of a data set's pairs, each once."""
        return list(dict.fromkeys(name for each in self.pairs(data) for name in each))


def load_suite(place: str | Path) -> tuple[Suite, Document]:
    """Load a suite from a YAML file, or a shipped suite by its name, with its document, which knows the lines.

    Raises:
        StitchError: the file does not exist, or the suite is not valid; the error names the line and what is allowed.
    """
    shipped = SHIPPED / f"{place}.yaml"
    document = Document.read(shipped if shipped.is_file() and not Path(place).is_file() else place)
    return check_suite(document), document


def check_suite(document: Document) -> Suite:
    """Check a document, and return its suite.

    Raises:
        StitchError: a key is unknown or missing, a value is not allowed, or a name stands for nothing.
    """
    suite = document.into(Suite, document.content, ())
    if not suite.data:
        raise document.error(("data",), "data is empty: name at least one data set")
    for name, encoder in suite.encoders.items():
        if encoder.model and encoder.classifier:
            raise document.error(("encoders", name), f"encoder {name!r} has model and classifier: give one of them")
    for name in suite.data:
        _check_data(name, suite, document)
    return suite


def _check_data(name: str, suite: Suite, document: Document) -> None:
    """Check that a data set of a suite has inputs or latents, and pairs.

    Raises:
        StitchError: it does not have them.
    """
    data, at = suite.data[name], ("data", name)
    if bool(data.inputs) == bool(data.latents):
        raise document.error(at, f"data {name!r} needs one of inputs (names: columns) and latents (names: tensors)")
    known = sorted(data.latents or suite.encoders)
    for place, names in enumerate(data.pairs):
        for one in names:
            if one not in known:
                raise document.error(
                    (*at, "pairs", place), f"{one!r} in {list(names)} is no encoder of {name!r}: {', '.join(known)}"
                )
    for key in data.text_pairs:
        if key not in data.inputs:
            raise document.error(
                (*at, "text_pairs", key),
                f"{name!r} has no input {key!r} with the first texts: {', '.join(data.inputs)}",
            )
    for key, column in data.inputs.items():
        if ":" in column and data.match is None:
            raise document.error(
                (*at, "inputs", key),
                f"{column!r} is of another config of {name!r}: say by which column its rows are found, as match: id",
            )
    if not suite.pairs(name):
        raise document.error(at, f"data {name!r} has fewer than two encoders: {', '.join(known) or 'none'}")
