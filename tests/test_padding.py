"""Padding: an input has one latent and one answer, alone or in a batch, here and in a stock pipeline."""

from pathlib import Path

import pico
import pytest
import tiny_models
import torch
from test_audio import sounds
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase, pipeline

from hf_relstitch import Encoder, RelativeStitcher, StitchError, load_classifier

TEXTS = pico.texts(12, seed=11)


def saved(kind: str, folder: Path, *, side: str = "right", pad: str = "<pad>", **config: object) -> str:
    """A tiny classifier of a model type, whose tokenizer pads on this side with this token."""
    model = tiny_models.classifier("sequence", kind)
    for name, value in config.items():
        setattr(model.config, name, value)
    tokenizer = pico.tokenizer()
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = side
    tokenizer.pad_token = pad
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def own_logits(folder: str) -> Tensor:
    """The classifier's own logits, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])


def alone(encoder: Encoder) -> Tensor:
    return torch.cat([encoder.encode([text], progress=False) for text in TEXTS])


CASES = {
    "the config's padding token is another": {"pad_token_id": 3},
    "the config has no padding token": {"pad_token_id": None},
    "padding on the left": {"side": "left"},
    "padding on the left with another token": {"side": "left", "pad": "</s>"},
}
KINDS = ["bert", "gpt2", "llama", "roberta", "xlnet", "t5"]


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (kind, case)
        for kind in KINDS
        for case, given in CASES.items()
        if given.get("pad_token_id", 1) is not None or kind not in ("roberta", "t5")  # these do not run without one
    ],
)
def test_classifiers_are_cut_as_they_answer_one_text(kind: str, case: str, tmp_path: Path) -> None:
    folder = saved(kind, tmp_path, **CASES[case])
    encoder, head = load_classifier(folder)
    own = own_logits(folder)
    torch.testing.assert_close(head.module(encoder.encode(TEXTS, progress=False)), own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.module(alone(encoder)), own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "nystromformer", "convbert"])
def test_stitched_models_answer_alike_in_a_stock_pipeline(kind: str, side: str, tmp_path: Path) -> None:
    source = Encoder.from_pretrained(saved(kind, tmp_path / "source", side=side))
    torch.testing.assert_close(source.encode(TEXTS, progress=False), alone(source), rtol=1e-4, atol=1e-4)
    target = pico.saved("Roberta", tmp_path / "target")
    RelativeStitcher.from_parts(source, target, pico.texts(64), progress=False).save_pretrained(tmp_path / "stitched")
    classify = pipeline("text-classification", model=str(tmp_path / "stitched"), top_k=None)
    together = classify(TEXTS, batch_size=16)
    for answers, single in zip(together, classify(TEXTS, batch_size=1), strict=True):
        assert {each["label"]: each["score"] for each in answers} == pytest.approx(
            {each["label"]: each["score"] for each in single}, abs=1e-4
        )


def test_models_of_sound_answer_alike_in_a_stock_pipeline(tmp_path: Path) -> None:
    tiny_models.classifier("audio", "wav2vec2").save_pretrained(tmp_path / "source")
    extractor = tiny_models.processor("audio", "wav2vec2")
    extractor.return_attention_mask = False
    extractor.save_pretrained(tmp_path / "source")
    folder = str(tmp_path / "source")
    RelativeStitcher.from_parts(folder, folder, sounds(48), progress=False).save_pretrained(tmp_path / "stitched")
    classify = pipeline("audio-classification", model=str(tmp_path / "stitched"), top_k=None)
    inputs = sounds(6, length=5_000)
    for answers, single in zip(classify(inputs, batch_size=6), classify(inputs, batch_size=1), strict=True):
        assert {each["label"]: each["score"] for each in answers} == pytest.approx(
            {each["label"]: each["score"] for each in single}, abs=1e-4
        )


class Mixing(nn.Module):
    """A bag of words that takes the mean of its batch away, as no model of rows should."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(64, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        words = self.words(input_ids).mean(1)
        return words - 0.1 * words.mean(0)


def test_a_model_that_mixes_rows_encodes_one_by_one() -> None:
    encoder = Encoder(Mixing(), pico.tokenizer(), pooling="none")
    assert encoder.batching == "one by one"
    torch.testing.assert_close(encoder.encode(TEXTS, progress=False), alone(encoder))


class Random(Mixing):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return torch.randn(len(input_ids), 8)


def test_a_model_that_gives_other_latents_each_time_is_refused() -> None:
    with pytest.raises(StitchError, match="different outputs each time it reads the same input"):
        Encoder(Random(), pico.tokenizer(), pooling="none")


def test_a_tokenizer_that_agrees_is_left_as_it_is(tmp_path: Path) -> None:
    tokenizer = Encoder.from_pretrained(saved("llama", tmp_path, side="left")).processor
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<pad>")
