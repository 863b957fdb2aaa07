"""Metrics for `evaluate` that need no network; each file is also a script for `evaluate.load(path)`."""

from pathlib import Path

from hf_relstitch.metrics.accuracy import Accuracy
from hf_relstitch.metrics.angle_preservation import AnglePreservation
from hf_relstitch.metrics.expected_calibration_error import ExpectedCalibrationError
from hf_relstitch.metrics.f1 import F1
from hf_relstitch.metrics.latent_fidelity import LatentFidelity
from hf_relstitch.metrics.native_agreement import NativeAgreement
from hf_relstitch.metrics.stitching_index import StitchingIndex

__all__ = [
    "F1",
    "Accuracy",
    "AnglePreservation",
    "ExpectedCalibrationError",
    "LatentFidelity",
    "NativeAgreement",
    "StitchingIndex",
    "script",
]


def script(name: str) -> str:
    """Return the path that `evaluate.load` takes for a metric of this package: `script("latent_fidelity")`."""
    return str(Path(__file__).with_name(f"{name}.py"))
