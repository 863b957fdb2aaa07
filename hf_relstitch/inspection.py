"""What a stitched model or an anchor set is, read from its folder: sizes, provenance, conditioning."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_relstitch.anchors import CONFIG_NAME, AnchorSet
from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.core.errors import StitchError
from hf_relstitch.files import read_json
from hf_relstitch.stitching import conditioning

SHOWN = 8
"""Candidates of the choice that are shown, the best first."""


def describe(folder: Path) -> dict[str, Any]:
    """Everything that a folder says of itself, as nested plain values.

    Raises:
        StitchError: the folder holds neither a stitched model nor an anchor set, or a damaged one.
    """
    if (folder / CONFIG_NAME).is_file():
        return describe_anchors(AnchorSet.from_pretrained(folder))
    if (config := read_json(folder / "config.json")).get("model_type") != RelativeStitcherConfig.model_type:
        raise StitchError(
            f"{folder} holds a {config.get('model_type')} model: expected a stitched model or an anchor set"
        )
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return describe_model(RelativeStitcherConfig.from_dict(config)) | {"megabytes": round(size / 1e6, 1)}


def describe_anchors(anchors: AnchorSet) -> dict[str, Any]:
    """Size, provenance and conditioning of an anchor set."""
    return {
        "kind": "anchor set",
        "num_anchors": len(anchors),
        "provenance": asdict(anchors.provenance),
        "conditioning": conditioning(anchors.latents),
    }


def describe_model(config: RelativeStitcherConfig) -> dict[str, Any]:
    """Parts, provenance, settings, the choice of these and report of a stitched model."""
    report = dict(config.report)
    architecture = config.source_config and config.source_config.model_type
    selection = dict(config.selection or {"criterion": "none: the settings were given"})
    best = selection.pop("candidates", [])[:SHOWN]
    return {
        "kind": "stitched model",
        "modality": config.modality,
        "source": {"architecture": architecture, **config.source, **report.pop("source", {})},
        "target": {**config.target, **report.pop("target", {})},
        "head": {**config.head, "num_labels": config.num_labels, "logit_temperature": config.logit_temperature},
        "translation": config.translation,
        "selection": selection,
        "best candidates": {name_of(candidate): candidate["score"] for candidate in best},
        "report": report,
    }


def name_of(candidate: dict[str, Any]) -> str:
    """What sets a candidate apart, in a line."""
    return ", ".join(f"{name} {value}" for name, value in candidate.items() if name != "score")
