"""What a stitched model or an anchor set is, read from its files: sizes, provenance, conditioning."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_relstitch.anchors import AnchorSet
from hf_relstitch.checkpoints import read_config
from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.sharing import locate_artifact
from hf_relstitch.stitching import conditioning


def describe(place: str | Path) -> dict[str, Any]:
    """Everything that a folder or a Hub repo says of itself, as nested plain values.

    Raises:
        StitchError: it holds neither a stitched model nor an anchor set, or a damaged one.
    """
    repo, is_anchor_set = locate_artifact(str(place))
    folder = repo.folder()
    if is_anchor_set:
        return describe_anchors(AnchorSet.from_pretrained(folder))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return describe_model(read_config(folder)) | {"megabytes": round(size / 1e6, 1)}


def describe_anchors(anchors: AnchorSet) -> dict[str, Any]:
    """Size, provenance and conditioning of an anchor set."""
    return {
        "kind": "anchor set",
        "num_anchors": len(anchors),
        "inputs": anchors.inputs,
        "keyed": anchors.key is not None,
        "provenance": asdict(anchors.provenance),
        "conditioning": conditioning(anchors.latents),
    }


def describe_model(config: RelativeStitcherConfig) -> dict[str, Any]:
    """Parts, provenance, settings and report of a stitched model."""
    report = dict(config.report)
    architecture = config.source_config and config.source_config.model_type
    return {
        "kind": "stitched model",
        "modality": config.modality,
        "source": {"architecture": architecture, **config.source, **report.pop("source", {})},
        "target": {**config.target, **report.pop("target", {})},
        "head": {**config.head, "num_labels": config.num_labels},
        "translation": config.translation,
        "share": config.share,
        "report": report,
    }
