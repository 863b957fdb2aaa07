"""Across modalities on real encoders: pictures of emoji to a head of their names, and names to a head of pictures."""

from pathlib import Path
from typing import Any

import assets
import efficientnet_lite
import pytest
import torch
from trained import trained_head
from transformers import pipeline

from hf_relstitch import Encoder, RelativeStitcher

pytestmark = pytest.mark.slow

ANCHORS, TEST, SIZE = 500, 400, 112


def texts_encoder() -> Encoder:
    return Encoder.from_pretrained(str(assets.minilm()))


def images_encoder() -> Encoder:
    """lite0 as a transformers model, on 112 × 112 pixels, nearer to the 64 × 64 of an emoji than its own 224."""
    efficientnet_lite.register()
    processor = efficientnet_lite.lite_processor(0)
    processor.size = {"height": SIZE, "width": SIZE}
    return Encoder(efficientnet_lite.lite_model(0), processor, model_id="efficientnet-lite0")


@pytest.mark.parametrize(("modality", "least"), [("image", 0.70), ("text", 0.78)])
def test_the_other_modality_takes_over(modality: str, least: float, tmp_path: Path) -> None:
    """The head has seen all rows but the tested ones; anchors are some of these."""
    images, texts, groups = assets.emoji()
    sides: dict[str, list[Any]] = {"image": images, "text": texts}
    encoders = {"image": images_encoder, "text": texts_encoder}
    other = "text" if modality == "image" else "image"
    rows = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0)).tolist()
    train, test = rows[:-TEST], rows[-TEST:]
    target, truth = encoders[other](), torch.tensor([groups[row] for row in test])
    latents = target.encode([sides[other][row] for row in train], progress=False)
    head = trained_head(latents, [groups[row] for row in train])
    own = head(target.encode([sides[other][row] for row in test], progress=False)).argmax(1)

    pairs = [(sides[modality][row], sides[other][row]) for row in train[:ANCHORS]]
    names = [f"group {index}" for index in range(9)]
    made = RelativeStitcher.from_parts(
        encoders[modality](), target, pairs, head=head, labels=names, prefer="auto", progress=False
    )
    made.save_pretrained(tmp_path)
    classify = pipeline(f"{modality}-classification", model=str(tmp_path))
    answers = classify([sides[modality][row] for row in test], top_k=1, batch_size=20)
    stitched = torch.tensor([names.index(answer[0]["label"]) for answer in answers])
    share = float((stitched == truth).double().mean())
    print(f"{modality} → {other} head: own {(own == truth).double().mean():.3f}, stitched {share:.3f}, {made.report}")
    assert share >= least
