"""Inputs, texts or images: reading them from where people keep them, and naming each by a hash."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError
from PIL import Image
from torch import Tensor

from hf_relstitch.core.errors import StitchError


def read_inputs(place: str, *, column: str | None = None, split: str = "train") -> list[Any]:
    """Inputs from a text file (one a line), an image, a folder of images, or a column of a `datasets` data set.

    Raises:
        StitchError: nothing is there, or it holds no input.
    """
    path = Path(place)
    known = Image.registered_extensions()
    inputs: list[Any]
    if path.is_dir():
        inputs = sorted(file for file in path.rglob("*") if file.suffix.lower() in known)
    elif path.suffix.lower() in known:
        inputs = [path]
    elif path.is_file():
        inputs = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        inputs = read_columns(place, [column], split=split)[0]
    if not inputs:
        raise StitchError(f"{place} holds no input: expected a text file with one a line or a folder of images")
    return inputs


def data_name(data: str | None) -> str | None:
    """The name of data as it may be published: of a path that is here, its last part."""
    if data is None or not os.path.exists(data):  # noqa: PTH110  (Path.exists has an error for a long name)
        return data
    return Path(data).resolve().name


def read_columns(name: str, columns: Sequence[str | None], *, split: str) -> list[list[Any]]:
    """Columns of a `datasets` data set, by its Hub name; `None` stands for a column that was not named.

    Raises:
        StitchError: there is no such data set, split or column.
    """
    try:
        table = load_dataset(name, split=split)
    except (DatasetNotFoundError, ValueError, ConnectionError) as error:
        raise StitchError(
            f"{name} is no text file, no folder, and no data set that could be loaded: {error}"
        ) from error
    for column in columns:
        if column not in table.column_names:
            raise StitchError(f"{name} has no column {column!r}: it has {', '.join(table.column_names)}")
    return [list(table[column]) for column in columns]


def load_image(image: Path | Image.Image) -> Image.Image:
    """An image in RGB, from memory or from a file.

    Raises:
        StitchError: the file is not there or is not an image.
    """
    try:
        if isinstance(image, Image.Image):
            return image.convert("RGB")
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise StitchError(f"{image} cannot be read as an image: {error}") from error


def input_ids(inputs: Sequence[Any], *, key: str | None = None) -> Tensor:
    """A 64-bit id for each input, `(n,)` int64: BLAKE2b of a text's UTF-8, or of an image's size and RGB pixels.

    The same input has the same id everywhere, so two people can pair their anchor sets without showing the
    inputs. Whoever has an input can compute its id, and so can find out whether it is in a set; with a secret
    `key` only those who have it can.

    Raises:
        StitchError: an input that is neither a text, an image nor the path of an image.
    """
    secret = _secret(key)
    return torch.tensor([_input_id(one, secret) for one in inputs], dtype=torch.int64)


def ids_fingerprint(ids: Tensor) -> str:
    """A fingerprint of a set of inputs by their ids, whatever their order and however often one comes."""
    return hashlib.blake2b(ids.unique().numpy().tobytes(), digest_size=8).hexdigest()


def key_fingerprint(key: str | None) -> str | None:
    """Tells keys apart without showing them; None for no key."""
    return hashlib.blake2b(b"key", key=_secret(key), digest_size=8).hexdigest() if key is not None else None


def _secret(key: str | None) -> bytes:
    """BLAKE2b's key, of 64 bytes whatever the length of ours; empty for no key."""
    if key == "":
        raise StitchError("the key is empty: give a secret, or no key")
    return hashlib.blake2b(key.encode()).digest() if key else b""


def _input_id(one: Any, secret: bytes) -> int:
    if isinstance(one, str):
        content = b"text:" + one.encode()
    elif isinstance(one, Path | Image.Image):
        image = load_image(one)
        content = b"image:%dx%d:" % image.size + image.tobytes()
    else:
        raise StitchError(f"an input is a {type(one).__name__}: expected a text, a PIL image or the Path of an image")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=secret).digest(), "little", signed=True)
