"""Latent fidelity: how near translated latents come to the true ones, as an `evaluate` metric."""

from typing import Any

import evaluate

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.measures import mean_cosine, relative_error, retrieval_ranks
from hf_relstitch.metrics import checking

DESCRIPTION = """How near translated latents (predictions) come to the true ones (references), seen from their mean:
cosine, relative error (1 is no better than the mean), and retrieval of the true latent: MRR, R@1, R@5 and R@10."""


class LatentFidelity(checking.CheckedMetric):
    """Compute cosine, relative error, MRR and R@k of translated latents against true ones of the same width."""

    def _info(self) -> evaluate.MetricInfo:
        return checking.information(DESCRIPTION, predictions="latents", references="latents")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        translated = checking.matrix(predictions, name="predictions")
        target = checking.matrix(references, name="references")
        if translated.shape != target.shape:
            raise StitchError(
                f"predictions are {translated.shape[1]} wide and references {target.shape[1]}: expected translated "
                "latents, in the space of the true ones; angle_preservation compares spaces of different widths"
            )
        centre = target.mean(0)
        if not (target != centre).any():
            raise StitchError("references are all the same latent: give those of different inputs")
        ranks = retrieval_ranks(translated, target, centre=centre)
        return {
            "cosine": mean_cosine(translated, target, centre=centre),
            "relative_error": relative_error(translated, target, centre=centre),
            "mrr": float((1 / ranks).mean()),
            **{f"recall_at_{k}": float((ranks <= k).double().mean()) for k in (1, 5, 10)},
        }
