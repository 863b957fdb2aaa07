"""The device and the processes that accelerate gives."""

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def accelerate_state() -> PartialState:
    """Accelerate's state; unlike a bare `PartialState()`, it heeds `accelerate launch --cpu`."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
