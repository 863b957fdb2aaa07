"""Training a stitched model with transformers' Trainer: what trains, and a card that tells the truth afterwards."""

from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_relstitch import RelativeStitcher, StitchError

TEXTS = pico.texts(32)


def train(model: RelativeStitcher, folder: Path, **options: Any) -> None:
    """Two steps of training, and the save of the Trainer."""
    tokens = model.processor(TEXTS, padding=True, return_tensors="pt")
    columns = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    rows = [{name: tensor[row] for name, tensor in columns.items()} | {"labels": row % 3} for row in range(32)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        **options,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model()


def trainable(model: RelativeStitcher) -> set[str]:
    return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_same_trains_after_stitching_and_after_loading(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path)
    assert trainable(stitched) == trainable(RelativeStitcher.from_pretrained(tmp_path)) == {"head"}


@pytest.mark.parametrize("loaded", [False, True])
def test_the_card_says_that_the_head_was_trained(loaded: bool, stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path / "before")
    assert "Neither model was trained, and no label was seen" in (tmp_path / "before" / "README.md").read_text()
    model = RelativeStitcher.from_pretrained(tmp_path / "before") if loaded else stitched
    train(model, tmp_path / "after")
    card = (tmp_path / "after" / "README.md").read_text()
    assert "Neither model was trained" not in card
    assert "Verdict" not in card
    assert "Its head was trained further after that." in card
    assert "it was measured before the head was trained further" in card
    again = RelativeStitcher.from_pretrained(tmp_path / "after")
    assert again.config.trained == ["head"]
    assert "verdict" not in again.report
    torch.testing.assert_close(again.predict(TEXTS), model.predict(TEXTS))
    assert len(again.relative(TEXTS).values) == 32
    again.save_pretrained(tmp_path / "again")
    assert "Its head was trained further after that." in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # its name until transformers 6
def test_anchors_of_an_encoder_that_was_trained_are_not_used(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.encoder.requires_grad_(True)
    assert len(stitched.relative(TEXTS).values) == 32
    train(stitched, tmp_path, gradient_checkpointing=True)
    assert "Its encoder and head were trained further after that." in (tmp_path / "README.md").read_text()
    for model in (stitched, RelativeStitcher.from_pretrained(tmp_path)):
        for use in (model.relative, model.check):
            with pytest.raises(
                StitchError, match="the source encoder was trained further, and the anchors are latents"
            ):
                use(TEXTS)


def test_weights_that_were_changed_by_hand_are_another_encoder(stitched: RelativeStitcher) -> None:
    with torch.no_grad():
        next(stitched.encoder.parameters()).mul_(2)
    with pytest.raises(StitchError, match="the source encoder was trained further"):
        stitched.check(TEXTS)


def test_half_precision_is_no_training(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.half().save_pretrained(tmp_path)
    assert "Neither model was trained, and no label was seen" in (tmp_path / "README.md").read_text()


def test_arguments_that_cannot_be_meant_are_one_clear_line(stitched: RelativeStitcher, tmp_path: Path) -> None:
    assert stitched.get_input_embeddings() is stitched.encoder.get_input_embeddings()
    with pytest.raises(StitchError, match=r"call model.push_to_hub\(repo_id\)"):
        stitched.save_pretrained(tmp_path, push_to_hub=True)
    stitched.save_pretrained(tmp_path)
    with pytest.raises(StitchError, match="5 classes are asked for and the head of the stitched model has 3"):
        RelativeStitcher.from_pretrained(tmp_path, num_labels=5)
    with pytest.raises(StitchError, match="has no variants of its weights"):
        RelativeStitcher.from_pretrained(tmp_path, variant="fp16")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # inside peft
def test_peft_trains_an_adapter_with_the_head(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    config = LoraConfig(target_modules=["query", "value"], modules_to_save=["head"], task_type="SEQ_CLS")
    adapted = get_peft_model(model, config)
    batch = model.processor(pico.texts(8), padding=True, return_tensors="pt")
    before = adapted(**batch).logits.detach()
    optimizer = torch.optim.SGD([weight for weight in adapted.parameters() if weight.requires_grad], lr=1.0)
    for _ in range(3):
        adapted(**batch, labels=torch.arange(8) % 3).loss.backward()
        optimizer.step()
    after = adapted.eval()(**batch).logits.detach()
    assert (after - before).abs().max() > 0.01
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**batch).logits, after)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(**batch).logits, after)
    assert merged.config.trained == ["encoder", "head"]
    assert "verdict" not in merged.report
