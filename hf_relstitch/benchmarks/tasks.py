"""What is to be measured one by one: cells, and what else a suite asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One pair, by one head, method, number of anchors and seed."""

    data: str
    source: str
    target: str
    head: str
    anchors: int
    seed: int
    method: str


@dataclass(frozen=True, eq=False)
class Task:
    """One thing to measure.

    `kind` is the list of the results that it goes to, `about` says what it is, `key` stands for all that its numbers
    depend on, and `measure` gives them.
    """

    kind: str
    about: dict[str, Any]
    key: str
    measure: Callable[[], dict[str, Any]]

    def __str__(self) -> str:
        return f"{self.kind}: " + ", ".join(f"{name} {value}" for name, value in self.about.items())
