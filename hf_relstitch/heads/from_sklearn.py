"""Fitted scikit-learn estimators as heads: layers with their weights, compared with their predictions."""

import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.layers import Normalize

SUPPORTED = (
    "supported are fitted linear classifiers and regressors (LogisticRegression, RidgeClassifier, LinearSVC, "
    "SGDClassifier, Ridge, LinearRegression, …), OneVsRestClassifier and CalibratedClassifierCV (by sigmoids) of them, "
    "MLPClassifier and MLPRegressor, alone or in a Pipeline after affine steps (StandardScaler, PCA, …) and Normalizer"
    "; for any other, fit one of these to its answers: LogisticRegression().fit(latents, other.predict(latents))"
)
ACTIVATIONS = {"identity": None, "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
"""scikit-learn's names, and transformers'."""
PROBES = 64
NEARLY = 0.95
"""The least share of probes on which layers give a calibrated classifier's own answer."""
TOLERANCE = 1e-4
"""Largest difference from the estimator's own values, as a share of the largest of these; layers are in float32."""


def is_estimator(thing: object) -> bool:
    """Tell whether an object comes from scikit-learn; nothing does if scikit-learn was never imported."""
    base = sys.modules.get("sklearn.base")
    return base is not None and isinstance(thing, base.BaseEstimator)


@torch.no_grad()
def layers_of_estimator(estimator: Any) -> tuple[nn.Module, list[Any] | None, str]:
    """Return layers, classes (None for a regression) and problem type of a fitted estimator; check its predictions.

    Affine steps before the estimator are folded into the first layer. A binary classifier's one value f becomes the two
    logits −f/2 and f/2, so that softmax gives the second class the probability sigmoid(f).

    Raises:
        StitchError: the estimator is not fitted or not supported, or its layers differ from its predictions.
    """
    with wrap_errors(f"the head is a {type(_steps(estimator)[-1]).__name__} that gives no weights", SUPPORTED):
        return _layers_of(estimator)


def _layers_of(estimator: Any) -> tuple[nn.Module, list[Any] | None, str]:
    *before, last = _steps(estimator)
    name = type(last).__name__
    weights, activation = _weights_of(last)
    dim = before[0].n_features_in_ if before else weights[0][0].shape[1]
    probes = _probe_rows(before, dim)
    answers = _quietly(estimator.predict, probes)
    first = _layers_before(before, probes, name=name)
    if first and (affine := first[-1]) is not None:
        weights[0] = _compose(affine, weights[0])
        first.pop()
    classes = getattr(estimator, "classes_", None)
    if classes is not None and answers.ndim == 1 and len(weights[-1][1]) == 1:
        weights[-1] = tuple(np.concatenate([-one / 2, one / 2]) for one in weights[-1])
    head = chain(weights, activation)
    if first:
        layers = [Normalize() if affine is None else chain([affine], None) for affine in first]
        head = nn.Sequential(*layers, *(head if isinstance(head, nn.Sequential) else [head]))
    logits = head(torch.from_numpy(probes).float()).double().numpy()
    compare(estimator, name, probes, logits, answers)
    if classes is None:
        return head, None, "regression"
    multi_label = answers.ndim == 2
    kind = "multi_label_classification" if multi_label else "single_label_classification"
    return head, list(classes), kind


def _steps(estimator: Any) -> list[Any]:
    """An estimator's steps that do anything, the last of which answers; of a frozen one those of what it holds."""
    steps = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
    *before, last = [step for step in steps if step not in (None, "passthrough")]
    if type(last).__name__ == "FrozenEstimator":
        return [*before, *_steps(last.estimator)]
    return [*before, last]


def _weights_of(estimator: Any) -> tuple[list[Any], str | None]:
    """`(out, in)` weights and `(out,)` biases of each layer, and the activation between layers."""
    if hasattr(estimator, "coefs_"):
        layers = [(np.asarray(weight, float).T, np.asarray(bias, float)) for weight, bias in _mlp(estimator)]
        return layers, ACTIVATIONS[estimator.activation]
    return [_affine_of(estimator)], None


def _affine_of(estimator: Any) -> tuple[Any, Any]:
    """`(out, in)` weights and `(out,)` biases of a linear estimator, one for each class, or calibrated by sigmoids."""
    *before, last = _steps(estimator)
    if hasattr(last, "calibrated_classifiers_"):
        parts = [_calibrated(each) for each in last.calibrated_classifiers_]
        weight, bias = (np.mean(side, axis=0) for side in zip(*parts, strict=True))
    elif hasattr(last, "estimators_"):
        weight, bias = (np.concatenate(side) for side in zip(*map(_affine_of, last.estimators_), strict=True))
    else:
        weight = np.atleast_2d(np.asarray(last.coef_, float))
        bias = np.broadcast_to(np.asarray(last.intercept_, float), len(weight))
    for step in reversed(before):
        weight, bias = _compose(_affine_step(step), (weight, bias))
    return weight, bias


def _calibrated(classifier: Any) -> tuple[Any, Any]:
    """The layer whose values are the log-odds that sigmoids `1 / (1 + exp(a f + b))` make of a classifier's own f."""
    weight, bias = _affine_of(classifier.estimator)
    slopes, offsets = (np.array([getattr(each, side) for each in classifier.calibrators]) for side in ("a_", "b_"))
    return -slopes[:, None] * weight, -slopes * bias - offsets


def _mlp(estimator: Any) -> Any:
    return zip(estimator.coefs_, estimator.intercepts_, strict=True)


def _affine_step(step: Any) -> tuple[Any, Any]:
    """The weights of a step before an estimator as if it were affine: what it makes of zeros and of each axis."""
    dim = step.n_features_in_
    offset, *axes = _quietly(step.transform, np.concatenate([np.zeros((1, dim)), np.eye(dim)]))
    return (np.array(axes) - offset).T, offset


def _compose(first: tuple[Any, Any], then: tuple[Any, Any]) -> tuple[Any, Any]:
    """One layer for two, `(out, in)` weights and biases."""
    return then[0] @ first[0], then[1] + then[0] @ first[1]


def _layers_before(steps: list[Any], probes: Any, *, name: str) -> list[tuple[Any, Any] | None]:
    """The layers that steps before an estimator are: affine ones composed, None for a normalisation.

    Raises:
        StitchError: a step that is neither.
    """
    layers: list[tuple[Any, Any] | None] = []
    for step in steps:
        kind = type(step).__name__
        made = _quietly(step.transform, probes)
        if kind == "Normalizer" and step.norm == "l2":
            layers.append(None)
        else:
            weight, offset = _affine_step(step)
            if not np.allclose(made, probes @ weight.T + offset, rtol=TOLERANCE, atol=TOLERANCE):
                raise StitchError(f"the head's pipeline has a {kind} before its {name}: {SUPPORTED}")
            last = layers.pop() if layers and layers[-1] is not None else None
            layers.append((weight, offset) if last is None else _compose(last, (weight, offset)))
        probes = made
    return layers


def _probe_rows(steps: list[Any], dim: int) -> Any:
    """Random latents, of the kind that the first step has seen where that says it."""
    rows = np.random.default_rng(0).normal(size=(PROBES, dim))
    for step in steps[:1]:
        scale, mean = getattr(step, "scale_", None), getattr(step, "mean_", None)
        rows = rows * scale if scale is not None else rows
        rows = rows + mean if mean is not None else rows
    return rows


def chain(weights: list[Any], activation: str | None) -> nn.Module:
    """Build linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for weight, bias in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        layers += [layer] if not layers or activation is None else [ACT2FN[activation], layer]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def compare(estimator: Any, name: str, probes: Any, logits: Any, answers: Any) -> None:
    """Refuse layers that differ from the estimator on the probe rows.

    Raises:
        StitchError: values differ, or answers differ without a near tie.
    """
    if hasattr(estimator, "classes_") and not _is_exact(estimator):
        alike = float((estimator.classes_[logits.argmax(-1)] == answers).mean())
        if alike < NEARLY:
            raise StitchError(f"the head's {name} answers otherwise than its layers on {1 - alike:.0%} of probes")
        return
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


def _is_exact(estimator: Any) -> bool:
    """Whether layers give an estimator's own values; a calibrated one's are sums of sigmoids, which they are near."""
    return not hasattr(_steps(estimator)[-1], "calibrated_classifiers_")


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
