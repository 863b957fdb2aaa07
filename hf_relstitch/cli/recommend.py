"""Which encoder to put in front of a head: candidates ranked by expected agreement, speed and size, without labels."""

import time
from collections.abc import Sequence
from typing import Any

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import are_text_pairs, check_kinds, side_of, sides_of
from hf_relstitch.encoders.devices import gather
from hf_relstitch.encoders.encoder import Encoder, to_encoder
from hf_relstitch.heads.head import Head
from hf_relstitch.heads.loading import load_classifier
from hf_relstitch.model.anchors import AnchorSet
from hf_relstitch.model.reporting import expected_score
from hf_relstitch.model.stitching import encode_target, stitch

WARM_UP = 2
"""Inputs encoded before the clock starts, so that what a first call costs is not counted."""


def recommend(
    target: str,
    candidates: Sequence[str],
    anchors: Sequence[Any],
    *,
    cut: str | None = None,
    revision: str | None = None,
    num_anchors: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Rank candidate encoders for a target's head, best first, from anchor inputs alone; or pairs, see `from_parts`.

    A row has the `candidate`, the `agreement` that its report predicts with `agreement_interval`, the `verdict`,
    `inputs_per_second` (measured while it encoded the anchors, on this machine), `parameters`, `megabytes` of weights,
    and `error`. `error` is None, or says why the candidate could not be stitched; then all other values are None, and
    the row comes last. Rows are ranked by predicted agreement, then by speed, then by size. For a head with one logit,
    `cosine` replaces the agreement.

    Raises:
        StitchError: the target cannot be loaded or cut, or does not take these inputs; there are no candidates.
    """
    if not candidates:
        raise StitchError("there are no candidates: name at least one encoder")
    encoder, head = load_classifier(target, cut=cut, revision=revision)
    source_side, _ = sides_of(anchors)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    target_anchors, kept = encode_target(encoder, head, anchors, num_anchors=num_anchors, **options)
    del encoder
    taken = side_of(kept, source_side)
    rows = []
    for candidate in candidates:
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        try:
            row |= _measured(candidate, target_anchors, head, taken, **options)
        except Exception as error:
            row["error"] = str(error) or type(error).__name__
        rows.append(row | {"candidate": candidate})
    return sorted(rows, key=rank)


COLUMNS = (
    "candidate",
    "agreement",
    "agreement_interval",
    "verdict",
    "cosine",
    "inputs_per_second",
    "parameters",
    "megabytes",
    "error",
)


def loaded(candidate: str, *, by_token: bool = False) -> Encoder:
    """Load a candidate in every process; if it fails in any of them, all processes skip it and stay in step."""
    made: list[Encoder] = []

    def load() -> list[None]:
        made.append(to_encoder(candidate, by_token=by_token))
        return []

    gather(load)
    return made[0]


def _measured(
    candidate: str, target_anchors: AnchorSet, head: Head, inputs: Sequence[Any], *, batch_size: int, progress: bool
) -> dict[str, Any]:
    """What is known of one candidate, once its translation is fitted; `inputs` are its own of the target's anchors.

    Raises:
        StitchError: it cannot be loaded, does not take these inputs, or cannot be stitched.
    """
    source = loaded(candidate, by_token=target_anchors.provenance.by_token)
    if not target_anchors.provenance.by_token:
        check_kinds(inputs, modality=source.modality, who="source")
    found = []
    for encoder in source.ways_to_read_pairs() if are_text_pairs(inputs) else [source]:
        encoder.encode(inputs[:WARM_UP], batch_size=batch_size, progress=False)
        start = time.perf_counter()
        source_anchors = AnchorSet.encode(
            encoder, inputs, ids=target_anchors.ids, batch_size=batch_size, progress=progress
        )
        seconds = time.perf_counter() - start
        report = stitch(source_anchors, target_anchors, head, source=encoder.provenance).report
        found.append((report, len(source_anchors) / seconds))
    report, speed = max(found, key=lambda each: expected_score(each[0]))
    weights = list(source.model.parameters())
    return {
        "agreement": report["agreement"],
        "agreement_interval": report.get("agreement_interval"),
        "verdict": report["verdict"]["grade"] if "verdict" in report else None,
        "cosine": report["cosine"],
        "inputs_per_second": speed,
        "parameters": sum(each.numel() for each in weights),
        "megabytes": sum(each.numel() * each.element_size() for each in weights) / 1e6,
    }


def rank(row: dict[str, Any]) -> tuple[float, ...]:
    """Return a sort key that puts the best rows first and failed rows last."""
    if row["error"] is not None:
        return (1.0,)
    agreement = row["cosine"] if row["agreement"] is None else row["agreement"]
    return (0.0, -agreement, -row["inputs_per_second"], row["megabytes"])
