"""The whole way on one page: two networks that never met, stitched, measured, saved, loaded and looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import LogRecord
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.utils import logging

from hf_relstitch.cli.predict import classifier
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.core.translation import TranslationSettings, fit_translation
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.heads.head import Head
from hf_relstitch.heads.loading import load_classifier
from hf_relstitch.hub.files import check_output
from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher

PANELS = {
    "Target space": "target encoder, its own head",
    "Before: source encoder, zero-padded": "source encoder, zero-padded (absolute)",
    "After: source encoder, stitched": "source encoder, stitched",
}
PAPER = TranslationSettings(alpha=0.0, ridge=0.0, norm="mean")


@dataclass(frozen=True)
class Data:
    """Hold inputs and labels to train on and to test on, and anchors, which have no labels."""

    train: list[Any]
    train_labels: list[int]
    anchors: list[Any]
    test: list[Any]
    test_labels: list[int]


def _digits(num_anchors: int, *, seed: int) -> Data:
    """scikit-learn's 1,797 handwritten digits as 8 × 8 images: anchors, 500 to test on, and the rest to train on."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(seed)).tolist()
    images = [Image.fromarray((bunch.images[row] * (255 / 16)).astype("uint8")).convert("RGB") for row in order]
    labels = [int(bunch.target[row]) for row in order]
    first, last = num_anchors, len(images) - 500
    return Data(images[first:last], labels[first:last], images[:first], images[last:], labels[last:])


def _train_networks(data: Data, folder: Path, *, seed: int, console: Console) -> tuple[str, str]:
    """Train a small ViT and a small ResNet, each from its own seed, and save them as transformers classifiers."""
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    pixels = processor(images=data.train, return_tensors="pt")["pixel_values"]
    names = {index: str(index) for index in range(10)}
    torch.manual_seed(seed)
    vit = ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            id2label=names,
        )
    )
    torch.manual_seed(seed + 1000)
    resnet = ResNetForImageClassification(
        ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 96], depths=[1, 1, 1], layer_type="basic", id2label=names)
    )
    for name, network, epochs in (("vit", vit, 30), ("resnet", resnet, 15)):
        console.print(f"Training a small {name} on {len(data.train):,} digits, {epochs} epochs …")
        train(network, pixels, torch.tensor(data.train_labels), epochs=epochs)
        network.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return str(folder / "vit"), str(folder / "resnet")


def train(network: PreTrainedModel, pixels: Tensor, labels: Tensor, *, epochs: int, batch_size: int = 64) -> None:
    """Fit a classifier in place, with AdamW and a one-cycle learning rate."""
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(pixels)).split(batch_size)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=len(batches))
    network.train()
    for rows in logging.tqdm(batches, desc="training", unit="step", leave=False):
        optimiser.zero_grad()
        functional.cross_entropy(network(pixel_values=pixels[rows]).logits, labels[rows]).backward()
        optimiser.step()
        schedule.step()
    network.eval()


def _ways_to_target(stitched: RelativeStitcher, source: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Latents `(n, d_target)` of the same inputs: the target's own, and the source's made to fit in three ways."""
    width = target.shape[1]
    padded = functional.pad(source, (0, max(0, width - source.shape[1])))[:, :width]
    paper = fit_translation(stitched.anchors.source, stitched.anchors.target, settings=PAPER).to(source.device)
    return {
        "target encoder, its own head": target,
        "source encoder, zero-padded (absolute)": padded,
        "source encoder, the paper's inversion": paper(source),
        "source encoder, stitched": stitched.translate(source.to(stitched.device)).cpu(),
    }


@torch.no_grad()
def predict(head: Head, latents: Tensor) -> Tensor:
    """Return the class of the largest logit for each latent."""
    return apply_head(head.module, latents).argmax(1).cpu()


def accuracy(head: Head, latents: Tensor, labels: Tensor) -> float:
    """Return the share of latents that the head classifies as labelled."""
    return float((predict(head, latents) == labels).double().mean())


@contextmanager
def _without_load_reports() -> Iterator[None]:
    """Keep back transformers' reports on weights that a model lacks or leaves aside, as an encoder does the head's."""
    logger = logging.get_logger("transformers.modeling_utils")

    def is_other(record: LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@_without_load_reports()
def quickstart(out: Path, *, seed: int = 0, num_anchors: int = 300, quiet: bool = False) -> dict[str, float]:
    """Train two networks on handwritten digits, stitch, measure, save, load and draw; return the accuracies.

    It needs no network.

    Raises:
        StitchError: scikit-learn or matplotlib is not installed, or `out` cannot be written.
    """
    _require_extra()
    check_output(out)
    from hf_relstitch.model.plots import draw_stitching

    console = Console(quiet=quiet)
    inputs = _digits(num_anchors, seed=seed)
    source, target = _train_networks(inputs, out, seed=seed, console=console)
    console.print(
        f"Stitching through {len(inputs.anchors)} anchors: one closed-form translation, no labels, no training …"
    )
    encoder, (target_encoder, head) = Encoder.from_pretrained(source), load_classifier(target)
    stitched = RelativeStitcher.from_parts(
        encoder, target_encoder, inputs.anchors, head=head, data="handwritten digits"
    )
    console.print(f"Measuring on {len(inputs.test)} test inputs …")
    spaces = _ways_to_target(stitched, encoder.encode(inputs.test), target_encoder.encode(inputs.test))
    labels = torch.tensor(inputs.test_labels)
    source_encoder, own_head = load_classifier(source)
    own = accuracy(own_head, source_encoder.encode(inputs.test), labels)
    accuracies = {"source encoder, a head of its own": own}
    accuracies |= {way: accuracy(head, latents, labels) for way, latents in spaces.items()}
    console.print(table(accuracies))
    console.print(
        f"Expected from held-out anchors: {stitched.report['agreement']:.1%} of the head's answers stay the same."
    )

    folder = out / "stitched"
    stitched.save_pretrained(folder)
    classify = classifier(str(folder))
    answer = classify(inputs.test[0])[0]
    console.print(
        f"Saved to {folder} and loaded back through pipeline({classify.task!r}): the first test input is "
        f"{answer['label']} ({answer['score']:.0%}); its label is {head.id2label[inputs.test_labels[0]]}."
    )
    picture = out / "quickstart.png"
    shown = dict(zip(PANELS, (spaces[way] for way in PANELS.values()), strict=True))
    draw_stitching(
        shown,
        labels=labels,
        predictions=predict(head, shown["After: source encoder, stitched"]),
        names=list(head.id2label.values()),
        file=picture,
    )
    console.print(f"Both spaces before and after, and the confusion matrix: {picture}")
    return accuracies


def _require_extra() -> None:
    """Say how to install what only the quickstart needs.

    Raises:
        StitchError: scikit-learn or matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise StitchError(f"the quickstart needs {error.name}: pip install 'hf-relstitch[quickstart]'") from error


def table(accuracies: dict[str, float]) -> Table:
    """Show accuracies as a table."""
    rows = Table("way to the logits", "accuracy", title="Accuracy on the test inputs")
    for name, value in accuracies.items():
        rows.add_row(name, f"{value:.3f}")
    return rows
