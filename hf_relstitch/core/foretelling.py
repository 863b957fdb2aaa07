"""What a stitched model will be worth, told from held-out anchors before any label is seen."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hf_relstitch.core.confidence import probabilities

Grade = Literal["good", "usable", "do not use"]

Z = 1.96
GOOD_KAPPA = 0.75
USABLE_KAPPA = 0.25
FEW_ANSWERS = 0.25
"""Share of its classes that a head has to use on the anchors, counted as exp of the entropy of its answers."""


@dataclass(frozen=True)
class Foretold:
    """Expected share of answers that the head gives alike on translated and on true latents, with a 95 % interval.

    `chance` is the agreement of answers that are as frequent but unrelated; `kappa` is the agreement above it, over
    the most there can be (Cohen 1960). The interval is for inputs like the anchors, and for no others.
    """

    agreement: float
    low: float
    high: float
    chance: float

    @property
    def kappa(self) -> float:
        """Agreement beyond chance: 0 for unrelated answers, 1 for the same ones."""
        return beyond_chance(self.agreement, self.chance)

    @property
    def kappa_low(self) -> float:
        """`kappa` at the lower end of the interval."""
        return beyond_chance(self.low, self.chance)


@dataclass(frozen=True)
class Verdict:
    """Whether to use a stitched model, why, and what is likely to help."""

    grade: Grade
    reason: str
    remedy: str


def foretell(
    translated_logits: Float[Tensor, "k classes"],
    true_logits: Float[Tensor, "k classes"],
    *,
    multi_label: bool = False,
) -> Foretold:
    """The agreement to expect, from the head's logits on anchors held out of the translation's fit.

    The interval is Wilson's, for k independent inputs. Held-out anchors were translated by fits on fewer anchors than
    the model has, which foretells too little; the settings were chosen on the same anchors, which foretells too much:
    with five folds the two were measured to cancel within 0.01.
    """
    answers, truth = answers_of(translated_logits, multi_label), answers_of(true_logits, multi_label)
    same = (answers == truth).double()
    agreement, count = float(same.mean()), len(same)
    centre = (agreement + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * (agreement * (1 - agreement) / count + Z**2 / (4 * count**2)) ** 0.5
    if multi_label:
        p, q = answers.double().mean(0), truth.double().mean(0)
        chance = float((p * q + (1 - p) * (1 - q)).mean())
    else:
        classes = true_logits.shape[1]
        p, q = (torch.bincount(each, minlength=classes).double() / count for each in (answers, truth))
        chance = float(p @ q)
    return Foretold(agreement, max(0.0, centre - half), min(1.0, centre + half), chance)


def answers_of(logits: Float[Tensor, "n classes"], multi_label: bool) -> Tensor:
    """The class of the largest logit, or each class's yes or no."""
    return logits > 0 if multi_label else logits.argmax(-1)


def beyond_chance(agreement: float, chance: float) -> float:
    """Cohen's κ; 0 where chance alone agrees always."""
    return (agreement - chance) / (1 - chance) if chance < 1 else 0.0


def answers_used(true_logits: Float[Tensor, "k classes"], *, multi_label: bool = False) -> float:
    """Classes that the head really uses on the anchors, as a share of all: exp of the entropy of its answers."""
    if multi_label:
        return 1.0
    shares = torch.bincount(true_logits.argmax(-1), minlength=true_logits.shape[1]).double() / len(true_logits)
    return float(torch.special.entr(shares).sum().exp()) / true_logits.shape[1]


def head_confidence(true_logits: Float[Tensor, "k classes"], *, multi_label: bool = False) -> float:
    """How far the head's mean confidence on true latents is from a guess (0) to certainty (1)."""
    given = probabilities(true_logits, multi_label=multi_label)
    if multi_label:
        return float((2 * given - 1).abs().mean())
    floor = 1 / true_logits.shape[1]
    return float((given.amax(-1).mean() - floor) / (1 - floor))


def verdict(foretold: Foretold, *, num_anchors: int, rank: int, answers_used: float, coverage: float | None) -> Verdict:
    """A plain word on a stitched model.

    Args:
        foretold: what `foretell` gave.
        num_anchors: anchors of the translation.
        rank: directions that the source anchors span.
        answers_used: what `answers_used` gave.
        coverage: what `anchor_coverage` gave for inputs that the model is for; None where there are none.
    """
    reason = f"the head is expected to answer as on its own encoder on {foretold.agreement:.0%} of inputs"
    if coverage is not None and coverage < 0.5:
        return Verdict(
            "do not use",
            f"only {coverage:.0%} of the inputs that the model is for lie as near to the anchors as anchors do",
            "take the anchors from the inputs that the model is for",
        )
    if foretold.kappa_low < USABLE_KAPPA:
        return Verdict(
            "do not use",
            f"{reason}, where unrelated answers would agree on {foretold.chance:.0%}",
            "check that row i of both anchor sets is the same input; if it is, the two spaces do not share what the "
            "head looks at: take an earlier cut or another encoder"
            if foretold.kappa < 0.1 or num_anchors >= 2 * rank
            else "more anchors",
        )
    if answers_used < FEW_ANSWERS:
        return Verdict(
            "usable",
            f"{reason}, but on these anchors it uses only {answers_used:.0%} of its classes",
            "anchors that cover the head's classes; inputs of another domain do not",
        )
    if foretold.kappa_low >= GOOD_KAPPA:
        return Verdict("good", reason, "none needed")
    return Verdict("usable", reason, "more anchors, or prefer='accuracy'")


def anchor_coverage(source_unit: Float[Tensor, "n d_source"], anchors_unit: Float[Tensor, "k d_source"]) -> float:
    """Share of latents as near to their nearest anchor as 90 % of the anchors are to theirs, over that 90 %.

    About 1 for inputs like the anchors, towards 0 for inputs of another domain. Both sides are centred at the mean of
    the anchors and normalised.
    """
    among = anchors_unit @ anchors_unit.T
    among.fill_diagonal_(-torch.inf)
    limit = among.amax(-1).quantile(0.1)
    return min(1.0, float(((source_unit @ anchors_unit.T).amax(-1) >= limit).double().mean()) / 0.9)
