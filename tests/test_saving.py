"""What is saved can be loaded: the tensors that are written are those that loading makes of the config."""

from pathlib import Path
from typing import Any

import pico
import pytest
import tiny_models
import torch
import transformers
from torch import nn
from transformers import AutoModelForSequenceClassification, BertModel, PreTrainedModel

from hf_relstitch import Encoder, RelativeStitcher, StitchError, load_classifier

TEXTS = pico.texts(48)


def bert(**changes: Any) -> Any:
    return pico.classifier("Bert", **changes)


def masked_lm() -> PreTrainedModel:
    return transformers.BertForMaskedLM(bert().config).base_model


def t5_encoder() -> PreTrainedModel:
    config = tiny_models.classifier("sequence", "t5").config
    return transformers.T5EncoderModel(config)


def umt5_encoder() -> PreTrainedModel:
    config = tiny_models.classifier("sequence", "umt5").config
    return transformers.UMT5EncoderModel(config)


SOURCES = {
    "no pooler": lambda: BertModel(bert().config, add_pooling_layer=False),
    "base of a masked language model": masked_lm,
    "base of a RoBERTa classifier": lambda: pico.classifier("Roberta").base_model,
    "encoder of T5": t5_encoder,
    "encoder of UMT5": umt5_encoder,
    "base of a DistilBERT classifier": lambda: pico.classifier("DistilBert").base_model,
    "base of a GPT2 language model": lambda: transformers.GPT2LMHeadModel(pico.classifier("GPT2").config).base_model,
}


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_saved_is_loaded(source: str, target_folder: str, tmp_path: Path) -> None:
    encoder = Encoder(SOURCES[source](), pico.tokenizer())
    model = RelativeStitcher.from_parts(encoder, target_folder, TEXTS, progress=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(loaded.predict(TEXTS), model.predict(TEXTS))
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again.predict(TEXTS), model.predict(TEXTS))


class Lora(nn.Module):
    """A layer as PEFT wraps it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class OtherBert(BertModel):
    """A model whose code no config names."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state**2
        return output


def with_lora() -> PreTrainedModel:
    model = bert().bert
    model.encoder.layer[0].attention.self.query = Lora(model.encoder.layer[0].attention.self.query)
    return model


def with_a_wider_layer() -> PreTrainedModel:
    model = bert().bert
    model.encoder.layer[0].intermediate.dense = nn.Linear(16, 40)
    model.encoder.layer[0].output.dense = nn.Linear(40, 16)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_lora, r"merge its adapter into it first, by model.merge_and_unload\(\)"),
        (with_a_wider_layer, r"intermediate.dense.bias of shape \(40,\) where loading makes \(32,\), and 2 other"),
        (lambda: OtherBert(bert().config), "source encoder is a OtherBert, and loading would make a BertModel"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(make: Any, message: str, target_folder: str, tmp_path: Path) -> None:
    model = RelativeStitcher.from_parts(Encoder(make(), pico.tokenizer()), target_folder, TEXTS, progress=False)
    with pytest.raises(StitchError, match=f"could not be loaded again, so it is not saved: .*{message}"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_arguments_by_which_nothing_could_be_loaded_are_refused(stitched: RelativeStitcher, tmp_path: Path) -> None:
    with pytest.raises(StitchError, match=r"variant is 'fp16', and stitched models have none: use another dtype"):
        stitched.save_pretrained(tmp_path / "saved", variant="fp16")
    part = {name: tensor for name, tensor in stitched.state_dict().items() if name.startswith("head.")}
    with pytest.raises(StitchError, match=r"it has anchors\.ids of shape none where loading makes"):
        stitched.save_pretrained(tmp_path / "saved", state_dict=part)
    assert not (tmp_path / "saved").exists()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # inside peft
def test_an_adapter_is_merged_into_a_source_and_told_of_a_target(target_folder: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = pico.saved("Bert", tmp_path / "base")
    adapted = peft.get_peft_model(
        transformers.AutoModel.from_pretrained(base),
        peft.LoraConfig(target_modules=["query"], r=2, init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "lora")
    pico.tokenizer().save_pretrained(tmp_path / "lora")
    encoder = Encoder.from_pretrained(str(tmp_path / "lora"))
    own = Encoder(adapted.merge_and_unload(), pico.tokenizer()).encode(TEXTS, progress=False)
    torch.testing.assert_close(encoder.encode(TEXTS, progress=False), own)
    model = RelativeStitcher.from_parts(encoder, target_folder, TEXTS, progress=False)
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded.predict(TEXTS), model.predict(TEXTS))
    target = str(tmp_path / "lora")
    for load in (load_classifier, lambda target: RelativeStitcher.from_parts(base, target, TEXTS, progress=False)):
        with pytest.raises(StitchError, match=r"^lora holds an adapter of PEFT .* merge it into its classifier first"):
            load(target)
