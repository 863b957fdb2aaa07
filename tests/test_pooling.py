"""Pooling: hand-worked values, and which one `auto` takes."""

from pathlib import Path

import pico
import pytest
import torch
import transformers
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_relstitch import Encoder, StitchError
from hf_relstitch.encoders.pooling import pool, resolve_pooling
from hf_relstitch.hub.repo import Repo

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]])
RIGHT_PADDED = torch.tensor([[1, 1, 0], [1, 1, 1]])
LEFT_PADDED = torch.tensor([[0, 1, 1], [1, 1, 1]])
OUTPUT = BaseModelOutputWithPooling(last_hidden_state=HIDDEN, pooler_output=torch.tensor([[0.5, 0.5], [0.1, 0.2]]))


@pytest.mark.parametrize(
    ("pooling", "mask", "expected"),
    [
        ("mean", RIGHT_PADDED, [[2.0, 3.0], [7.0, 8.0]]),
        ("mean", LEFT_PADDED, [[51.5, 52.0], [7.0, 8.0]]),
        ("mean", None, [[104 / 3, 106 / 3], [7.0, 8.0]]),
        ("cls", RIGHT_PADDED, [[1.0, 2.0], [5.0, 6.0]]),
        ("cls", LEFT_PADDED, [[3.0, 4.0], [5.0, 6.0]]),
        ("max", RIGHT_PADDED, [[3.0, 4.0], [9.0, 10.0]]),
        ("max", None, [[100.0, 100.0], [9.0, 10.0]]),
        ("weighted_mean", RIGHT_PADDED, [[7 / 3, 10 / 3], [46 / 6, 52 / 6]]),
        ("weighted_mean", LEFT_PADDED, [[203 / 3, 204 / 3], [46 / 6, 52 / 6]]),
        ("weighted_mean", None, [[307 / 6, 310 / 6], [46 / 6, 52 / 6]]),
        ("last", RIGHT_PADDED, [[3.0, 4.0], [9.0, 10.0]]),
        ("last", LEFT_PADDED, [[100.0, 100.0], [9.0, 10.0]]),
        ("last", None, [[100.0, 100.0], [9.0, 10.0]]),
        ("pooler", RIGHT_PADDED, [[0.5, 0.5], [0.1, 0.2]]),
    ],
)
def test_pools(pooling: str, mask: torch.Tensor | None, expected: list[list[float]]) -> None:
    torch.testing.assert_close(pool(OUTPUT, attention_mask=mask, pooling=pooling), torch.tensor(expected))


def test_mean_of_a_feature_map_is_over_its_pixels() -> None:
    maps = torch.arange(16.0).reshape(2, 2, 2, 2)
    output = BaseModelOutputWithPooling(last_hidden_state=maps, pooler_output=maps[:, :, :1, :1])
    assert pool(output, attention_mask=None, pooling="mean").tolist() == [[1.5, 5.5], [9.5, 13.5]]
    assert pool(output, attention_mask=None, pooling="pooler").tolist() == [[0.0, 4.0], [8.0, 12.0]]


@pytest.mark.parametrize(
    ("output", "pooling", "message"),
    [
        (OUTPUT, "none", "'none' takes the output itself.*gave BaseModelOutputWithPooling"),
        (HIDDEN, "none", r"gave a tensor of shape \(2, 3, 2\)"),
        (
            BaseModelOutputWithPooling(last_hidden_state=HIDDEN),
            "pooler",
            "'pooler' takes the model's own pooler_output",
        ),
        (BaseModelOutputWithPooling(last_hidden_state=torch.ones(1, 2, 3, 3)), "last", "'last' takes the last token"),
    ],
)
def test_refuses_output_that_the_pooling_does_not_fit(output: object, pooling: str, message: str) -> None:
    with pytest.raises(StitchError, match=message):
        pool(output, attention_mask=None, pooling=pooling)


@pytest.mark.parametrize(
    ("architecture", "expected"), [("Bert", "mean"), ("GPT2", "last"), ("ViT", "cls"), ("ResNet", "mean")]
)
def test_auto_is_the_usual_choice_of_the_architecture(architecture: str, expected: str) -> None:
    model = pico.classifier(architecture).base_model
    assert resolve_pooling("auto", model=model) == expected


def test_auto_of_a_timm_model_is_its_own_pooling() -> None:
    """By its config alone, since timm is not here."""
    model = torch.nn.Linear(2, 2)
    model.config = transformers.TimmWrapperConfig(architecture="resnet18")
    assert resolve_pooling("auto", model=model) == "pooler"


def test_auto_of_a_plain_module_is_its_output() -> None:
    assert resolve_pooling("auto", model=torch.nn.Linear(2, 2)) == "none"


def test_refuses_an_unknown_pooling(source_folder: str) -> None:
    with pytest.raises(StitchError, match="pooling is 'sum': expected 'auto' or one of mean, cls"):
        Encoder.from_pretrained(source_folder, pooling="sum")


def test_repo_gives_none_for_a_file_that_is_not_there(source_folder: str) -> None:
    repo = Repo(source_folder, None)
    assert repo.file("modules.json") is None
    assert repo.file("config.json") == Path(source_folder, "config.json")
