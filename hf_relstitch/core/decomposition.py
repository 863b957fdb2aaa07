"""Decompose anchors once: thin SVDs of one side's directions, and of the kernel values between them."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hf_relstitch.core.relative import directions, precision_of, to_working

NULL = 1e-12
"""Eigenvalues of a kernel matrix below this share of the largest, times its size, are rounding."""


@dataclass(frozen=True)
class Frame:
    """Hold the thin SVD of one side's anchors, `X = U D Vᵀ`, without the directions that are null.

    A singular value counts as null when rounding alone can make it, as in `torch.linalg.pinv`: encoders that end in
    a layer norm have such directions, and an inversion would amplify their noise beyond everything else.
    """

    u: Float[Tensor, "k r"]
    singular_values: Float[Tensor, " r"]
    vh: Float[Tensor, "r d"]

    @classmethod
    def from_directions(cls, unit_anchors: Float[Tensor, "k d"], *, precision: float) -> "Frame":
        """Decompose centred and normalised anchors that are known to a relative `precision`.

        For many anchors the triangular factor `(d, d)` is decomposed, which is faster on accelerators.
        """
        k, d = unit_anchors.shape
        q, r = torch.linalg.qr(unit_anchors) if k > 2 * d else (None, unit_anchors)
        u, s, vh = torch.linalg.svd(r, full_matrices=False)
        u = u if q is None else q @ u
        kept = s >= s[0] * min(1.0, max(unit_anchors.shape) * precision)
        return cls(u[:, kept], s[kept], _without_silent(vh[kept], unit_anchors))

    @classmethod
    def from_anchors(cls, anchors: Float[Tensor, "k d"]) -> "Frame":
        """Decompose the directions of anchors from their mean."""
        latents = to_working(anchors)
        return cls.from_directions(directions(latents, centre=latents.mean(0)), precision=precision_of(anchors))

    @property
    def rank(self) -> int:
        """Count the directions that the anchors span."""
        return len(self.singular_values)

    @property
    def condition_number(self) -> float:
        """Divide the largest singular value by the smallest that is not numerically null."""
        return float(self.singular_values[0] / self.singular_values[-1])

    @property
    def effective_rank(self) -> float:
        """Return exp of the entropy of the singular values, the directions really used (Roy & Vetterli 2007)."""
        p = self.singular_values / self.singular_values.sum()
        return float(torch.exp(-(p * p.log()).sum()))


def _without_silent(vh: Float[Tensor, "r d"], unit_anchors: Float[Tensor, "k d"]) -> Float[Tensor, "r d"]:
    """Set `Vᵀ` to 0 for coordinates so small beside the largest that it holds nothing but rounding there.

    all-mpnet-base-v2 has some that vary by 1e-34: a head on standardised latents would see rounding alone, magnified.
    With 0 they are translated to their mean.
    """
    sizes = unit_anchors.norm(dim=0)
    return vh * (sizes > max(unit_anchors.shape) * torch.finfo(vh.dtype).eps * sizes.max())


def shrinkage(eigenvalues: Float[Tensor, " r"], *, exponent: float, ridge: float) -> Float[Tensor, " r"]:
    """Return eigenvalues of `(G + λI)^(−exponent)`, λ relative to the mean of G's eigenvalues that are not null."""
    return (eigenvalues + ridge * eigenvalues.mean()) ** -exponent


def quick_frame(unit_anchors: Float[Tensor, "k d"], *, precision: float) -> Frame:
    """Decompose like `Frame.from_directions`, by the smaller Gram matrix: faster, blind below √eps of the largest."""
    wide = unit_anchors.shape[0] < unit_anchors.shape[1]
    gram = unit_anchors @ unit_anchors.T if wide else unit_anchors.T @ unit_anchors
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    floor = max(max(unit_anchors.shape) * precision, 10 * torch.finfo(gram.dtype).eps ** 0.5)
    kept = values >= values[0] * min(1.0, floor) ** 2
    s, vectors = values[kept].sqrt(), vectors[:, kept]
    if wide:
        return Frame(vectors, s, _without_silent(vectors.T @ unit_anchors / s[:, None], unit_anchors))
    return Frame(unit_anchors @ vectors / s, s, _without_silent(vectors.T, unit_anchors))


def kernel(cosines: Float[Tensor, "n k"], *, gamma: float) -> Float[Tensor, "n k"]:
    """Bend cosines so that near anchors count for more: `(exp(2γr) − 1)/(exp(2γ) − 1)`.

    0 stays 0, 1 stays 1, and γ = 0 changes nothing. `exp(2γ(r − 1))` is the RBF kernel of unit vectors; subtracting its
    value at r = 0 removes the part that is the same for every latent. Its Taylor coefficients are positive, so the
    kernel matrix of anchors is positive semi-definite (Schoenberg 1942).
    """
    if gamma == 0:
        return cosines
    return torch.expm1(2 * gamma * cosines) / math.expm1(2 * gamma)


def kernel_frame(unit_anchors: Float[Tensor, "k d"], *, gamma: float, landmarks: int) -> Frame:
    """Decompose the features that a kernel gives anchors; `vh` maps kernel values to landmarks to these features.

    The landmarks are the first `landmarks` anchors. With more anchors than landmarks the features are Nyström's
    (Williams & Seeger 2001), so that time and memory grow with k and not with its square.
    """
    marks = unit_anchors[:landmarks]
    values, vectors = torch.linalg.eigh(kernel(marks @ marks.T, gamma=gamma))
    kept = values > values[-1] * len(marks) * NULL
    values, vectors = values[kept], vectors[:, kept]
    to_features = vectors / values.sqrt()
    if len(marks) == len(unit_anchors):
        return Frame(vectors, values.sqrt(), to_features.T)
    features = kernel(unit_anchors @ marks.T, gamma=gamma) @ to_features
    frame = quick_frame(features, precision=torch.finfo(features.dtype).eps)
    return Frame(frame.u, frame.singular_values, frame.vh @ to_features.T)
