"""Sharing over HTTP: the real client, a Hub on loopback, and other processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pico
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import HfApi

from hf_relstitch import RelativeStitcher

TEXTS = pico.texts(100)


@pytest.fixture
def source_id(hub: HubServer, source_folder: str) -> str:
    """The source encoder on the Hub."""
    HfApi().create_repo("alice/tiny-bert")
    HfApi().upload_folder(repo_id="alice/tiny-bert", folder_path=source_folder)
    return "alice/tiny-bert"


@pytest.fixture
def target_id(hub: HubServer, target_folder: str) -> str:
    """The target classifier on the Hub."""
    HfApi().create_repo("alice/tiny-roberta")
    HfApi().upload_folder(repo_id="alice/tiny-roberta", folder_path=target_folder)
    return "alice/tiny-roberta"


@pytest.fixture
def model(source_id: str, target_id: str) -> RelativeStitcher:
    """A model stitched from Hub ids."""
    return RelativeStitcher.from_parts(source_id, target_id, TEXTS, progress=False)


def in_new_process(script: str, home: Path, **environment: str) -> str:
    """Run Python code in a process with a cache of its own and give what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:hf_relstitch", "-c", script],
        env=os.environ | {"HF_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=home.parent,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOGITS = """
import torch, hf_relstitch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
model = AutoModelForSequenceClassification.from_pretrained("alice/stitched")
with torch.no_grad():
    batch = AutoTokenizer.from_pretrained("alice/stitched")(["storm hits the coast", "quiet day"], padding=True, return_tensors="pt")
    print(model(**batch).logits.double().tolist())
print(pipeline("text-classification", model="alice/stitched")("storm hits the coast")[0]["label"])
"""


def logits_here(model: RelativeStitcher) -> list[list[float]]:
    batch = model.processor(["storm hits the coast", "quiet day"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.double().tolist()


@pytest.mark.parametrize("share", ["full", "adapter"])
def test_push_and_pull_in_another_process(model: RelativeStitcher, hub: HubServer, tmp_path: Path, share: str) -> None:
    model.push_to_hub("alice/stitched", share=share)
    logits, label = in_new_process(LOGITS, tmp_path / "home").splitlines()
    assert json.loads(logits) == logits_here(model)
    assert label in pico.LABELS.values()
    files = HfApi().list_repo_files("alice/stitched")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
