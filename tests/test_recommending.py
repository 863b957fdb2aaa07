"""Encoders ranked for a head, from Python and from the shell."""

import json
from pathlib import Path

import assets
import pico
import pytest
import torch
from test_cli import run
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from hf_relstitch.cli import app
from hf_relstitch.cli.recommend import rank, recommend
from hf_relstitch.core.errors import StitchError
from hf_relstitch.heads.loading import load_classifier


def test_the_heads_own_encoder_comes_first_and_a_failing_candidate_last(
    source_folder: str, target_folder: str, tmp_path: Path
) -> None:
    image = pico.saved("ViT", tmp_path / "tiny-vit")
    candidates = [str(tmp_path / "missing"), image, source_folder, target_folder]
    rows = recommend(target_folder, candidates, pico.texts(80), progress=False)
    assert [row["candidate"] for row in rows][2:] == candidates[:2]
    assert {row["candidate"] for row in rows[:2]} == {source_folder, target_folder}
    assert rows[0]["agreement"] >= rows[1]["agreement"]
    assert "missing" in rows[2]["error"]
    assert "takes PIL images" in rows[3]["error"]
    assert rows[3]["agreement"] is rows[3]["parameters"] is None
    own = next(row for row in rows if row["candidate"] == source_folder)
    assert own["megabytes"] == pytest.approx(own["parameters"] * 4e-6)
    assert own["inputs_per_second"] > 0
    assert own["agreement_interval"][0] < own["agreement"] < own["agreement_interval"][1]


def test_rank_is_by_agreement_then_speed_then_size() -> None:
    rows = [
        {"error": None, "agreement": agreement, "cosine": 0.5, "inputs_per_second": speed, "megabytes": size}
        for agreement, speed, size in [(0.9, 1, 9), (0.8, 3, 9), (0.8, 2, 1), (0.8, 2, 2)]
    ]
    failed = dict.fromkeys(rows[0]) | {"error": "no such model"}
    assert sorted([failed, *reversed(rows)], key=rank) == [*rows, failed]


def test_no_candidates_are_an_error(target_folder: str) -> None:
    with pytest.raises(StitchError, match="no candidates"):
        recommend(target_folder, [], pico.texts(40))


def test_from_the_shell(source_folder: str, target_folder: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(pico.texts(60)))
    arguments = ("recommend", target_folder, "--anchors", tmp_path / "texts.txt", "--limit", "40")
    asked = [str(one) for one in (*arguments, "--candidates", source_folder, tmp_path / "missing", "--json")]
    invoked = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert invoked.exit_code == 1  # a part failed
    rows = json.loads(invoked.stdout)
    assert [row["candidate"] for row in rows] == [source_folder, str(tmp_path / "missing")]
    assert rows[1]["error"]
    assert "agreement" in run(*arguments, "--candidates", source_folder).stdout
    done = run(*arguments, "--candidates", source_folder, tmp_path / "missing", status=1)
    assert all(word in done.stdout for word in ("agreement", "inputs/s", "tiny-bert"))
    assert f"{tmp_path / 'missing'} could not be stitched: " in done.stderr
    assert run(*arguments, "--candidates", tmp_path / "missing", status=1).stdout == ""


@pytest.mark.slow
def test_real_encoders_for_a_real_head(tmp_path: Path) -> None:
    texts = assets.wordnet_glosses()[0][:200]
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(assets.minilm(), num_labels=4)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(assets.minilm()).save_pretrained(tmp_path)
    assert load_classifier(str(tmp_path))[1].module.out_features == 4
    mpnet, minilm = str(assets.mpnet()), str(assets.minilm())
    rows = recommend(str(tmp_path), [mpnet, minilm], texts, progress=False)
    print(rows)
    assert [row["candidate"] for row in rows] == [minilm, mpnet]
    assert rows[0]["inputs_per_second"] > rows[1]["inputs_per_second"]
    assert rows[0]["parameters"] < rows[1]["parameters"]
    assert rows[0]["agreement"] > rows[1]["agreement"]
