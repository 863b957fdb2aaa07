"""A benchmark's numbers of a stitched model in its repo, over HTTP."""

from pathlib import Path

import pico
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard, hf_hub_download, parse_eval_result_entries
from test_cli import run
from test_hub import uploaded
from transformers import pipeline

from hf_relstitch import RelativeStitcher, StitchError
from hf_relstitch.benchmarks import push_results, run_suite
from hf_relstitch.hub.files import RESULTS_NAME

REPO = "alice/stitched"
TESTS = pico.texts(60, seed=7)
CLASSES = ["closed", "calm", "stormy"]  # in another order than the head has them
TRUTH = [CLASSES[len(text) % 3] for text in TESTS]
SUITE = """name: weather
encoders:
  tiny: {model: alice/tiny-bert}
  other: {classifier: alice/tiny-roberta}
data:
  weather:
    path: alice/weather
    inputs: {text: words}
    head_rows: 60
    test_split: test
    test_rows: 60
    pairs: [[tiny, other]]
methods: [auto]
anchors: [32]
"""


@pytest.fixture
def stitched_repo(hub: HubServer, source_folder: str, target_folder: str, tmp_path: Path) -> str:
    """A stitched model, its parts and data with labels, all on the Hub."""
    parts = uploaded("alice/tiny-bert", source_folder), uploaded("alice/tiny-roberta", target_folder)
    RelativeStitcher.from_parts(*parts, pico.texts(100), progress=False).push_to_hub(REPO)
    HfApi().create_repo("alice/weather", repo_type="dataset")
    features = Features({"words": Value("string"), "label": ClassLabel(names=CLASSES)})
    train = pico.texts(200, seed=8)
    rows = {"train": (train, [CLASSES[len(text) % 3] for text in train]), "test": (TESTS, TRUTH)}
    for split, (texts, labels) in rows.items():
        table = Dataset.from_dict({"words": texts, "label": labels}, features=features)
        table.to_parquet(tmp_path / "data" / "data" / f"{split}.parquet")
    (tmp_path / "data" / "eval.yaml").write_text("tasks: [{id: storms, split: test}, {id: other, split: dev}]")
    HfApi().upload_folder(repo_id="alice/weather", folder_path=tmp_path / "data", repo_type="dataset")
    return REPO


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE)
    return file


def read(name: str) -> str:
    return Path(hf_hub_download(REPO, name)).read_text()


def test_pushed_numbers_are_the_models_own(stitched_repo: str, suite: Path, tmp_path: Path) -> None:
    api = HfApi()
    before = api.list_repo_commits(REPO)
    answers = [one["label"] for one in pipeline(model=REPO)(TESTS)]  # the card says the task
    accuracy = sum(answer == truth for answer, truth in zip(answers, TRUTH, strict=True)) / len(TESTS)
    assert 0 < accuracy < 1

    assert "/commit/" in run("benchmark", str(suite), "--out", str(tmp_path / "out"), "--push", REPO).stdout
    commits = api.list_repo_commits(REPO)
    assert [one.title for one in commits] == ["Results on alice/weather", *(one.title for one in before)]
    data_commit = api.dataset_info("alice/weather").sha
    (entry,) = parse_eval_result_entries(yaml.safe_load(read(RESULTS_NAME)))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("alice/weather", "storms", data_commit)
    assert (entry.value, entry.notes) == (pytest.approx(accuracy), "accuracy, split test, 60 rows")
    (index,) = ModelCard(read("README.md")).data.to_dict()["model-index"]
    ((accuracy_result, f1_result),) = [one["metrics"] for one in index["results"]]
    assert (accuracy_result["type"], accuracy_result["value"]) == ("accuracy", pytest.approx(accuracy))
    assert f1_result["type"] == "f1"
    assert f"| alice/weather | test | accuracy on 60 rows | {accuracy:.3f} |" in read("README.md")
    assert "## Stitched models as they are" in (tmp_path / "out" / "report.md").read_text()
    assert pipeline("text-classification", model=REPO)(TESTS[:1])[0]["label"] == answers[0]

    with pytest.raises(StitchError, match=f"was measured at {before[0].commit_id} and is at {commits[0].commit_id}"):
        push_results(tmp_path / "out", REPO)


def test_other_results_and_edits_stay_and_older_ones_are_replaced(
    stitched_repo: str, suite: Path, tmp_path: Path
) -> None:
    model = RelativeStitcher.from_pretrained(REPO)
    shared = {"task_type": "text-classification", "split": "test", "metric": "accuracy"}
    model.config.results = [
        {**shared, "dataset_name": "Mine", "value": 0.5},
        {**shared, "dataset_name": "alice/weather", "dataset_id": "alice/weather", "config": None, "value": 0.123},
    ]
    model.push_to_hub(REPO)
    edited = read("README.md") + "\nSeen on a ship.\n"
    HfApi().upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id=REPO)
    HfApi().upload_file(path_or_fileobj=b"[]", path_in_repo=".eval_results/theirs.yaml", repo_id=REPO)
    run_suite(suite, tmp_path / "out", models=[REPO], progress=False)
    push_results(tmp_path / "out", REPO)
    card = read("README.md")
    assert card.rstrip().endswith("Seen on a ship.")
    assert "| Mine | test | accuracy | 0.500 |" in card
    assert "0.123" not in card
    results = RelativeStitcher.from_pretrained(REPO).config.results
    assert [one["dataset_name"] for one in results] == ["Mine", "alice/weather", "alice/weather"]
    assert read(".eval_results/theirs.yaml") == "[]"


def test_a_model_that_the_suite_does_not_measure_is_refused(
    stitched_repo: str, suite: Path, tmp_path: Path, hub: HubServer
) -> None:
    head = HfApi().model_info(REPO).sha
    suite.write_text(SUITE.replace("alice/tiny-bert}", "alice/tiny-bert, pooling: last}"))
    with pytest.raises(
        StitchError, match=r"no encoder of the suite is the one .*of tiny the pooling is 'mean' and not"
    ):
        run_suite(suite, tmp_path / "out", models=[REPO], progress=False)
    suite.write_text(SUITE)
    with pytest.raises(StitchError, match="expected a stitched model"):
        run_suite(suite, tmp_path / "out", models=["alice/tiny-bert"], progress=False)
    run_suite(suite, tmp_path / "out", progress=False)
    with pytest.raises(StitchError, match=f"has no numbers of {REPO}: run the benchmark with `--push {REPO}`"):
        push_results(tmp_path / "out", REPO)
    assert HfApi().model_info(REPO).sha == head


def test_a_head_with_other_classes_has_no_numbers(stitched_repo: str, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"words": TESTS * 4, "label": ["sun", "rain", "snow"] * 80})
    suite = yaml.safe_load(SUITE)
    sky = {name: value for name, value in suite["data"]["weather"].items() if name not in ("path", "test_split")}
    suite["data"] = {"sky": sky}
    results = run_suite(suite, tmp_path / "out", data={"sky": rows}, models=[REPO], progress=False)
    assert results["models"] == []
    with pytest.raises(
        StitchError, match=r"no numbers of .* classes calm, stormy, closed, and the data rain, snow, sun"
    ):
        push_results(tmp_path / "out", REPO)
