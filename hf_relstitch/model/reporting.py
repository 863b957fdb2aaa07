"""What a stitched model's report says, from anchors held out of its fit."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from hf_relstitch.core.decomposition import Frame
from hf_relstitch.core.expected_agreement import (
    AgreementEstimate,
    anchor_coverage,
    answers_used,
    estimate_agreement,
    scale_invariance,
    verdict,
)
from hf_relstitch.core.head_outputs import values_explained
from hf_relstitch.core.measures import discounted_gain, mean_cosine, mean_reciprocal_rank, rank_correlation
from hf_relstitch.core.relative import to_working
from hf_relstitch.data.words import entity_f1, has_entities
from hf_relstitch.heads.head import Head

SURE = 2.0
"""Standard errors on each side of a 95 % interval."""


def make_report(
    translated: Tensor,
    target: Tensor,
    logits: Tensor,
    true_logits: Tensor,
    head: Head,
    *,
    frames: tuple[Frame, Frame],
    groups: Tensor | None,
    texts: Tensor | None,
) -> dict[str, Any]:
    """Describe a stitched model by anchors held out of its fit; see `RelativeStitcher.report` for the fields.

    For words `texts` says which are of one text.
    """
    centre = target.mean(0)
    report = {
        "num_anchors": len(target),
        "cosine": mean_cosine(translated, target, centre=centre),
        "mean_reciprocal_rank": mean_reciprocal_rank(translated, target, centre=centre),
        "source": describe_frame(frames[0]),
        "target": describe_frame(frames[1]),
    }
    if not head.answers:
        report |= {"agreement": None, **_describe_values(translated, target, logits, true_logits, head, groups)}
        return report | {"verdict": _give_verdict(report)}
    estimate = estimate_agreement(logits, true_logits, multi_label=head.multi_label, groups=texts)
    of = "inputs" if texts is None else "words"
    report |= {
        "agreement": estimate.agreement,
        "agreement_of": "yes-or-no answers" if head.multi_label else of,
        "agreement_interval": [estimate.low, estimate.high],
        "chance_agreement": estimate.chance,
        "answers_used": answers_used(true_logits, multi_label=head.multi_label),
        "scale_invariance": scale_invariance(head.module, target, multi_label=head.multi_label),
    }
    if texts is not None and not head.multi_label and has_entities(head.id2label.values()):
        found, own = ([head.id2label[index] for index in each.argmax(-1).tolist()] for each in (logits, true_logits))
        report["entity_agreement"] = entity_f1(found, own, texts.tolist())
    return report | {"verdict": _give_verdict(report)}


def _describe_values(
    translated: Tensor, target: Tensor, logits: Tensor, true_logits: Tensor, head: Head, groups: Tensor | None
) -> dict[str, Any]:
    """Return how well held-out values explain a head's own, and of a single value how well they keep its order."""
    share, error = values_explained(head.module, translated, target)
    half = SURE * 2**0.5 * error  # of the difference between the anchors and as many other inputs
    interval = [share - half, min(1.0, share + half)]
    report: dict[str, Any] = {"values_explained": share, "values_explained_interval": interval}
    if true_logits.shape[1] > 1:
        return report
    made, own = logits[:, 0], true_logits[:, 0]
    report["spearman"] = rank_correlation(made, own)
    ndcg = None if groups is None else discounted_gain(made, own, groups.to(own.device))
    return report if ndcg is None else report | {"ndcg": ndcg}


def _give_verdict(report: dict[str, Any], *, coverage: float | None = None) -> dict[str, str]:
    """Return the verdict on a report and, where it is known, on how much of the inputs the anchors cover."""
    has_values = report["agreement"] is None
    name = "values_explained" if has_values else "agreement"
    low, high = report[f"{name}_interval"]
    estimate = AgreementEstimate(report[name], low, high, report.get("chance_agreement", 0.0))
    return asdict(
        verdict(
            estimate,
            num_anchors=report["num_anchors"],
            rank=report["source"]["rank"],
            answers_used=report.get("answers_used", 1.0),
            coverage=coverage,
            of="values" if has_values else report.get("agreement_of", "inputs"),
        )
    )


def expected_score(report: dict[str, Any]) -> float:
    """Return what a report expects, agreement or values explained, by which models of one head are compared."""
    return float(report["values_explained"] if report["agreement"] is None else report["agreement"])


def add_coverage(report: dict[str, Any], latents: Tensor, anchors: Tensor) -> dict[str, Any]:
    """Add to a report the share of source latents that the source anchors cover, and renew its verdict."""
    coverage = anchor_coverage(to_working(latents), to_working(anchors.to(latents.device)))
    covered = {**report, "coverage": coverage}
    if report["agreement"] is None and "values_explained_interval" not in report:  # as in older formats
        return covered
    return covered | {"verdict": _give_verdict(report, coverage=coverage)}


def describe_frame(frame: Frame) -> dict[str, Any]:
    """Return width, rank, condition number and effective rank of one side's anchors, centred and normalised."""
    return {
        "dim": frame.vh.shape[1],
        "rank": frame.rank,
        "condition_number": frame.condition_number,
        "effective_rank": frame.effective_rank,
    }
