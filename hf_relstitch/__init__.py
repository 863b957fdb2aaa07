"""Stitch any encoder to a classifier head that it never met, as one Hugging Face model.

Importing registers `RelativeStitcher` with transformers' Auto classes, and does nothing else.
"""

from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.translation import TranslationSettings
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.encoders.callable_encoder import CallableEncoder
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.encoders.onnx_encoder import onnx_encoder
from hf_relstitch.heads.head import Head
from hf_relstitch.heads.loading import cut, load_target
from hf_relstitch.model.anchors import AnchorSet, RelativeLatents
from hf_relstitch.model.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher
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
