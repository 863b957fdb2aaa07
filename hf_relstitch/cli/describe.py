"""What a stitched model or an anchor set is, read from its files: sizes, provenance, conditioning."""

from pathlib import Path
from typing import Any

from hf_relstitch.bulk.search import SearchTranslation
from hf_relstitch.cli.push_pull import locate_artifact
from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.core.decomposition import Frame
from hf_relstitch.hub.files import ANCHOR_SET, EXPORTED, FACTS, SETTINGS, TRANSLATION, read_json
from hf_relstitch.model.anchors import AnchorSet
from hf_relstitch.model.persistence import read_config
from hf_relstitch.model.reporting import describe_frame

SHOWN = 8
"""Candidates of the choice that are shown, the best first."""


def describe(place: str | Path, *, revision: str | None = None) -> dict[str, Any]:
    """Return everything that a folder or a Hub repo says about itself, as nested plain values.

    Raises:
        StitchError: it holds nothing of this package's, or something damaged.
    """
    if Path(place).is_file():
        return _describe_translation(SearchTranslation.load(place))
    repo, kind = locate_artifact(str(place), revision=revision)
    folder = repo.folder()
    if kind == ANCHOR_SET:
        return _describe_anchors(AnchorSet.from_pretrained(folder))
    if kind == TRANSLATION:
        return _describe_translation(SearchTranslation.from_pretrained(folder))
    if kind == EXPORTED:
        return _describe_exported(read_json(folder / SETTINGS)[FACTS])
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return _describe_model(read_config(folder)) | {"megabytes": round(size / 1e6, 1)}


def _describe_translation(translation: SearchTranslation) -> dict[str, Any]:
    """Return whose latents a translation for search takes and gives, what to expect of it, and what to do."""
    expected = dict(translation.report)
    return {
        "kind": f"search with translated {translation.translates}",
        "source": translation.source and translation.source.to_dict(),
        "target": translation.target and translation.target.to_dict(),
        "to expect": expected,
        **expected.pop("verdict", {}),
    }


def _describe_exported(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the encoder of an exported one, whose space it speaks, and what was expected when it was fitted."""
    known = {name: facts.get(name) for name in ("source", "target", "translates")}
    report = dict(facts.get("report") or {})
    verdict = report.pop("verdict", None)
    return {"kind": "exported encoder", **known, "to expect": report, **(verdict or {})}


def _describe_anchors(anchors: AnchorSet) -> dict[str, Any]:
    """Size, provenance and conditioning of an anchor set."""
    return {
        "kind": "anchor set",
        "num_anchors": len(anchors),
        "inputs": anchors.inputs,
        "keyed": anchors.key is not None,
        "provenance": anchors.provenance.to_dict(),
        "conditioning": describe_frame(Frame.from_anchors(anchors.latents)),
    }


def _describe_model(config: RelativeStitcherConfig) -> dict[str, Any]:
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
        "share": config.share,
        "selection": selection,
        "best candidates": {_name_of(candidate): candidate["score"] for candidate in best},
        "report": report,
    }


def _name_of(candidate: dict[str, Any]) -> str:
    """What sets a candidate apart, in a line."""
    return ", ".join(f"{name} {value}" for name, value in candidate.items() if name != "score")
