"""Heads: the one general cut, its proof, and what cannot be cut."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pico
import pytest
import torch
from torch import nn

from hf_relstitch import Encoder, Head, RelativeStitcher, StitchError, load_classifier, split_classifier
from hf_relstitch.encoders.processors import preprocess
from hf_relstitch.heads.cutting import _select_row

LAYERS = {
    "Bert": "classifier, pooled",
    "Roberta": "classifier.out_proj, pooled",
    "DistilBert": "classifier, pooled",
    "Electra": "classifier.out_proj, pooled",
    "MPNet": "classifier.out_proj, pooled",
    "GPT2": "score, last",
    "ViT": "classifier, pooled",
    "ResNet": "classifier.1, pooled",
}


def inputs(architecture: str) -> list[object]:
    if architecture in pico.TEXT:
        return pico.texts(9, seed=5)
    from PIL import Image

    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (9, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(image.numpy()) for image in pixels]


@pytest.mark.parametrize("architecture", LAYERS)
def test_head_of_latents_is_the_models_own_logits(architecture: str, tmp_path: Path) -> None:
    place = pico.saved(architecture, tmp_path)
    encoder, head = load_classifier(place)
    latents = encoder.encode(inputs(architecture), batch_size=4, progress=False)
    model = pico.classifier(architecture)
    batch = preprocess(model, pico.processor(architecture), inputs(architecture))
    with torch.no_grad():
        own = model(**batch).logits
        torch.testing.assert_close(head.module(latents), own, rtol=1e-5, atol=1e-5)
    assert own.std(0).min() > 1e-3, "logits that hardly differ would prove nothing"
    assert encoder.provenance.describe() == f"input of {LAYERS[architecture]}"
    assert head.provenance == encoder.provenance
    assert head.id2label == pico.LABELS


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_token_is_found_on_either_padding_side(tmp_path: Path, side: str) -> None:
    tokenizer = pico.tokenizer()
    tokenizer.padding_side = side
    model = pico.classifier("GPT2")
    encoder, head = split_classifier(model, tokenizer)
    batch = preprocess(model, tokenizer, pico.texts(5))
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        torch.testing.assert_close(head.module(encoder.latents(batch)), model(**batch).logits)


def test_a_decoder_without_padding_token_pads_with_one_that_no_text_ends_in(tmp_path: Path) -> None:
    pico.classifier("GPT2", pad_token_id=None).save_pretrained(tmp_path)
    tokenizer = pico.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    encoder, head = load_classifier(str(tmp_path))
    assert encoder.processor.pad_token not in (None, "</s>")
    assert head.module.in_features == 16


class TwoBranches(nn.Module):
    """A head of two linear layers, whose logits are their sum times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.first, self.second = nn.Linear(16, 3), nn.Linear(16, 3, bias=False)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.factor * (self.first(latents) + self.second(latents.tanh()))


def test_the_mean_of_two_layers_is_one_head_of_both_their_inputs() -> None:
    model = pico.classifier("Bert")
    model.classifier = TwoBranches(1 / 2)
    encoder, head = split_classifier(model, pico.tokenizer())
    batch = preprocess(model, pico.tokenizer(), pico.texts(5))
    assert head.module.in_features == 32
    assert encoder.provenance.describe() == "input of classifier.first and classifier.second, pooled"
    with torch.no_grad():
        torch.testing.assert_close(head.module(encoder.latents(batch)), model(**batch).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_classifier_of_two_heads_is_cut_at_both_in_any_precision(dtype: torch.dtype) -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    config = DeiTConfig(**pico.IMAGE["ViT"], id2label=pico.LABELS)
    model = grown(DeiTForImageClassificationWithTeacher(config)).to(dtype)
    encoder, head = split_classifier(model, pico.image_processor())
    assert encoder.provenance.describe() == "input of cls_classifier and distillation_classifier, pooled"
    batch = preprocess(model, pico.image_processor(), inputs("ViT"))
    with torch.no_grad():
        own = model(**batch).logits
        exact = 4 * torch.finfo(dtype).eps * float(own.abs().max())
        torch.testing.assert_close(head.module(encoder.latents(batch)), own, rtol=0, atol=exact)


def grown(model: nn.Module) -> nn.Module:
    """Weights that are large enough for half precision to round what comes of them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.normal_(std=3.0 if "classifier" in name else 0.3)
    return model.eval()


def test_threads_that_share_a_cut_classifier_get_their_own_latents() -> None:
    """One runs through the model while another is halfway: what it takes is not the other's."""
    encoder, _ = split_classifier(pico.classifier("Roberta"), pico.tokenizer())
    texts = pico.texts(2)
    batches = [preprocess(encoder.model, encoder.processor, [text]) for text in texts]
    alone = [encoder.latents(batch) for batch in batches]
    assert (alone[0] - alone[1]).abs().max() > 0.01
    model = encoder.model.model
    others = []

    def run_the_other(*_: object) -> None:
        meanwhile.remove()
        with ThreadPoolExecutor(1) as thread:
            others.append(thread.submit(encoder.latents, batches[1]).result())

    meanwhile = model.classifier.register_forward_hook(run_the_other)
    assert torch.equal(encoder.latents(batches[0]), alone[0])
    assert torch.equal(others[0], alone[1])


def test_a_cut_classifier_may_hold_another() -> None:
    (encoder, _), (inner, _) = (
        split_classifier(pico.classifier("Bert", seed=seed), pico.tokenizer()) for seed in (0, 1)
    )
    batch = preprocess(encoder.model, encoder.processor, pico.texts(2))
    alone = encoder.latents(batch)

    def run_the_inner(*_: object) -> None:
        inner.latents(batch)

    encoder.model.model.bert.register_forward_hook(run_the_inner)
    assert torch.equal(encoder.latents(batch), alone)


DEVICE_MAPS = [{"roberta": "disk", "classifier": "cpu"}, {"roberta": "cpu", "classifier": "disk"}]


@pytest.mark.parametrize("device_map", DEVICE_MAPS)
def test_an_offloaded_classifier_is_cut_as_one_that_is_not(
    device_map: dict[str, str], target_folder: str, source: Encoder, target: tuple[Encoder, Head], tmp_path: Path
) -> None:
    encoder, head = load_classifier(target_folder, device_map=device_map, offload_folder=str(tmp_path))
    assert any(one.is_meta for one in encoder.model.parameters())
    assert encoder.model.hf_device_map == {f"model.{name}": place for name, place in device_map.items()}
    latents = encoder.encode(pico.texts(5), progress=False)
    assert torch.equal(latents, target[0].encode(pico.texts(5), progress=False))
    assert torch.equal(head.module(latents), target[1].module(latents))
    model = RelativeStitcher.from_parts(source, encoder, pico.texts(60), head=head, progress=False)
    plain = RelativeStitcher.from_parts(source, target[0], pico.texts(60), head=target[1], progress=False)
    assert torch.equal(model.predict(pico.texts(5)), plain.predict(pico.texts(5)))


def test_an_offloaded_classifier_is_cut_earlier(target_folder: str, tmp_path: Path) -> None:
    options = {"device_map": {"roberta": "cpu", "classifier": "disk"}, "offload_folder": str(tmp_path)}
    (_, expected), (_, head) = (load_classifier(target_folder, cut="classifier.dense", **one) for one in ({}, options))
    latents = torch.randn(5, 16)
    assert torch.equal(head.module(latents), expected.module(latents))


def test_the_heads_of_an_offloaded_classifier_are_copied_from_where_they_are(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    model = pico.classifier("Bert")
    model.classifier = TwoBranches(1 / 2).requires_grad_(False)
    expected = split_classifier(model, pico.tokenizer())[1].module
    cpu_offload(model.classifier)
    assert model.classifier.first.weight.is_meta
    latents = torch.randn(5, 32)
    assert torch.equal(split_classifier(model, pico.tokenizer())[1].module(latents), expected(latents))
    chain = Head.from_module(nn.Sequential(model.classifier.first, nn.Tanh(), nn.Linear(3, 3)))
    assert not any(one.is_meta for one in chain.module.parameters())


@pytest.mark.parametrize("rows", ["last", "next", "mean"])
def test_rows_are_taken_on_the_device_that_they_are_on(rows: str) -> None:
    """Where a model is spread over devices its inputs are on the first and its last layer is not."""
    batch = {"input_ids": torch.ones(3, 5, dtype=torch.int64), "attention_mask": torch.ones(3, 5)}
    assert _select_row(rows, torch.empty(3, 5, 4, device="meta"), batch, 0).shape == (3, 4)


def test_refuses_a_layer_that_is_not_the_whole_head() -> None:
    model = pico.classifier("Bert")
    model.classifier = TwoBranches(1)
    with pytest.raises(StitchError, match=r"classifier\.second gives logits that differ from the model's own.*by hand"):
        split_classifier(model, pico.tokenizer())


def test_refuses_a_model_that_takes_more_than_its_processor_makes() -> None:
    model = pico.classifier("ViT")
    with pytest.raises(
        StitchError, match="ViTForImageClassification does not run on input_ids and attention_mask alone"
    ):
        split_classifier(model, pico.tokenizer())


def test_refuses_a_head_that_does_not_end_in_a_linear_layer() -> None:
    model = pico.classifier("Bert")
    model.classifier = nn.Sequential(nn.Linear(16, 3), nn.Tanh())
    with pytest.raises(StitchError, match=r"BertForSequenceClassification ends in classifier\.1, a Tanh"):
        split_classifier(model, pico.tokenizer())


def test_refuses_a_target_that_is_no_classifier(tmp_path: Path) -> None:
    pico.classifier("Bert").base_model.save_pretrained(tmp_path)
    pico.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        StitchError, match=r"is BertModel: the target has to be a …ForSequenceClassification, …ForImage"
    ):
        load_classifier(str(tmp_path))


def test_refuses_a_target_whose_head_was_never_trained(tmp_path: Path) -> None:
    model = pico.classifier("Bert")
    del model.classifier
    model.save_pretrained(tmp_path)
    pico.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(StitchError, match=r"lacks trained weights for classifier\.bias, classifier\.weight"):
        load_classifier(str(tmp_path))


def test_a_bare_layer_gets_its_labels() -> None:
    layer = nn.Linear(4, 2)
    assert Head.from_module(layer).id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert Head.from_module(layer, labels=["no", "yes"]).id2label == {0: "no", 1: "yes"}


def test_classes_with_numbers_for_names_are_named_by_them(tmp_path: Path) -> None:
    place = pico.saved("Bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"0": 7, "1": 8, "2": 9}}))
    assert load_classifier(place)[1].id2label == {0: "7", 1: "8", 2: "9"}


def test_refuses_a_head_of_another_kind_or_with_names_that_are_no_texts() -> None:
    with pytest.raises(StitchError, match="problem_type is 'ranking': expected one of single_label_classification, "):
        Head(nn.Linear(4, 2), {0: "a", 1: "b"}, "ranking")
    with pytest.raises(StitchError, match="a class is named 7, a int: give names as texts"):
        Head(nn.Linear(4, 2), {0: "a", 1: 7})  # type: ignore[dict-item]


def test_labels_replace_those_of_a_cut_head(target: tuple[Encoder, Head]) -> None:
    renamed = Head.from_module(target[1], labels=["a", "b", "c"])
    assert renamed.id2label == {0: "a", 1: "b", 2: "c"}
    assert renamed.provenance == target[1].provenance


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        (nn.Linear(4, 2), ["one"], "1 different labels for a head of 2 classes"),
        ("a head", None, "the head is a str: expected a Head, an nn.Linear or an nn.Sequential"),
    ],
)
def test_refuses_what_is_no_named_head(head: object, labels: list[str] | None, message: str) -> None:
    with pytest.raises(StitchError, match=message):
        Head.from_module(head, labels=labels)
