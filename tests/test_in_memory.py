"""Models in memory as sources and targets: taken as they are, or one clear error."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pico
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_relstitch import AnchorSet, Encoder, Head, RelativeStitcher, StitchError

TEXTS = pico.texts(48)


def stitch(source: Any, target: Any, **options: Any) -> RelativeStitcher:
    return RelativeStitcher.from_parts(source, target, TEXTS, progress=False, **options)


def test_transformers_models_in_memory(source_folder: str, target_folder: str) -> None:
    source = AutoModel.from_pretrained(source_folder)
    target = AutoModelForSequenceClassification.from_pretrained(target_folder)
    expected = stitch(source_folder, target_folder)
    for model in (stitch(source, target), stitch(Path(source_folder), Path(target_folder))):
        torch.testing.assert_close(model.predict(TEXTS), expected.predict(TEXTS), rtol=1e-4, atol=1e-4)
    assert stitch(source, target).config.source["model_id"] == Path(source_folder).name


def test_a_sentence_transformer_in_memory(source_folder: str, target_folder: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    body = SentenceTransformer(source_folder, device="cpu")
    model = stitch(body, target_folder)
    assert model.config.source["model_id"] == Path(source_folder).name
    model.save_pretrained(tmp_path)
    loaded = RelativeStitcher.from_pretrained(tmp_path)
    expected = model.classify(torch.from_numpy(body.encode(TEXTS)))
    torch.testing.assert_close(loaded.predict(TEXTS), expected, rtol=1e-4, atol=1e-4)


def test_a_setfit_model_in_memory(source_folder: str, target_folder: str) -> None:
    if find_spec("setfit") is None:
        assets.missing("setfit", install=assets.INSTALL_PACKAGES)
    from sentence_transformers import SentenceTransformer
    from setfit import SetFitModel

    body = SentenceTransformer(source_folder, device="cpu")
    unit = body.encode(TEXTS, normalize_embeddings=True)
    head = LogisticRegression().fit(unit, np.arange(48) % 3)
    setfit = SetFitModel(model_body=body, model_head=head, labels=["a", "b", "c"], normalize_embeddings=True)
    model = stitch(source_folder, setfit, identity=True)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    given = (model.predict(TEXTS) * model.config.logit_temperature).softmax(-1)
    torch.testing.assert_close(given, setfit.predict_proba(TEXTS).to(given), rtol=1e-4, atol=1e-5)
    assert stitch(source_folder, body, head=setfit).config.id2label[2] == "c"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"source": nn.Linear(2, 2)}, "an encoder is wanted and what came is a Linear"),
        ({"source": 3}, "an encoder is wanted and what came is a int"),
        ({"target": nn.Linear(2, 2)}, "a target is wanted and what came is a Linear"),
        ({"target": pico.classifier("Bert").bert}, "the target is a BertModel: expected a"),
        ({"source": pico.classifier("Bert").bert}, "BertModel does not say where it was loaded"),
        ({"target": pico.classifier("Bert")}, "BertForSequenceClassification does not say where it was loaded"),
    ],
)
def test_what_is_no_model_is_one_short_error(
    parts: dict[str, Any], message: str, source_folder: str, target_folder: str
) -> None:
    with pytest.raises(StitchError, match=message) as raised:
        stitch(**{"source": source_folder, "target": target_folder} | parts)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda source, _: stitch("x" * 5_000, source), "x is no folder here"),
        (lambda source, target: stitch(source, target, num_anchors="many"), "num_anchors is 'many': expected a whole"),
        (lambda source, target: stitch(source, target, batch_size="big"), "batch_size is 'big': expected a whole"),
        (lambda source, target: stitch(source, target, labels={"a", "b", "c"}), "labels is a set: expected a list of"),
        (lambda source, target: stitch(source, target, labels="abc"), "labels is a str: expected a list of names"),
        (lambda source, target: stitch(source, target, labels=3), "labels is a int: expected a list of names"),
        (lambda source, target: stitch(source, target, key=3), "the key is a int: give a secret text, or no key"),
        (lambda *_: AnchorSet.encode("x", TEXTS), "the encoder is a str: expected an Encoder"),
        (lambda *_: AnchorSet.from_pretrained(None), "the place is a NoneType: expected a folder or a Hub id"),
        (lambda *_: Encoder(None, pico.tokenizer()), "the model is a NoneType: expected a transformers model or an nn"),
        (lambda *_: Head(nn.Linear(16, 3), ["a", "b", "c"]), "id2label is a list: expected a mapping"),
    ],
)
def test_arguments_of_another_kind_are_our_own_error(
    use: Any, message: str, source_folder: str, target_folder: str
) -> None:
    with pytest.raises(StitchError, match=message):
        use(source_folder, target_folder)


def test_a_model_without_its_processor_says_what_to_give(target_folder: str, tmp_path: Path) -> None:
    pico.classifier("Bert").bert.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    with pytest.raises(StitchError, match=r"lacks tokenizer.json .* give Encoder\(model, processor\)"):
        stitch(model, target_folder)
    assert stitch(Encoder(model, pico.tokenizer()), target_folder).config.num_labels == 3
