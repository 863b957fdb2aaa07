"""Fitted scikit-learn estimators as heads: what they say is what their layers say."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pico
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, PolynomialFeatures, StandardScaler
from sklearn.svm import SVC, LinearSVC
from transformers import pipeline

from hf_relstitch import Encoder, Head, RelativeStitcher, StitchError
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.heads.from_sklearn import is_estimator
from hf_relstitch.layers import describe_head

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(200, 16)) * RANDOM.uniform(0.1, 5, 16) + RANDOM.normal(size=16)
SCORES = ((X - X.mean(0)) / X.std(0)) @ RANDOM.normal(size=(16, 3))
NAMES = np.array(["calm", "closed", "stormy"])
Y = NAMES[SCORES.argmax(1)]
BINARY = np.array(["no", "yes"])[(SCORES[:, 0] > 0).astype(int)]
MULTI = (SCORES > 0.5).astype(int)

CLASSIFIERS = {
    "logistic": LogisticRegression,
    "ridge": RidgeClassifier,
    "svm": lambda: LinearSVC(random_state=0),
    "sgd": lambda: SGDClassifier(random_state=0),
    "sgd log": lambda: SGDClassifier(loss="log_loss", random_state=0),
    "perceptron": lambda: Perceptron(random_state=0),
    "lda": LinearDiscriminantAnalysis,
    "no intercept": lambda: LogisticRegression(fit_intercept=False),
    "mlp": lambda: MLPClassifier((7, 5), max_iter=60, random_state=0),
    "mlp tanh": lambda: MLPClassifier((7,), activation="tanh", max_iter=60, random_state=0),
    "mlp logistic": lambda: MLPClassifier((7,), activation="logistic", max_iter=60, random_state=0),
    "mlp identity": lambda: MLPClassifier((7, 4), activation="identity", max_iter=60, random_state=0),
}
SCALERS = {
    "none": lambda model: model,
    "scaled": lambda model: make_pipeline(StandardScaler(), model),
    "twice": lambda model: make_pipeline(StandardScaler(with_mean=False), "passthrough", StandardScaler(), model),
    "mean only": lambda model: make_pipeline(StandardScaler(with_std=False), model),
}


def logits(head: Head, rows: Any = X) -> Any:
    return apply_head(head.module, torch.tensor(rows, dtype=torch.float64)).numpy()


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classes_and_values_are_the_estimators_own(kind: str, scaler: str) -> None:
    fitted = SCALERS[scaler](CLASSIFIERS[kind]()).fit(X, Y)
    head = Head.from_module(fitted)
    found = logits(head)
    assert list(head.id2label.values()) == NAMES.tolist()
    assert (NAMES[found.argmax(1)] == fitted.predict(X)).all()
    if hasattr(fitted, "decision_function"):
        np.testing.assert_allclose(found, fitted.decision_function(X), rtol=1e-4, atol=1e-4)
    if kind in ("logistic", "no intercept", "mlp", "mlp tanh", "mlp logistic", "mlp identity", "lda"):
        softmax = torch.from_numpy(found).softmax(-1).numpy()
        np.testing.assert_allclose(softmax, fitted.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize("scaler", ["none", "scaled"])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_binary_classifier_has_two_logits_whose_softmax_is_its_probability(kind: str, scaler: str) -> None:
    fitted = SCALERS[scaler](CLASSIFIERS[kind]()).fit(X, BINARY)
    head = Head.from_module(fitted)
    found = logits(head)
    assert head.id2label == {0: "no", 1: "yes"}
    assert (np.array(["no", "yes"])[found.argmax(1)] == fitted.predict(X)).all()
    if hasattr(fitted, "predict_proba"):
        softmax = torch.from_numpy(found).softmax(-1).numpy()
        np.testing.assert_allclose(softmax, fitted.predict_proba(X), atol=1e-4)
    else:
        np.testing.assert_allclose(found[:, 1] - found[:, 0], fitted.decision_function(X), rtol=1e-4, atol=1e-4)


def test_a_search_gives_its_best_estimator() -> None:
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(X, SCORES[:, 0] > 0)
    assert (logits(Head.from_module(search)) == logits(Head.from_module(search.best_estimator_))).all()


@pytest.mark.parametrize("model", [RidgeClassifier(), MLPClassifier((7,), max_iter=60, random_state=0)])
def test_several_answers_at_once_are_a_multi_label_head(model: Any) -> None:
    fitted = make_pipeline(StandardScaler(), model).fit(X, MULTI)
    head = Head.from_module(fitted, labels=["a", "b", "c"])
    assert head.multi_label
    assert head.id2label == {0: "a", 1: "b", 2: "c"}
    assert ((logits(head) > 0) == fitted.predict(X)).all()


@pytest.mark.parametrize(
    "model",
    [
        Ridge(),
        LinearRegression(),
        MLPRegressor(hidden_layer_sizes=(7,), activation="tanh", max_iter=60, random_state=0),
    ],
)
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_regression_gives_its_values(model: Any, outputs: int) -> None:
    wanted = SCORES[:, 0] if outputs == 1 else SCORES[:, :2]
    fitted = make_pipeline(StandardScaler(), model).fit(X, wanted)
    head = Head.from_module(fitted)
    np.testing.assert_allclose(logits(head), fitted.predict(X).reshape(200, outputs), rtol=1e-4, atol=1e-4)
    assert (head.problem_type, len(head.id2label), head.answers) == ("regression", outputs, False)


def test_an_estimator_is_stitched_saved_and_asked_through_the_stock_pipeline(
    source: Encoder, target: tuple[Encoder, Head], tmp_path: Path
) -> None:
    texts = pico.texts(120)
    latents = target[0].encode(texts, progress=False).numpy()
    topics = ["sea" if "coast" in text or "harbour" in text else "land" for text in texts]
    fitted = make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=80, random_state=0)).fit(latents, topics)
    model = RelativeStitcher.from_parts(source, target[0], texts, head=fitted, progress=False)
    model.save_pretrained(tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.suffix in (".pkl", ".joblib", ".skops")]
    answers = pipeline("text-classification", model=str(tmp_path), top_k=None)(texts[:8])
    assert {one["label"] for answer in answers for one in answer} == {"land", "sea"}
    latents = source.encode(texts[:8], batch_size=1, progress=False)
    own = model.head(latents).softmax(-1).detach().numpy()
    np.testing.assert_allclose(own, fitted.predict_proba(latents.numpy()), rtol=1e-4, atol=1e-5)
    expected = [
        model.config.id2label[row] for row in pico.logits_by_hand(model, model.head, latents).argmax(1).tolist()
    ]
    assert [answer[0]["label"] for answer in answers] == expected


def test_a_regression_is_stitched_to_values(source: Encoder, target: tuple[Encoder, Head], tmp_path: Path) -> None:
    texts = pico.texts(120)
    latents = target[0].encode(texts, progress=False).numpy()
    fitted = Ridge().fit(latents, np.stack([latents[:, 0], latents[:, 1]], 1))
    model = RelativeStitcher.from_parts(source, target[0], texts, head=fitted, progress=False)
    assert model.report["agreement"] is None
    assert -0.01 < model.report["values_explained"] < 1  # no worse than the mean value, though the two are unrelated
    assert (model.config.selection["criterion"], model.config.logit_temperature) == ("leave-one-out", 1.0)
    model.save_pretrained(tmp_path)
    answer = pipeline("text-classification", model=str(tmp_path), top_k=None)(texts[0])
    translated = model.translate(source.encode(texts[:1], progress=False)).numpy()
    values = sorted(one["score"] for one in (answer[0] if isinstance(answer[0], list) else answer))
    np.testing.assert_allclose(values, np.sort(fitted.predict(translated)[0]), rtol=1e-4, atol=1e-4)


def test_a_setfit_model_gives_its_body_and_its_head(source_folder: str, tmp_path: Path) -> None:
    """Stitched to its own body, whose spaces are one, it gives the probabilities that setfit gives."""
    if find_spec("setfit") is None:
        assets.missing("setfit", install=assets.INSTALL_PACKAGES)
    from sentence_transformers import SentenceTransformer
    from setfit import SetFitModel

    texts, body = pico.texts(60), SentenceTransformer(source_folder, device="cpu")
    head = LogisticRegression().fit(body.encode(texts), [row % 3 for row in range(60)])
    SetFitModel(model_body=body, model_head=head).save_pretrained(tmp_path)
    trusted = SetFitModel.from_pretrained(tmp_path)
    encoder = Encoder.from_pretrained(str(tmp_path))
    model = RelativeStitcher.from_parts(encoder, encoder, texts, head=trusted, progress=False, identity=True)
    given = (model.predict(texts) * model.config.logit_temperature).softmax(-1)
    torch.testing.assert_close(given, trusted.predict_proba(texts).to(given), rtol=1e-4, atol=1e-5)


class Boosted(LogisticRegression):
    """Another classifier than its coefficients say."""

    def decision_function(self, X: Any) -> Any:
        return super().decision_function(X) ** 3


class Contrary(LogisticRegression):
    """Answers with the class that it holds for the least likely."""

    def predict(self, X: Any) -> Any:
        return self.classes_[self.decision_function(X).argmin(1)]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (KNeighborsClassifier(), "KNeighborsClassifier that gives no weights"),
        (VotingClassifier([("a", LogisticRegression())]), "VotingClassifier that gives no weights"),
        (SVC(kernel="linear"), "SVC .*supported are fitted linear classifiers"),
        (make_pipeline(PolynomialFeatures(), LogisticRegression()), "has a PolynomialFeatures before"),
        (StandardScaler(), "StandardScaler that gives no weights"),
        (Boosted(), "Boosted is more than its layers"),
        (Contrary(), "Contrary answers otherwise than its values say"),
    ],
)
def test_refuses_what_is_more_or_less_than_layers(model: Any, message: str) -> None:
    fitted = model.fit(X, Y)
    with pytest.raises(StitchError, match=message):
        Head.from_module(fitted)


def test_refuses_what_was_never_fitted() -> None:
    for model in (LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression()), MLPClassifier()):
        with pytest.raises(StitchError, match=r"that gives no weights \(.*coef.*supported are"):
            Head.from_module(model)


def test_a_head_of_another_width_than_the_target(source: Encoder, target: tuple[Encoder, Head]) -> None:
    with pytest.raises(StitchError, match="the head takes latents 9 wide and the target anchors are 16"):
        RelativeStitcher.from_parts(
            source, target[0], pico.texts(40), head=LogisticRegression().fit(X[:, :9], Y), progress=False
        )


def test_nothing_is_an_estimator_where_sklearn_was_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_estimator(Ridge())
    monkeypatch.delitem(sys.modules, "sklearn.base")
    assert not is_estimator(Ridge())


LINEAR_ON = {
    "normalizer": lambda model: make_pipeline(Normalizer(), model),
    "normalizer, scaler": lambda model: make_pipeline(Normalizer(), StandardScaler(), model),
    "pca": lambda model: make_pipeline(PCA(9, whiten=True), model),
    "scaler, pca, normalizer": lambda model: make_pipeline(StandardScaler(), PCA(9), Normalizer(), model),
    "svd": lambda model: make_pipeline(TruncatedSVD(9), model),
    "one against the rest": OneVsRestClassifier,
    "one against the rest, each scaled": lambda model: OneVsRestClassifier(make_pipeline(StandardScaler(), model)),
}


@pytest.mark.parametrize("around", LINEAR_ON)
def test_what_is_linear_or_a_norm_around_a_classifier_is_taken(around: str) -> None:
    fitted = LINEAR_ON[around](LogisticRegression()).fit(X, Y)
    head = Head.from_module(fitted)
    logits = apply_head(head.module, torch.from_numpy(X).float())
    np.testing.assert_allclose(logits, fitted.decision_function(X), rtol=1e-3, atol=1e-3)
    assert [head.id2label[row] for row in logits.argmax(1).tolist()] == fitted.predict(X).tolist()
    assert describe_head(head.module) is not None


def test_one_against_the_rest_of_several_answers_is_multi_label() -> None:
    fitted = OneVsRestClassifier(LogisticRegression()).fit(X, MULTI)
    head = Head.from_module(fitted)
    logits = apply_head(head.module, torch.from_numpy(X).float())
    assert head.problem_type == "multi_label_classification"
    np.testing.assert_array_equal((logits > 0).int(), fitted.predict(X))


@pytest.mark.parametrize("ensemble", [True, False])
@pytest.mark.parametrize("classes", [Y, BINARY], ids=["three classes", "two classes"])
def test_a_calibrated_classifier_keeps_its_answers(classes: np.ndarray, ensemble: bool) -> None:
    fitted = CalibratedClassifierCV(LinearSVC(random_state=0), ensemble=ensemble).fit(X, classes)
    head = Head.from_module(fitted)
    logits = apply_head(head.module, torch.from_numpy(X).float())
    answers = np.array([head.id2label[row] for row in logits.argmax(1).tolist()])
    assert (answers == fitted.predict(X)).mean() >= (0.97 if ensemble else 0.999)
    if len(fitted.classes_) == 2:
        np.testing.assert_allclose(logits.softmax(-1), fitted.predict_proba(X), atol=0.1 if ensemble else 1e-4)


def test_a_head_of_normalised_latents_is_taken_as_it_was_trained() -> None:
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    fitted = LogisticRegression(C=100).fit(unit, Y)
    head = Head.from_module(fitted, normalized=True)
    logits = apply_head(head.module, torch.from_numpy(X).float())
    np.testing.assert_allclose(logits, fitted.decision_function(unit), rtol=1e-3, atol=1e-3)
    twice = Head.from_module(Head.from_module(torch.nn.Linear(16, 3)), normalized=True)
    assert [type(layer).__name__ for layer in twice.module] == ["Normalize", "Linear"]


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_setfit_model_says_its_norm_and_its_names(differentiable: bool, source_folder: str) -> None:
    if find_spec("setfit") is None:
        assets.missing("setfit", install=assets.INSTALL_PACKAGES)
    from sentence_transformers import SentenceTransformer
    from setfit import SetFitHead, SetFitModel

    texts, body = pico.texts(60), SentenceTransformer(source_folder, device="cpu")
    unit = body.encode(texts, normalize_embeddings=True)
    head = SetFitHead(16, 3, device="cpu", temperature=0.5)
    if not differentiable:
        head = LogisticRegression().fit(unit, [row % 3 for row in range(60)])
    names = ["calm", "closed", "stormy"]
    setfit = SetFitModel(model_body=body, model_head=head, labels=names, normalize_embeddings=True)
    taken = Head.from_module(setfit)
    assert [*taken.id2label.values()] == names
    logits = apply_head(taken.module, torch.from_numpy(body.encode(texts)))
    torch.testing.assert_close(logits.softmax(-1), setfit.predict_proba(texts).to(logits), rtol=1e-4, atol=1e-5)
    assert describe_head(taken.module) is not None


NUMBERED = LogisticRegression().fit(X, SCORES.argmax(1))
FROM_ONE = LogisticRegression().fit(X, SCORES.argmax(1) + 1)
NAMED = LogisticRegression().fit(X, Y)


@pytest.mark.parametrize(
    ("estimator", "labels", "expected"),
    [
        (NAMED, ["calm", "closed", "stormy"], ["calm", "closed", "stormy"]),
        (NAMED, np.array(["calm", "closed", "stormy"]), ["calm", "closed", "stormy"]),
        (NAMED, {"stormy": "S", "calm": "C", "closed": "X"}, ["C", "X", "S"]),
        (NUMBERED, ["a", "b", "c"], ["a", "b", "c"]),
        (NUMBERED, np.array(["a", "b", "c"]), ["a", "b", "c"]),
        (FROM_ONE, {1: "a", 2: "b", 3: "c"}, ["a", "b", "c"]),
        (FROM_ONE, ["1", "2", "3"], ["1", "2", "3"]),
        (torch.nn.Linear(16, 3), {0: "a", 2: "c", 1: "b"}, ["a", "b", "c"]),
    ],
)
def test_labels_name_the_classes_that_they_mean(estimator: Any, labels: Any, expected: list[str]) -> None:
    assert [*Head.from_module(estimator, labels=labels).id2label.values()] == expected


@pytest.mark.parametrize(
    ("estimator", "labels", "message"),
    [
        (NAMED, ["stormy", "calm", "closed"], "the head names its own classes, 'calm', 'closed', 'stormy'"),
        (NAMED, ["a", "b", "c"], "give a mapping from the head's names to yours"),
        (FROM_ONE, ["a", "b", "c"], "the head names its own classes, 1, 2, 3"),
        (NAMED, ["calm", "closed"], "2 different labels for a head of 3 classes"),
        (NUMBERED, np.array(["a", "b", "c", "d"]), "4 different labels for a head of 3 classes"),
        (NUMBERED, {0: "a", 1: "b"}, "labels name 0, 1 and the head's classes are 0, 1, 2"),
        (FROM_ONE, {0: "a", 1: "b", 2: "c"}, "labels name 0, 1, 2 and the head's classes are 1, 2, 3"),
    ],
)
def test_labels_that_could_swap_classes_are_refused(estimator: Any, labels: Any, message: str) -> None:
    with pytest.raises(StitchError, match=message):
        Head.from_module(estimator, labels=labels)


def test_the_labels_of_a_head_are_not_swapped(target: tuple[Encoder, Head]) -> None:
    with pytest.raises(StitchError, match="leave labels out, or give a mapping"):
        Head.from_module(target[1], labels=["closed", "stormy", "calm"])
