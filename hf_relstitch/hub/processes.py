"""The processes and the device that accelerate gives."""

import os
import re
from contextlib import suppress
from functools import cache

import psutil  # type: ignore[import-untyped]
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers.utils import logging

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded


def accelerate_state() -> PartialState:
    """Return accelerate's state; unlike a bare `PartialState()`, it heeds `accelerate launch --cpu`."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes == 1:
        _warn_if_alone()
    return state


@cache
def _warn_if_alone() -> None:
    """Warn that this process works alone, if more were asked for."""
    wanted = os.environ.get("WORLD_SIZE", "1")
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # which accelerate launch sets
        with suppress(psutil.Error):
            command = " ".join(psutil.Process().parent().cmdline())
            wanted = (re.findall(r"--num[_-]processes[ =](\d+)", command) or [wanted])[-1]
    if wanted not in ("", "0", "1"):
        logger.warning(
            f"{wanted} processes were asked for, and each works alone, on all of the inputs: on a CPU, run accelerate "
            "launch with --multi_gpu and ACCELERATE_USE_CPU=true in the environment"
        )
