"""What others would do: each from anchors `x`, `y` and queries `q` (float64) to target latents of the queries."""

from hf_relstitch.benchmarks.baselines import _absolute, _affine, _procrustes
from hf_relstitch.core.decomposition import quick_frame
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.core.relative import directions
from hf_relstitch.core.selection import ALPHAS, RIDGES
from hf_relstitch.core.translation import TranslationSettings, fit_translation, mean_norm

THRESHOLDS = (0.1, 0.15, 0.2, 0.3)


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
            member = TranslationSettings(alpha=alpha, ridge=ridge)
            source_gains = member.gains(source.singular_values, side="source")
            target_gains = member.gains(target.singular_values, side="target")
            made = source_gains[:, None] * between * target_gains
            logits = queries @ (made @ readout)
            for like in (anchors[:100], queries[:100]):
                yield apply_head(head, cy[None]) + logits * (mean_norm(y - cy) / mean_norm(like @ made))


PEERS = {
    "absolute": _absolute,
    "inversion, best threshold": None,  # the best of `inversions` by test labels
    "least squares": _affine,
    "Procrustes": _procrustes,
    "Parseval": family_member(alpha=0.5, ridge=0),
}
