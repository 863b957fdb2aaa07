"""Inputs, texts, images or sounds: reading them from where people keep them, and naming each by a hash."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from datasets import load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image, ImageOps
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.files import reads_as_path
from hf_relstitch.input_checks import check_filled, check_some, encoded

Side = Literal["first", "second"]
TABLES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
SOUNDS = {".wav", ".flac", ".ogg", ".oga", ".mp3", ".aiff", ".aif"}


def read_inputs(
    place: str,
    *,
    column: str | None = None,
    target_column: str | None = None,
    split: str = "train",
    count: int | None = None,
) -> list[Any]:
    """Inputs from a text file (one a line), an image or a sound, a folder of them, or a column, see `read_columns`.

    Text files have no columns, and `column` is nothing to them. With `target_column` they are pairs: what the source
    takes, of `column`, and what the target takes. Of more than `count` so many are drawn, each time the same, in order.

    Raises:
        StitchError: nothing is there, or it holds no input.
    """
    path = Path(place)
    inputs: list[Any]
    if target_column is not None:
        inputs = list(zip(*read_columns(place, [column, target_column], split=split, count=count), strict=True))
    elif not path.exists() or (column is not None and (path.is_dir() or path.suffix.lower() in TABLES)):
        inputs = read_columns(place, [column], split=split, count=count)[0]
    elif path.is_dir():
        inputs = sorted(file for file in path.rglob("*") if is_media(file))
    elif is_media(path):
        inputs = [path]
    elif path.suffix.lower() in TABLES:
        raise StitchError(f"{place} is a table: name its column of inputs, or give a text file with one a line")
    else:
        inputs = [line for line in read_text(path).split("\n") if line.strip()]
    if not inputs:
        raise StitchError(
            f"{place} holds no input: expected a text file with one a line or a folder of images or sounds; of a "
            "table or a data set name the column"
        )
    return inputs_at(inputs, drawn_rows(len(inputs), count))


def drawn_rows(total: int, count: int | None) -> list[int]:
    """At most `count` of so many rows, drawn with a fixed seed, in their order; None draws all."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values.tolist()


def is_media(path: str | Path) -> bool:
    """Whether a path names an image or a sound, by its suffix."""
    return Path(path).suffix.lower() in Image.registered_extensions().keys() | SOUNDS


def is_here(name: str) -> bool:
    """Whether there is such a file or folder; a text of any length may be asked for."""
    return os.path.exists(name)  # noqa: PTH110  (Path.exists has an error for a long name)


def names_file(text: str) -> bool:
    """Whether a text reads as the name of a file of inputs, one word with the suffix of one, or of a folder."""
    known = is_media(text) or Path(text).suffix.lower() in {*TABLES, ".txt"} or text.endswith("/")
    return known and not any(letter.isspace() for letter in text)


def read_text(path: Path) -> str:
    """The text in a file.

    Raises:
        StitchError: it is not text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StitchError(
            f"{path} is not text in UTF-8 ({error}): expected a text with one input a line, an image or a sound"
        ) from error


def data_name(data: str | None) -> str | None:
    """The name of data as it may be published: of a path that is here, its last part."""
    if data is None or not is_here(data):
        return data
    return Path(data).resolve().name


def read_columns(name: str, columns: Sequence[str | None], *, split: str, count: int | None = None) -> list[list[Any]]:
    """Columns of a Parquet, CSV or JSON file, or of a `datasets` data set; `None` stands for one that was not named.

    A column of paths of images or sounds is read as Paths, relative to what names them; for `count` see `read_inputs`.

    Raises:
        StitchError: there is no such file, data set, split or column, it cannot be read, or the column has empty cells.
    """
    if not is_here(name) and (names_file(name) or reads_as_path(name)):
        raise StitchError(f"there is no file or folder {name}: check the path")
    path = Path(name)
    reader = TABLES.get(path.suffix.lower()) if path.is_file() else None
    try:
        table = _read_table(name, reader, columns, split) if reader else load_dataset(name, split=split)
    except (DatasetsError, ValueError, OSError) as error:
        unread = f"is empty or cannot be read as {reader or 'a data set'}: {str(error.__cause__ or error).strip()}"
        unknown = f"is no text file, no folder, and no data set that could be loaded: {error}"
        raise StitchError(f"{name} {unread if path.exists() else unknown}") from error
    for column in columns:
        if column not in table.column_names:
            raise StitchError(f"{name} has no column {column!r}: it has {', '.join(table.column_names)}")
    rows = drawn_rows(len(table), count)
    table = table.select(rows)
    folder, read = path.parent if reader else path, [list(table[column]) for column in columns]
    for column, values in zip(columns, read, strict=True):
        check_filled(values, rows=rows, what=f"column {column!r} of {name} is")
    return [_paths(values, folder) for values in read] if path.exists() else read


def _read_table(name: str, reader: str, columns: Sequence[str | None], split: str) -> Any:
    table = load_dataset(reader, data_files=name, split=split)
    if reader == "csv" and any(table.data[one].null_count for one in columns if one in table.column_names):
        as_texts = {"keep_default_na": False, "na_values": [""]}  # NA, null, None, which pandas takes for empty cells
        return load_dataset(reader, data_files=name, split=split, **as_texts)
    return table


def _paths(values: list[Any], folder: Path) -> list[Any]:
    named = all(isinstance(one, str) and is_media(one) for one in values)
    return [folder / one for one in values] if named else values


def load_image(image: Path | Image.Image) -> Image.Image:
    """An image in RGB and upright, from memory or from a file, as transformers' pipelines read it.

    Raises:
        StitchError: the file is not there or is not an image.
    """
    try:
        if isinstance(image, Image.Image):
            return ImageOps.exif_transpose(image).convert("RGB")
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        raise StitchError(f"{image} cannot be read as an image: {error}") from error


def load_audio(audio: Path | np.ndarray, *, sampling_rate: int | None = None) -> np.ndarray:
    """A sound as samples `(n,)`, float32 from -1 to 1, from memory or from a file (its channels' mean).

    An array has to be at the sampling rate already.

    Raises:
        StitchError: a file that cannot be read or has another sampling rate, or no array of one axis of floats.
    """
    if isinstance(audio, np.ndarray):
        samples = audio
    else:
        with open_sound(audio) as opened:
            rate, samples = opened.samplerate, opened.read(dtype="float32", always_2d=True).mean(1)
        if sampling_rate not in (None, rate):
            raise StitchError(f"{audio} has {rate} samples a second and the model takes {sampling_rate}: resample it")
    if samples.ndim != 1 or not samples.size or not np.issubdtype(samples.dtype, np.floating):
        raise StitchError(
            f"a sound is a {samples.dtype} array of shape {samples.shape}: expected the samples of one channel, (n,), "
            "floats from -1 to 1"
        )
    return samples.astype("<f4")


def open_sound(path: Path) -> Any:
    """A sound file, opened by soundfile.

    Raises:
        StitchError: soundfile is not installed, or cannot read the file.
    """
    try:
        import soundfile  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise StitchError(
            f"reading {path} needs soundfile: pip install soundfile, or give the samples as a numpy array"
        ) from error
    try:
        return soundfile.SoundFile(path)
    except (OSError, soundfile.SoundFileError) as error:
        raise StitchError(f"{path} cannot be read as a sound: {error}") from error


def inputs_at(inputs: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    """The inputs in these rows, by place: a pandas Series would give them by its index."""
    by_place = getattr(inputs, "iloc", inputs)
    return [by_place[row] for row in rows]


def length_of(one: Any, *, modality: str) -> int:
    """Characters of a text, samples of a sound; 0 for an image, and for what is no input of this kind."""
    if modality == "audio" and isinstance(one, Path):
        with open_sound(one) as opened:
            return opened.frames
    return len(one) if isinstance(one, str | np.ndarray) else 0


def probe_inputs(modality: str) -> list[Any]:
    """Two inputs that differ, in length too where they have one."""
    if modality == "text":
        return ["storm", "A storm hits the northern coast, and the harbour is closed until the morning."]
    if modality == "image":
        return [Image.radial_gradient("L"), Image.linear_gradient("L")]
    return [np.sin(np.linspace(0, 500, length, dtype=np.float32) ** 1.2) for length in (8_000, 16_000)]


def are_pairs(inputs: Sequence[Any]) -> bool:
    """Whether inputs are pairs, tuples of two, such as (image, text).

    Raises:
        StitchError: some are and some are not, tuples of another length, or inputs that are no list.
    """
    check_some(inputs)
    tuples = [row for row, one in enumerate(inputs) if isinstance(one, tuple)]
    if not tuples:
        return False
    if len(tuples) < len(inputs):
        raise StitchError(
            f"{len(tuples)} of {len(inputs)} inputs are pairs, row {tuples[0]} is one: give pairs only, or none"
        )
    if strange := [row for row in tuples if len(inputs[row]) != 2]:
        raise StitchError(
            f"the input of row {strange[0]} is a tuple of {len(inputs[strange[0]])}: expected pairs, tuples of two"
        )
    return True


def sides_of(inputs: Sequence[Any]) -> tuple[Side | None, Side | None]:
    """Which side of each input the source takes, and which the target; None where inputs are not pairs."""
    return ("first", "second") if are_pairs(inputs) else (None, None)


def side_of(inputs: Sequence[Any], side: Side | None) -> Sequence[Any]:
    """Of pairs the first or the second of each; inputs that are not pairs have no sides.

    Raises:
        StitchError: pairs without a side, or a side of what are no pairs.
    """
    sides = get_args(Side)
    if side not in (None, *sides):
        raise StitchError(f"side is {side!r}: expected {' or '.join(map(repr, sides))}")
    if are_pairs(inputs) == (side is None):
        raise StitchError(
            "the inputs are pairs: say with side='first' or side='second' which of each the encoder takes"
            if side is None
            else f"side is {side!r} and the inputs are not pairs: give tuples of two, or leave side out"
        )
    return inputs if side is None else [one[sides.index(side)] for one in inputs]


def input_ids(inputs: Sequence[Any], *, key: str | None = None) -> Tensor:
    """A 64-bit id for each input, `(n,)` int64.

    It is the BLAKE2b of a text's UTF-8, of an image's size and RGB pixels, or of a sound's float32 samples; that of a
    pair is one of both ids.

    The same input has the same id everywhere, so two people can pair their anchor sets without showing the
    inputs. Whoever has an input can compute its id, and so can find out whether it is in a set; with a secret
    `key` only those who have it can.

    Raises:
        StitchError: an input that is neither a text, an image, a sound, the path of one, nor a pair of these.
    """
    secret = _secret(key)
    return torch.tensor([_input_id(one, secret, row) for row, one in enumerate(inputs)], dtype=torch.int64)


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


def _input_id(one: Any, secret: bytes, row: int) -> int:
    if isinstance(one, str):
        content = b"text:" + encoded(one, row=row)
    elif isinstance(one, np.ndarray) or (isinstance(one, Path) and one.suffix.lower() in SOUNDS):
        content = b"audio:" + load_audio(one).tobytes()
    elif isinstance(one, Path | Image.Image):
        image = load_image(one)
        content = b"image:%dx%d:" % image.size + image.tobytes()
    elif isinstance(one, tuple) and len(one) == 2:
        content = b"pair:" + b"".join(_input_id(part, secret, row).to_bytes(8, "little", signed=True) for part in one)
    else:
        raise StitchError(
            f"an input is a {type(one).__name__}: expected a text, a PIL image, a numpy array of sound, or a Path"
        )
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=secret).digest(), "little", signed=True)
