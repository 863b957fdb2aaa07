"""Registering the stitched model with transformers' Auto classes, without importing them for it.

The modules of the config and of the model register their classes at their end, and take seconds to import. They are
imported as soon as transformers' Auto classes are, whichever of the two packages comes first.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MODULES = {
    "transformers.models.auto.configuration_auto": "hf_relstitch.configuration_relative_stitcher",
    "transformers.models.auto.modeling_auto": "hf_relstitch.model.modeling_relative_stitcher",
}


def register() -> None:
    """Import the modules that register our classes, now or as soon as the Auto classes that they need are imported."""
    for theirs, ours in MODULES.items():
        if theirs in sys.modules:
            import_module(ours)
        else:
            sys.meta_path.insert(0, _ImportAfter(theirs, ours))


class _ImportAfter(MetaPathFinder):
    """Import our module once, right after theirs."""

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs = theirs
        self.ours = ours

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        """Return nothing but for the awaited module: its spec, with a loader that imports our module too."""
        if fullname != self.theirs or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)  # so that the search below does not come back here
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_both(module: ModuleType) -> None:
            execute(module)
            import_module(self.ours)

        spec.loader.exec_module = execute_both  # type: ignore[method-assign]
        return spec
