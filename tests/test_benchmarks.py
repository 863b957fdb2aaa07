"""Suites: what is refused, what is measured, what stays after a kill; reports; `evaluate` on raw inputs."""

import json
import signal
import subprocess
import sys
import time
import weakref
from copy import deepcopy
from pathlib import Path

import pico
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image, Value
from filelock import FileLock
from hub_server import HubServer
from launching import launch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import nn
from trained import trained_head
from typer.testing import CliRunner

from hf_relstitch import AnchorSet, CallableEncoder, Encoder, Head, RelativeStitcher, StitchError
from hf_relstitch.benchmarks import compare, run_suite, write_report
from hf_relstitch.benchmarks import latent_cache as latents_module
from hf_relstitch.benchmarks.end_to_end import _evaluate_model, raw_accuracy
from hf_relstitch.benchmarks.hub_results import numbers_of
from hf_relstitch.benchmarks.latent_cache import _settings_of
from hf_relstitch.benchmarks.plan import _reordered
from hf_relstitch.benchmarks.rows import read_rows
from hf_relstitch.benchmarks.scores import score
from hf_relstitch.benchmarks.suite import METHODS, DataSpec
from hf_relstitch.benchmarks.yaml_schema import Document
from hf_relstitch.cli import app
from hf_relstitch.data.reading import read_inputs
from hf_relstitch.metrics import Accuracy, script

COMMAND = "from hf_relstitch.cli import main; main()"
PICTURES = ("stitching.png", "anchors.png", "singular_values.png", "reliability.png")
EXPERIMENTS = ["reconstruction", "angles", "scale"]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes in 12 dimensions; `turned` is the same space under a rotation, a scale and a shift."""
    torch.manual_seed(1)
    labels = torch.arange(4).repeat(150)[torch.randperm(600)]
    plain = torch.randn(4, 12)[labels] * 2 + torch.randn(600, 12)
    rotation, _ = torch.linalg.qr(torch.randn(12, 12))
    file = tmp_path_factory.mktemp("latents") / "spaces.safetensors"
    save_file(
        {"plain": plain, "turned": 3 * plain @ rotation + 5, "noise": torch.randn(600, 9), "labels": labels}, file
    )
    return file


def suite_of(latents: Path, **changes) -> dict:
    """A suite over the stored latents."""
    spaces = {
        "path": str(latents),
        "label": "labels",
        "latents": {"plain": "plain", "turned": "turned"},
        "head_rows": 200,
        "test_rows": 200,
        "pairs": [["turned", "plain"]],
    }
    rest = {"name": "spaces", "data": {"spaces": spaces}, "methods": ["auto", "absolute"], "anchors": [40]}
    return rest | changes


def written(suite: dict, folder: Path) -> Path:
    """The suite as a YAML file."""
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump(suite, sort_keys=False))
    return file


TEXTS = """name: texts
encoders:
  tiny:
    model: {model}
  other:
    classifier: {model}
data:
  salad:
    path: {data}
    inputs:
      text: words
    head_rows: 40
    test_rows: 40
methods: [auto, procrustes]
anchors: [32]
heads: [logistic, own]
raw_rows: 30
"""


@pytest.fixture(scope="module")
def salad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Word salads in a JSON file, whose class is whether they name the storm, the coast or neither."""
    file = tmp_path_factory.mktemp("salad") / "salad.jsonl"
    rows = [{"words": one, "label": "storm" in one or 2 * ("coast" in one)} for one in pico.texts(160)]
    file.write_text("\n".join(json.dumps({**row, "label": int(row["label"])}) for row in rows))
    return file


def refused(tmp_path: Path, text: str) -> str:
    """The message with which a suite is refused."""
    file = tmp_path / "suite.yaml"
    file.write_text(text)
    with pytest.raises(StitchError) as refusal:
        run_suite(file, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "results.json").exists()
    return str(refusal.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("methods:", "method:", "suite.yaml, line 14: unknown key 'method' in the suite (did you mean 'methods'?)"),
        (
            "head_rows: 40",
            "",
            "suite.yaml, line 8: data.salad has no 'head_rows', which it needs; it can have head_rows,",
        ),
        (
            "procrustes]",
            "procruste]",
            "line 14: methods.1 is 'procruste' (did you mean 'procrustes'?): allowed are auto,",
        ),
        ("[32]", "[8]", "line 15: anchors.0 is 8: expected a whole number, 32 or more"),
        ("text: words", "text: word", "line 11: {data} has no column 'word': it has words, label"),
        ("text: words", "text: en:words", "line 11: 'en:words' is of another config of 'salad': say by which column"),
        ("    test_rows: 40", "    test_rows: 40\n    label: class", "line 14: {data} has no column 'class'"),
        (
            "text: words",
            "image: words",
            "line 8: data 'salad' has no input 'text', which encoder 'tiny' reads: it has image",
        ),
        (
            "    model: {model}",
            "    model: nowhere/at-all",
            "line 4: the model of encoder 'tiny', nowhere/at-all, does not",
        ),
        (
            "    model: {model}",
            "    batch_size: 4",
            "line 3: encoder 'tiny' has no model: give model (an encoder) or class",
        ),
        ("path: {data}", "path: missing.parquet", "line 9: missing.parquet (split 'train') cannot be loaded"),
        ("test_rows: 40", "test_rows: 4000", "line 8: {data} has too few rows: 40 for heads and 120 for tests"),
        ("anchors: [32]", "anchors: [32, 32]", "line 15: anchors names something twice: [32, 32]"),
        ("  other:", "  tiny:", "line 5: 'tiny' stands here a second time"),
        (
            "test_rows: 40",
            "test_rows: 40\n    pairs: [[tiny, tinny]]",
            "line 14: 'tinny' in ['tiny', 'tinny'] is no enc",
        ),
        ("heads:", "heads: [", "is not YAML"),
        ("heads:", "a: &a [*a]\nheads:", "line 16: this is deeper, or longer, than a suite can be"),
        ("heads:", "? [a]\n: b\nheads:", "line 16: a name is text, and this is a sequence"),
        ("text: words", "text: label", "line 11: salad: an input is a int: expected a text"),
    ],
)
def test_a_suite_that_cannot_be_is_refused_with_its_line(
    old: str, new: str, message: str, salad: Path, target_folder: str, tmp_path: Path, hub: HubServer
) -> None:
    assert old in TEXTS
    text = TEXTS.replace(old, new, 1).format(model=target_folder, data=salad)
    assert message.format(data=salad) in refused(tmp_path, text)


def test_stored_latents_without_the_tensor_are_refused_with_what_there_is(latents: Path, tmp_path: Path) -> None:
    suite = suite_of(latents)
    suite["data"]["spaces"]["latents"]["turned"] = "turn"
    message = refused(tmp_path, yaml.safe_dump(suite))
    assert message.startswith("suite.yaml, line 9: ")
    assert "has no tensor 'turn': it has labels, noise, plain, turned" in message


def test_an_isometry_loses_nothing_and_absolute_does(latents: Path, tmp_path: Path) -> None:
    methods = [method for method in METHODS if method not in ("ortho", "latentis")]  # ortho takes no shift away
    results = run_suite(suite_of(latents, methods=methods, heads=["logistic", "svm"]), tmp_path, progress=False)
    assert results["failures"] == []
    cells = {(cell["head"], cell["method"]): cell for cell in results["cells"]}
    assert len(cells) == 2 * len(methods)
    for (head, method), cell in cells.items():
        assert cell["native_accuracy"] > 0.9, head
        if method == "absolute":
            assert cell["accuracy"] < 0.7
        elif method in ("relative-decoder", "ridge", "least-squares"):
            assert cell["accuracy"] >= cell["native_accuracy"] - 0.06, (head, method)
        else:
            assert cell["accuracy"] >= cell["native_accuracy"] - 0.03, (head, method)
    assert cells["logistic", "parseval"]["agreement"] == cells["logistic", "affine"]["agreement"] == 1
    assert cells["logistic", "auto"]["verdict"] == "good"


def test_native_accuracy_is_scikit_learns(latents: Path, tmp_path: Path) -> None:
    results = run_suite(suite_of(latents), tmp_path, progress=False)
    (cell, _) = results["cells"]
    titles, *rows, last = repr(results).splitlines()
    assert titles.split()[:2] == ["method", "accuracy,"]
    assert [row.split()[0] for row in rows] == [cell["method"] for cell in results["cells"]]
    assert last == "2 cells measured, 0 failed; seeds 0."
    assert results._repr_html_().count("<tr>") == 3
    stored, order = load_file(latents), torch.randperm(600, generator=torch.Generator().manual_seed(0))[:560]
    x, y = stored["plain"][order].double().numpy(), stored["labels"][order].numpy()
    model = LogisticRegression(max_iter=2000).fit(x[:200], y[:200])
    assert cell["native_accuracy"] == pytest.approx(model.score(x[200:400], y[200:400]))


def test_scores_by_hand() -> None:
    logits = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.05, 0.95], [0.05, 0.95]]).log()
    native = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    scores = score(logits, native, torch.tensor([0, 1, 1, 1]))
    assert scores["accuracy"] == 0.75
    assert scores["native_accuracy"] == 1
    assert scores["agreement"] == 0.75
    assert scores["f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert scores["ece"] == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)
    assert scores["reliability"][11] == pytest.approx([2, 0.75, 0.5])


def test_a_cell_that_fails_is_reported_and_the_others_go_on(latents: Path, tmp_path: Path) -> None:
    file = written(suite_of(latents, anchors=[40, 5000]), tmp_path)
    run = CliRunner().invoke(app, ["benchmark", str(file), "--out", str(tmp_path / "out")])
    assert run.exit_code == 1
    assert "2 cells failed" in run.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [cell["anchors"] for cell in results["cells"]] == [40, 40]
    assert "200 different rows left for anchors: 5000 are asked for" in results["failures"][0]["error"]
    assert "5000 are asked for" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_and_computes_nothing_twice(latents: Path, tmp_path: Path) -> None:
    suite = suite_of(latents, methods=["auto", "procrustes"], anchors=[40, 80], seeds=list(range(8)))
    file, killed, whole = written(suite, tmp_path), tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", COMMAND, "benchmark", str(file), "--out", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(killed.glob("cells/[!.]*.json"))) < 6:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {cell: cell.stat().st_mtime_ns for cell in killed.glob("cells/[!.]*.json")}
    assert 6 <= len(before) < 32
    assert not (killed / "results.json").exists()

    assert run_suite(file, killed, progress=False)["failures"] == []
    after = {cell: cell.stat().st_mtime_ns for cell in killed.glob("cells/[!.]*.json")}
    assert len(after) == 32
    assert before.items() <= after.items()
    run_suite(file, whole, progress=False)
    assert (killed / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_experiments_are_in_results_and_report(latents: Path, tmp_path: Path) -> None:
    suite = suite_of(latents, methods=["auto"], anchors=[40, 200], seeds=[0, 1], experiments=EXPERIMENTS)
    results = run_suite(suite, tmp_path, progress=False)
    assert results["failures"] == []
    found = [(one["experiment"], one.get("encoder"), len(one["rows"])) for one in results["experiments"]]
    returned, angles, scales = ("reconstruction", 2 * 2 * 3), ("angles", 1), ("scale", 5)
    assert found == [
        *((returned[0], one, returned[1]) for one in ("turned", "plain")),
        (angles[0], None, angles[1]),
        *((scales[0], one, scales[1]) for one in ("turned", "plain")),
    ]
    whole = results["experiments"][0]["rows"][0]
    assert (whole["num_anchors"], whole["pruning"], whole["cosine"], whole["rank"]) == (40, None, pytest.approx(1), 12)
    assert results["experiments"][2]["rows"][0]["cosine_correlation"] == pytest.approx(1)
    report = write_report(tmp_path).read_text()
    assert "| spaces | turned | all | 1.000 ± .000 | 1.000 ± .000 | 200 |" in report
    assert "| spaces | turned, plain | 1.000 | 1.000 |" in report
    assert report.count("| logistic | ") == 2 + 2  # of a pair for each number of anchors, of scale for each encoder
    for name in EXPERIMENTS:
        assert f"]({name}.png)" in report
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("cells/*.json")}
    assert len(kept) == 4 + 5
    run_suite(suite, tmp_path, progress=False)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("cells/*.json")} == kept


def test_an_experiment_that_fails_is_reported(latents: Path, tmp_path: Path) -> None:
    results = run_suite(suite_of(latents, anchors=[40, 700], experiments=EXPERIMENTS), tmp_path, progress=False)
    failed = [(one["experiment"], one["encoder"]) for one in results["failures"] if "experiment" in one]
    assert failed == [("reconstruction", "turned"), ("reconstruction", "plain")]
    assert [one["experiment"] for one in results["experiments"]] == ["angles", "scale", "scale"]
    assert "data spaces, encoder turned, experiment reconstruction | StitchError" in write_report(tmp_path).read_text()


def test_latentis_is_a_method_where_it_is_installed(latents: Path, tmp_path: Path) -> None:
    pytest.importorskip("latentis.transform.translate.aligner", reason="pip install --no-deps -r tests/assets.txt")
    (cell,) = run_suite(suite_of(latents, methods=["latentis"]), tmp_path, progress=False)["cells"]
    assert cell["accuracy"] >= cell["native_accuracy"] - 0.03


def test_latentis_that_is_missing_fails_its_cells_alone(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "latentis.transform.translate.aligner", None)
    results = run_suite(suite_of(latents, methods=["auto", "latentis"]), tmp_path, progress=False)
    assert [cell["method"] for cell in results["cells"]] == ["auto"]
    (failure,) = results["failures"]
    assert "pip install --no-deps latentis==0.0.8" in failure["error"]


def test_what_a_cell_depends_on_makes_it_another(latents: Path, tmp_path: Path) -> None:
    def cells(**changes) -> int:
        suite = suite_of(latents, **changes)
        run_suite(suite, tmp_path, progress=False)
        return len(list(tmp_path.glob("cells/*.json")))

    assert cells() == 2
    assert cells(name="another name") == 2
    assert cells(seeds=[1]) == 4
    fewer = suite_of(latents)["data"]
    fewer["spaces"] |= {"head_rows": 150, "test_rows": 250}  # of the same rows
    assert cells(data=fewer) == 6


def test_a_folder_is_for_one_run_at_a_time(latents: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(StitchError, match="another run is writing"):
        run_suite(suite_of(latents), tmp_path, progress=False)


def test_a_run_that_is_refused_has_encoded_nothing(salad: Path, tmp_path: Path) -> None:
    asked = []
    encoder = CallableEncoder(lambda texts: asked.extend(texts) or torch.zeros(len(texts), 4), model_id="mine")
    suite = yaml.safe_load(TEXTS.format(model="none", data=salad)) | {"encoders": {"tiny": {}, "other": {}}}
    given = {"tiny": encoder, "other": encoder}
    with FileLock(tmp_path / ".lock"), pytest.raises(StitchError, match="another run is writing"):
        run_suite(suite, tmp_path, encoders=given, progress=False)
    assert not asked


def test_texts_of_a_file_by_models_of_folders(salad: Path, target_folder: str, tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(TEXTS.format(model=target_folder, data=salad))
    results = run_suite(file, tmp_path / "out", progress=False)
    assert results["failures"] == []
    heads = {(cell["head"], cell["source"], cell["target"]) for cell in results["cells"]}
    assert heads == {("logistic", "tiny", "other"), ("logistic", "other", "tiny"), ("own", "tiny", "other")}
    assert results["data"]["salad"]["classes"] == ["0", "1", "2"]
    raw = [(cell["source"], cell["target"], cell["rows"]) for cell in results["raw_inputs"]]
    assert raw == [("other", "tiny", 30), ("tiny", "other", 30)]
    assert all(cell["accuracy"] == cell["accuracy_from_latents"] for cell in results["raw_inputs"])
    assert results["data"]["salad"]["encoders"]["other"]["cut"]["row"] == "pooled"
    latents = {one: one.stat().st_mtime_ns for one in tmp_path.glob("out/latents/*.safetensors")}
    assert len(latents) == 2
    assert run_suite(file, tmp_path / "out", progress=False) == results
    assert {one: one.stat().st_mtime_ns for one in tmp_path.glob("out/latents/*.safetensors")} == latents


def test_encoders_and_rows_given_in_python(source: Encoder, tmp_path: Path) -> None:
    texts = pico.texts(160)
    rows = Dataset.from_dict({"words": texts, "label": [len(text.split()) > 7 for text in texts]})
    suite = yaml.safe_load(TEXTS) | {"encoders": {"tiny": {}, "other": {}}, "heads": ["logistic"]}
    del suite["data"]["salad"]["path"]
    given = {"tiny": source, "other": Encoder(source.model, source.processor, pooling="cls")}
    results = run_suite(suite, tmp_path, encoders=given, data={"salad": rows}, progress=False)
    assert results["failures"] == []
    assert [cell["target"] for cell in results["cells"]] == ["other", "other", "tiny", "tiny"]


@pytest.mark.parametrize("revision", [None, "2"])
def test_latents_of_a_callable_are_kept_only_under_a_revision(
    revision: str | None, source: Encoder, tmp_path: Path
) -> None:
    """Without one, two functions may go by one name, in one folder."""
    texts = pico.texts(160)
    rows = Dataset.from_dict({"words": texts, "label": [len(text.split()) > 7 for text in texts]})
    suite = yaml.safe_load(TEXTS) | {"encoders": {"tiny": {}, "other": {}}, "heads": ["logistic"], "raw_rows": 0}
    del suite["data"]["salad"]["path"]
    named = {} if revision is None else {"revision": revision}

    def measured(folder: str, scale: float) -> list[float]:
        function = lambda texts: (scale * source.encode(texts, progress=False)).tanh()  # noqa: E731
        given = {"tiny": source, "other": CallableEncoder(function, model_id="f", **named)}
        results = run_suite(suite, tmp_path / folder, encoders=given, data={"salad": rows}, progress=False)
        return [cell["native_accuracy"] for cell in results["cells"]]

    first, second, fresh = measured("one", 1), measured("one", 99), measured("two", 99)
    assert first != fresh
    assert second == (first if revision else fresh)
    assert measured("one", 1) == first


@pytest.mark.parametrize("other", ["length", "dtype"])
def test_latents_of_one_commit_are_kept_apart_by_what_the_encoders_do(
    other: str, source: Encoder, tmp_path: Path
) -> None:
    texts = pico.texts(160)
    rows = Dataset.from_dict({"words": texts, "label": [len(text.split()) > 7 for text in texts]})
    suite = yaml.safe_load(TEXTS) | {"encoders": {"tiny": {}, "other": {}}, "heads": ["logistic"], "raw_rows": 0}
    del suite["data"]["salad"]["path"]
    model, processor = source.model, pico.tokenizer()
    if other == "length":
        processor.model_max_length = 4
    else:
        model = deepcopy(model).bfloat16()
    named = {"model_id": "alice/bert", "revision": "c0ffee"}
    given = {
        "tiny": Encoder(source.model, pico.tokenizer(), **named),
        "other": Encoder(model, processor, **named),
    }
    for _ in range(2):  # what a tokenizer was last asked for is no setting of it
        run_suite(suite, tmp_path, encoders=given, data={"salad": rows}, progress=False)
    kept = []
    for file in tmp_path.glob("latents/*.safetensors"):
        with safe_open(file, "pt") as opened:
            kept.append(opened.metadata()["encoder"])
    assert sorted(kept) == ["other", "tiny"]


def test_an_image_processors_settings_count(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(pico.saved("ViT", tmp_path))
    before = _settings_of(encoder)
    assert _settings_of(Encoder(encoder.model, pico.image_processor())) == before
    encoder.processor.do_normalize = False
    assert _settings_of(encoder) != before


def test_one_model_at_a_time_is_in_memory(
    salad: Path, target_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = [], latents_module.load

    def watched(*arguments):
        assert [one() for one in loaded] == [None] * len(loaded)
        encoder, head = load(*arguments)
        loaded.append(weakref.ref(encoder))
        return encoder, head

    monkeypatch.setattr(latents_module, "load", watched)
    suite = yaml.safe_load(TEXTS.format(model=target_folder, data=salad)) | {"raw_rows": 0}
    suite["encoders"] = {"first": {"classifier": target_folder}, **suite["encoders"]}
    run_suite(suite, tmp_path, progress=False)
    assert len(loaded) == 3


@pytest.mark.parametrize("unlabelled", [None, -1])
def test_rows_without_a_label_are_refused(unlabelled: int | None, source: Encoder, tmp_path: Path) -> None:
    """Of classes with names, as the Hub's data sets have them, -1 says that a row has none."""
    features = Features({"words": Value("string"), "label": ClassLabel(names=["short", "long"])})
    labels = [row % 2 for row in range(159)] + [unlabelled]
    rows = Dataset.from_dict({"words": pico.texts(160), "label": labels}, features=features)
    suite = yaml.safe_load(TEXTS) | {"encoders": {"tiny": {}, "other": {}}, "heads": ["logistic"]}
    del suite["data"]["salad"]["path"]
    with pytest.raises(StitchError, match="some rows have no label: leave them out of the data"):
        run_suite(suite, tmp_path, encoders={"tiny": source, "other": source}, data={"salad": rows}, progress=False)


def test_report_and_comparison(latents: Path, tmp_path: Path) -> None:
    suite = suite_of(latents, methods=["auto", "procrustes", "absolute"], anchors=[40, 80], seeds=[0, 1])
    run_suite(suite, tmp_path / "a", progress=False)
    run_suite(suite | {"seeds": [1], "methods": ["auto", "parseval"]}, tmp_path / "b", progress=False)
    report = write_report(tmp_path / "a").read_text()
    assert "| data | source → target | head | native | auto | procrustes | absolute |" in report
    for picture in PICTURES:
        assert f"]({picture})" in report
        assert (tmp_path / "a" / picture).read_bytes().startswith(b"\x89PNG")
    same = compare(tmp_path / "a", tmp_path / "a")
    assert "0 of 6 differ, B − A is +0.0000" in same
    run = CliRunner().invoke(app, ["report", str(tmp_path / "a"), str(tmp_path / "b")])
    assert run.exit_code == 0
    assert "4 are only in A and 2 only in B" in run.stdout

    changed = json.loads((tmp_path / "a" / "results.json").read_text())
    for cell in changed["cells"]:
        cell["accuracy"] -= 0.125 * (cell["method"] == "procrustes" and cell["anchors"] == 80)
    (tmp_path / "b" / "results.json").write_text(json.dumps(changed))
    first = compare(tmp_path / "a", tmp_path / "b").splitlines()[4]
    assert first.startswith("| spaces | turned → plain | logistic | procrustes | 80 | 2 |")
    assert first.endswith("| -0.125 |")


def test_the_command_reports_what_is_no_benchmark(tmp_path: Path) -> None:
    with pytest.raises(StitchError, match=r"has no file results\.json"):
        write_report(tmp_path)
    with pytest.raises(StitchError, match=r"there is no .*nowhere: give the folder of a benchmark"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "results.json").write_text(json.dumps({"format_version": 99, "cells": []}))
    with pytest.raises(StitchError, match="reads versions up to 1"):
        write_report(tmp_path)


@torch.no_grad()
def plain_accuracy(model: RelativeStitcher, inputs: list, labels: list[int]) -> float:
    """A loop of one input at a time."""
    right = 0
    for one, label in zip(inputs, labels, strict=True):
        batch = model.processor(one, return_tensors="pt") if isinstance(one, str) else model.processor(images=one)
        right += int(model(**batch.convert_to_tensors("pt")).logits.argmax()) == label
    return right / len(labels)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_evaluator_on_texts_is_a_plain_loop(stitched: RelativeStitcher) -> None:
    texts = pico.texts(40, seed=5)
    labels = [len(text) % 3 for text in texts]
    data = Dataset.from_dict({"words": texts, "label": labels})
    scores = _evaluate_model(stitched, data, Accuracy(), inputs="words")
    assert scores["accuracy"] == plain_accuracy(stitched, texts, labels)
    with pytest.raises(StitchError, match="no column 'text': they have words, label"):
        _evaluate_model(stitched, data, Accuracy(), inputs="text")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_evaluator_on_images_is_a_plain_loop(tmp_path: Path) -> None:
    from PIL import Image as Pil

    torch.manual_seed(2)
    pixels = (torch.rand(100, 8, 8, 3) * 255).byte().numpy()
    images = [Pil.fromarray(one) for one in pixels]
    source = Encoder.from_pretrained(pico.saved("ViT", tmp_path / "vit", seed=1))
    target = pico.saved("ResNet", tmp_path / "resnet", seed=2)
    model = RelativeStitcher.from_parts(source, target, images[:60], progress=False)
    labels = [row % 3 for row in range(40)]
    features = Features({"image": Image(), "label": Value("int64")})
    data = Dataset.from_dict({"image": images[60:], "label": labels}, features=features)
    scores = _evaluate_model(model, data, script("accuracy"), inputs="image")
    assert scores["accuracy"] == plain_accuracy(model, images[60:], labels)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_raw_inputs_of_a_source_in_half_precision(
    dtype: torch.dtype, source_folder: str, target: tuple[Encoder, Head]
) -> None:
    source = Encoder.from_pretrained(source_folder, dtype=dtype)
    anchors = [AnchorSet.encode(one, pico.texts(60), progress=False) for one in (source, target[0])]
    texts, labels = pico.texts(20, seed=5), torch.arange(20) % 3
    latents = source.encode(texts, progress=False).float()  # as a suite keeps them
    scores = raw_accuracy(source, anchors, target[1], inputs=texts, latents=latents, labels=labels)
    assert scores["accuracy"] == pytest.approx(scores["accuracy_from_latents"], abs=0.1)


@pytest.mark.slow
def test_accelerate_launch_gives_the_same(salad: Path, target_folder: str, tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(TEXTS.format(model=target_folder, data=salad))
    (tmp_path / "command.py").write_text(
        "from pathlib import Path\n"
        "from hf_relstitch.hub.processes import accelerate_state\n"
        "state = accelerate_state()\n"
        "Path(__file__).with_name(f'{state.process_index} of {state.num_processes}').touch()\n"
        f"try:\n    {COMMAND}\nfinally:\n    state.destroy_process_group()\n"
    )
    launch(tmp_path / "command.py", "benchmark", file, "--out", tmp_path / "two")
    assert sorted(one.name for one in tmp_path.glob("* of *")) == ["0 of 2", "1 of 2"]
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    one = run_suite(file, tmp_path / "one", progress=False)
    assert two["failures"] == []
    for ours, theirs in zip(one["cells"], two["cells"], strict=True):
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.03)
        assert (ours["source"], ours["method"]) == (theirs["source"], theirs["method"])


LONG_OR_FAILING = """
import sys, time
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from hf_relstitch.benchmarks import run as running, run_suite

state, compute = PartialState(cpu=True, timeout=timedelta(seconds=8)), running.compute

def long(*arguments, **options):
    time.sleep(11)
    return compute(*arguments, **options)

def failing(*arguments, **options):
    raise OSError("the disk is full")

for stand_in in (long, failing, compute):
    running.compute = stand_in
    try:
        said = f"{len(run_suite(sys.argv[1], sys.argv[2], progress=False)['cells'])} cells"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    Path(sys.argv[2], f"{stand_in.__name__}-{state.process_index}.txt").write_text(said)
state.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_wait_for_the_first_longer_than_a_collective_lasts_and_fail_with_it(
    latents: Path, tmp_path: Path
) -> None:
    file = written(suite_of(latents), tmp_path)
    (tmp_path / "script.py").write_text(LONG_OR_FAILING)
    launch(tmp_path / "script.py", file, tmp_path / "out")
    assert {one.stem: one.read_text() for one in tmp_path.glob("out/*.txt")} == {
        "long-0": "2 cells",
        "long-1": "2 cells",
        "failing-0": "OSError: the disk is full",
        "failing-1": "StitchError: process 0 failed: the disk is full",
        "compute-0": "2 cells",
        "compute-1": "2 cells",
    }


def test_heads_are_scikit_learns(latents: Path) -> None:
    from hf_relstitch.benchmarks.methods import train_head

    stored = load_file(latents)
    ours = train_head("logistic", stored["plain"][:200], stored["labels"][:200], classes=4)
    theirs = trained_head(stored["plain"][:200].double(), stored["labels"][:200].tolist())
    torch.testing.assert_close(ours.weight, theirs.weight.double(), atol=1e-2, rtol=1e-2)
    binary = train_head("logistic", stored["plain"][:200], stored["labels"][:200] % 2, classes=3)
    model = LogisticRegression(max_iter=2000).fit(stored["plain"][:200].double(), stored["labels"][:200] % 2)
    answers = binary(stored["plain"][200:].double()).argmax(-1)
    assert answers.tolist() == model.predict(stored["plain"][200:].double()).tolist()


def test_a_head_of_its_own_answers_in_the_order_of_the_datas_classes() -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    head = Head.from_module(layers, labels=["calm", "stormy", "closed"])
    numbers = numbers_of(["Closed", "stormy"], head.id2label, name="mine")
    moved, latents = _reordered(head, numbers.tolist()), torch.randn(5, 4)
    assert list(moved.id2label.values()) == ["closed", "stormy", "calm"]
    torch.testing.assert_close(moved.module(latents), head.module(latents)[:, [2, 1, 0]])
    assert _reordered(head, [0, 1]) is head


def stored(latents: Path, tmp_path: Path, **changes: torch.Tensor) -> Path:
    """The stored latents with some tensors replaced."""
    file = tmp_path / "stored.safetensors"
    save_file(load_file(latents) | changes, file)
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": torch.zeros(540, dtype=torch.int64)},
            "line 7: 'plain' has 600 rows and 'labels' has 540: expected the same inputs, row for row",
        ),
        ({"turned": torch.zeros(500, 12)}, "line 8: 'turned' has 500 rows and 'labels' has 600"),
        ({"labels": torch.zeros(600, 4)}, "line 5: 'labels' is of shape (600, 4): expected (n,), one label a row"),
        ({"plain": torch.zeros(600)}, "line 7: 'plain' is torch.float32 of shape (600,): expected (n, d) floats"),
        ({"plain": torch.zeros(600, 12, dtype=torch.int64)}, "'plain' is torch.int64 of shape (600, 12): expected"),
    ],
)
def test_stored_latents_and_labels_have_to_be_row_for_row(
    changes: dict[str, torch.Tensor], message: str, latents: Path, tmp_path: Path
) -> None:
    file = stored(latents, tmp_path, **changes)
    assert message in refused(tmp_path, yaml.safe_dump(suite_of(file), sort_keys=False))


def test_latents_that_are_not_finite_fail_their_own_cells(latents: Path, tmp_path: Path) -> None:
    spoiled = load_file(latents)["noise"]
    spoiled[:, 3] = float("nan")
    suite = suite_of(stored(latents, tmp_path, noise=spoiled), experiments=EXPERIMENTS)
    suite["data"]["spaces"]["latents"]["noise"] = "noise"
    suite["data"]["spaces"]["pairs"] = [["turned", "plain"], ["noise", "plain"], ["plain", "noise"]]
    file = written(suite, tmp_path)
    run = CliRunner().invoke(app, ["benchmark", str(file), "--out", str(tmp_path / "out")])
    assert run.exit_code == 1, run.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {(cell["source"], cell["target"]) for cell in results["cells"]} == {("turned", "plain")}
    failed = [failure for failure in results["failures"] if "method" in failure]
    assert len(failed) == 4
    assert all("noise has latents of spaces with not-a-number or infinite" in failure["error"] for failure in failed)
    assert {one["experiment"]: one.get("encoder") for one in results["failures"] if "experiment" in one} == {
        "reconstruction": "noise",
        "scale": "noise",
    }
    assert results["singular_values"]["spaces"]["noise"] == []


def test_an_encoder_without_a_model_is_told_that_stored_latents_need_none(latents: Path, tmp_path: Path) -> None:
    suite = suite_of(latents) | {"encoders": {"plain": {}, "turned": {}}}
    assert "stored latents, the latents: of a data set, need no encoders" in refused(tmp_path, yaml.safe_dump(suite))


def test_a_word_of_a_csv_file_is_the_same_to_a_benchmark_as_to_stitch(tmp_path: Path) -> None:
    words = ["NA", "null", "None", "nan", "storm", "coast"] * 20
    file = tmp_path / "words.csv"
    file.write_text("\n".join(["text,label", *(f"{word},{row % 2}" for row, word in enumerate(words))]))
    content = {"path": str(file), "head_rows": 20, "test_rows": 20, "inputs": {"text": "text"}}
    rows = read_rows("words", DataSpec(**content), Document({}), most_anchors=20, given=None)
    assert sorted(rows.inputs["text"]) == sorted(read_inputs(str(file), column="text")) == sorted(words)
    assert rows.labels.sum() == 60
    file.rename(tmp_path / "words.tsv")
    (tmp_path / "words.tsv").write_text((tmp_path / "words.tsv").read_text().replace(",", "\t"))
    assert sorted(read_inputs(str(tmp_path / "words.tsv"), column="text")) == sorted(words)
