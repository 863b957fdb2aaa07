"""Fixtures shared by all tests; the shapes that the core declares are checked while they run.

The Hub of the tests is a server on loopback, from before huggingface_hub is imported; nothing goes further.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the tests share the cores with another worker of theirs

from loopback_hub import server  # isort: skip  (it says to huggingface_hub where the Hub is)

from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
import transformers
from hub_server import HubServer
from jaxtyping import install_import_hook

install_import_hook("hf_relstitch.core", "beartype.beartype")

import pico
from postgres import postgres
from vectors import NEW, OLD

from hf_relstitch import AnchorSet, Encoder, Head, RelativeStitcher, load_classifier
from hf_relstitch.bulk import SearchTranslation, translation_between

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _hub_server() -> Iterator[None]:
    with server:
        yield


@pytest.fixture(scope="session")
def made() -> SearchTranslation:
    """A translation of documents between the latents in `vectors`."""
    return translation_between(OLD, NEW)


@pytest.fixture(scope="session")
def postgres_address() -> Iterator[str]:
    """A PostgreSQL with pgvector, for those who take it; what it holds is theirs to drop."""
    with postgres() as address:
        yield address


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """The Hub, empty, with the users alice (whose token is in the environment) and bob."""
    server.repos.clear()
    server.requests.clear()
    server.faults.clear()
    server.forget_contents()
    yield server
    assert not server.faults, "a fault that the test asked for did not happen"


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
    return load_classifier(target_folder)


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


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user runs, who has no shape checks: they are no part of the graph."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
