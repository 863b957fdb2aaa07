"""Real image encoders on real pixels: EfficientNet-lite0 stitched to a head of lite2's, from images to predictions."""

from pathlib import Path

import assets
import efficientnet_lite
import pytest
import torch
from torch import nn
from torch.nn import functional
from trained import trained_head
from transformers import pipeline

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError
from hf_relstitch.data.ids import input_ids

pytestmark = pytest.mark.slow

ANCHORS, TRAIN, TEST = 150, 200, 80


@pytest.fixture(scope="module")
def source() -> Encoder:
    """lite0 as a transformers model, which can be saved."""
    efficientnet_lite.register()
    return Encoder(efficientnet_lite.lite_model(0), efficientnet_lite.lite_processor(0), model_id="efficientnet-lite0")


@pytest.fixture(scope="module")
def target() -> Encoder:
    """lite2 as a plain torch module."""
    return Encoder(efficientnet_lite.lite_module(2), efficientnet_lite.lite_processor(2), model_id="efficientnet-lite2")


def test_lite0_takes_over_from_lite2(source: Encoder, target: Encoder, tmp_path: Path) -> None:
    images, classes = assets.digits()
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    train, test = rows[:TRAIN], rows[TRAIN : TRAIN + TEST]
    train_latents = target.encode([images[row] for row in train], progress=False)
    head = trained_head(train_latents, [classes[row] for row in train])

    anchors = [images[row] for row in train[:ANCHORS]]
    source_anchors = AnchorSet.encode(source, anchors, data="digits", progress=False)
    target_anchors = AnchorSet(train_latents[:ANCHORS], input_ids(anchors), target.provenance)
    model = RelativeStitcher.from_anchor_sets(
        source, source_anchors, target_anchors, head, labels=[str(digit) for digit in range(10)]
    )
    model.save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path))
    answers = classify([images[row] for row in test], top_k=1, batch_size=20)
    truth = torch.tensor([classes[row] for row in test])
    stitched = (torch.tensor([int(answer[0]["label"]) for answer in answers]) == truth).double().mean()
    own = (head(target.encode([images[row] for row in test], progress=False)).argmax(1) == truth).double().mean()
    absolute = (head(source.encode([images[row] for row in test], progress=False)).argmax(1) == truth).double().mean()

    print(f"lite0 → lite2: own {own:.3f}, absolute {absolute:.3f}, stitched {stitched:.3f}, {model.report}")
    assert stitched >= 0.85 * own
    assert absolute < 0.25


def test_plain_module_and_transformers_model_are_one_space(source: Encoder) -> None:
    images, _ = assets.digits()
    plain = Encoder(efficientnet_lite.lite_module(0), efficientnet_lite.lite_processor(0))
    torch.testing.assert_close(plain.encode(images[:8], progress=False), source.encode(images[:8], progress=False))


def test_plain_module_as_source_works_in_memory_only(source: Encoder, target: Encoder, tmp_path: Path) -> None:
    images, _ = assets.digits()
    anchors = AnchorSet.encode(target, images[:32], progress=False)
    model = RelativeStitcher.from_anchor_sets(target, anchors, anchors, nn.Linear(1280, 10))
    batch = target.processor(images=images[:4], return_tensors="pt")
    translated = model.translate(target.latents(batch))
    assert functional.cosine_similarity(translated, target.latents(batch)).min() > 0.9
    with pytest.raises(StitchError, match="EfficientNetLite, whose architecture cannot be stored"):
        model.save_pretrained(tmp_path)
