"""Stitch any encoder to a classifier head that it never met, as one Hugging Face model.

Importing registers `RelativeStitcher` with transformers' Auto classes, and does nothing else.
"""

from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from hf_relstitch.anchors import AnchorSet
from hf_relstitch.callables import CallableEncoder
from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.inversion import TranslationSettings
from hf_relstitch.encoders import Encoder
from hf_relstitch.heads import Head, cut, load_target
from hf_relstitch.modeling_relative_stitcher import RelativeStitcher
from hf_relstitch.onnx_encoders import onnx_encoder
from hf_relstitch.provenance import Provenance
from hf_relstitch.relative_latents import RelativeLatents
from hf_relstitch.version import __version__

__all__ = [
    "AnchorSet",
    "CallableEncoder",
    "Encoder",
    "Head",
    "Provenance",
    "RelativeLatents",
    "RelativeStitcher",
    "RelativeStitcherConfig",
    "StitchError",
    "TranslationSettings",
    "__version__",
    "cut",
    "load_target",
    "onnx_encoder",
]

AutoConfig.register("relative_stitcher", RelativeStitcherConfig)
AutoModelForSequenceClassification.register(RelativeStitcherConfig, RelativeStitcher)
AutoModelForImageClassification.register(RelativeStitcherConfig, RelativeStitcher)
AutoModelForAudioClassification.register(RelativeStitcherConfig, RelativeStitcher)
