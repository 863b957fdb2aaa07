"""What anchors have to be: shapes, ids, and latents that carry something."""

import torch
from torch import Tensor

from hf_relstitch.core.errors import StitchError

MIN_ANCHORS = 32


def first_of_each(latents: Tensor) -> list[int]:
    """Rows whose latent no earlier row has."""
    first: dict[bytes, int] = {}
    for row, latent in enumerate(latents.cpu().float().numpy()):
        first.setdefault(latent.tobytes(), row)
    return list(first.values())


def check_shapes(latents: Tensor, ids: Tensor) -> None:
    """Refuse tensors that are not `(k, d)` floats and `(k,)` integers with k at least 32."""
    if latents.ndim != 2 or not latents.is_floating_point():
        raise StitchError(f"anchor latents are {latents.dtype} of shape {tuple(latents.shape)}: expected (k, d) floats")
    if ids.shape != latents.shape[:1] or ids.dtype != torch.int64:
        raise StitchError(
            f"anchor ids are {ids.dtype} of shape {tuple(ids.shape)} for {len(latents)} latents: "
            f"expected ({len(latents)},) int64, one id a row"
        )
    check_count(len(latents))


def check_count(count: int) -> None:
    """Refuse fewer than 32 anchors."""
    if count < MIN_ANCHORS:
        raise StitchError(
            f"{count} anchors: at least {MIN_ANCHORS} different inputs are needed, some hundreds are usual"
        )


def check_ids(ids: Tensor) -> None:
    """Refuse ids that stand twice."""
    values, counts = torch.unique(ids, return_counts=True)
    if len(values) < len(ids):
        row = int((ids == values[counts.argmax()]).nonzero()[0])
        raise StitchError(
            f"{len(ids) - len(values)} of {len(ids)} anchor ids repeat others (the id of row {row} is one): "
            "each anchor has to be a different input"
        )


def check_latents(latents: Tensor) -> None:
    """Refuse latents that carry nothing, or too much."""
    finite = latents.isfinite().all(1)
    if not finite.all():
        raise StitchError(
            f"{_rows(~finite)} not-a-number or infinite values: look at these inputs and at the encoder's dtype"
        )
    centred = latents.double() - latents.double().mean(0)
    lengths = latents.double().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    if (centred.norm(dim=1) <= 1e-6 * lengths).all():
        raise StitchError(
            f"all {len(latents)} anchors have the same latent: is the encoder trained, and are the inputs different?"
        )
    if not (latents != 0).any(1).all():
        raise StitchError(f"{_rows((latents == 0).all(1))} a zero norm: leave out these inputs")
    if (repeated := len(latents) - len(first_of_each(latents))) > 0:
        raise StitchError(f"{repeated} of {len(latents)} anchors repeat the latent of another: leave out the copies")
    central = centred.norm(dim=1) <= 1e-6 * lengths
    if central.any():
        raise StitchError(
            f"{_rows(central)} a latent at the mean of all, so without a direction: leave out these inputs"
        )


def _rows(mask: Tensor) -> str:
    rows = mask.nonzero().flatten().tolist()
    shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    return f"{len(rows)} of {len(mask)} anchors (rows {shown}) have"
