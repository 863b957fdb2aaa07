"""RelativeStitcher: the way from inputs to logits, and that save and load change nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pico
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    pipeline,
)
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput

from hf_relstitch import (
    AnchorSet,
    Encoder,
    Head,
    Provenance,
    RelativeStitcher,
    RelativeStitcherConfig,
    StitchError,
    load_classifier,
)
from hf_relstitch.core.anchor_sampling import choose_anchors
from hf_relstitch.core.translation import LANDMARKS, TranslationSettings, fit, fit_translation
from hf_relstitch.data.ids import input_ids
from hf_relstitch.hub.files import checksum


def batch(model: RelativeStitcher, count: int = 6) -> dict[str, torch.Tensor]:
    return dict(model.processor(pico.texts(count, seed=9), padding=True, return_tensors="pt"))


@torch.no_grad()
def logits(model: RelativeStitcher) -> torch.Tensor:
    return model(**batch(model)).logits


def change_config(folder: Path, change: dict[str, object]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def test_logits_are_the_head_of_translated_latents(
    stitched: RelativeStitcher, source: Encoder, target: tuple[Encoder, Head]
) -> None:
    """The same by hand: encode, translate by the anchors of both sides, head, and the readout of the source latents."""
    encoder, head = target
    anchors = [AnchorSet.encode(one, pico.texts(100), progress=False) for one in (source, encoder)]
    settings = stitched.config.translation_settings
    anchors = [one.sorted_by_id() for one in anchors]
    translation = fit(anchors[0].latents, anchors[1].latents, settings=settings)
    latents = source.encode(pico.texts(6, seed=9), batch_size=6, progress=False)
    assert stitched.readout is not None
    with torch.no_grad():
        expected = head.module(translation(latents)) + stitched.readout(latents)
    expected = expected / stitched.config.logit_temperature
    torch.testing.assert_close(logits(stitched), expected, rtol=1e-4, atol=1e-4)


def test_a_model_stitched_to_itself_keeps_its_answers(target_folder: str) -> None:
    """Source and target are the same space here, so that the translation has to be the identity."""
    encoder, _ = load_classifier(target_folder)
    anchors = AnchorSet.encode(encoder, pico.texts(200), progress=False)
    translation = fit_translation(anchors.latents, anchors.latents, settings=TranslationSettings(ridge=0.0))
    latents = encoder.encode(pico.texts(50, seed=4), progress=False)
    assert (translation(latents) - latents).abs().max() < 1e-4


def test_from_anchor_sets_needs_no_target_model_and_no_order(
    stitched: RelativeStitcher, source: Encoder, target: tuple[Encoder, Head]
) -> None:
    inputs = pico.texts(100)
    encoder, head = target
    source_anchors = AnchorSet.encode(source, inputs, progress=False)
    target_anchors = AnchorSet.encode(encoder, inputs[::-1], progress=False)
    model = RelativeStitcher.from_anchor_sets(source, source_anchors, target_anchors, head)
    torch.testing.assert_close(logits(model), logits(stitched), rtol=1e-4, atol=1e-4)


def test_gives_the_output_class_of_its_modality_and_transformers_own_loss(stitched: RelativeStitcher) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    output = stitched(**batch(stitched), labels=labels, output_hidden_states=True)
    assert isinstance(output, SequenceClassifierOutput)
    torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits, labels))
    assert len(output.hidden_states) == 3
    assert isinstance(stitched(**batch(stitched), return_dict=False), tuple)


def test_loss_of_a_multi_label_head(source: Encoder, tmp_path: Path) -> None:
    place = pico.saved("Roberta", tmp_path, problem_type="multi_label_classification")
    model = RelativeStitcher.from_parts(source, place, pico.texts(50), progress=False)
    labels = torch.tensor([[0.0, 1.0, 1.0]] * 6)
    output = model(**batch(model), labels=labels)
    torch.testing.assert_close(output.loss, functional.binary_cross_entropy_with_logits(output.logits, labels))


def test_report_is_of_held_out_anchors(stitched: RelativeStitcher) -> None:
    report = stitched.report
    assert report["num_anchors"] == 100
    assert set(report["source"]) == set(report["target"]) == {"dim", "rank", "condition_number", "effective_rank"}
    low, high = report["agreement_interval"]
    assert 0 < low < report["agreement"] < high < 1
    assert 0 < report["chance_agreement"] < 1
    assert report["scale_invariance"]["1.0"] == 1.0
    assert set(report["verdict"]) == {"grade", "reason", "remedy"}
    assert report["cosine"] < 0.999, "an in-sample report would be nearly perfect: 100 anchors, 16 dimensions"


def test_two_random_networks_are_not_to_be_used(stitched: RelativeStitcher) -> None:
    assert stitched.report["verdict"]["grade"] == "do not use"


def test_an_encoder_stitched_to_itself_is_good_and_inputs_of_another_domain_are_not(
    source: Encoder,
) -> None:
    head = nn.Linear(16, 3)
    anchors = [text for text in pico.texts(400) if "storm" not in text][:200]
    others = ["storm storm storm", "storm hits storm", "storm storm", "the storm storm storm storm"]
    model = RelativeStitcher.from_parts(source, source, anchors, head=head, inputs=others, progress=False)
    plain = RelativeStitcher.from_parts(source, source, anchors, head=head, progress=False)
    assert plain.report["verdict"]["grade"] == "good"
    assert plain.config.translation_settings.identity
    assert model.report["coverage"] < 0.5
    assert model.report["verdict"]["grade"] == "do not use"
    likewise = plain.check([text for text in pico.texts(100, seed=3) if "storm" not in text])
    assert likewise["coverage"] > 0.7
    assert likewise["verdict"] == plain.report["verdict"]


def test_shuffled_pairing_is_not_to_be_used(target: tuple[Encoder, Head]) -> None:
    encoder, head = target
    anchors = AnchorSet.encode(encoder, pico.texts(200), progress=False)
    shuffled = AnchorSet(anchors.latents, anchors.ids.roll(1), anchors.provenance)
    model = RelativeStitcher.from_anchor_sets(encoder, anchors, shuffled, head)
    assert model.report["verdict"]["grade"] == "do not use"
    assert "the same inputs in the same order" in model.report["verdict"]["remedy"]


def test_choice_is_stored_with_its_candidates(stitched: RelativeStitcher) -> None:
    selection = json.loads(json.dumps(stitched.config.selection))
    best, *others = selection["candidates"]
    assert (selection["prefer"], selection["criterion"], selection["score"]) == ("auto", "leave-one-out", best["score"])
    assert all(other["score"] <= best["score"] for other in others)
    assert len(others) > 4
    chosen = {name: value for name, value in best.items() if name != "score"}
    assert chosen.items() <= stitched.config.translation.items()


def test_the_order_of_the_anchors_changes_nothing(source: Encoder, target: tuple[Encoder, Head]) -> None:
    encoder, head = target
    sides = [AnchorSet.encode(one, pico.texts(100), progress=False) for one in (source, encoder)]
    plain = RelativeStitcher.from_anchor_sets(source, *sides, head)
    orders = [torch.randperm(100, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    shuffled = [
        AnchorSet(side.latents[order], side.ids[order], side.provenance)
        for side, order in zip(sides, orders, strict=True)
    ]
    model = RelativeStitcher.from_anchor_sets(source, *shuffled, head)
    assert model.report == plain.report
    assert model.config.translation == plain.config.translation
    assert model.readout is not None
    expected = plain.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_logits_are_as_sure_as_the_head_on_its_own_latents(stitched: RelativeStitcher) -> None:
    assert stitched.config.logit_temperature != 1
    tempered = logits(stitched)
    temperature, stitched.config.logit_temperature = stitched.config.logit_temperature, 1.0
    torch.testing.assert_close(logits(stitched) / temperature, tempered)


def test_a_head_of_one_logit_is_left_as_it_is(source: Encoder, tmp_path: Path) -> None:
    place = pico.saved("Roberta", tmp_path, id2label={0: "score"}, problem_type="regression")
    model = RelativeStitcher.from_parts(source, place, pico.texts(60), progress=False)
    assert model.config.logit_temperature == 1
    assert model.config.selection["criterion"] == "leave-one-out"
    assert model.report["agreement"] is None
    assert 0 < model.check(pico.texts(20, seed=5))["coverage"] <= 1


def test_sharpened_model_folds_into_no_matrix(source: Encoder, target_folder: str) -> None:
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), gamma=1.0, progress=False)
    latents = torch.randn(4, 16)
    middle = model.translate(latents.mean(0, keepdim=True))
    assert (model.translate(latents).mean(0, keepdim=True) - middle).abs().max() > 0.01


def test_latents_left_as_they_are_are_not_relative(source: Encoder, target_folder: str) -> None:
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), progress=False, identity=True)
    with pytest.raises(StitchError, match="is not relative to anchors: stitch with alpha and ridge given"):
        model.relative(pico.texts(4, seed=5))


def test_num_anchors_are_chosen_among_the_inputs(source: Encoder, target: tuple[Encoder, Head]) -> None:
    inputs = pico.texts(90)
    encoder, head = target
    model = RelativeStitcher.from_parts(source, encoder, inputs, head=head, num_anchors=40, progress=False)
    rows = choose_anchors(encoder.encode(inputs, progress=False), 40)
    assert model.anchors.ids.tolist() == sorted(input_ids([inputs[row] for row in rows]).tolist())
    assert model.report["num_anchors"] == 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefer": "auto", "alpha": 0.5}, "prefer is 'auto' and alpha is given"),
        ({"prefer": "speed"}, "prefer is 'speed': it has to be 'auto' or 'linear'"),
        ({"alpha": 3.0}, "alpha is 3.0: it has to be in"),
        ({"num_anchor": 50}, "num_anchor is neither an argument nor a setting: settings are alpha, .*, prefer$"),
    ],
)
def test_bad_settings_are_told_before_anything_is_loaded(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StitchError, match=message):
        RelativeStitcher.from_parts("no source", "no target", pico.texts(60), **settings)
    with pytest.raises(StitchError, match=message):
        RelativeStitcher.from_anchor_sets("no source", "no anchors", "no anchors", **settings)


def test_too_few_anchors_are_told_before_anything_is_encoded(
    source: Encoder, target_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "encode", None)
    with pytest.raises(StitchError, match="31 anchors: at least 32 different inputs are needed"):
        RelativeStitcher.from_parts(source, target_folder, [*pico.texts(31), *pico.texts(31)], progress=False)
    with pytest.raises(StitchError, match="10 anchors: at least 32 different inputs are needed"):
        RelativeStitcher.from_parts(source, target_folder, pico.texts(60), num_anchors=10, progress=False)


def test_norm_and_seed_leave_the_rest_to_be_chosen(source: Encoder, target_folder: str) -> None:
    model = RelativeStitcher.from_parts(
        source, target_folder, pico.texts(60), progress=False, prefer="auto", norm="mean", seed=3
    )
    assert (model.config.translation["norm"], model.config.translation["seed"]) == ("mean", 3)
    assert any("gamma" in candidate for candidate in model.config.selection["candidates"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm": "mean"},
        {"gamma": 1.0},
        {"gamma": 2.0, "norm": "mean"},
        {"alpha": 1.0, "beta": 0.3, "target_ridge": 1.0, "gamma": 1.0},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_folder_brings_back_the_same_logits_bit_for_bit(
    source_folder: str, target_folder: str, tmp_path: Path, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    source = Encoder.from_pretrained(source_folder, dtype=dtype)
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), progress=False, **settings)
    model.save_pretrained(tmp_path / "model")
    loaded = RelativeStitcher.from_pretrained(tmp_path / "model")
    assert loaded.dtype == model.dtype == dtype
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.report == model.report
    assert loaded.config.id2label == pico.LABELS
    assert loaded.anchors.source.dtype == torch.float32


def test_folder_is_complete_and_can_be_saved_again(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path / "one")
    RelativeStitcher.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    processor = {"tokenizer.json", "tokenizer_config.json"}
    expected = {"README.md", "config.json", "model.safetensors", "relative_stitcher.py", *processor}
    for folder in ("one", "two"):
        assert {file.name for file in (tmp_path / folder).iterdir()} == expected
    assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path / "two")), logits(stitched))
    assert str(tmp_path) not in (tmp_path / "one" / "config.json").read_text()


def test_sharded_weights_come_back(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path)), logits(stitched))


def test_stock_text_pipeline_loads_the_folder(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path)
    answers = pipeline("text-classification", model=str(tmp_path))(pico.texts(6, seed=9))
    assert [answer["label"] for answer in answers] == [pico.LABELS[i] for i in logits(stitched).argmax(1).tolist()]


def test_auto_class_takes_dtype_device_map_and_attention(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.bfloat16, device_map="auto", attn_implementation="eager"
    )
    assert isinstance(model, RelativeStitcher)
    assert {model.dtype, model.head.weight.dtype} == {torch.bfloat16}
    assert model.translation.decoder.dtype == torch.float32, "a translation in bfloat16 would lose what centring needs"
    assert model.encoder.config._attn_implementation == "eager"
    torch.testing.assert_close(logits(model).float(), logits(stitched), rtol=0.1, atol=0.1)


def test_images_through_the_stock_pipeline(tmp_path: Path) -> None:
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (60, 8, 8, 3), generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(image.numpy()) for image in pixels]
    source, target = (pico.saved(kind, tmp_path / kind, seed=3) for kind in ("ViT", "ResNet"))
    model = RelativeStitcher.from_parts(source, target, images, progress=False)
    model.save_pretrained(tmp_path / "stitched")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "stitched")
    output = loaded(**model.processor(images=images[:5], return_tensors="pt"))
    assert isinstance(output, ImageClassifierOutput)
    answers = pipeline("image-classification", model=str(tmp_path / "stitched"))(images[:5], top_k=1)
    assert [one[0]["label"] for one in answers] == [pico.LABELS[i] for i in output.logits.argmax(1).tolist()]


@pytest.mark.parametrize("settings", [{}, {"gamma": 1.0}, {"beta": 0.1, "target_ridge": 2.0}])
def test_a_fit_of_the_stored_anchors_is_the_stored_translation(
    source: Encoder, target_folder: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    RelativeStitcher.from_parts(source, target_folder, pico.texts(100), progress=False, **settings).save_pretrained(
        tmp_path
    )
    loaded = RelativeStitcher.from_pretrained(tmp_path)
    again = fit(loaded.anchors.source, loaded.anchors.target, settings=loaded.config.translation_settings)
    expected = {name: tensor.float() for name, tensor in again.state_dict().items()}
    torch.testing.assert_close(loaded.translation.state_dict(), expected, rtol=1e-6, atol=1e-6)


def test_settings_reach_the_translation(source: Encoder, target_folder: str) -> None:
    settings = {"alpha": 0.0, "ridge": 0.0, "norm": "mean", "pruning": 0.9, "subspaces": 2, "seed": 3}
    settings |= {"output_scale": 1.1}
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), progress=False, **settings)
    plain = {"beta": None, "target_ridge": None, "gamma": 0.0, "landmarks": LANDMARKS, "identity": False}
    assert model.config.translation == settings | plain
    assert model.config.selection is None
    expected = fit_translation(
        model.anchors.source, model.anchors.target, settings=TranslationSettings(**settings)
    ).weight
    torch.testing.assert_close(model.translation.weight, expected.float())


def test_bare_head_with_labels(source: Encoder, target: tuple[Encoder, Head]) -> None:
    encoder, head = target
    model = RelativeStitcher.from_parts(
        source, encoder, pico.texts(60), head=head.module, labels=["a", "b", "c"], progress=False
    )
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id["c"] == 2
    assert model.head is not head.module


def test_a_plain_module_stitches_in_memory_and_says_that_it_cannot_be_saved(
    tmp_path: Path, target: tuple[Encoder, Head]
) -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.EmbeddingBag(64, 12)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.embedding(input_ids, per_sample_weights=None)

    encoder, head = target
    bag = Encoder(Bag(), pico.tokenizer())
    model = RelativeStitcher.from_parts(bag, encoder, pico.texts(60), head=head, progress=False)
    assert logits(model).shape == (6, 3)
    with pytest.raises(StitchError, match="the source encoder is a Bag, whose architecture cannot be stored"):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_refuses_an_encoder_without_head(source: Encoder) -> None:
    with pytest.raises(StitchError, match="the target is an encoder without a head"):
        RelativeStitcher.from_parts(source, source, pico.texts(60))


def test_refuses_anchors_of_another_model_of_the_same_width(
    source: Encoder, target: tuple[Encoder, Head], tmp_path: Path
) -> None:
    encoder, head = target
    other = Encoder.from_pretrained(pico.saved("Bert", tmp_path / "tiny-bert", seed=8))
    inputs = pico.texts(60)
    source_anchors, other_anchors, target_anchors = (
        AnchorSet.encode(one, inputs, progress=False) for one in (source, other, encoder)
    )
    with pytest.raises(StitchError, match=r"the source anchors were made by another model .*revision is 'weights:"):
        RelativeStitcher.from_anchor_sets(source, other_anchors, target_anchors, head)
    with pytest.raises(StitchError, match="the target anchors were made by another model"):
        RelativeStitcher.from_anchor_sets(source, source_anchors, other_anchors, head)


def test_refuses_anchors_of_another_pooling(source_folder: str, source: Encoder, target: tuple[Encoder, Head]) -> None:
    inputs = pico.texts(60)
    cls_anchors = AnchorSet.encode(Encoder.from_pretrained(source_folder, pooling="cls"), inputs, progress=False)
    target_anchors = AnchorSet.encode(target[0], inputs, progress=False)
    with pytest.raises(StitchError, match="pooling is 'cls' and not 'mean'"):
        RelativeStitcher.from_anchor_sets(source, cls_anchors, target_anchors, target[1])


def test_refuses_a_head_of_another_width(source: Encoder, target: tuple[Encoder, Head]) -> None:
    anchors = [AnchorSet.encode(one, pico.texts(60), progress=False) for one in (source, target[0])]
    with pytest.raises(StitchError, match="the head takes latents 20 wide and the target anchors are 16"):
        RelativeStitcher.from_anchor_sets(source, *anchors, nn.Linear(20, 3))


def test_refuses_too_few_anchors(source: Encoder, target_folder: str) -> None:
    with pytest.raises(StitchError, match="12 anchors: at least 32"):
        RelativeStitcher.from_parts(source, target_folder, pico.texts(12), progress=False)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_refuses_a_folder_without_a_file(stitched: RelativeStitcher, tmp_path: Path, name: str) -> None:
    stitched.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StitchError, match=f"no file.*{name}"):
        RelativeStitcher.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_refuses_a_folder_that_would_read_texts_wrongly(stitched: RelativeStitcher, tmp_path: Path, name: str) -> None:
    stitched.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StitchError, match=f"no {name} of its processor, without which inputs are read wrongly"):
        RelativeStitcher.from_pretrained(tmp_path)


def test_refuses_altered_weights(stitched: RelativeStitcher, tmp_path: Path, altered: Callable[[Path], None]) -> None:
    stitched.save_pretrained(tmp_path)
    altered(tmp_path / "model.safetensors")
    with pytest.raises(StitchError, match=r"model\.safetensors is damaged or was altered"):
        RelativeStitcher.from_pretrained(tmp_path)


def test_refuses_truncated_weights(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StitchError, match="damaged"):
        RelativeStitcher.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("translation.decoder", None, r"it has no translation\.decoder: save or download it again"),
        ("anchors.source", None, r"it has no anchors\.source"),
        ("head.weight", torch.zeros(3, 9), r"head\.weight of shape \(3, 9\) and not \(3, 16\)"),
    ],
)
def test_refuses_weights_that_are_not_the_models(
    stitched: RelativeStitcher, tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    stitched.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop(name)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    checksums = {"model.safetensors": checksum(tmp_path / "model.safetensors")}
    change_config(tmp_path, {"checksums": checksums})
    with pytest.raises(StitchError, match=message):
        RelativeStitcher.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9, "hf_relstitch_version": "3.1.0"}, r"format version 9.*hf-relstitch>=3\.1\.0'$"),
        ({"format_version": 9, "hf_relstitch_version": "3'; rm -rf ~; '"}, r"pip install -U hf-relstitch$"),
        ({"pooling": "sum"}, "the config's pooling is 'sum': expected one of mean, cls"),
        ({"head": {"kind": "code"}}, "expected kind 'linear'"),
        ({"translation": {"alpha": 2.0}}, r"alpha is 2\.0: it has to be in \[0, 1\]"),
        ({"translation": {"warp": 2.0}}, "the config's translation settings are not of this version"),
    ],
)
def test_refuses_a_config_that_it_cannot_follow(
    stitched: RelativeStitcher, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    stitched.save_pretrained(tmp_path)
    change_config(tmp_path, change)
    with pytest.raises(StitchError, match=message):
        RelativeStitcher.from_pretrained(tmp_path)
    with pytest.raises(StitchError, match=message):
        RelativeStitcherConfig.from_pretrained(tmp_path)


def test_a_failing_save_leaves_nothing(
    stitched: RelativeStitcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(stitched.processor), "save_pretrained", no_space)
    with pytest.raises(StitchError, match=r"saving to .*/model failed \(.*No space left.*\): free some space"):
        stitched.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_saving_again_replaces_the_old_weights(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path, max_shard_size="20KB")
    stitched.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model-*"))
    assert not (tmp_path / "model.safetensors.index.json").exists()
    stitched.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path)), logits(stitched))


def test_another_model_or_an_anchor_set_is_not_saved_over(
    stitched: RelativeStitcher, anchor_set: AnchorSet, source: Encoder, tmp_path: Path
) -> None:
    source.model.save_pretrained(tmp_path / "bert")
    anchor_set.save_pretrained(tmp_path / "anchors")
    stitched.save_pretrained(tmp_path / "stitched")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    with pytest.raises(StitchError, match="bert holds a model of type bert, which saving there would spoil"):
        stitched.save_pretrained(tmp_path / "bert")
    with pytest.raises(StitchError, match="anchors holds an anchor set"):
        stitched.save_pretrained(tmp_path / "anchors")
    for folder, held in (("bert", "a model of type bert"), ("stitched", "a stitched model")):
        with pytest.raises(StitchError, match=f"{folder} holds {held}"):
            anchor_set.save_pretrained(tmp_path / folder)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


def test_a_folder_on_another_volume_than_its_parent(stitched: RelativeStitcher, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second volume")
    with TemporaryDirectory(dir=memory) as volume:
        (tmp_path / "model").symlink_to(volume)
        for options in ({"max_shard_size": "20KB"}, {}):
            stitched.save_pretrained(tmp_path / "model", **options)
            assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path / "model")), logits(stitched))
        assert not list(Path(volume).glob(".*"))


def test_a_save_that_cannot_replace_a_file_keeps_the_old_weights(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path, max_shard_size="20KB")
    before = {file: file.read_bytes() for file in [*tmp_path.glob("model-*"), tmp_path / "config.json"]}
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    with pytest.raises(StitchError, match=r"README.md is a folder"):
        stitched.save_pretrained(tmp_path)
    assert {file: file.read_bytes() for file in before} == before
    stitched.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(StitchError, match=r"model\.safetensors that its config does not list"):
        RelativeStitcher.from_pretrained(tmp_path)


def test_other_files_of_a_folder_stay(stitched: RelativeStitcher, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    stitched.save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_provenance_differs_in_words() -> None:
    one, other = Provenance("a", "1", "mean"), Provenance("a", "2", "cls", data="x")
    assert one.difference(other) == "revision is '1' and not '2', pooling is 'mean' and not 'cls'"
    assert one.difference(Provenance("a", "1", "mean", data="y")) == ""


def test_a_process_that_is_not_the_main_one_leaves_a_saved_folder_alone(
    stitched: RelativeStitcher, tmp_path: Path
) -> None:
    stitched.save_pretrained(tmp_path, is_main_process=True)
    stitched.save_pretrained(tmp_path, is_main_process=False)
    assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path)), logits(stitched))


def test_a_refused_save_leaves_the_model_as_it_was(stitched: RelativeStitcher, tmp_path: Path) -> None:
    with pytest.raises(StitchError, match="was not loaded from the Hub"):
        stitched.save_pretrained(tmp_path, share="adapter")
    assert stitched.config.share == "full"


def test_keywords_of_the_config_are_taken_as_any_transformers_model_does(
    stitched: RelativeStitcher, tmp_path: Path
) -> None:
    stitched.save_pretrained(tmp_path)
    names = {0: "a", 1: "b", 2: "c"}
    loaded = RelativeStitcher.from_pretrained(tmp_path, output_hidden_states=True, id2label=names)
    assert (loaded.config.id2label, loaded.config.output_hidden_states) == (names, True)
    assert torch.equal(logits(loaded), logits(stitched))


def test_one_text_is_no_list_of_inputs(stitched: RelativeStitcher) -> None:
    with pytest.raises(StitchError, match=r"one text, 'storm', where a list of inputs is expected: give \[text\]"):
        stitched.predict("storm")
    for inputs, message in (
        ({"text": pico.texts(2)}, "a dict, which has columns: give one"),
        (Dataset.from_dict({"text": pico.texts(2)}), "a Dataset, which has columns: give one"),
        (pd.DataFrame({"text": pico.texts(2)}), "a DataFrame, which has columns: give one"),
        (Path("texts.csv"), "one PosixPath, where a list of inputs is expected"),
        ({"storm"}, "a set, which has no order"),
    ):
        with pytest.raises(StitchError, match=f"the inputs are {message}"):
            stitched.predict(inputs)
    with pytest.raises(StitchError, match="the inputs are a generator, which is read once: give a list"):
        stitched.predict(text for text in pico.texts(3))
    with pytest.raises(StitchError, match="batch_size is 0: expected a whole number, 1 or more"):
        stitched.predict(pico.texts(3), batch_size=0)


@pytest.mark.parametrize(
    ("latents", "came"),
    [
        (torch.ones(2, 17), r"torch.float32 of shape \(2, 17\)"),
        (np.ones((2, 16)), "a ndarray"),
        (torch.tensor(1.0), r"torch.float32 of shape \(\)"),
        (torch.ones(16), r"torch.float32 of shape \(16,\)"),
        (torch.ones(2, 3, 16), r"torch.float32 of shape \(2, 3, 16\)"),
        (torch.ones(2, 16).long(), r"torch.int64 of shape \(2, 16\)"),
    ],
)
def test_refuses_latents_of_another_width_or_kind(stitched: RelativeStitcher, latents: Any, came: str) -> None:
    for apply in (stitched.translate, stitched.classify):
        with pytest.raises(StitchError, match=rf"the latents are {came}: expected a tensor \(n, 16\) of floats of"):
            apply(latents)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_stored_latents_of_another_dtype_are_classified(stitched: RelativeStitcher, dtype: torch.dtype) -> None:
    latents = torch.randn(4, 16)
    torch.testing.assert_close(stitched.classify(latents.to(dtype)), stitched.classify(latents), rtol=2e-2, atol=2e-2)


def test_predictions_know_no_dropout(source_folder: str, target_folder: str) -> None:
    model = RelativeStitcher.from_parts(source_folder, target_folder, pico.texts(60), progress=False)
    expected = model.predict(pico.texts(5))
    assert torch.equal(model.train().predict(pico.texts(5)), expected)


@pytest.mark.parametrize("settings", [{}, {"gamma": 1.0, "alpha": 1.0}])
@pytest.mark.parametrize(
    ("latents", "came"),
    [
        (np.ones((2, 16), np.float32), "a ndarray"),
        (torch.ones(16), "of shape \\(16,\\)"),
        (torch.ones(2, 16, dtype=torch.int64), "torch.int64"),
        (torch.ones(2, 15), "of shape \\(2, 15\\)"),
    ],
)
def test_a_translation_alone_refuses_other_latents(
    unchecked: None, settings: dict[str, float], latents: Any, came: str
) -> None:
    anchors = torch.randn(60, 16), torch.randn(60, 16)
    with pytest.raises(StitchError, match=f"{came}.*: expected a tensor \\(n, 16\\) of floats"):
        fit(*anchors, settings=TranslationSettings(**settings))(latents)
