"""Fitted scikit-learn estimators as heads: their weights copied into layers, and compared with what they say."""

import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hf_relstitch.core.errors import StitchError

SUPPORTED = (
    "supported are fitted linear classifiers and regressors (LogisticRegression, RidgeClassifier, LinearSVC, "
    "SGDClassifier, Ridge, LinearRegression, …), MLPClassifier and MLPRegressor, alone or after StandardScaler in a "
    "Pipeline"
)
ACTIVATIONS = {"identity": None, "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
"""scikit-learn's names, and transformers'."""
PROBES = 64
TOLERANCE = 1e-4
"""Largest difference from the estimator's own values, as a share of the largest of these; layers are in float32."""


def is_estimator(thing: object) -> bool:
    """Whether a thing comes from scikit-learn; where that was never imported nothing does."""
    base = sys.modules.get("sklearn.base")
    return base is not None and isinstance(thing, base.BaseEstimator)


@torch.no_grad()
def layers_of_estimator(estimator: Any) -> tuple[nn.Module, list[str] | None, str]:
    """The layers, class names (None of a regression) and problem type of a fitted estimator, compared with its answers.

    A `StandardScaler` before it goes into the first layer. A binary classifier's one value f becomes the two logits
    −f/2 and f/2, so that softmax gives the second class the probability sigmoid(f).

    Raises:
        StitchError: an estimator that is not fitted, not one of these, or whose layers do not give what it gives.
    """
    steps = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
    *before, last = [step for step in steps if step not in (None, "passthrough")]
    name = type(last).__name__
    if unknown := [type(step).__name__ for step in before if type(step).__name__ != "StandardScaler"]:
        raise StitchError(f"the head's pipeline has a {unknown[0]} before its {name}: {SUPPORTED}")
    try:
        weights, activation = _weights_of(last)
        probes = _probe_rows(before, weights[0][0].shape[1])
        answers = _quietly(estimator.predict, probes)
    except (AttributeError, TypeError, ValueError) as error:
        raise StitchError(f"the head is a {name} that gives no weights ({error}): {SUPPORTED}") from error
    for scaler in reversed(before):
        weights[0] = _standardised(scaler, *weights[0])
    classes = getattr(estimator, "classes_", None)
    if classes is not None and answers.ndim == 1 and len(weights[-1][1]) == 1:
        weights[-1] = tuple(np.concatenate([-one / 2, one / 2]) for one in weights[-1])
    head = chain(weights, activation)
    logits = head(torch.from_numpy(probes).float()).double().numpy()
    compare(estimator, name, probes, logits, answers)
    if classes is None:
        return head, None, "regression"
    multi_label = answers.ndim == 2
    kind = "multi_label_classification" if multi_label else "single_label_classification"
    return head, [str(one) for one in classes], kind


def _weights_of(estimator: Any) -> tuple[list[Any], str | None]:
    """`(out, in)` weights and `(out,)` biases of each layer, and the activation between layers."""
    if hasattr(estimator, "coefs_"):
        layers = [(np.asarray(weight, float).T, np.asarray(bias, float)) for weight, bias in _mlp(estimator)]
        return layers, ACTIVATIONS[estimator.activation]
    weight = np.atleast_2d(np.asarray(estimator.coef_, float))
    return [(weight, np.broadcast_to(np.asarray(estimator.intercept_, float), len(weight)))], None


def _mlp(estimator: Any) -> Any:
    return zip(estimator.coefs_, estimator.intercepts_, strict=True)


def _standardised(scaler: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    """A layer that takes latents as they were before they were standardised."""
    weight = weight / scaler.scale_ if scaler.with_std else weight
    return weight, bias - weight @ scaler.mean_ if scaler.with_mean else bias


def _probe_rows(scalers: list[Any], dim: int) -> Any:
    """Random latents, of the kind that the first scaler has seen if there is one."""
    rows = np.random.default_rng(0).normal(size=(PROBES, dim))
    for scaler in scalers[:1]:
        rows = rows * scaler.scale_ if scaler.with_std else rows
        rows = rows + scaler.mean_ if scaler.with_mean else rows
    return rows


def chain(weights: list[Any], activation: str | None) -> nn.Module:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for weight, bias in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        layers += [layer] if not layers or activation is None else [ACT2FN[activation], layer]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def compare(estimator: Any, name: str, probes: Any, logits: Any, answers: Any) -> None:
    """Refuse layers that say something else than the estimator on the probe rows.

    Raises:
        StitchError: values differ, or answers where they are not a near tie.
    """
    values, given = _own_values(estimator, probes, logits, multi_label=answers.ndim == 2)
    allowed = TOLERANCE * max(1.0, float(np.abs(values).max()))
    if values.shape != given.shape or float(np.abs(values - given).max()) > allowed:
        raise StitchError(f"the head's {name} is more than its layers, which give other values: {SUPPORTED}")
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return
    top = np.sort(logits, axis=-1)
    if answers.ndim == 2:
        alike, clear = (logits > 0) == (answers > 0), np.abs(logits) > allowed
    else:
        alike, clear = classes[logits.argmax(-1)] == answers, top[:, -1] - top[:, -2] > allowed
    if not alike[clear].all():
        raise StitchError(f"the head's {name} answers otherwise than its values say: {SUPPORTED}")


def _own_values(estimator: Any, probes: Any, logits: Any, *, multi_label: bool) -> tuple[Any, Any]:
    """What the estimator says of the probe rows, and the same made of the logits."""
    classifies = hasattr(estimator, "classes_")
    if classifies and hasattr(estimator, "decision_function"):
        values = _quietly(estimator.decision_function, probes)
        return values, logits if values.ndim == 2 else logits[:, -1] - logits[:, 0]
    if classifies:
        scores: Tensor = torch.from_numpy(logits)
        given = scores.sigmoid() if multi_label else scores.softmax(-1)
        return _quietly(estimator.predict_proba, probes), given.numpy()
    values = _quietly(estimator.predict, probes)
    return values, logits if values.ndim == 2 else logits[:, 0]


def _quietly(method: Any, rows: Any) -> Any:
    """What an estimator says of rows without column names, and no warning that they have none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        return method(rows)
