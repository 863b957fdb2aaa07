"""Stitch any encoder to a classifier head that it never met, as one Hugging Face model.

Importing registers `RelativeStitcher` with transformers' Auto classes and does nothing else; the public names below are
loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_relstitch.registration import register
from hf_relstitch.version import __version__

if TYPE_CHECKING:
    from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
    from hf_relstitch.core.errors import StitchError
    from hf_relstitch.core.translation import TranslationSettings
    from hf_relstitch.data.provenance import Provenance
    from hf_relstitch.encoders.callable_encoder import CallableEncoder
    from hf_relstitch.encoders.encoder import Encoder
    from hf_relstitch.encoders.onnx_encoder import onnx_encoder
    from hf_relstitch.heads.head import Head
    from hf_relstitch.heads.loading import load_classifier, split_classifier
    from hf_relstitch.model.anchors import AnchorSet, RelativeLatents
    from hf_relstitch.model.exporting import plain_classifier, to_onnx
    from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher, RelativeStitcherModel

_MODULES = {
    "AnchorSet": "model.anchors",
    "CallableEncoder": "encoders.callable_encoder",
    "Encoder": "encoders.encoder",
    "Head": "heads.head",
    "Provenance": "data.provenance",
    "RelativeLatents": "model.anchors",
    "RelativeStitcher": "model.modeling_relative_stitcher",
    "RelativeStitcherConfig": "configuration_relative_stitcher",
    "RelativeStitcherModel": "model.modeling_relative_stitcher",
    "StitchError": "core.errors",
    "TranslationSettings": "core.translation",
    "load_classifier": "heads.loading",
    "onnx_encoder": "encoders.onnx_encoder",
    "plain_classifier": "model.exporting",
    "split_classifier": "heads.loading",
    "to_onnx": "model.exporting",
}

__all__ = [
    "AnchorSet",
    "CallableEncoder",
    "Encoder",
    "Head",
    "Provenance",
    "RelativeLatents",
    "RelativeStitcher",
    "RelativeStitcherConfig",
    "RelativeStitcherModel",
    "StitchError",
    "TranslationSettings",
    "__version__",
    "load_classifier",
    "onnx_encoder",
    "plain_classifier",
    "split_classifier",
    "to_onnx",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
