"""Latents with earlier layers beside them: hand-worked values, batches, stitched models, and what has no layers."""

import json
import re
from pathlib import Path
from typing import Any

import pico
import pytest
import test_two_towers
import tiny_models
import torch
from hub_server import HubServer
from torch import nn
from torch.testing import assert_close
from transformers import AutoModel, pipeline
from transformers.modeling_outputs import BaseModelOutput

from hf_relstitch import AnchorSet, CallableEncoder, Encoder, Head, RelativeStitcher, StitchError
from hf_relstitch.data.inputs import probe_inputs
from hf_relstitch.data.provenance import EARLIER_LAYERS
from hf_relstitch.encoders.pooling import with_earlier
from hf_relstitch.hub.cards import Base
from hf_relstitch.model.exporting import plain_classifier, to_onnx
from hf_relstitch.model.persistence import read_config

TEXTS = pico.texts(7, seed=9)
MASK = torch.tensor([[1, 1, 0]])
LAYERS = tuple(torch.tensor([[[x, y], [x, -y], [100.0, 100.0]]]) for x, y in ((1.0, 2.0), (5.0, 1.0), (-3.0, 0.0)))


@pytest.fixture
def deep_folder(tmp_path: Path) -> str:
    """A tiny BERT of four layers, whose embeddings and second layer come beside its last."""
    return pico.saved("Bert", tmp_path / "deep", seed=3, num_hidden_layers=4)


@pytest.fixture
def deep(deep_folder: str) -> Encoder:
    return Encoder.from_pretrained(deep_folder).with_earlier_layers()


@pytest.fixture
def model(deep_folder: str, target_folder: str) -> RelativeStitcher:
    return RelativeStitcher.from_parts(
        deep_folder, target_folder, pico.texts(80), prefer="accuracy", progress=False, data="salad"
    )


def logits(model: RelativeStitcher, **options: Any) -> torch.Tensor:
    return model(**model.processor(TEXTS, padding=True, return_tensors="pt"), **options).logits


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (LAYERS[:2], [[0.6, 0.8, 1.0, 0.0]]),
        (LAYERS, [[0.6, 0.8, 1.0, 0.0]]),
        ((*LAYERS, LAYERS[0], LAYERS[0]), [[0.6, 0.8, 0.5**0.5, 0.0, -(0.5**0.5), 0.0]]),
        ((torch.zeros(1, 3, 2), LAYERS[0]), [[0.6, 0.8, 0.0, 0.0]]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_unit_latents_and_means_of_every_other_layer(
    layers: tuple[torch.Tensor, ...], expected: list[list[float]], dtype: torch.dtype
) -> None:
    output = BaseModelOutput(hidden_states=tuple(layer.to(dtype) for layer in layers))
    made = with_earlier(torch.tensor([[30.0, 40.0]], dtype=dtype), output, attention_mask=MASK, is_text=True)
    assert_close(made, torch.tensor(expected, dtype=dtype))


def test_layers_of_a_convolutional_network_are_averaged_over_places() -> None:
    maps = torch.tensor([[[[1.0, 3.0]], [[-4.0, 4.0]]]])
    output = BaseModelOutput(hidden_states=(maps, maps))
    assert_close(
        with_earlier(torch.eye(1), output, attention_mask=None, is_text=False), torch.tensor([[1.0, 1.0, 0.0]])
    )


def test_the_encoders_latents_come_first_and_then_its_own_hidden_states(deep: Encoder, deep_folder: str) -> None:
    made = deep.encode(TEXTS, batch_size=3, progress=False)
    plain = Encoder.from_pretrained(deep_folder)
    own = plain.encode(TEXTS, progress=False)
    assert made.shape == (7, 48)
    assert_close(made[:, :16], nn.functional.normalize(own, dim=1), rtol=1e-4, atol=1e-5)
    for row, text in enumerate(TEXTS):
        output = plain.model(**plain.processor([text], return_tensors="pt"), output_hidden_states=True)
        means = [output.hidden_states[layer].mean(1) for layer in (0, 2)]
        assert_close(made[[row], 16:], torch.cat([mean / mean.norm() for mean in means], 1) / 2**0.5)
    assert deep.provenance.difference(plain.provenance) == "pooling is 'mean, earlier layers' and not 'mean'"
    assert deep.with_earlier_layers() is deep
    assert not plain.earlier_layers


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("sequence", "t5"),
        ("sequence", "modernbert"),
        ("sequence", "gpt2"),
        ("image", "swin"),
        ("image", "resnet"),
        ("image", "vit"),
        ("audio", "wav2vec2"),
        ("audio", "hubert"),
    ],
)
def test_a_latent_does_not_depend_on_its_batch(task: str, kind: str) -> None:
    classifier: Any = tiny_models.classifier(task, kind)
    body = getattr(classifier, classifier.base_model_prefix)
    plain = Encoder(body, tiny_models.processor(task, kind))
    encoder = plain.with_earlier_layers()
    inputs = TEXTS if task == "sequence" else probe_inputs(task)
    together = encoder.encode(inputs, progress=False)
    alone = torch.cat([encoder.encode([one], progress=False) for one in inputs])
    assert together.shape[1] > plain.encode(inputs, progress=False).shape[1]
    assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_accuracy_takes_them_and_linear_does_not(
    model: RelativeStitcher, deep: Encoder, deep_folder: str, target_folder: str
) -> None:
    assert model.config.earlier_layers
    assert model.config.d_source == 48
    assert_close(model.anchors.source, deep.encode(pico.texts(80), progress=False), rtol=1e-4, atol=1e-5)
    expected = model.classify(deep.encode(TEXTS, progress=False))
    assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert_close(model.predict(TEXTS), expected, rtol=1e-4, atol=1e-4)
    linear = RelativeStitcher.from_parts(deep_folder, target_folder, pico.texts(80), progress=False)
    assert (linear.config.earlier_layers, linear.config.d_source) == (False, 16)


def test_hidden_states_come_where_they_are_asked_for(model: RelativeStitcher) -> None:
    batch = model.processor(TEXTS, padding=True, return_tensors="pt")
    assert model(**batch).hidden_states is None
    assert len(model(**batch, output_hidden_states=True).hidden_states) == 5
    assert_close(logits(model, output_hidden_states=False), logits(model))
    model.config.source_config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_brings_them_back(deep_folder: str, target_folder: str, tmp_path: Path, dtype: torch.dtype) -> None:
    source = Encoder.from_pretrained(deep_folder, dtype=dtype)
    made = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), prefer="accuracy", progress=False)
    made.save_pretrained(tmp_path / "saved")
    loaded = RelativeStitcher.from_pretrained(tmp_path / "saved")
    assert loaded.config.earlier_layers
    assert torch.equal(logits(loaded), logits(made))
    classify = pipeline("text-classification", model=str(tmp_path / "saved"), top_k=None)
    answers = [one[0]["label"] for one in classify(TEXTS)]
    assert answers == [made.config.id2label[int(row)] for row in logits(made).argmax(1)]


def test_an_adapter_keeps_them(deep_folder: str, target: tuple[Encoder, Head], hub: HubServer) -> None:
    files = [file for file in Path(deep_folder).iterdir() if file.is_file()]
    hub.put_files("alice/deep", {file.name: file.read_bytes() for file in files})
    encoder, head = target
    made = RelativeStitcher.from_parts(
        "alice/deep", encoder, pico.texts(60), head=head, prefer="accuracy", progress=False
    )
    made.push_to_hub("alice/stitched", share="adapter")
    assert torch.equal(logits(RelativeStitcher.from_pretrained("alice/stitched")), logits(made))


def test_layers_after_the_pooling_are_before_them(deep_folder: str, target_folder: str, tmp_path: Path) -> None:
    project = nn.Linear(16, 10)
    source = Encoder(AutoModel.from_pretrained(deep_folder), pico.tokenizer(), after_pooling=project)
    made = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), prefer="accuracy", progress=False)
    assert made.config.d_source == 10 + 2 * 16
    own = nn.functional.normalize(source.encode(pico.texts(60), progress=False), dim=1)
    assert_close(made.anchors.source[:, :10], own, rtol=1e-4, atol=1e-5)
    made.save_pretrained(tmp_path)
    assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path)), logits(made))


def test_anchor_sets_are_paired_with_the_encoder_that_made_them(
    deep: Encoder, deep_folder: str, target: tuple[Encoder, Head]
) -> None:
    wide, own = (AnchorSet.encode(one, pico.texts(60), progress=False) for one in (deep, target[0]))
    made = RelativeStitcher.from_anchor_sets(deep, wide, own, target[1])
    assert made.config.earlier_layers
    assert_close(logits(made), made.classify(deep.encode(TEXTS, progress=False)), rtol=1e-4, atol=1e-4)
    with pytest.raises(StitchError, match="pooling is 'mean, earlier layers' and not 'mean'"):
        RelativeStitcher.from_anchor_sets(deep_folder, wide, own, target[1])
    with pytest.raises(StitchError, match=r"made them, by Encoder.from_pretrained\(…\).with_earlier_layers\(\)"):
        RelativeStitcher.from_anchor_sets(deep_folder, wide, own, target[1])
    alone = RelativeStitcher.from_anchor_sets(None, wide, own, target[1])
    with pytest.raises(StitchError, match="with its earlier layers"):
        alone.classify(torch.randn(2, 16))


def test_the_call_that_is_written_down_says_so(model: RelativeStitcher) -> None:
    assert "source=Encoder.from_pretrained('deep', pooling='mean').with_earlier_layers()" in model.config.call


def test_latents_without_them_are_refused(model: RelativeStitcher) -> None:
    with pytest.raises(StitchError, match=r"\(n, 48\) of floats of the source, deep, with its earlier layers"):
        model.translate(torch.randn(3, 16))


class Bag(nn.Module):
    """A module that takes what its processor makes, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(64, 12)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return (self.words(input_ids) * attention_mask[..., None]).sum(1)


class OpenBag(Bag):
    """One that takes whatever it is told, and does not heed it."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        return super().forward(input_ids, attention_mask)


def test_an_encoder_without_layers_is_stitched_as_it_is(
    target_folder: str, source: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    encoders = {
        "Bag takes no output_hidden_states": Encoder(Bag(), pico.tokenizer(), pooling="none"),
        "gives no hidden states before its last": Encoder(OpenBag(), pico.tokenizer(), pooling="none"),
        "function is a callable": CallableEncoder(source.encode, model_id="function"),
    }
    for message, encoder in encoders.items():
        with pytest.raises(StitchError, match=message):
            encoder.with_earlier_layers().encode(TEXTS, progress=False)
        made = RelativeStitcher.from_parts(encoder, target_folder, pico.texts(60), prefer="accuracy", progress=False)
        assert made.config.earlier_layers is False
        assert made.config.source["pooling"] == "none"
        assert re.search(f"the source is stitched without earlier layers: .*{message}", caplog.text)


@pytest.mark.parametrize("kind", ["sew", "sew-d"])
def test_layers_whose_padding_is_not_known_are_refused(kind: str) -> None:
    classifier: Any = tiny_models.classifier("audio", kind)
    body = getattr(classifier, classifier.base_model_prefix)
    encoder = Encoder(body, tiny_models.processor("audio", kind)).with_earlier_layers()
    with pytest.raises(StitchError, match="which of its rows are padding is not known"):
        encoder.encode(probe_inputs("audio"), progress=False)


def test_what_a_block_sparse_model_pads_is_left_out() -> None:
    classifier: Any = tiny_models.classifier("sequence", "reformer")
    encoder = Encoder(classifier.reformer, pico.tokenizer())
    made = encoder.with_earlier_layers().encode(TEXTS, progress=False)
    for row, text in enumerate(TEXTS):
        batch = encoder.processor([text], return_tensors="pt")
        hidden = encoder.model(**batch, output_hidden_states=True).hidden_states[0]
        own = hidden[:, : batch["input_ids"].shape[1]].mean(1)
        part = made[[row], -own.shape[1] :]
        assert_close(part, part.norm() * own / own.norm(), rtol=1e-3, atol=1e-4)


def test_an_audio_layer_is_not_cut() -> None:
    output = BaseModelOutput(hidden_states=(torch.ones(1, 4, 2), torch.ones(1, 2, 2)))
    with pytest.raises(StitchError, match=r"has shape \(1, 4, 2\) and the attention mask \(1, 2\)"):
        with_earlier(torch.ones(1, 2), output, attention_mask=torch.ones(1, 2), is_text=False)


def test_one_side_of_two_towers_is_taken_without_them(tmp_path: Path) -> None:
    place = test_two_towers.saved("CLIP", tmp_path)
    with pytest.raises(StitchError, match="is one side of two towers: its earlier layers are not taken"):
        Encoder.from_pretrained(place, pooling="text_features").with_earlier_layers()


def test_a_source_that_is_the_target_is_left_as_it_is(source: Encoder) -> None:
    made = RelativeStitcher.from_parts(
        source, source, pico.texts(60), head=nn.Linear(16, 3), prefer="accuracy", progress=False
    )
    assert (made.config.earlier_layers, made.config.d_source) == (False, 16)
    assert any(candidate.get("identity") for candidate in made.config.selection["candidates"])


def test_what_is_no_stitch_of_earlier_layers_is_refused(model: RelativeStitcher, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"earlier_layers": "yes"}, {"earlier_layers": None}, {"pooling": "text_features"}):
        (tmp_path / "config.json").write_text(json.dumps(content | wrong))
        with pytest.raises(StitchError, match=r"the config's earlier_layers is .* expected true or false"):
            read_config(tmp_path)


def test_the_calls_of_other_encoders_say_so_too() -> None:
    pooling = {"mean, normalize": "", "cls": ", pooling='cls'"}
    for given, written in pooling.items():
        base = Base.of({"model_id": "bert", "revision": "x", "pooling": given + EARLIER_LAYERS})
        assert base.call == f"Encoder.from_pretrained('bert'{written}).with_earlier_layers()"


def test_the_anchors_cover_and_describe_inputs_as_ever(model: RelativeStitcher) -> None:
    assert model.check(pico.texts(40, seed=7))["coverage"] > 0.5
    assert model.anchors.source.shape == (80, 48)


def test_no_plain_classifier_does_it(model: RelativeStitcher) -> None:
    with pytest.raises(StitchError, match="are made by mean, earlier layers, which no plain classifier does"):
        plain_classifier(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's own
def test_an_onnx_file_has_them(model: RelativeStitcher, tmp_path: Path) -> None:
    """It is compared with the model's own logits before it is there."""
    assert to_onnx(model, tmp_path / "model.onnx").is_file()


def test_a_model_of_the_second_format_loads_as_it_was(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content.pop("earlier_layers") is False
    (tmp_path / "config.json").write_text(json.dumps(content | {"format_version": 2}))
    assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path)), logits(stitched))
