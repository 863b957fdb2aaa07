"""What others would do: each from anchors `x`, `y` and queries `q` (float64) to target latents of the queries."""

import numpy as np
import torch
from scipy.linalg import orthogonal_procrustes

from hf_relstitch.core.confidence import apply_head
from hf_relstitch.core.folds import quick_frame
from hf_relstitch.core.inversion import TranslationSettings, fit_translation, mean_norm
from hf_relstitch.core.relative import directions
from hf_relstitch.core.selection import ALPHAS, RIDGES

THRESHOLDS = (0.1, 0.15, 0.2, 0.3)


def padded(x, width):
    return torch.nn.functional.pad(x, (0, max(0, width - x.shape[1])))


def absolute(_, y, q):
    return padded(q, y.shape[1])[:, : y.shape[1]]


def least_squares(x, y, q):
    solution, *_ = np.linalg.lstsq((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy(), rcond=None)
    return (q - x.mean(0)) @ torch.tensor(solution) + y.mean(0)


def procrustes(x, y, q):
    """The best rotation of centred and normalised anchors, the narrower side zero-padded, at the target's mean norm."""
    width = max(x.shape[1], y.shape[1])
    cx, cy = x.mean(0), y.mean(0)
    rotation, _ = orthogonal_procrustes(
        padded(directions(x, centre=cx), width).numpy(), padded(directions(y, centre=cy), width).numpy()
    )
    rotation = torch.tensor(rotation)[:, : y.shape[1]]
    scale = mean_norm(y - cy) / mean_norm(padded(x - cx, width) @ rotation)
    return scale * padded(q - cx, width) @ rotation + cy


def family_member(**settings):
    return lambda x, y, q: fit_translation(x.float(), y.float(), settings=TranslationSettings(**settings))(q)


def inversions(x, y, q):
    """The paper's inversion with all anchors, and with 8 subspaces at each threshold."""
    yield family_member(alpha=0, ridge=0)(x, y, q)
    for threshold in THRESHOLDS:
        yield family_member(alpha=0, ridge=0, pruning=threshold, subspaces=8)(x, y, q)


def every_member(x, y, q, head):
    """Logits by every W(α, λ) of the grid, at the mean norm that anchors give and at the one that queries give."""
    cx, cy = x.mean(0), y.mean(0)
    source, target = (quick_frame(directions(z, centre=c), precision=1.2e-7) for z, c in ((x, cx), (y, cy)))
    between, readout = source.u.T @ target.u, target.vh @ head.weight.T
    anchors, queries = (x - cx) @ source.vh.T, (q - cx) @ source.vh.T
    for alpha in ALPHAS:
        for ridge in RIDGES:
            gains = source.gains(exponent=alpha, ridge=ridge)[:, None], target.gains(exponent=1 - alpha, ridge=ridge)
            made = gains[0] * between * gains[1]
            logits = queries @ (made @ readout)
            for like in (anchors[:100], queries[:100]):
                yield apply_head(head, cy[None]) + logits * (mean_norm(y - cy) / mean_norm(like @ made))


PEERS = {
    "absolute": absolute,
    "inversion, best threshold": None,  # the best of `inversions` by test labels
    "least squares": least_squares,
    "Procrustes": procrustes,
    "Parseval": family_member(alpha=0.5, ridge=0),
}
