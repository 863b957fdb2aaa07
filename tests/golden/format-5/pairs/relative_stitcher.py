"""Loads the classes that the package brings: pip install hf-relstitch."""

from hf_relstitch import RelativeStitcher, RelativeStitcherConfig, RelativeStitcherModel  # noqa: F401
