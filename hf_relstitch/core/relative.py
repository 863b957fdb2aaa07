"""Centring, normalising and the relative projection."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hf_relstitch.core.errors import StitchError

BLOCK = 1024
"""Rows that are compared with all others at a time, so that memory does not grow with the square of the rows."""


def check_latents(latents: Any, *, width: int, of: str = "") -> None:
    """Refuse anything but a tensor `(n, width)` of floats; `of` says whose latents are expected.

    Raises:
        StitchError: the value is something else.
    """
    tensor = isinstance(latents, Tensor)
    if not tensor or latents.ndim != 2 or latents.shape[1] != width or not latents.is_floating_point():
        came = f"{latents.dtype} of shape {tuple(latents.shape)}" if tensor else f"a {type(latents).__name__}"
        remedy = "" if tensor else "; torch.as_tensor makes one of an array"
        raise StitchError(f"the latents are {came}: expected a tensor (n, {width}) of floats{of}{remedy}")


def to_working(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return a detached tensor in float64 for inversions; on the CPU if its device has no float64 (MPS)."""
    return x.detach().to("cpu" if x.device.type == "mps" else x.device).to(torch.float64)


def precision_of(x: Float[Tensor, "n d"]) -> float:
    """Return the rounding error that the directions of latents carry: machine epsilon as centring amplifies it.

    Epsilon is float64's, or else float32's: half-precision latents are computed in float32 inside a model, and
    their own rounding is noise like any other. A coordinate that is constant up to rounding has no part in directions,
    however large it is.
    """
    latents = to_working(x)
    radii = torch.linalg.vector_norm(latents - latents.mean(0), dim=-1)
    ratios = torch.linalg.vector_norm(without_constants(x), dim=-1)[radii > 0] / radii[radii > 0]
    amplified = max(1.0, float(ratios.square().mean().sqrt())) if len(ratios) else 1.0
    return amplified * _epsilon(x)


def without_constants(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return latents in float64, with coordinates set to 0 that are constant up to rounding."""
    latents = to_working(x)
    return latents * (torch.linalg.vector_norm(latents - latents.mean(0), dim=0) > _epsilon(x) * latents.norm(dim=0))


def _epsilon(x: Float[Tensor, "n d"]) -> float:
    """Return the machine epsilon of float64, or else of float32."""
    return torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps


def directions(x: Float[Tensor, "n d"], *, centre: Float[Tensor, " d"]) -> Float[Tensor, "n d"]:
    """Return unit vectors from the centre to each latent, `(x − μ)/‖x − μ‖`; a latent at the centre gives zeros."""
    centred = x - centre
    return nn.functional.normalize(centred, dim=-1, eps=torch.finfo(x.dtype).tiny)


def relative_projection(x: Float[Tensor, "n d"], *, anchors: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    """Return the cosines of latents to anchors, both measured from the mean of the anchors: `r = x̂ Xᵀ`.

    The result does not change when one isometry, one positive scale and one shift act on latents and anchors alike
    (arXiv 2209.15430, eq. 2; centred as in arXiv 2406.15057). It is computed in float64 and returned in the dtype and
    on the device of `x`.

    Raises:
        StitchError: latents and anchors have different widths.
    """
    if x.shape[-1] != anchors.shape[-1]:
        raise StitchError(
            f"latents are {x.shape[-1]} wide and anchors {anchors.shape[-1]}: "
            "both have to come from the same encoder with the same pooling"
        )
    absolute = to_working(anchors)
    centre = absolute.mean(0)
    relative = directions(to_working(x), centre=centre) @ directions(absolute, centre=centre).T
    return relative.to(x)
