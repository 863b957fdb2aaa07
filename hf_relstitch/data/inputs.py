"""What inputs have to be: a list, with no empty cells, of the kind that a model takes."""

import math
import os
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageOps

from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.data.modality import MODALITIES

TEXT_PAIR = ("text", "text_pair")
"""The keys of a pair of texts that is one input, by transformers' own names."""


URLS = ("http://", "https://", "data:")
PATIENCE = 60
"""Seconds to wait for a URL's answer."""


def is_url(one: Any) -> bool:
    """Tell whether an input is the URL of an image or a sound, where one of these is taken."""
    return isinstance(one, str) and one.startswith(URLS)


def is_here(name: str) -> bool:
    """Tell whether a file or folder has this name; the name may be a text of any length."""
    return os.path.exists(name)  # noqa: PTH110  (Path.exists has an error for a long name)


def _open_file(one: Path | str) -> Path | BytesIO:
    """A file's path, or what a URL holds.

    Raises:
        StitchError: the URL gives nothing.
    """
    if isinstance(one, Path):
        return one
    try:
        with urlopen(one, timeout=PATIENCE) as answer:  # noqa: S310  (whoever gives inputs names the URLs)
            return BytesIO(answer.read())
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise StitchError(f"{one[:200]} cannot be fetched: {error}; check the address") from error


def check_some(inputs: Sequence[Any], *, batch_size: int = 1) -> None:
    """Refuse an empty list, a text or a generator instead of a list, and empty batches.

    Raises:
        StitchError: the inputs or the batch size are refused.
    """
    if isinstance(inputs, str):
        raise StitchError(f"the inputs are one text, {inputs[:40]!r}, where a list of inputs is expected: give [text]")
    kind = type(inputs).__name__
    if isinstance(inputs, Mapping) or hasattr(inputs, "columns") or hasattr(inputs, "column_names"):
        raise StitchError(f"the inputs are a {kind}, which has columns: give one of them, a list of inputs")
    if isinstance(inputs, (Path, Image.Image)):
        raise StitchError(f"the inputs are one {kind}, where a list of inputs is expected: give [it]")
    if not hasattr(inputs, "__len__"):
        raise StitchError(f"the inputs are a {kind}, which is read once: give a list of them")
    if not hasattr(inputs, "__getitem__"):
        raise StitchError(f"the inputs are a {kind}, which has no order: give a list of them")
    if not len(inputs):
        raise StitchError("there are no inputs to encode: give at least one")
    if not hasattr(batch_size, "__index__") or batch_size < 1:
        raise StitchError(f"batch_size is {batch_size!r}: expected a whole number, 1 or more")


def check_filled(inputs: Sequence[Any], *, what: str, rows: Sequence[int] | None = None) -> None:
    """Refuse empty cells of tables, None and NaN; `rows` holds row numbers if the inputs were drawn from more.

    Raises:
        StitchError: a cell is empty.
    """
    numbered = zip(rows or range(len(inputs)), inputs, strict=True)
    if empty := [row for row, one in numbered if one is None or (isinstance(one, float) and math.isnan(one))]:
        raise StitchError(f"{what} empty in {row_names(empty)}: fill in or remove them")


def row_names(rows: Sequence[int]) -> str:
    """Name the first of these rows, and how many others there are."""
    others = {1: "", 2: " and 1 other"}.get(len(rows), f" and {len(rows) - 1} others")
    return f"row {rows[0]} (counted from 0){others}"


def is_text_pair(one: Any) -> bool:
    """Tell whether an input is meant as a pair of texts, by the keys of a dict."""
    return isinstance(one, dict) and not one.keys().isdisjoint(TEXT_PAIR)


def check_text_pair(one: Mapping[Any, Any], *, row: int) -> None:
    """Refuse a dict that is not a pair of texts, `{"text": …, "text_pair": …}`.

    Raises:
        StitchError: it has other keys, or a value is not a text.
    """
    wanted = 'a pair of texts is {"text": …, "text_pair": …}, with both and nothing else'
    if one.keys() != {*TEXT_PAIR}:
        raise StitchError(
            f"the input in {row_names([row])} is a dict of {', '.join(map(str, one)) or 'nothing'}: {wanted}"
        )
    for name in TEXT_PAIR:
        if not isinstance(one[name], str):
            raise StitchError(f"the {name} in {row_names([row])} is a {type(one[name]).__name__}: expected a text")


def texts_for_tokenizer(inputs: Sequence[Any]) -> list[list[str]]:
    """Return what a tokenizer is called with: one list of texts; of pairs of texts the first ones and the second ones.

    Raises:
        StitchError: see `are_text_pairs`.
    """
    return [[one[name] for one in inputs] for name in TEXT_PAIR] if are_text_pairs(inputs) else [list(inputs)]


def are_text_pairs(inputs: Sequence[Any]) -> bool:
    """Tell whether inputs are pairs of texts, each of them one input: `{"text": …, "text_pair": …}`.

    Raises:
        StitchError: some are and some are not, or a dict has other keys or values that are not texts.
    """
    pairs = {row: one for row, one in enumerate(inputs) if isinstance(one, dict) and "array" not in one}
    for row, one in pairs.items():
        check_text_pair(one, row=row)
    if pairs and len(pairs) < len(inputs):
        raise StitchError(
            f"{len(pairs)} of {len(inputs)} inputs are pairs of texts, row {next(iter(pairs))} is one: give pairs "
            "only, or none"
        )
    return bool(pairs)


def check_pairs(inputs: Sequence[Any], *, pairs: bool | None) -> None:
    """Refuse single inputs where pairs of texts are wanted, and pairs where single inputs are; None allows both.

    Raises:
        StitchError: the inputs are of the other kind.
    """
    if pairs is None or not len(inputs) or are_text_pairs(inputs) == pairs:
        return
    if pairs:
        raise StitchError(
            "the model takes pairs of texts and what came in row 0 (counted from 0) is a "
            f'{type(inputs_at(inputs, [0])[0]).__name__}: give {{"text": …, "text_pair": …}} '
            "(--column and --pair-column of a table)"
        )
    raise StitchError(
        "the model takes single inputs and what came in row 0 (counted from 0) is a pair of texts: give one of the "
        "texts, or stitch the model over anchors that are pairs"
    )


def encoded(text: str, *, row: int) -> bytes:
    """Encode a text as UTF-8.

    Raises:
        StitchError: the text has half a character, a surrogate, like a file read with a wrong encoding.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StitchError(
            f"the text in {row_names([row])} has half a character, {text[error.start]!r}, "
            f"which UTF-8 cannot say: read "
            "it with its own encoding, or remove it"
        ) from error


def check_kinds(inputs: Sequence[Any], *, modality: str | None, who: str = "model") -> None:
    """Refuse inputs of another kind than a model of this modality takes; None stands for an unknown modality.

    Raises:
        StitchError: an input is of another kind.
    """
    check_filled(inputs, what=f"the {who}'s inputs are")
    taken = MODALITIES.get(modality or "")
    expected, kinds = (taken.inputs, taken.types) if taken else ("anything", (object,))
    if modality in (None, "text") and are_text_pairs(inputs):
        return
    urls = modality in ("image", "audio")
    strange = {
        row: one
        for row, one in enumerate(inputs)
        if not (isinstance(one, kinds) or (urls and is_url(one))) or is_text_pair(one)
    }
    if strange:
        names = sorted({"pair of texts" if is_text_pair(one) else type(one).__name__ for one in strange.values()})
        came = " or ".join(f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}" for name in names)
        known = tuple(kind for each in MODALITIES.values() for kind in each.types)
        anchors = who != "model" and any(isinstance(one, known) for one in strange.values())
        pairs = "; anchors of two kinds are pairs, (what the source takes, what the target takes)" if anchors else ""
        raise StitchError(
            f"the {who} takes {expected} and what came in {row_names(list(strange))} is {came}: give it its own kind "
            f"of input{pairs}"
        )


Side = Literal["first", "second"]
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
SOUNDS = {".wav", ".flac", ".ogg", ".oga", ".mp3", ".aiff", ".aif"}


def load_image(image: Path | str | Image.Image) -> Image.Image:
    """Load an image in RGB and upright, from memory, a file or a URL, as transformers' pipelines do.

    Numbers of 16 bits are scaled to 8.

    Raises:
        StitchError: the file is missing or is not an image, or holds numbers of an unknown range.
    """
    with wrap_errors(f"{str(image)[:200]} cannot be read as an image", "look at it, or remove it"):
        if isinstance(image, Image.Image):
            return _in_eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
        with Image.open(_open_file(image)) as opened:
            return _in_eight_bits(ImageOps.exif_transpose(opened)).convert("RGB")


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """An image of numbers of 16 bits, or from 0 to 1, as one of 8 bits; any other as it is.

    Raises:
        StitchError: numbers that are not finite, below 0, or past 16 bits.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image, dtype=np.float64)
    top = values.max(initial=0)
    if not np.isfinite(values).all() or values.min(initial=0) < 0 or top > 65_535:
        raise StitchError(
            f"an image of mode {image.mode} has numbers from {values.min(initial=0)} to {top}: expected 0 to 255, to "
            "65535, or floats from 0 to 1; scale them"
        )
    unit = 1 if image.mode == "F" and top <= 1 else 255 if top <= 255 else 65_535
    return Image.fromarray(np.round(values * (255 / unit)).astype(np.uint8))


def load_audio(audio: Path | str | np.ndarray | dict[str, Any], *, sampling_rate: int | None = None) -> np.ndarray:
    """Load a sound as samples `(n,)`, float32 from -1 to 1, from memory, a file or a URL (its channels' mean).

    A file, or a dict of `array` and `sampling_rate` from `datasets`, is resampled to the sampling rate; an array has to
    be at it already.

    Raises:
        StitchError: the file cannot be read, the dict has other keys or no rate, or the array is not (n,) floats.
    """
    rate = None
    if isinstance(audio, np.ndarray):
        samples = audio
    elif isinstance(audio, dict):
        if not {"array", "sampling_rate"} <= audio.keys():
            raise StitchError(
                f"a sound is a dict of {', '.join(map(str, audio))}: expected array and sampling_rate; a pair of texts "
                "has text and text_pair"
            )
        samples, rate = np.asarray(audio["array"]), audio["sampling_rate"]
        if not isinstance(rate, int | float | np.number) or not 0 < rate < math.inf:
            raise StitchError(f"a sound has the sampling_rate {rate!r}: expected its samples a second, above 0")
    else:
        with _open_sound(audio) as opened:
            rate, samples = opened.samplerate, opened.read(dtype="float32", always_2d=True).mean(1)
    if samples.ndim != 1 or not samples.size or not np.issubdtype(samples.dtype, np.floating):
        raise StitchError(
            f"a sound is a {samples.dtype} array of shape {samples.shape}: expected the samples of one channel, (n,), "
            "floats from -1 to 1"
        )
    if not np.isfinite(samples).all():
        raise StitchError("a sound has samples that are not finite numbers: record or read it again, or remove it")
    if sampling_rate is not None and rate not in (None, sampling_rate):
        samples = _resample(samples, resampled_length(len(samples), rate, sampling_rate))
    return samples.astype("<f4")


def check_rates(inputs: Sequence[Any], *rates: int | None) -> None:
    """Refuse sounds without a sampling rate if two encoders take different rates; None stands for no sounds.

    Raises:
        StitchError: a sound is an array, so one of the two encoders would hear another sound.
    """
    arrays = [row for row, one in enumerate(inputs) if isinstance(one, np.ndarray)]
    if arrays and None not in rates and len(set(rates)) > 1:
        raise StitchError(
            f"{row_names(arrays)} is an array, and the two encoders take {' and '.join(map(str, rates))} samples a "
            "second: give dicts of array and sampling_rate, or Paths, which are resampled for each"
        )


def resampled_length(samples: int, rate: int, sampling_rate: int) -> int:
    """Return how many samples a sound has at another rate, at least 1."""
    return max(1, round(samples * sampling_rate / rate))


def _resample(samples: np.ndarray, length: int) -> np.ndarray:
    """A sound with another number of samples: its spectrum, cut off or filled with zeros."""
    spectrum = np.fft.rfft(samples.astype(np.float64))[: length // 2 + 1]
    return np.fft.irfft(spectrum, length) * (length / len(samples))


def _open_sound(path: Path | str) -> Any:
    """A sound file, or what a URL holds, opened by soundfile.

    Raises:
        StitchError: soundfile is not installed, or cannot read the file.
    """
    try:
        import soundfile  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise StitchError(
            f"reading {path} needs soundfile: pip install soundfile, or give the samples as a numpy array"
        ) from error
    with wrap_errors(f"{str(path)[:200]} cannot be read as a sound", "look at it, or remove it"):
        return soundfile.SoundFile(_open_file(path))


def inputs_at(inputs: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    """Return the inputs in these rows by position: a pandas Series would return them by its index."""
    by_place = getattr(inputs, "iloc", inputs)
    return [by_place[row] for row in rows]


def length_of(one: Any, *, modality: str, sampling_rate: int | None = None) -> int:
    """Count characters of a text or of both of a pair, or samples of a sound; 0 for anything else."""
    if modality == "audio" and (isinstance(one, Path) or is_url(one)):
        with _open_sound(one) as opened:
            return resampled_length(opened.frames, opened.samplerate, sampling_rate or opened.samplerate)
    if modality == "audio" and isinstance(one, dict):
        return len(load_audio(one, sampling_rate=sampling_rate))
    if is_text_pair(one):
        return sum(map(len, one.values()))
    return len(one) if isinstance(one, str | np.ndarray) else 0


def probe_inputs(modality: str) -> list[Any]:
    """Return two inputs that differ, in length too if they have a length."""
    if modality == "text":
        return ["storm", "A storm hits the northern coast, and the harbour is closed until the morning."]
    if modality == "image":
        return [Image.radial_gradient("L"), Image.linear_gradient("L")]
    return [np.sin(np.linspace(0, 500, length, dtype=np.float32) ** 1.2) for length in (8_000, 16_000)]


def _are_pairs(inputs: Sequence[Any]) -> bool:
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
    """Return which side of each pair the source takes, and which the target; None if inputs are not pairs."""
    return ("first", "second") if _are_pairs(inputs) else (None, None)


def side_of(inputs: Sequence[Any], side: Side | None) -> Sequence[Any]:
    """Return the first or the second of each pair; inputs that are not pairs have no sides.

    Raises:
        StitchError: `side` is missing for pairs, or given for inputs that are not pairs.
    """
    sides = get_args(Side)
    if side not in (None, *sides):
        raise StitchError(f"side is {side!r}: expected {' or '.join(map(repr, sides))}")
    if _are_pairs(inputs) == (side is None):
        raise StitchError(
            "the inputs are pairs: say with side='first' or side='second' which of each the encoder takes"
            if side is None
            else f"side is {side!r} and the inputs are not pairs: give tuples of two, or leave side out"
        )
    return inputs if side is None else [one[sides.index(side)] for one in inputs]
