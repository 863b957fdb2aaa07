"""What others would do: each from anchors `x`, `y` and queries `q` (float64) to target latents of the queries."""

import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV
from torch.nn.functional import mse_loss

from hf_relstitch.benchmarks.baselines import PEERS as BASELINES
from hf_relstitch.benchmarks.baselines import at_mean_norm
from hf_relstitch.core.relative import directions
from hf_relstitch.core.translation import TranslationSettings, fit_translation

KERNEL_ROWS = 1500
"""Anchors up to which scikit-learn's kernel ridge is cross-validated in minutes."""


def family_member(**settings):
    return lambda x, y, q: fit_translation(x.float(), y.float(), settings=TranslationSettings(**settings))(q)


def kernel_ridge(x, y, q):
    """scikit-learn's kernel ridge (RBF) on directions, γ and λ by five splits."""
    if len(x) > KERNEL_ROWS:
        return None
    centre, target_centre = x.mean(0), y.mean(0)
    grid = {"gamma": [0.5, 1, 2], "alpha": [1e-3, 1e-2, 0.1, 1]}
    model = GridSearchCV(KernelRidge(kernel="rbf"), grid, cv=5, scoring="neg_mean_squared_error")
    model.fit(directions(x, centre=centre).numpy(), (y - target_centre).numpy())
    return at_mean_norm(torch.tensor(model.predict(directions(q, centre=centre).numpy())), y)


def adapter(x, y, q, *, width=512, steps=600):
    """A residual MLP on top of a linear map, trained on the pairs; stopped where a tenth held out is best."""
    torch.manual_seed(0)
    centre = x.mean(0)
    unit, target = (directions(x, centre=centre).float(), directions(y, centre=y.mean(0)).float())
    queries = directions(q, centre=centre).float()
    held = torch.arange(len(x)) % 10 == 0
    skip = torch.nn.Linear(x.shape[1], y.shape[1])
    bent = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], width), torch.nn.GELU(), torch.nn.Dropout(0.1), torch.nn.Linear(width, y.shape[1])
    )
    torch.nn.init.zeros_(bent[-1].weight)
    optimizer = torch.optim.AdamW([*skip.parameters(), *bent.parameters()], lr=1e-3, weight_decay=1e-2)
    best, least = None, float("inf")
    rows = (~held).nonzero()[:, 0]
    with torch.enable_grad():
        for step in range(steps):
            bent.train()
            some = rows[torch.randint(len(rows), (256,))]
            optimizer.zero_grad()
            mse_loss(skip(unit[some]) + bent(unit[some]), target[some]).backward()
            optimizer.step()
            if step % 20 == 19:
                with torch.no_grad():
                    bent.eval()
                    loss = float(mse_loss(skip(unit[held]) + bent(unit[held]), target[held]))
                    if loss < least:
                        least, best = loss, skip(queries) + bent(queries)
    return at_mean_norm(best.double(), y)


PEERS = {
    "absolute": BASELINES["absolute"],
    "inversion, δ .8": family_member(alpha=0, ridge=0, norm="mean", pruning=0.2, subspaces=8),
    "inversion, δ .7": family_member(alpha=0, ridge=0, norm="mean", pruning=0.3, subspaces=8),
    "least squares": BASELINES["affine"],
    "Procrustes": BASELINES["procrustes"],
    "Parseval": family_member(alpha=0.5, ridge=0),
    "RidgeCV": BASELINES["ridge"],
}
SLOW_PEERS = {"kernel ridge": kernel_ridge, "MLP adapter": adapter}
