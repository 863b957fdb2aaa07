"""Large encoders: spread or offloaded by accelerate, in shards, or quantised; and the memory that a stitch takes."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import assets
import pico
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import HfApi

from hf_relstitch import Encoder, RelativeStitcher, StitchError, load_classifier

TEXTS = pico.texts(60)
DEEP = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 8}
MEMORY = Path(__file__).parents[1] / "perf" / "memory.py"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of eight layers, in shards."""
    folder = tmp_path_factory.mktemp("deep") / "deep-bert"
    pico.classifier("Bert", seed=1, **DEEP).save_pretrained(folder, max_shard_size="300KB")
    pico.tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return str(folder)


def offloading(folder: Path) -> dict[str, object]:
    """What makes accelerate keep two of the eight layers and leave the others on the disk."""
    return {"device_map": "auto", "max_memory": {"cpu": 800_000}, "offload_folder": str(folder)}


def logits(model: RelativeStitcher) -> torch.Tensor:
    batch = model.processor(TEXTS[:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits


def test_an_offloaded_encoder_gives_the_same_model(deep: str, target_folder: str, tmp_path: Path) -> None:
    plain = RelativeStitcher.from_parts(deep, target_folder, TEXTS, progress=False)
    encoder = Encoder.from_pretrained(deep, **offloading(tmp_path / "encoder"))
    assert any(parameter.is_meta for parameter in encoder.model.parameters())
    assert encoder.provenance == Encoder.from_pretrained(deep).provenance  # by a hash of the weights
    model = RelativeStitcher.from_parts(encoder, target_folder, TEXTS, progress=False)
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert all(name.startswith("encoder.") for name in model.hf_device_map)
    assert logits(model).equal(logits(plain))
    with pytest.warns(UserWarning, match="save a model with offloaded modules"):
        model.save_pretrained(tmp_path / "model", max_shard_size="300KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    loaded = RelativeStitcher.from_pretrained(tmp_path / "model", **offloading(tmp_path / "loaded"))
    assert loaded.head.weight.is_meta
    assert logits(loaded).equal(logits(plain))
    assert loaded.check(TEXTS)["coverage"] == plain.check(TEXTS)["coverage"]


def test_device_map_auto_is_the_same_model(deep: str, target_folder: str, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(deep, device_map="auto")
    model = RelativeStitcher.from_parts(encoder, target_folder, TEXTS, progress=False)
    model.save_pretrained(tmp_path)
    loaded = RelativeStitcher.from_pretrained(tmp_path, device_map="auto")
    assert logits(loaded).equal(logits(model))
    assert loaded.encoder.config.num_hidden_layers == 8


def test_the_encoder_is_taken_as_it_is(deep: str, target_folder: str) -> None:
    """No tensor of it is copied into the stitched model."""
    encoder = Encoder.from_pretrained(deep)
    before = {name: tensor.data_ptr() for name, tensor in encoder.model.state_dict().items()}
    model = RelativeStitcher.from_parts(encoder, target_folder, TEXTS, progress=False)
    assert before == {name: tensor.data_ptr() for name, tensor in model.encoder.state_dict().items()}


@pytest.mark.filterwarnings("default")  # of libraries that are not this package's to keep quiet
def test_a_quantised_encoder(target_folder: str, tmp_path: Path, hub: HubServer) -> None:
    """It stitches near to the full one, is not saved as if it were full, and an adapter quantises it anew."""
    if find_spec("optimum") is None:
        assets.missing("optimum-quanto", install=assets.INSTALL_PACKAGES)
    from transformers import QuantoConfig

    how = QuantoConfig(weights="int8")
    place = pico.saved("Bert", tmp_path / "bert", seed=1, **DEEP | {"num_hidden_layers": 2})
    HfApi().create_repo("alice/bert")
    HfApi().upload_folder(repo_id="alice/bert", folder_path=place)
    full = Encoder.from_pretrained("alice/bert").encode(TEXTS, progress=False)
    encoder = Encoder.from_pretrained("alice/bert", quantization_config=how)
    off = (encoder.encode(TEXTS, progress=False) - full).norm() / full.norm()
    assert 0 < off < 0.1
    model = RelativeStitcher.from_parts(encoder, target_folder, TEXTS, progress=False)
    with pytest.raises(StitchError, match="the source encoder is quantised, and quantised weights are not saved"):
        model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "adapter", share="adapter")
    loaded = RelativeStitcher.from_pretrained(tmp_path / "adapter")
    assert logits(loaded).equal(logits(model))
    with pytest.raises(StitchError, match=r"ends in classifier.out_proj, a QLinear: .* quantised: leave it out"):
        load_classifier(target_folder, quantization_config=how)
    kept = QuantoConfig(weights="int8", modules_to_not_convert=["classifier"])
    assert load_classifier(target_folder, quantization_config=kept)[1].id2label == pico.LABELS


@pytest.mark.slow
def test_memory_stays_within_the_encoder_and_200_megabytes() -> None:
    """Of a 400 MB encoder in shards; each step in a process of its own."""
    command = [sys.executable, str(MEMORY), "--megabytes", "400", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    measured = json.loads(done.stdout)
    assert {"load", "stitch", "save", "load again"} == set(measured["steps"])
    assert measured["encoder"] > 390
    for step, peak in measured["steps"].items():
        assert peak <= measured["encoder"] + 200, (step, measured)
