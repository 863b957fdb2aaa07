"""Ids of inputs: a hash names each text, image, sound or pair."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import (
    SOUNDS,
    TEXT_PAIR,
    are_text_pairs,
    check_text_pair,
    encoded,
    is_text_pair,
    load_audio,
    load_image,
)
from hf_relstitch.data.words import Word

PLACE_BITS = 32
"""Bits of a word's id that say where in its text it is."""


def input_ids(inputs: Sequence[Any], *, key: str | None = None) -> Tensor:
    """Return a 64-bit id for each input, `(n,)` int64.

    An id is the BLAKE2b of the UTF-8 of a text or a URL, of an image's size and RGB pixels, or of a sound's float32
    samples; the id of a pair is the hash of both ids, and differs for a tuple and for a pair of texts that is one
    input. The id of a word has the upper half of its text's, and below it the place of the word's first character.

    The same input has the same id everywhere, so two people can pair their anchor sets without showing the inputs.
    Anyone who has an input can compute its id, and so can find out whether it is in a set; with a secret `key` only
    people who have the key can.

    Raises:
        StitchError: an input is neither a text, an image, a sound, the path of an image or sound, nor a pair of these.
    """
    secret = _secret(key)
    return torch.tensor([_input_id(one, secret, row) for row, one in enumerate(inputs)], dtype=torch.int64)


def first_ids(inputs: Sequence[Any], *, key: str | None = None) -> Tensor | None:
    """Return the id of each pair's first text, `(n,)` int64, by which pairs are groups; None for other inputs."""
    return input_ids([one[TEXT_PAIR[0]] for one in inputs], key=key) if are_text_pairs(inputs) else None


def ids_of_texts(ids: Tensor) -> Tensor:
    """Return for the id of each word what is its text's alone, `(n,)` int64: words of one text have the same."""
    return ids >> PLACE_BITS


def ids_fingerprint(ids: Tensor) -> str:
    """Return a fingerprint of a set of inputs by their ids, in any order and with any repeats."""
    return hashlib.blake2b(ids.unique().numpy().tobytes(), digest_size=8).hexdigest()


def key_fingerprint(key: str | None) -> str | None:
    """Return a fingerprint that tells keys apart without showing them; None for no key."""
    return hashlib.blake2b(b"key", key=_secret(key), digest_size=8).hexdigest() if key is not None else None


def _secret(key: str | None) -> bytes:
    """BLAKE2b's key, of 64 bytes whatever the length of ours; empty for no key."""
    if key == "" or not isinstance(key, str | None):
        raise StitchError(f"the key is {'a ' + type(key).__name__ if key else 'empty'}: give a secret text, or no key")
    return hashlib.blake2b(key.encode()).digest() if key else b""


def _input_id(one: Any, secret: bytes, row: int) -> int:
    if isinstance(one, str):
        content = b"text:" + encoded(one, row=row)
    elif is_text_pair(one):
        check_text_pair(one, row=row)
        content = b"text pair:" + _both([one[name] for name in TEXT_PAIR], secret, row)
    elif isinstance(one, np.ndarray | dict) or (isinstance(one, Path) and one.suffix.lower() in SOUNDS):
        content = b"audio:" + load_audio(one).tobytes()
    elif isinstance(one, Path | Image.Image):
        image = load_image(one)
        content = b"image:%dx%d:" % image.size + image.tobytes()
    elif isinstance(one, tuple) and len(one) == 2:
        content = b"pair:" + _both(one, secret, row)
    elif isinstance(one, Word):
        return _input_id(one.text, secret, row) >> PLACE_BITS << PLACE_BITS | one.start
    else:
        raise StitchError(
            f"an input is a {type(one).__name__}: expected a text, a PIL image, a numpy array of sound, or a Path"
        )
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=secret).digest(), "little", signed=True)


def _both(parts: Sequence[Any], secret: bytes, row: int) -> bytes:
    """The ids of both parts of a pair."""
    return b"".join(_input_id(part, secret, row).to_bytes(8, "little", signed=True) for part in parts)
