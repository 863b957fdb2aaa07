"""Methods of a suite: each turns anchors and a head into logits of test latents."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from hf_relstitch.benchmarks.baselines import PEERS, fit_logistic
from hf_relstitch.benchmarks.latent_cache import Space
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.core.options import Prefer
from hf_relstitch.core.relative import relative_projection
from hf_relstitch.core.translation import TranslationSettings, fit
from hf_relstitch.heads.head import Head
from hf_relstitch.model.anchors import AnchorSet
from hf_relstitch.model.stitching import stitch

CHOSEN: dict[str, Prefer] = {"auto": "auto", "linear": "linear"}
FIXED = {
    "inversion": TranslationSettings(alpha=0.0, ridge=0.0, norm="mean"),
    "inversion-pruned": TranslationSettings(alpha=0.0, ridge=0.0, norm="mean", pruning=0.2, subspaces=8),
    "parseval": TranslationSettings(alpha=0.5, ridge=0.0),
}
HEADS: dict[str, Callable[["Problem"], nn.Module]] = {
    "distillation": lambda problem: fit_logistic(problem.x.double(), problem.native.softmax(-1)),
    "fresh-head": lambda problem: fit_logistic(problem.x.double(), problem.one_hot),
}
"""New heads for the source's latents: fitted to the target head's probabilities, or to true labels."""
NEVER = -1e4
"""The logit of a class that no row for the head has."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Hold the input of a method: both spaces, the rows and ids of the anchors, the tests, and the target's head.

    `labels` are the anchors' labels, which only a fresh head sees. `decoder(anchors)` trains a head of the same kind on
    the target's latents relative to these anchors.
    """

    source: Space
    target: Space
    anchors: Tensor
    ids: Tensor
    tests: slice
    head: Head
    labels: Tensor
    decoder: Callable[[Tensor], nn.Linear]

    @property
    def x(self) -> Tensor:
        """Return the source anchors `(k, d_source)`."""
        return self.source.latents[self.anchors]

    @property
    def y(self) -> Tensor:
        """Return the target anchors `(k, d_target)`."""
        return self.target.latents[self.anchors]

    @property
    def native(self) -> Tensor:
        """Return the head's logits for the target's anchors."""
        return apply_head(self.head.module, self.y.double())

    @property
    def one_hot(self) -> Tensor:
        """Return the anchors' labels as rows of 0 and 1, as wide as the head's logits."""
        return nn.functional.one_hot(self.labels, self.native.shape[1]).double()

    @property
    def queries(self) -> Tensor:
        """Return the source latents of the test rows."""
        return self.source.latents[self.tests]


@dataclass(frozen=True)
class Answer:
    """Hold a method's logits `(n, classes)`, and what it reports about itself."""

    logits: Tensor
    known: dict[str, Any] = field(default_factory=dict)


def answer(method: str, problem: Problem) -> Answer:
    """Return a method's answer to the test rows.

    Raises:
        StitchError: the anchors cannot be stitched.
    """
    if method in CHOSEN:
        return _stitched(method, problem)
    if method == "relative-decoder":
        relative = relative_projection(problem.queries.double(), anchors=problem.x.double())
        return Answer(apply_head(problem.decoder(problem.y), relative))
    if method in HEADS:
        return Answer(HEADS[method](problem)(problem.queries.double()))
    if method in FIXED:
        translated = fit(problem.x, problem.y, settings=FIXED[method])(problem.queries.double())
    else:
        translated = PEERS[method](problem.x.double(), problem.y.double(), problem.queries.double())
    return Answer(apply_head(problem.head.module, translated))


def _stitched(method: str, problem: Problem) -> Answer:
    """Answer as `RelativeStitcher` does: settings are chosen on the anchors, logits scaled by their temperature."""
    sides = [
        AnchorSet(space.latents[problem.anchors], problem.ids, space.provenance)
        for space in (problem.source, problem.target)
    ]
    made = stitch(sides[0], sides[1], problem.head, source=problem.source.provenance, prefer=CHOSEN[method])
    device = next(made.translation.buffers()).device
    logits = made.logits(problem.queries.double().to(device), head=problem.head.module).cpu()
    report = made.report
    known = {
        "expected_agreement": report["agreement"],
        "expected_interval": report.get("agreement_interval"),
        "verdict": report.get("verdict", {}).get("grade"),
        "settings": asdict(made.settings),
    }
    return Answer(logits, known)


def train_head(kind: str, latents: Tensor, labels: Tensor, *, classes: int) -> nn.Linear:
    """Train a linear head on latents `(n, d)`.

    The head is a logistic regression, or a linear support vector machine for each class.

    Raises:
        StitchError: the rows have fewer than two classes.
    """
    if len(labels.unique()) < 2:
        raise StitchError("the rows for the head are all of one class: give it more rows")
    model = LogisticRegression(max_iter=2000) if kind == "logistic" else LinearSVC(random_state=0)
    fitted = model.fit(latents.double().numpy(), labels.numpy())
    weight, bias = torch.tensor(fitted.coef_), torch.tensor(fitted.intercept_)
    if len(weight) == 1:  # of two classes the second one's
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    linear = nn.Linear(latents.shape[1], classes, dtype=torch.float64).requires_grad_(False)
    linear.weight.zero_()
    linear.bias.fill_(NEVER)
    seen = torch.tensor(fitted.classes_)
    linear.weight[seen], linear.bias[seen] = weight, bias
    return linear
