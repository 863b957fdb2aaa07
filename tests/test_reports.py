"""Reports: fields as items and attributes, a table as text and as HTML."""

import json
from pathlib import Path
from types import SimpleNamespace

import pico
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from hf_relstitch import AnchorSet, Head, Provenance, RelativeStitcher
from hf_relstitch.cli import app
from hf_relstitch.data.report import Report
from hf_relstitch.model.plots import learning_curve


def test_fields_are_items_and_attributes(stitched: RelativeStitcher) -> None:
    report = stitched.report
    assert report.agreement == report["agreement"] == stitched.config.report["agreement"]
    assert report.verdict.grade == report["verdict"]["grade"]
    assert type(report.to_dict()) is dict
    assert json.loads(json.dumps(report)) == report.to_dict()
    with pytest.raises(AttributeError, match="the report has no 'accuracy': its fields are num_anchors, cosine"):
        _ = report.accuracy


def test_a_report_prints_as_a_table_with_the_verdict_last() -> None:
    report = Report(
        num_anchors=200,
        agreement=0.8712,
        agreement_interval=[0.83, 0.902],
        agreement_of="words",
        cosine=0.123456789,
        scale_invariance={"10.0": 0.9, "0.1": 0.25, "3.0": 1.0},
        coverage=None,
        verdict={"grade": "good", "reason": "a < b", "remedy": "none needed"},
    )
    assert repr(report).splitlines() == [
        "cosine              0.1235",
        "scale_invariance    0.1: 0.25, 3.0: 1, 10.0: 0.9",
        "anchors             200",
        "expected agreement  87 % (83–90 %) of words",
        "verdict             good",
        "reason              a < b",
        "remedy              none needed",
    ]
    html = report._repr_html_()
    assert html.count("<tr>") == 7
    assert "<th>reason</th><td>a &lt; b</td>" in html
    assert repr(Report()) == ""


def test_the_report_of_a_head_that_gives_values() -> None:
    report = Report(agreement=None, values_explained=0.5, values_explained_interval=[0.4, 0.6], spearman=0.7)
    assert report.lines() == {"spearman": "0.7", "expected values explained": "50 % (40–60 %) of the variance"}


def stitched_latents(count: int, outputs: int, problem_type: str) -> RelativeStitcher:
    """A model of latents that are one another's in a noisy rotation."""
    source = torch.randn(count, 24)
    target = source @ torch.linalg.qr(torch.randn(24, 24)).Q + 0.5 * torch.randn(count, 24)
    sides = [
        AnchorSet(latents, torch.arange(count), Provenance(name, "1", "none"))
        for name, latents in (("a", source), ("b", target))
    ]
    head = Head(nn.Linear(24, outputs), {index: f"class {index}" for index in range(outputs)}, problem_type)
    return RelativeStitcher.from_anchor_sets(None, *sides, head)


@pytest.mark.parametrize(
    ("outputs", "problem_type"),
    [(4, "single_label_classification"), (3, "multi_label_classification"), (1, "regression")],
)
def test_a_model_draws_itself_and_says_what_more_anchors_bring(outputs, problem_type, tmp_path: Path) -> None:
    model = stitched_latents(200, outputs, problem_type)
    curve = model.plot(tmp_path / "model.png")
    assert list(curve) == [50, 100, 200, 400]
    assert curve[200] == pytest.approx(model.report["agreement"] or model.report["values_explained"], rel=1e-6)
    assert curve[200] <= curve[400] <= 1
    with Image.open(tmp_path / "model.png") as picture:
        assert picture.size == (1760, 990)
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 100


def test_fewer_anchors_give_a_shorter_curve(stitched: RelativeStitcher, tmp_path: Path) -> None:
    assert list(stitched.plot(tmp_path / "model.png")) == [50, 100]


def test_a_loaded_model_with_given_settings_draws_the_same_curve(source, target_folder: str, tmp_path: Path) -> None:
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(150), alpha=0.5, ridge=0.1, progress=False)
    model.save_pretrained(tmp_path / "model")
    curve = RelativeStitcher.from_pretrained(tmp_path / "model").plot(tmp_path / "model.png")
    assert curve == pytest.approx(model.plot(tmp_path / "model.png"))
    assert curve[150] == pytest.approx(model.report["agreement"], rel=1e-6)


@pytest.mark.parametrize(
    ("measured", "estimate"),
    [((0.6, 0.7, 0.75), 0.775), ((0.6, 0.7, 0.9), 1.0), ((0.7, 0.6, 0.7), 0.7), ((0.6, 0.7, 0.7), 0.7)],
)
def test_the_next_doubling_loses_the_same_share_of_the_gain(measured, estimate) -> None:
    stitches = [
        [SimpleNamespace(report={"num_anchors": 100 * 2**step, "agreement": value})]
        for step, value in enumerate(measured)
    ]
    assert learning_curve(stitches)[800] == pytest.approx(estimate)


def test_the_shell_draws(source, target_folder: str, tmp_path: Path) -> None:
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(64), progress=False)
    model.save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(app, ["plot", str(tmp_path / "model"), str(tmp_path / "model.png"), "--json"])
    content = json.loads(result.stdout)
    assert Path(content["picture"]).is_file()
    assert list(content["learning_curve"]) == ["32", "64"]
