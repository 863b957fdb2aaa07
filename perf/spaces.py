"""Latents with labels to measure on: stored ones, and ones made here of encoders and data out of packages."""

import gzip
import itertools
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV

from hf_relstitch import Encoder
from hf_relstitch.benchmarks.latent_cache import distinct
from hf_relstitch.benchmarks.methods import train_head

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import assets
from efficientnet_lite import lite_model, lite_processor

SECTIONS = (
    "admin", "database", "editors", "electronics", "fonts", "games", "graphics", "mail", "math", "net", "science",
    "sound", "text", "video", "web",
)  # fmt: skip

EMOJI_PAIRS = [
    ("image_lite0", "image_lite2"),
    ("image_lite2", "image_lite0"),
    ("image_lite2", "text_en_mpnet"),
    ("text_en_mpnet", "image_lite2"),
    ("text_de_e5", "text_en_mpnet"),
    ("text_en_mpnet", "text_de_e5"),
    ("text_de_e5", "image_lite0"),
    ("text_en_minilm", "image_lite0"),
]


@dataclass(frozen=True, eq=False)
class Spaces:
    """One data set seen by several encoders, row for row; rows are split into heads', tests' and anchors'."""

    name: str
    latents: dict
    labels: torch.Tensor
    heads: int
    tests: int
    pairs: list

    @property
    def test(self):
        return slice(self.heads, self.heads + self.tests)

    def anchors(self, count, draw):
        """Random rows that neither a head nor a test sees, or None where there are too few."""
        free = len(self.labels) - self.heads - self.tests
        rows = torch.randperm(free, generator=torch.Generator().manual_seed(draw))[:count]
        return self.heads + self.tests + rows if count <= free else None

    def head(self, name):
        """A logistic regression on the rows for heads; of values a ridge regression."""
        rows, labels = self.latents[name][: self.heads].double().numpy(), self.labels[: self.heads]
        if labels.is_floating_point():
            model = RidgeCV(np.logspace(-3, 3, 13)).fit(rows, labels.numpy())
            weight, bias = torch.tensor(model.coef_)[None], torch.tensor(model.intercept_)[None]
            return linear(weight, bias)
        return train_head("logistic", self.latents[name][: self.heads], labels, classes=int(self.labels.max()) + 1)


def stored(file, *, heads, tests, pairs=None):
    tensors = load_file(file)
    labels = tensors.pop("labels")
    labels = labels.double() if labels.is_floating_point() else labels.long()
    latents = {name: latent.float() for name, latent in tensors.items()}
    kept = distinct(list(latents.values()))
    labels, latents = labels[kept], {name: latent[kept] for name, latent in latents.items()}
    pairs = pairs or list(itertools.permutations(latents, 2))
    return Spaces(Path(file).stem, latents, labels, heads, tests, pairs)


def development(folder):
    """The 20 pairs that the rule and its grid were developed on."""
    folder = Path(folder)
    return [
        stored(folder / "wordnet.safetensors", heads=5000, tests=2000),
        stored(folder / "emoji.safetensors", heads=549, tests=750, pairs=EMOJI_PAIRS),
    ]


def found(folder):
    """The pairs of a folder: the two stored sets that the rule was first developed on, or those of fresh_pairs.py."""
    if Path(folder, "wordnet.safetensors").is_file():
        return development(folder)
    files = sorted(Path(folder).glob("*.safetensors"))
    return [
        stored(file, heads=min(2000, rows // 4), tests=min(1500, rows // 5)) for file in files for rows in [count(file)]
    ]


def count(file):
    with safe_open(file, "pt") as opened:
        return opened.get_slice("labels").get_shape()[0]


def linear(weight, bias):
    layer = torch.nn.Linear(weight.shape[1], len(weight), dtype=torch.float64).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def held_out(folder):
    """24 other pairs: verb glosses, Debian's packages, Fashion-MNIST and digits, each by three encoders.

    The rule was settled on draws 3 and 4 of these rows, of 1,200 rows of Fashion-MNIST and digits.
    """
    spaces = []
    for name, make, heads, tests in (
        ("verbs", verbs, 1500, 1500),
        ("packages", packages, 1500, 1100),
        ("fashion", fashion, 400, 2000),
        ("digits", digits, 400, 597),
    ):
        file = Path(folder) / f"{name}.safetensors"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: tensor.contiguous() for key, tensor in make().items()}, file)
        spaces.append(stored(file, heads=heads, tests=tests))
    return spaces


def verbs():
    """4,500 of WordNet's verb glosses in 15 classes."""
    glosses = {}
    for line in (assets.WORDNET_NOUNS.parent / "data.verb").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            synset, gloss = line.split(" | ", 1)
            glosses.setdefault(gloss.split('; "')[0].strip(), int(synset.split()[1]) - 29)
    return by_text_encoders(glosses, count=4500)


def packages():
    """3,600 one-line descriptions of Debian packages in 15 sections, as `apt-get update` left them here."""
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    described = {}
    for package in listed.split("\n\n"):
        section, description = (
            re.search(f"^{field}: (.+)$", package, re.MULTILINE) for field in ("Section", "Description")
        )
        if section and description and section[1] in SECTIONS:
            described.setdefault(description[1], SECTIONS.index(section[1]))
    return by_text_encoders(described, count=3600)


def by_text_encoders(labelled, *, count):
    """Some of these texts by minilm (384), mpnet (768) and latent semantic analysis (256)."""
    texts, labels = list(labelled), list(labelled.values())
    rows = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:count].tolist()
    chosen = [texts[row] for row in rows]
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2).fit(texts).transform(chosen)
    return {
        "labels": torch.tensor([labels[row] for row in rows]),
        "lsa": torch.tensor(TruncatedSVD(256, random_state=0).fit_transform(words)).float(),
        "minilm": Encoder.from_pretrained(str(assets.minilm())).encode(chosen).float(),
        "mpnet": Encoder.from_pretrained(str(assets.mpnet())).encode(chosen).float(),
    }


def fashion(count=4000, folder="/usr/share/datasets/fashion-mnist"):
    """Fashion-MNIST in 10 classes."""

    def content(kind, skip):
        return np.frombuffer(gzip.decompress(Path(folder, f"t10k-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=skip)

    pixels = content("images-idx3", 16).reshape(-1, 28, 28)[:count]
    images = [Image.fromarray(image).convert("RGB") for image in pixels]
    return by_image_encoders(images, labels=content("labels-idx1", 8)[:count], pixels=pixels / 255)


def digits():
    """scikit-learn's handwritten digits, 8 × 8 grown to 64 × 64, shuffled since they come writer by writer."""
    data = load_digits()
    rows = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0)).numpy()
    images = [
        Image.fromarray((image / 16 * 255).astype("uint8")).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
        for image in data.images[rows]
    ]
    return by_image_encoders(images, labels=data.target[rows], pixels=data.images[rows] / 16)


def by_image_encoders(images, *, labels, pixels):
    """Images by EfficientNet-lite0 and -lite2 (1280), and as their pixels."""
    made = {"labels": torch.tensor(labels.astype("int64"))}
    made["pixels"] = torch.tensor(pixels.reshape(len(images), -1)).float()
    for size in (0, 2):
        made[f"lite{size}"] = Encoder(lite_model(size), lite_processor(size)).encode(images).float()
    return made
