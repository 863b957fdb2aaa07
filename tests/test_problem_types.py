"""Single-label, multi-label and regression heads: losses and pipelines are transformers' own."""

from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, pipeline

from hf_relstitch import Encoder, Head, RelativeStitcher, StitchError, load_classifier
from hf_relstitch.cli.predict import classifier

MULTI = "multi_label_classification"
CASES = {
    "single": (3, "single_label_classification", torch.tensor([0, 2, 1, 1])),
    "multi": (3, MULTI, torch.tensor([[0.0, 1, 1]] * 4)),
    "regression": (1, "regression", torch.tensor([0.5, -1.0, 2.0, 0.1])),
    "regression of two": (2, "regression", torch.tensor([[0.5, -1.0]] * 4)),
    "single, not said": (3, None, torch.tensor([0, 2, 1, 1])),
    "multi, not said": (3, None, torch.tensor([[0.0, 1, 1]] * 4)),
    "regression, not said": (1, None, torch.tensor([0.5, -1.0, 2.0, 0.1])),
}


class Always(nn.Module):
    """Gives these logits, whatever comes."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.logits


def stitched(source: Encoder, folder: Path, labels: int, problem_type: str | None) -> RelativeStitcher:
    names = {index: f"name {index}" for index in range(labels)}
    place = pico.saved("Roberta", folder, id2label=names, problem_type=problem_type)
    return RelativeStitcher.from_parts(source, place, pico.texts(60), progress=False)


@pytest.mark.parametrize("case", CASES)
def test_loss_is_that_of_a_transformers_model_with_the_same_logits(case: str, source: Encoder, tmp_path: Path) -> None:
    number, problem_type, labels = CASES[case]
    model = stitched(source, tmp_path, number, problem_type)
    batch = model.processor(pico.texts(4, seed=9), padding=True, return_tensors="pt")
    output = model(**batch, labels=labels)
    names = {index: str(index) for index in range(number)}
    own = BertForSequenceClassification(
        BertConfig(**pico.TINY, vocab_size=64, problem_type=problem_type, id2label=names)
    )
    own.classifier = Always(output.logits)
    expected = own(**batch, labels=labels).loss
    assert output.logits.std() > 1e-3
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("number", "problem_type", "function"),
    [
        (3, "single_label_classification", lambda logits: logits.softmax(-1)),
        (3, MULTI, torch.sigmoid),
        (1, "regression", lambda logits: logits),
        (2, "regression", lambda logits: logits),
    ],
)
def test_the_stock_pipeline_makes_of_the_logits_what_the_head_is_for(
    source: Encoder, tmp_path: Path, number: int, problem_type: str, function: Any
) -> None:
    model = stitched(source, tmp_path / "target", number, problem_type)
    model.save_pretrained(tmp_path / "model")
    text = pico.texts(1, seed=9)[0]
    (answers,) = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None)([text])
    with torch.no_grad():
        logits = model(**model.processor(text, return_tensors="pt")).logits[0]
    found = {answer["label"]: answer["score"] for answer in answers}
    expected = {f"name {index}": float(score) for index, score in enumerate(function(logits))}
    assert found == pytest.approx(expected, abs=1e-5)
    assert classifier(str(tmp_path / "model"))(text)[0]["score"] == pytest.approx(max(expected.values()), abs=1e-5)


def test_a_head_of_another_task_says_what_is_supported(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**pico.TINY, vocab_size=64)).save_pretrained(tmp_path)
    pico.tokenizer().save_pretrained(tmp_path)
    message = "is BertForMaskedLM: the target has to be a …ForSequenceClassification.*one row of logits an input"
    with pytest.raises(StitchError, match=message):
        load_classifier(str(tmp_path))


def test_a_setfit_folder_says_that_its_pickle_is_not_read(tmp_path: Path) -> None:
    pico.classifier("Bert").base_model.save_pretrained(tmp_path)
    pico.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model_head.pkl").write_bytes(b"cos\nsystem\n(S'touch here'\ntR.")
    with pytest.raises(StitchError, match=r"SetFit model whose head is a pickle.*head=model\.model_head"):
        load_classifier(str(tmp_path))


def test_a_head_of_many_values_is_chosen_without_its_values(source: Encoder, target: tuple[Encoder, Head]) -> None:
    head = Head(nn.Linear(16, 2), {0: "a", 1: "b"}, "regression")
    model = RelativeStitcher.from_parts(source, target[0], pico.texts(60), head=head, progress=False)
    assert (model.config.selection["criterion"], model.config.logit_temperature) == ("leave-one-out", 1.0)
    assert model.report["agreement"] is None
