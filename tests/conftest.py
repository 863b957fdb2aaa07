"""Fixtures shared by all tests; the shapes that the core declares are checked while they run."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch
import transformers
from jaxtyping import install_import_hook

install_import_hook("hf_relstitch.core", "beartype.beartype")

import pico

from hf_relstitch import AnchorSet, Encoder, Head, RelativeStitcher, load_target

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def source_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny BERT, to be the source encoder."""
    return pico.saved("Bert", tmp_path_factory.mktemp("source") / "tiny-bert", seed=1)


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny RoBERTa classifier, to give the head."""
    return pico.saved("Roberta", tmp_path_factory.mktemp("target") / "tiny-roberta", seed=2)


@pytest.fixture
def source(source_folder: str) -> Encoder:
    """The source encoder."""
    return Encoder.from_pretrained(source_folder)


@pytest.fixture(scope="session")
def target(target_folder: str) -> tuple[Encoder, Head]:
    """The target, cut into encoder and head."""
    return load_target(target_folder)


@pytest.fixture
def stitched(source: Encoder, target_folder: str) -> RelativeStitcher:
    """A tiny stitched model."""
    return RelativeStitcher.from_parts(source, target_folder, pico.texts(100), progress=False)


@pytest.fixture
def anchor_set(source: Encoder) -> AnchorSet:
    """Anchors of the source encoder."""
    return AnchorSet.encode(source, pico.texts(100), data="word salad", progress=False)


@pytest.fixture
def altered() -> Callable[[Path], None]:
    """Changes one bit in the middle of a file."""

    def alter(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) * 3 // 4] ^= 1
        file.write_bytes(content)

    return alter
