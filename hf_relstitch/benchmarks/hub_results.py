"""Results of finished stitched models: find a model, measure it on a suite's data, push its numbers into its card."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import Tensor
from yaml import YAMLError, safe_load

from hf_relstitch.benchmarks.latent_cache import Space
from hf_relstitch.benchmarks.report import read_results
from hf_relstitch.benchmarks.scores import own_scores
from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.modality import MODALITIES
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.hub.cards import write_card
from hf_relstitch.hub.files import RESULTS_NAME, check_yaml, read_json, write_json
from hf_relstitch.hub.repo import Repo, head_of, hub_errors, locate, push_folder
from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher
from hf_relstitch.model.persistence import read_config

PUSHED = ("accuracy", "f1")
DEFAULT_TASK = "default"


@dataclass(frozen=True, eq=False)
class Stitched:
    """Hold a stitched model's folder or repo, and its config."""

    repo: Repo
    config: RelativeStitcherConfig

    @classmethod
    def find(cls, place: str) -> "Stitched":
        """Find the stitched model at `place`, a folder or a repo.

        Raises:
            StitchError: there is no stitched model, or its answers are not a single class each.
        """
        repo = locate(place)
        file = repo.file("config.json")
        if file is None:
            raise StitchError(f"{place} has no config.json: expected a stitched model")
        config = read_config(file.parent)
        if config.problem_type in ("multi_label_classification", "regression") or config.num_labels < 2:
            raise StitchError(f"{place} does not choose one class of some: a benchmark counts how often it is right")
        return cls(repo, config)

    @property
    def content(self) -> list[Any]:
        """Return everything that the model's answers to latents depend on."""
        return [self.config.checksums, self.config.logit_temperature, sorted(self.config.id2label.items())]

    def reads(self, spaces: Mapping[tuple[str, str], Space]) -> list[tuple[str, str]]:
        """Return the data and encoder of each space that this model's source encoder made.

        Raises:
            StitchError: no space comes from that encoder.
        """
        source = Provenance.from_dict(self.config.source)
        apart = {name: source.difference(space.provenance) for name, space in spaces.items()}
        if found := [name for name, difference in apart.items() if not difference]:
            return found
        shown = "; ".join(f"of {encoder} the {difference}" for (_, encoder), difference in apart.items())
        raise StitchError(
            f"no encoder of the suite is the one that {self.repo.name} reads inputs with ({shown}): add it to the "
            "suite, at that revision and with that pooling"
        )

    def measure(self, latents: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
        """Return the scores of the model's answers to source latents `(n, d_source)`.

        Raises:
            StitchError: the head's classes are not the labels' classes, or the model does not load.
        """
        truth = numbers_of(classes, self.config.id2label, name=self.repo.name)[labels]
        model = RelativeStitcher.from_pretrained(self.repo.place, revision=self.repo.commit)
        weights = next(model.translation.buffers())
        with torch.no_grad():
            logits = model.classify(latents.to(weights)).float().cpu()
        return {"rows": len(labels)} | own_scores(logits, truth)


def numbers_of(classes: Sequence[str], labels: Mapping[int, str], *, name: str) -> Tensor:
    """Return the head's number for each class of the data.

    Classes are matched by name, or by position where the data or the head has no names.

    Raises:
        StitchError: the head has other classes.
    """
    names = [labels[index].casefold() for index in range(len(labels))]
    wanted = [one.casefold() for one in classes]
    if set(wanted) <= set(names) and len(set(names)) == len(names):
        return torch.tensor([names.index(one) for one in wanted])
    if all(one.isdecimal() and int(one) < len(names) for one in wanted):
        return torch.tensor([int(one) for one in wanted])
    if all(re.fullmatch(r"label_\d+", one) for one in names) and len(wanted) <= len(names):
        return torch.arange(len(wanted))
    raise StitchError(
        f"the head of {name} has the classes {', '.join(labels.values())}, and the data {', '.join(classes)}: expected "
        "the same names"
    )


def push_results(run: str | Path, repo_id: str, *, token: str | bool | None = None) -> str:
    """Write a stitched model's benchmark results into its repo in a single commit, and return the commit's address.

    The results go into the card, into its metadata and into `.eval_results/`. They replace earlier results of the same
    data, split and metric. All other results stay.

    Args:
        run: a folder that `run_suite(..., models=[repo_id])` wrote.
        repo_id: the model's repo.
        token: a token of the Hub; by default the token of the login.

    Raises:
        StitchError: the benchmark has no numbers of this model, the model has changed since, or the Hub refuses.
    """
    results = read_results(run)
    measured = [one for one in results.get("models", []) if one["model"] == repo_id]
    if not measured:
        failed = [one["error"] for one in results["failures"] if one.get("model") == repo_id]
        why = failed[0] if failed else f"run the benchmark with `--push {repo_id}`"
        raise StitchError(f"{run} has no numbers of {repo_id}: {why}")
    commit = measured[0]["commit"]
    with hub_errors(f"asking the Hub for {repo_id}"):
        head = head_of(HfApi(token=token), repo_id, revision=None)
    if head != commit:
        raise StitchError(
            f"{repo_id} was measured at {commit} and is at {head} now: run the benchmark again with `--push {repo_id}`"
        )
    config_file = locate(repo_id, revision=commit, token=token).file("config.json")
    config = read_json(Path(str(config_file)))
    ours = [entry for one in measured for entry in _entries(one, results, modality=config["modality"])]
    config["results"] = _merged(config.get("results") or [], ours)

    def write(folder: Path, name: str) -> None:
        write_json(folder / "config.json", config)
        write_card(config, folder, folder=folder, repo_id=name)

    message = f"Results on {', '.join(dict.fromkeys(one['dataset_name'] for one in ours))}"
    return push_folder(write, repo_id, owned=[RESULTS_NAME], message=message, token=token, parent_commit=commit)


def _entries(measured: Mapping[str, Any], results: Mapping[str, Any], *, modality: str) -> list[dict[str, Any]]:
    """Return a model's results on a data set, as entries for `results` in its config."""
    spec, revision = results["suite"]["data"][measured["data"]], results["data"][measured["data"]]["revision"]
    split = spec["test_split"] or spec["split"]
    shared = {
        "task_type": MODALITIES[modality].task,
        "dataset_name": spec["path"] if revision else measured["data"],
        "dataset_id": spec["path"] if revision else None,
        "config": spec["config"],
        "revision": revision,
        "split": split,
        "rows": measured["rows"],
    }
    if revision:
        shared["task_id"] = _task_of(spec["path"], revision, config=spec["config"], split=split)
    return [{**shared, "metric": name, "value": measured[name]} for name in PUSHED]


def _merged(earlier: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace earlier results by new results of the same data, split and metric."""

    def same(one: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(one.get(name) for name in ("dataset_name", "config", "split", "metric"))

    return [*(one for one in earlier if same(one) not in set(map(same, ours))), *ours]


def _task_of(data: str, revision: str, *, config: str | None, split: str) -> str:
    """Return the task of a config and split, if the data set is a benchmark of the Hub, which has an `eval.yaml`."""
    api = HfApi()
    with hub_errors(f"looking for a benchmark in {data}", YAMLError):
        if not api.file_exists(data, "eval.yaml", repo_type="dataset", revision=revision):
            return DEFAULT_TASK
        file = api.hf_hub_download(data, "eval.yaml", repo_type="dataset", revision=revision)
        text = Path(file).read_text(encoding="utf-8")
        check_yaml(text, f"eval.yaml of {data}")
        content = safe_load(text)
    tasks = content.get("tasks") if isinstance(content, dict) else None
    known = [one for one in tasks or [] if isinstance(one, dict) and "id" in one]
    at = (config or "default", split)
    fits = [one for one in known if (one.get("config", "default"), one.get("split", split)) == at]
    return str(fits[0]["id"]) if len(fits) == 1 else DEFAULT_TASK
