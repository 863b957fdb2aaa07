"""The words that options take; without torch, so that the command line knows them at once."""

from typing import Literal

Prefer = Literal["auto", "linear"]
Role = Literal["documents", "queries"]
Metric = Literal["cosine", "l2", "ip"]
