"""What a head's logits say about how sure it is, and one temperature that corrects them."""

import torch
from jaxtyping import Float
from torch import Tensor

STEPS = 50
LARGEST = 20.0
"""log2 of the largest factor on logits that is tried, and of one over the smallest."""


def probabilities(logits: Float[Tensor, "n classes"], *, multi_label: bool = False) -> Float[Tensor, "n classes"]:
    """Softmax over classes, or a sigmoid each with `multi_label`."""
    return logits.sigmoid() if multi_label else logits.softmax(-1)


def mean_confidence(logits: Float[Tensor, "n classes"], *, multi_label: bool = False) -> float:
    """Mean probability that is given to the answer; with `multi_label`, to each class's yes or no."""
    given = probabilities(logits, multi_label=multi_label)
    return float((torch.maximum(given, 1 - given) if multi_label else given.amax(-1)).mean())


def temperature_for(logits: Float[Tensor, "n classes"], *, confidence: float, multi_label: bool = False) -> float:
    """The temperature t at which `logits / t` have the given mean confidence, by bisection.

    Mean confidence falls as t grows, so there is one answer; where none exists (all logits equal) the nearest end of
    the range 2^±20 is given.
    """
    low, high = -LARGEST, LARGEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        if mean_confidence(logits * 2.0**middle, multi_label=multi_label) < confidence:
            low = middle
        else:
            high = middle
    return 2.0**-low


def matching_temperature(
    logits: Float[Tensor, "n classes"], true_logits: Float[Tensor, "n classes"], *, multi_label: bool = False
) -> float:
    """The temperature t at which `logits / t` say best what the head says on true latents; no labels.

    It minimises the cross-entropy from the head's own probabilities, which is temperature scaling (Guo et al. 2017)
    with the head in the place of labels. The loss is convex in 1/t; its derivative `Σ (p − q) logits` is bisected.
    Use it with held-out latents: fitted ones are nearer to the truth than any that come later.
    """
    target = probabilities(true_logits, multi_label=multi_label)
    low, high = -LARGEST, LARGEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        given = probabilities(logits * 2.0**middle, multi_label=multi_label)
        if float(((given - target) * logits).sum()) < 0:
            low = middle
        else:
            high = middle
    return 2.0**-low


def answer_probability(
    logits: Float[Tensor, "n classes"],
    true_logits: Float[Tensor, "n classes"],
    *,
    temperature: float = 1.0,
    multi_label: bool = False,
) -> Float[Tensor, " n"]:
    """Probability that `logits / temperature` give to the answer that `true_logits` give."""
    given = probabilities(logits / temperature, multi_label=multi_label)
    if multi_label:
        return torch.where(true_logits > 0, given, 1 - given).mean(-1)
    return given.gather(-1, true_logits.argmax(-1, keepdim=True))[:, 0]


def expected_calibration_error(given: Float[Tensor, "n classes"], correct_class: Tensor, *, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over equal-width bins of confidence (Guo et al. 2017)."""
    sure, answer = given.max(-1)
    right = (answer == correct_class).to(given.dtype)
    index = (sure * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins, dtype=given.dtype, device=given.device).index_add(0, index, right - sure)
    return float(gaps.abs().sum() / len(given))
