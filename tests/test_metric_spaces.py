"""The metrics as Spaces: each folder is what `evaluate` loads, and its page gives the scores that its card shows."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import pytest
from hub_server import HubServer
from huggingface_hub import HfApi, metadata_load

from hf_relstitch import metrics

SCRIPT = Path(__file__).parent.parent / "scripts" / "metric_spaces.py"
KINDS = sorted(set(metrics.__all__) - {"script"})
make_space = runpy.run_path(str(SCRIPT))["make_space"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_METRICS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(evaluate.config, name, str(tmp_path / name))
    for module in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(evaluate.config.HF_MODULES_CACHE)


def shown(card: str) -> tuple[dict[str, Any], dict[str, float]]:
    """The columns and scores of a card's example."""
    call, scores = (re.search(pattern, card)[1] for pattern in (r"metric\.compute\((.*)\)", r"(?m)^(\{.*\})$"))
    columns = {each.arg: ast.literal_eval(each.value) for each in ast.parse(f"f({call})").body[0].value.keywords}
    return columns, ast.literal_eval(scores)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_loads_the_folder_and_finds_what_the_card_says(kind: str, tmp_path: Path) -> None:
    folder = make_space(kind, tmp_path, namespace="me")
    card = (folder / "README.md").read_text()
    columns, scores = shown(card)
    loaded = evaluate.load(str(folder))
    assert loaded.compute(**columns) == scores == getattr(metrics, kind)().compute(**columns)
    assert f'evaluate.load("me/{folder.name}")' in card
    assert loaded.citation.strip() in card
    assert loaded.citation.startswith("@")
    assert set(loaded.features) == set(columns) == set(re.findall(r"(?m)^- (\w+): ", card))
    header = metadata_load(folder / "README.md")
    assert (header["sdk"], header["tags"]) == ("gradio", ["evaluate", "metric"])
    assert header["description"] in card.split("---")[2]
    compile((folder / header["app_file"]).read_text(), "app.py", "exec")
    assert "hf-relstitch" in (folder / "requirements.txt").read_text().split()


def test_one_command_pushes_them(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, str(tmp_path), "--push", "alice"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    for folder in (tmp_path / "accuracy", tmp_path / "stitching_index"):
        files = HfApi().list_repo_files(f"alice/{folder.name}", repo_type="space")
        assert {file.name for file in folder.iterdir()} <= set(files)


ASK = """
import json, os, runpy, sys
from gradio_client import Client
page = runpy.run_path(sys.argv[1])["page"]
client = Client(page.launch(prevent_thread_lock=True, quiet=True)[1], verbose=False)
print(json.dumps(client.predict(*sys.argv[2:], api_name="/compute")))
try:
    client.predict("[[1], [1, 0]]", "[[1], [0]]", api_name="/compute")
except Exception as error:
    print(error, flush=True)
os._exit(0)  # the server's threads would keep it
"""


@pytest.mark.slow
def test_the_page_computes(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="pip install -r examples/space/requirements.txt")
    folder = make_space("LatentFidelity", tmp_path)
    columns, scores = shown((folder / "README.md").read_text())
    command = [sys.executable, "-c", ASK, str(folder / "app.py"), *map(str, columns.values())]
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}  # else it waits for a server outside
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, answer, error = done.stdout.splitlines()
    assert json.loads(answer) == scores
    assert error.startswith("predictions are ")
