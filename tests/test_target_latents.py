"""A stitched model without its head: AutoModel and the feature-extraction pipelines give target latents."""

import subprocess
import sys
from pathlib import Path

import pico
import pytest
import torch
from hub_server import HubServer
from PIL import Image
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from hf_relstitch import AnchorSet, Encoder, Head, RelativeStitcher, RelativeStitcherModel, StitchError

TEXTS = pico.texts(6, seed=9)


def target_latents(model: RelativeStitcher, inputs: list) -> torch.Tensor:
    encoder = Encoder(model.encoder, model.processor, pooling=model.config.pooling)
    return model.translate(encoder.encode(inputs, progress=False))


@pytest.mark.parametrize("settings", [{}, {"gamma": 1.0}, {"norm": "mean"}])
def test_automodel_gives_them(source: Encoder, target_folder: str, tmp_path: Path, settings: dict) -> None:
    stitched = RelativeStitcher.from_parts(source, target_folder, pico.texts(100), progress=False, **settings)
    stitched.save_pretrained(tmp_path)
    model, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is RelativeStitcherModel
    assert not any(loading.values())
    output = model(**model.processor(TEXTS, padding=True, return_tensors="pt"))
    expected = target_latents(stitched, TEXTS)
    assert_close(output.pooler_output, expected)
    assert output.last_hidden_state.equal(output.pooler_output[:, None])
    assert_close(model.predict(TEXTS), stitched.predict(TEXTS))
    with pytest.raises(StitchError, match="labels go with a head"):
        model(**model.processor(TEXTS[:1], return_tensors="pt"), labels=torch.tensor([0]))


def test_the_pipeline_gives_them_from_the_hub(stitched: RelativeStitcher, hub: HubServer) -> None:
    stitched.push_to_hub("alice/stitched")
    extract = pipeline("feature-extraction", model="alice/stitched", device="cpu")
    expected = target_latents(stitched, TEXTS)
    for text, latent in zip(TEXTS, expected, strict=True):
        assert_close(extract(text, return_tensors=True), latent[None, None], rtol=1e-4, atol=1e-5)
    batched = extract(TEXTS, return_tensors=True, batch_size=3)
    assert_close(torch.cat(batched)[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert torch.tensor(extract(TEXTS[0])).shape == (1, 1, 16)
    classify = pipeline("text-classification", model="alice/stitched", device="cpu")
    assert classify(TEXTS[0])[0]["label"] in pico.LABELS.values()


def test_it_is_saved_as_the_whole_model(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path / "first")
    AutoModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "second")
    assert type(again) is RelativeStitcher
    assert again.predict(TEXTS).equal(stitched.predict(TEXTS))


def test_images_have_them_too(tmp_path: Path) -> None:
    pixels = torch.randint(0, 255, (60, 8, 8, 3), dtype=torch.uint8)
    images = [Image.fromarray(image.numpy()) for image in pixels]
    place = pico.saved("ViT", tmp_path / "vit", seed=3)
    encoder = Encoder.from_pretrained(place)
    anchors = AnchorSet.encode(encoder, images, progress=False)
    head = Head.from_module(torch.nn.Linear(16, 3))
    model = RelativeStitcher.from_anchor_sets(encoder, anchors, anchors, head)
    model.save_pretrained(tmp_path / "stitched")
    extract = pipeline("image-feature-extraction", model=str(tmp_path / "stitched"), device="cpu")
    expected = target_latents(model, images[:3])
    for image, latent in zip(images[:3], expected, strict=True):
        assert_close(torch.tensor(extract(image)), latent[None, None], rtol=1e-4, atol=1e-5)
        assert_close(torch.tensor(extract(image, pool=True)), latent[None], rtol=1e-4, atol=1e-5)


def test_who_does_not_import_the_package_loads_them_with_trust(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path / "stitched")
    script = (
        "import sys\n"
        "from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(type(model).__name__, type(model).__module__)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "stitched")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["RelativeStitcherModel", "hf_relstitch.model.modeling_relative_stitcher"]
