"""Limits to what a config may ask for: a model is not built larger than the files that hold its weights."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules import module

from hf_relstitch.core.errors import StitchError

MOST_COUNTED, MOST_LABELS = 10_000, 1_000_000
COUNTED = ("layer", "depth", "block", "stage", "level")
"""Parts of the names of fields that count modules; some configs list them before a model is built."""
SLACK_TENSORS, SLACK_NUMBERS = 2_000, 1 << 26
TIMES = 4
"""A tensor may stand under two names, and is registered again when it is filled."""


def check_counts(content: Any, what: str) -> None:
    """Refuse a config with more layers or labels than any model has, before an object is made of it.

    Raises:
        StitchError: a number is too large.
    """
    left = [("", content)]
    while left:
        name, value = left.pop()
        if isinstance(value, Mapping):
            left += value.items()
        elif isinstance(value, list):
            left += [(name, entry) for entry in value]
        most = MOST_LABELS if name == "num_labels" else MOST_COUNTED if any(part in name for part in COUNTED) else None
        if most is not None and isinstance(value, int) and value > most:
            raise StitchError(f"{what}'s {name} is {value}: expected {most} at most")


@contextmanager
def limited_build(files: list[Path], what: str) -> Iterator[None]:
    """Refuse, while a model is built in this thread, tensors that its weight files do not hold.

    The first of them is refused when it is registered, on the meta device, where it takes no memory yet.

    Raises:
        StitchError: the model has many more tensors or numbers than the files.
    """
    sizes = [_size(file) for file in files]
    tensors = TIMES * sum(count for count, _ in sizes) + SLACK_TENSORS
    numbers = TIMES * sum(count for _, count in sizes) + SLACK_NUMBERS
    counts = {"modules": 0, "tensors": 0, "numbers": 0}
    thread = threading.get_ident()

    def add(_: Any, name: str, added: Any) -> None:
        if added is None or threading.get_ident() != thread:
            return
        if isinstance(added, nn.Module):
            counts["modules"] += 1
        else:
            counts["tensors"] += 1
            counts["numbers"] += added.numel()
        if counts["modules"] > 4 * tensors or counts["tensors"] > tensors or counts["numbers"] > numbers:
            raise StitchError(
                f"{what} asks for more weights than its files hold (at {name}): copy or download it again"
            )

    with ExitStack() as hooks:
        for register in (
            module.register_module_parameter_registration_hook,
            module.register_module_buffer_registration_hook,
            module.register_module_module_registration_hook,
        ):
            hooks.callback(register(add).remove)
        yield


def _size(file: Path) -> tuple[int, int]:
    """Return the number of tensors in a file of weights and of numbers in them; of pickles the most that fit."""
    if file.suffix != ".safetensors":
        return file.stat().st_size // 64, file.stat().st_size
    try:
        with safe_open(file, "pt") as opened:
            slices = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118
        # integers may hold several numbers that are quantised
        return len(slices), sum(prod(one.get_shape()) * (1 if "F" in one.get_dtype() else 8) for one in slices)
    except (OSError, SafetensorError) as error:
        raise StitchError(f"{file} is damaged ({error}): copy or download it again") from error
