"""Two-tower models by side: what the model's own get_*_features gives, with the other side left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
import transformers
from hub_server import HubServer
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedModel, pipeline

from hf_relstitch import Encoder, Head, RelativeStitcher, StitchError
from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.data.ids import input_ids
from hf_relstitch.model.exporting import to_onnx

TEXT = pico.TINY | {"vocab_size": 64, "max_position_embeddings": 32, "pad_token_id": 5, "eos_token_id": 2}
PATCHES = pico.TINY | {"image_size": 8, "patch_size": 4}
CONFIGS: dict[str, Callable[[], Any]] = {
    "CLIP": lambda: transformers.CLIPConfig(text_config=TEXT, vision_config=PATCHES, projection_dim=12),
    "Siglip": lambda: transformers.SiglipConfig(text_config=TEXT, vision_config=PATCHES),
    "Clap": lambda: transformers.ClapConfig(
        text_config=pico.TINY | {"vocab_size": 64, "max_position_embeddings": 40, "projection_dim": 12},
        audio_config={
            "hidden_size": 32,
            "patch_embeds_hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 2,
            "patch_stride": [4, 4],
            "projection_dim": 12,
        },
        projection_dim=12,
    ),
}
PROCESSORS: dict[str, Callable[[], Any]] = {
    "text": pico.tokenizer,
    "image": pico.image_processor,
    "audio": lambda: transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16_000,
        hop_length=160,
        max_length_s=1,
        fft_window_size=400,
        frequency_max=8000,
        truncation="rand_trunc",
    ),
}
SIDES = [
    ("CLIP", "text"),
    ("CLIP", "image"),
    ("Siglip", "text"),
    ("Siglip", "image"),
    ("Clap", "text"),
    ("Clap", "audio"),
]


def saved(name: str, folder: Path) -> str:
    """A folder with a tiny model of two towers, and its processors."""
    torch.manual_seed(4)
    model = getattr(transformers, f"{name}Model")(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.eval().save_pretrained(folder)
    pico.tokenizer().save_pretrained(folder)
    PROCESSORS["audio" if name == "Clap" else "image"]().save_pretrained(folder)
    return str(folder)


def inputs(modality: str, count: int) -> list[Any]:
    if modality == "text":
        return pico.texts(count)
    random = np.random.default_rng(0)
    if modality == "image":
        return [Image.fromarray(random.integers(256, size=(8, 8, 3), dtype=np.uint8)) for _ in range(count)]
    return [random.normal(0, 0.1, 8_000 + 100 * (index % 3)).astype(np.float32) for index in range(count)]


def own_features(place: str, name: str, modality: str, given: list[Any]) -> torch.Tensor:
    """Of the whole model, on what its users give it."""
    model: PreTrainedModel = getattr(transformers, f"{name}Model").from_pretrained(place).eval()
    processor = PROCESSORS[modality]()
    if modality == "text":
        padding = {"padding": "max_length"} if name == "Siglip" else {"padding": True}
        batch = processor(given, return_tensors="pt", **padding)
    elif modality == "image":
        batch = processor(images=given, return_tensors="pt")
    else:
        batch = processor(given, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return getattr(model, f"get_{modality}_features")(**batch).pooler_output


@pytest.mark.parametrize(("name", "modality"), SIDES)
def test_a_side_gives_the_models_own_features(tmp_path: Path, name: str, modality: str) -> None:
    place, given = saved(name, tmp_path), inputs(modality, 7)
    encoder = Encoder.from_pretrained(place, pooling=f"{modality}_features")
    expected = own_features(place, name, modality, given)
    assert expected.std(0).min() > 1e-3
    torch.testing.assert_close(encoder.encode(given, batch_size=3, progress=False), expected, rtol=1e-4, atol=1e-5)
    assert encoder.modality == modality
    other = {"text": ("vision", "visual", "audio"), "image": ("text",), "audio": ("text",)}[modality]
    assert not any(weight.startswith(other) for weight in encoder.model.state_dict())
    assert any(weight.startswith({"image": "vision"}.get(modality, modality)) for weight in encoder.model.state_dict())


@pytest.mark.parametrize(("name", "modality"), SIDES)
def test_a_side_stitches_saves_and_loads(
    tmp_path: Path, target: tuple[Encoder, Head], name: str, modality: str
) -> None:
    place, given = saved(name, tmp_path / "tiny"), inputs(modality, 40)
    source = Encoder.from_pretrained(place, pooling=f"{modality}_features")
    pairs = list(zip(given, pico.texts(40), strict=True))
    model = RelativeStitcher.from_parts(source, target[0], pairs, head=target[1], progress=False)
    model.save_pretrained(tmp_path / "saved")
    classify = pipeline(f"{modality}-classification", model=str(tmp_path / "saved"), top_k=3)
    answers = classify(given[:5], batch_size=5) if modality == "text" else [classify(one) for one in given[:5]]
    latents = own_features(place, name, modality, given[:5])
    logits = pico.logits_by_hand(model, target[1].module, latents)
    labels = model.config.id2label
    shares = torch.tensor([[{a["label"]: a["score"] for a in one}[labels[c]] for c in range(3)] for one in answers])
    torch.testing.assert_close(shares, logits.softmax(1), rtol=1e-3, atol=1e-4)
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    kept = {weight.removeprefix("encoder.") for weight in stored if weight.startswith("encoder.")}
    assert kept == source.model.state_dict().keys()
    assert f"pooling='{modality}_features'" in model.config.call


def test_a_side_is_a_target_with_class_names_for_its_head(tmp_path: Path, source: Encoder) -> None:
    """Zero-shot: pictures' features against those of class names, and another text encoder in front."""
    place = saved("CLIP", tmp_path)
    pictures, texts = (Encoder.from_pretrained(place, pooling=f"{side}_features") for side in ("image", "text"))
    head = Head.from_class_names(texts, ["storm", "bread"], template="a quiet {}")
    pairs = list(zip(pico.texts(40), inputs("image", 40), strict=True))
    model = RelativeStitcher.from_parts(source, pictures, pairs, head=head, progress=False)
    order = input_ids(pairs).argsort()
    torch.testing.assert_close(model.anchors.target, own_features(place, "CLIP", "image", inputs("image", 40))[order])


def test_an_adapter_leaves_the_other_side_out_too(tmp_path: Path, target: tuple[Encoder, Head], hub: HubServer) -> None:
    place = Path(saved("Siglip", tmp_path))
    hub.put_files("alice/siglip", {file.name: file.read_bytes() for file in place.iterdir()})
    source = Encoder.from_pretrained("alice/siglip", pooling="text_features")
    model = RelativeStitcher.from_parts(source, target[0], pico.texts(40), head=target[1], progress=False)
    model.push_to_hub("alice/stitched", share="adapter")
    loaded = RelativeStitcher.from_pretrained("alice/stitched")
    assert loaded.encoder.state_dict().keys() == source.model.state_dict().keys()
    batch = model.processor(pico.texts(4), padding=True, return_tensors="pt")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    loaded.save_pretrained(tmp_path / "whole")
    assert torch.equal(RelativeStitcher.from_pretrained(tmp_path / "whole")(**batch).logits, model(**batch).logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's own
def test_a_side_goes_into_an_onnx_file(tmp_path: Path, target: tuple[Encoder, Head]) -> None:
    """It is compared with the model's own logits before it is there."""
    source = Encoder.from_pretrained(saved("CLIP", tmp_path), pooling="image_features")
    pairs = list(zip(inputs("image", 40), pico.texts(40), strict=True))
    model = RelativeStitcher.from_parts(source, target[0], pairs, head=target[1], progress=False)
    assert to_onnx(model, tmp_path / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("name", "pooling", "message"),
    [
        ("CLIP", "auto", "CLIPModel has two towers: say by pooling= which side to take, 'text_features' or 'image_fe"),
        ("Clap", "auto", "which side to take, 'text_features' or 'audio_features'"),
        ("CLIP", "audio_features", "CLIPModel has no get_audio_features: of its sides are there text_features, image"),
    ],
)
def test_says_which_sides_there_are(tmp_path: Path, name: str, pooling: str, message: str) -> None:
    with pytest.raises(StitchError, match=message):
        Encoder.from_pretrained(saved(name, tmp_path), pooling=pooling)


def test_a_model_of_one_tower_has_no_sides(source_folder: str) -> None:
    with pytest.raises(StitchError, match=r"BertModel has no get_text_features: .* none, since it is no two-tower"):
        Encoder.from_pretrained(source_folder, pooling="text_features")


def test_a_side_wants_its_own_processor(tmp_path: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(saved("CLIP", tmp_path))
    with pytest.raises(StitchError, match="pooling is 'text_features' and the processor is for image"):
        Encoder(model, pico.image_processor(), pooling="text_features")


def test_a_config_that_leaves_out_what_is_not_there_is_refused(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=PATCHES, left_out_modules=["forward"])
    with pytest.raises(StitchError, match="leaves out forward, which is no module"):
        RelativeStitcher(RelativeStitcherConfig(config, pooling="text_features"))
