"""Metrics as users of `evaluate` have them: loaded by path, combined, fed in batches and by many processes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from hf_relstitch import metrics
from hf_relstitch.core.errors import StitchError

CLASSES = np.random.default_rng(0).integers(0, 4, (2, 200))
LATENTS = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0))
SCRIPTS = {
    "accuracy": metrics.Accuracy,
    "angle_preservation": metrics.AnglePreservation,
    "expected_calibration_error": metrics.ExpectedCalibrationError,
    "f1": metrics.F1,
    "latent_fidelity": metrics.LatentFidelity,
    "native_agreement": metrics.NativeAgreement,
    "stitching_index": metrics.StitchingIndex,
}


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_METRICS_CACHE", "HF_MODULES_CACHE"):
            patch.setattr(evaluate.config, name, str(tmp_path_factory.mktemp(name)))
        for module in [name for name in sys.modules if name.startswith("evaluate_modules")]:
            patch.delitem(sys.modules, module)  # imported by other tests from another cache
        patch.syspath_prepend(evaluate.config.HF_MODULES_CACHE)
        yield


def columns(metric: evaluate.Metric, rows: int = 40) -> dict[str, object]:
    kinds = {
        "predictions": CLASSES[0][:rows] % 2,
        "references": CLASSES[1][:rows] % 2,
        "native": CLASSES[1][1 : rows + 1] % 2,
        "probabilities": LATENTS[0].softmax(-1)[:rows],
    }
    if "latents" in metric.inputs_description:
        kinds |= {"predictions": LATENTS[0][:rows], "references": LATENTS[1][:rows]}
    return {name: kinds[name] for name in metric.features}


@pytest.mark.parametrize("name", SCRIPTS)
def test_loaded_by_path_and_added_in_any_way_it_is_the_same(name: str) -> None:
    loaded = evaluate.load(metrics.script(name))
    assert type(loaded) is not SCRIPTS[name]
    given = columns(loaded)
    expected = SCRIPTS[name]().compute(**given)
    assert expected
    assert all(isinstance(value, float) for value in expected.values())
    assert loaded.compute(**given) == expected
    for start in range(0, 40, 16):
        loaded.add_batch(**{key: column[start : start + 16] for key, column in given.items()})
    assert loaded.compute() == expected
    singular = {"predictions": "prediction", "references": "reference"}
    for row in range(40):
        loaded.add(**{singular.get(key, key): np.asarray(column)[row] for key, column in given.items()})
    assert loaded.compute() == expected


def test_all_scripts_are_named_here() -> None:
    assert set(SCRIPTS) == {file.stem for file in Path(metrics.__file__).parent.glob("*.py")} - {"__init__", "checking"}
    assert {metric.__name__ for metric in SCRIPTS.values()} | {"script"} == set(metrics.__all__)


def test_accuracy_and_f1_are_scikit_learns() -> None:
    answers, labels = CLASSES
    given = {"predictions": answers, "references": labels}
    assert metrics.Accuracy().compute(**given)["accuracy"] == pytest.approx(accuracy_score(labels, answers))
    for average in ("macro", "micro", "weighted"):
        expected = f1_score(labels, answers, average=average)
        assert metrics.F1().compute(**given, average=average)["f1"] == pytest.approx(expected)
    two = {"predictions": answers % 2, "references": labels % 2}
    assert metrics.F1().compute(**two)["f1"] == pytest.approx(f1_score(labels % 2, answers % 2))


def test_latent_fidelity_by_hand() -> None:
    target = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    perfect = metrics.LatentFidelity().compute(predictions=target, references=target)
    assert perfect == {
        "cosine": 1,
        "relative_error": 0,
        "mrr": 1,
        "recall_at_1": 1,
        "recall_at_5": 1,
        "recall_at_10": 1,
    }
    swapped = target[[1, 0, 2, 3]]
    found = metrics.LatentFidelity().compute(predictions=swapped, references=target)
    assert found["cosine"] == pytest.approx(0)
    assert found["relative_error"] == pytest.approx((8 / 10) ** 0.5)
    assert found["mrr"] == pytest.approx((1 / 4 + 1 / 4 + 1 + 1) / 4)
    assert found["recall_at_1"] == 0.5
    mean = metrics.LatentFidelity().compute(predictions=0 * target, references=target)
    assert mean["relative_error"] == 1


def test_angle_preservation_takes_spaces_of_different_widths() -> None:
    wider = torch.nn.functional.pad(3 * LATENTS[0] + 1, (0, 4))
    found = metrics.AnglePreservation().compute(predictions=LATENTS[0], references=wider)
    assert found == {"cosine_correlation": pytest.approx(1), "cka": pytest.approx(1)}
    assert metrics.AnglePreservation().compute(predictions=LATENTS[0], references=LATENTS[1])["cka"] < 0.5


def test_all_that_a_stitched_classifier_is_asked_in_one_call() -> None:
    names = ["accuracy", "f1", "stitching_index", "native_agreement", "expected_calibration_error"]
    together = evaluate.combine([evaluate.load(metrics.script(name)) for name in names])
    given = {
        "predictions": [0, 1, 1, 1],
        "references": [0, 1, 0, 1],
        "native": [0, 0, 0, 1],
        "probabilities": [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]],
    }
    expected = {
        "accuracy": 0.75,
        "f1": pytest.approx(0.8),
        "stitching_index": 1.0,
        "stitched_accuracy": 0.75,
        "native_accuracy": 0.75,
        "native_agreement": 0.5,
        "expected_calibration_error": 0.25,
    }
    assert together.compute(**given) == expected
    for half in (slice(2), slice(2, 4)):
        together.add_batch(**{name: column[half] for name, column in given.items()})
    assert together.compute() == expected


PROCESS = """
import json, sys, numpy as np
from hf_relstitch.metrics import LatentFidelity
x, y = np.load(sys.argv[2])
rank = int(sys.argv[1])
metric = LatentFidelity(num_process=2, process_id=rank, experiment_id="two", cache_dir=sys.argv[3], timeout=60)
for start in range(20 * rank, 20 * rank + 20, 10):
    metric.add_batch(predictions=x[start : start + 10], references=y[start : start + 10])
print(json.dumps(metric.compute()))
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    np.save(tmp_path / "latents.npy", LATENTS.numpy())
    arguments = [str(tmp_path / "latents.npy"), str(tmp_path / "cache")]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    outputs = [one.communicate(timeout=120) for one in started]
    assert [one.returncode for one in started] == [0, 0], outputs
    first, second = (json.loads(output.decode().splitlines()[-1]) for output, _ in outputs)
    assert first == metrics.LatentFidelity().compute(predictions=LATENTS[0], references=LATENTS[1])
    assert second is None


LINE = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("latent_fidelity", {"predictions": LINE, "references": LINE[:2]}, "got 3 predictions, 2 references"),
        ("latent_fidelity", {"predictions": [], "references": []}, "of no rows"),
        ("latent_fidelity", {}, "of no rows"),
        ("latent_fidelity", {"predictions": LINE}, "needs references"),
        ("latent_fidelity", {"predictions": LINE, "references": [[1.0]] * 3}, "2 wide and references 1"),
        ("latent_fidelity", {"predictions": LINE, "references": [LINE[0]] * 3}, "all the same latent"),
        ("latent_fidelity", {"predictions": [*LINE[:2], [1.0]], "references": LINE}, "predictions are 1, 2 wide"),
        ("latent_fidelity", {"predictions": LINE, "references": [*LINE[:2], [float("nan"), 1.0]]}, "row 2 of referen"),
        ("angle_preservation", {"predictions": LINE[:2], "references": LINE[:2]}, "of 2 inputs"),
        ("angle_preservation", {"predictions": LINE, "references": [LINE[0]] * 3}, "all the same latent"),
        ("stitching_index", {"predictions": [1, 0], "references": [1, 0], "native": [0, 1]}, "no accuracy to keep"),
        ("native_agreement", {"predictions": [1, 0], "native": [1]}, "got 2 predictions, 1 native"),
        ("f1", {"predictions": [2, 0], "references": [1, 0]}, "'binary' of 3 classes"),
        ("f1", {"predictions": [1, 0], "references": [1, 0], "average": "mean"}, "average is 'mean'"),
        ("expected_calibration_error", {"probabilities": LINE, "references": [0, 1, 0]}, "sum to 1 in each row"),
        ("expected_calibration_error", {"probabilities": LINE[:2], "references": [0, 2]}, "go from 0 to 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(name: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(StitchError, match=message):
        SCRIPTS[name]().compute(**given)


def test_a_computation_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    metric = metrics.F1(cache_dir=str(tmp_path))
    with pytest.raises(StitchError, match="'binary' of 3 classes"):
        metric.compute(predictions=[2, 0], references=[1, 0])
    assert list(tmp_path.rglob("*.arrow")) == []
    assert metric.compute(predictions=[1, 0], references=[1, 0])["f1"] == 1
