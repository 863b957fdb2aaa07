"""Fixtures shared by all tests; the shapes that the core declares are checked while they run."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook("hf_relstitch.core", "beartype.beartype")
