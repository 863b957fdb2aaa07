"""Estimate what a stitched model is worth from held-out anchors, before any label is seen."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from hf_relstitch.core.head_outputs import answers_of, apply_head, matching_temperature, mean_confidence
from hf_relstitch.core.measures import agreement
from hf_relstitch.core.relative import BLOCK, directions

Grade = Literal["good", "usable", "do not use"]
Z = 1.96
GOOD_KAPPA = 0.75
USABLE_KAPPA = 0.25
FEW_ANSWERS = 0.25
COVERED = 0.7
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class AgreementEstimate:
    """Hold the expected share of answers that a head gives alike on translated and true latents.

    Among as many other inputs as there are anchors the share lies between `low` and `high` in 95 % of cases, if they
    are like the anchors. `chance` is the agreement of answers that are as frequent but unrelated.
    """

    agreement: float
    low: float
    high: float
    chance: float

    def kappa(self, agreement: float) -> float:
        """Return agreement beyond chance: 0 for unrelated answers, 1 for the same ones (Cohen 1960)."""
        return (agreement - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0


@dataclass(frozen=True)
class Verdict:
    """Say whether to use a stitched model, why, and what is likely to help."""

    grade: Grade
    reason: str
    remedy: str


def estimate_agreement(
    translated_logits: Float[Tensor, "k classes"],
    true_logits: Float[Tensor, "k classes"],
    *,
    multi_label: bool = False,
    groups: Integer[Tensor, " k"] | None = None,
) -> AgreementEstimate:
    """Estimate the agreement from the head's logits on anchors held out of the translation's fit.

    The estimate is the mean of two numbers: the share of anchors that are answered alike, and the head's mean
    confidence on translated latents, once one temperature has calibrated that confidence (Guo et al. 2017, with the
    head's own answers as labels). A confidence has less noise than a yes or no. The interval says where the share
    among as many other inputs lies in 95 % of cases: both shares vary, with the variance of Agresti and Coull (1998).
    """
    answers, truth = (answers_of(each, multi_label=multi_label) for each in (translated_logits, true_logits))
    temperature = matching_temperature(translated_logits, truth, multi_label=multi_label)
    confidence = mean_confidence(translated_logits / temperature, multi_label=multi_label)
    same = agreement(translated_logits, true_logits, multi_label=multi_label)
    expected = (same + confidence) / 2
    count = len(truth) / (1.0 if groups is None else _design_effect((answers == truth).all(-1).double(), groups))
    smoothed = (expected * count + 2) / (count + 4)
    half = Z * (2 * smoothed * (1 - smoothed) / count) ** 0.5
    p, q = answers.double().mean(0), truth.double().mean(0)
    chance = float((p * q + (1 - p) * (1 - q)).mean() if multi_label else p @ q)
    return AgreementEstimate(expected, max(0.0, expected - half), min(1.0, expected + half), chance)


def _design_effect(values: Float[Tensor, " k"], groups: Integer[Tensor, " k"]) -> float:
    """Return by how much the variance of a mean is larger since values come in groups; at least 1."""
    errors = values - values.mean()
    sums = torch.zeros(len(groups), dtype=errors.dtype, device=errors.device)
    sums.index_add_(0, groups.unique(return_inverse=True)[1].to(errors.device), errors)
    return max(1.0, float(sums.square().sum() / errors.square().sum().clamp_min(torch.finfo(errors.dtype).tiny)))


def answers_used(true_logits: Float[Tensor, "k classes"], *, multi_label: bool = False) -> float:
    """Return the share of its classes that the head uses on the anchors: exp of the answers' entropy, over all."""
    if multi_label:
        return 1.0
    shares = answers_of(true_logits).double().mean(0)
    return float(torch.special.entr(shares).sum().exp()) / min(true_logits.shape)


def scale_invariance(
    head: nn.Module, latents: Float[Tensor, "k d_target"], *, multi_label: bool = False
) -> dict[str, float]:
    """Return the share of answers that a head keeps when true latents are scaled, about their mean, by a factor.

    The paper's inversion drops the norm of a latent and relies on these being near 1.
    """
    centre = latents.mean(0)
    logits = apply_head(head, latents)
    scaled = {factor: apply_head(head, centre + factor * (latents - centre)) for factor in FACTORS}
    return {str(factor): agreement(each, logits, multi_label=multi_label) for factor, each in scaled.items()}


def anchor_coverage(latents: Float[Tensor, "n d_source"], anchors: Float[Tensor, "k d_source"]) -> float:
    """Return how many of other latents the anchors cover: about 1 for inputs of their kind, towards 0 for others.

    The value is the share of latents that are as near to their nearest anchor as 90 % of the anchors are to theirs,
    divided by that 90 % (like Sun et al. 2022, Deep Nearest Neighbors). Nearness is by distance or by angle, whichever
    gives less.
    """
    centre = anchors.mean(0)
    by_distance = _share_near(latents, anchors)
    by_angle = _share_near(directions(latents, centre=centre), directions(anchors, centre=centre))
    return min(1.0, by_distance / 0.9, by_angle / 0.9)


def _share_near(latents: Float[Tensor, "n d"], anchors: Float[Tensor, "k d"]) -> float:
    """Return the share of latents as near to their nearest anchor as 90 % of the anchors are to theirs."""
    among = nearest(anchors, anchors, themselves=True)
    return float((nearest(latents, anchors) <= among.quantile(0.9)).double().mean())


def nearest(
    latents: Float[Tensor, "n d"], anchors: Float[Tensor, "k d"], *, themselves: bool = False
) -> Float[Tensor, " n"]:
    """Return the distance of each latent to its nearest anchor, excluding itself if the latents are the anchors."""
    found = []
    for start in range(0, len(latents), BLOCK):
        distances = torch.cdist(latents[start : start + BLOCK], anchors)
        if themselves:
            distances.diagonal(offset=start).fill_(torch.inf)
        found.append(distances.amin(-1))
    return torch.cat(found)


def verdict(
    estimate: AgreementEstimate,
    *,
    num_anchors: int,
    rank: int,
    answers_used: float,
    coverage: float | None = None,
    of: str = "inputs",
) -> Verdict:
    """Give a plain verdict on a stitched model.

    Args:
        estimate: the result of `estimate_agreement`.
        num_anchors: number of anchors of the translation.
        rank: number of directions that the source anchors span.
        answers_used: the result of `answers_used`.
        coverage: the result of `anchor_coverage` for inputs that the model is for; None without such inputs.
        of: the things that the agreement counts: for several labels, the yes and no to each class. "values" says that
            the estimate is the share of the variance of a head's values that is explained, 0 by chance.
    """
    reason = f"the head is expected to answer as on its own encoder on {estimate.agreement:.0%} of {of}"
    unrelated_agree = f"where unrelated answers would agree on {estimate.chance:.0%}"
    if of == "values":
        reason = f"its values are expected to explain {estimate.agreement:.0%} of the variance of the head's own"
        unrelated_agree = "where their mean alone explains 0%"
    sure = estimate.kappa(estimate.low)
    if coverage is not None and coverage < COVERED:
        return Verdict(
            "do not use",
            f"only {coverage:.0%} of the inputs that the model is for lie as near to the anchors as anchors do",
            "take the anchors from the inputs that the model is for",
        )
    if sure < USABLE_KAPPA:
        if estimate.chance > 0.999 and of != "values":
            remedy = "anchors of more than one class: the head gives the same answer to all of these"
            return Verdict("do not use", f"{reason}, {unrelated_agree}", remedy)
        unrelated = estimate.kappa(estimate.agreement) < 0.1 or num_anchors >= 2 * rank
        return Verdict(
            "do not use",
            f"{reason}, {unrelated_agree}",
            "check that both encoders saw the same inputs in the same order; if they did, they do not share what the "
            "head looks at: take another encoder"
            if unrelated
            else "more anchors",
        )
    if answers_used < FEW_ANSWERS:
        return Verdict(
            "usable",
            f"{reason}, but on these anchors it uses only {answers_used:.0%} of its classes",
            "anchors that cover the head's classes; inputs of another domain do not",
        )
    if sure >= GOOD_KAPPA:
        return Verdict("good", reason, "none needed")
    return Verdict("usable", reason, "more anchors")
