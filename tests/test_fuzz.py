"""Whatever a file holds, reading it gives the right answer or the package's own error: 2 minutes, or `make fuzz`."""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import AutoModelForSequenceClassification

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError, load_classifier
from hf_relstitch.benchmarks import load_suite
from hf_relstitch.bulk import SearchTranslation, translate_files, translation_between
from hf_relstitch.data.latents import as_latents
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.data.reading import read_inputs
from hf_relstitch.model.anchors import RelativeLatents

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
"""Files to try for each kind."""
SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
"""Time that reading a file may take; `make fuzz`, which has a machine to itself, allows 5 s."""
MEMORY = 1 << 30
"""Bytes of memory that a file may take."""
TEXTS = pico.texts(3)

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
numbers = st.one_of(st.integers(), st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**30]), st.floats())
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        numbers,
        st.text(max_size=8),
        st.sampled_from(["../x", "a" * 5000, "mean", "[" * 3000]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=4,
)


def paths_in(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in JSON."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in items:
        yield (*path, name)
        yield from paths_in(value, (*path, name))


def changed_json(data: st.DataObject, content: Any) -> tuple[Any, tuple[Any, ...]]:
    """Replace or remove one value of JSON, or add one; return the JSON and the place."""
    content = json.loads(json.dumps(content))
    path = data.draw(st.sampled_from(list(paths_in(content))))
    parent = content
    for name in path[:-1]:
        parent = parent[name]
    if data.draw(st.integers(0, 4)) == 0:
        del parent[path[-1]]
    else:
        parent[path[-1]] = data.draw(values)
    return content, path


def changed_bytes(data: st.DataObject, content: bytes) -> bytes:
    """Change, remove, repeat or cut off some bytes."""
    at = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["bit", "byte", "digit", "remove", "insert", "cut"]))
    rest = content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "remove":
        return content[:at] + rest
    if kind == "insert":
        return content[:at] + data.draw(st.binary(min_size=1, max_size=9)) + content[at:]
    new = content[at] ^ (1 << data.draw(st.integers(0, 7))) if kind == "bit" else data.draw(st.integers(0, 255))
    return (
        content[:at]
        + (data.draw(st.sampled_from(b"0123456789")).to_bytes() if kind == "digit" else bytes([new]))
        + rest
    )


def changed_file(data: st.DataObject, whole: bytes, *, name: str) -> bytes:
    """Change bytes of a file, or, in half of the cases if it is JSON, a value."""
    if name.endswith("json") and data.draw(st.booleans()):
        return json.dumps(changed_json(data, json.loads(whole))[0]).encode()
    return changed_bytes(data, whole)


def read(load: Callable[[], Any]) -> Any:
    """Return what reading gives, or the package's own error.

    Raises:
        AssertionError: it took too long, or too much memory.
    """
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome = load()
    except StitchError as error:
        outcome = error
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY >> 10
    return outcome


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    target = pico.saved("Roberta", folder / "classifier", seed=2)
    source = Encoder.from_pretrained(pico.saved("Bert", folder / "source", seed=1))
    model = RelativeStitcher.from_parts(source, target, pico.texts(60), progress=False)
    model.save_pretrained(folder / "model")
    AnchorSet.encode(source, pico.texts(40), progress=False).save_pretrained(folder / "anchors")
    x = np.random.default_rng(0).normal(size=(60, 4)).astype("f4")
    translation_between(x, np.roll(x, 1, 1)).save(folder / "search.safetensors")
    RelativeLatents(
        torch.ones(2, 60), model.anchors.ids, model.config.translation_settings, Provenance("a", "b", "c")
    ).save(folder / "relative.safetensors")
    np.save(folder / "x.npy", x)
    parquet.write_table(pa.table({"latents": [*x], "text": ["a"] * 60}), folder / "x.parquet")
    (folder / "x.csv").write_text("text,label\n" + "".join(f'"{text}",{row}\n' for row, text in enumerate(TEXTS)))
    (folder / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    suite = {
        "name": "toy",
        "data": {
            "x": {"path": str(folder / "x.parquet"), "label": "text", "latents": {"a": "latents", "b": "latents"}}
        },
        "methods": ["auto"],
        "anchors": [40],
    }
    suite["data"]["x"] |= {"head_rows": 10, "test_rows": 10}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    return folder


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.predict(TEXTS)


def copied(folders: Path, name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of an artifact, to be changed."""
    copy = tmp_path_factory.mktemp("changed") / name
    shutil.copytree(folders / name, copy)
    return copy


@pytest.mark.parametrize("load", [RelativeStitcher, AutoModelForSequenceClassification])
def test_a_config_of_a_model(load: Any, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = copied(folders, "model", tmp_path_factory)
    content, right = json.loads((folder / "config.json").read_text()), answers(load.from_pretrained(folder))

    @fuzzed
    @given(st.data())
    def run(data: st.DataObject) -> None:
        new, path = changed_json(data, content)
        (folder / "config.json").write_text(json.dumps(new))
        if load is not RelativeStitcher and path[0] in ("model_type", "auto_map", "format_version"):
            return  # transformers reads these itself
        outcome = read(lambda: answers(load.from_pretrained(folder)))
        assert isinstance(outcome, StitchError) or torch.equal(outcome, right), path

    run()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_bytes_of_a_model(name: str, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = copied(folders, "model", tmp_path_factory)
    whole, right = (folder / name).read_bytes(), answers(RelativeStitcher.from_pretrained(folder))

    @fuzzed
    @given(st.data())
    def run(data: st.DataObject) -> None:
        new = changed_bytes(data, whole)
        (folder / name).write_bytes(new)
        outcome = read(lambda: answers(RelativeStitcher.from_pretrained(folder)))
        assert isinstance(outcome, StitchError) or (
            torch.equal(outcome, right) and (name == "config.json" or new == whole)
        )

    run()


@pytest.mark.parametrize("name", ["anchor_config.json", "anchors.safetensors"])
def test_an_anchor_set(name: str, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = copied(folders, "anchors", tmp_path_factory)
    whole = (folder / name).read_bytes()
    right = AnchorSet.from_pretrained(folder)

    @fuzzed
    @given(st.data())
    def run(data: st.DataObject) -> None:
        (folder / name).write_bytes(changed_file(data, whole, name=name))
        outcome = read(lambda: AnchorSet.from_pretrained(folder))
        assert isinstance(outcome, StitchError) or (
            torch.equal(outcome.latents, right.latents) and torch.equal(outcome.ids, right.ids)
        )

    run()


@pytest.mark.parametrize(("name", "load"), [("search", SearchTranslation.load), ("relative", RelativeLatents.load)])
def test_a_file_of_tensors(name: str, load: Any, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole, file = (folders / f"{name}.safetensors").read_bytes(), tmp_path_factory.mktemp(name) / "x.safetensors"

    @fuzzed
    @given(st.data())
    def run(data: st.DataObject) -> None:
        new = changed_bytes(data, whole)
        file.write_bytes(new)
        assert isinstance(read(lambda: load(file)), StitchError) or new == whole

    run()


@pytest.mark.parametrize("name", ["x.npy", "x.parquet", "x.csv", "x.jsonl", "relative.safetensors"])
def test_a_table(name: str, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole, folder = (folders / name).read_bytes(), tmp_path_factory.mktemp("table")
    translation = SearchTranslation.load(folders / "search.safetensors")

    @fuzzed
    @given(st.data())
    def run(data: st.DataObject) -> None:
        (folder / name).write_bytes(changed_bytes(data, whole))
        read(lambda: as_latents(folder / name))
        read(lambda: read_inputs(str(folder / name), column="text"))
        shutil.rmtree(folder / "out", ignore_errors=True)
        read(lambda: translate_files(translation, folder / name, folder / "out", progress=False))

    run()


def test_a_suite(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    content, file = (
        yaml.safe_load((folders / "suite.yaml").read_text()),
        tmp_path_factory.mktemp("suite") / "suite.yaml",
    )

    @fuzzed
    @given(st.data())
    def run(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            file.write_text(yaml.safe_dump(changed_json(data, content)[0]))
        else:
            file.write_bytes(changed_bytes(data, (folders / "suite.yaml").read_bytes()))
        read(lambda: load_suite(str(file)))

    run()


@pytest.mark.parametrize("name", ["source", "classifier"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_folder_of_transformers(
    name: str, file: str, folders: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = copied(folders, name, tmp_path_factory)
    whole = (folder / file).read_bytes()
    load: Any = Encoder.from_pretrained if name == "source" else load_classifier

    @fuzzed
    @given(st.data())
    def run(data: st.DataObject) -> None:
        (folder / file).write_bytes(changed_file(data, whole, name=file))
        read(lambda: load(str(folder)))

    run()
