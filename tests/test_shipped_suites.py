"""The shipped suites, whole but small: tiny models and data under the names that they ask the Hub for."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Image, Value
from hub_server import HubServer
from huggingface_hub import HfApi
from PIL import Image as Pil

from hf_relstitch.benchmarks import run_suite, write_report
from hf_relstitch.benchmarks.suite import EXPERIMENTS, SHIPPED, DataSpec, Suite, load_suite

SMALL = {"methods": ["auto", "inversion"], "anchors": [32], "seeds": [0], "heads": ["logistic"], "raw_rows": 8}
ROWS = 140


def api_of(hub: HubServer, repo_id: str) -> HfApi:
    """A client that may write where the repo is."""
    owner = repo_id.split("/", maxsplit=1)[0]
    hub.tokens[f"hf_{owner}"] = owner
    return HfApi(token=f"hf_{owner}")


def upload(hub: HubServer, repo_id: str, folder: Path, *, kind: str, branch: str | None) -> None:
    api = api_of(hub, repo_id)
    api.create_repo(repo_id, repo_type=kind, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder, repo_type=kind)
    if branch:
        repo = hub.repos[f"{kind}s", repo_id]
        repo.branches[branch] = repo.branches["main"]


def model(hub: HubServer, repo_id: str, *, reads: str, seed: int, folder: Path) -> None:
    """A tiny encoder under a name."""
    saved = pico.saved("Bert" if reads == "text" else "ViT", folder / repo_id, seed=seed)
    upload(hub, repo_id, Path(saved), kind="model", branch=None)


def data(hub: HubServer, spec: DataSpec, folder: Path, *, images: set[str]) -> None:
    """Rows under a name, with the columns, configs and splits that a suite reads."""
    configs: dict[str, list[str]] = {spec.config or "default": []}
    for column in spec.inputs.values():
        config, _, name = column.rpartition(":")
        configs.setdefault(config or spec.config or "default", []).append(name)
    splits = {spec.split, spec.test_split or spec.split}
    listed = [
        {"config_name": one, "data_files": [{"split": each, "path": f"{one}/{each}.parquet"} for each in splits]}
        for one in configs
    ]
    place = folder / str(spec.path)
    place.mkdir(parents=True)
    (place / "README.md").write_text(f"---\nlicense: mit\n{yaml.safe_dump({'configs': listed})}---\n")
    for seed, (config, columns) in enumerate(configs.items()):
        for split in splits:
            table: dict[str, Any] = {spec.label: [row % 3 for row in range(ROWS)]}
            features = {spec.label: ClassLabel(names=["a", "b", "c"])}
            for column in columns:
                is_image = column in images
                table[column] = pictures(seed) if is_image else pico.texts(ROWS, seed=seed)
                features[column] = Image() if is_image else Value("string")
            if spec.match:
                table[spec.match] = [str(row) for row in (range(ROWS) if seed == 0 else reversed(range(ROWS)))]
                features[spec.match] = Value("string")
            Dataset.from_dict(table, features=Features(features)).to_parquet(place / config / f"{split}.parquet")
    upload(hub, str(spec.path), place, kind="dataset", branch=spec.revision)


def pictures(seed: int) -> list[Pil.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)
    return [Pil.fromarray(one) for one in pixels]


def small(name: str, pairs: dict[str, list[tuple[str, str]]]) -> dict[str, Any]:
    """A shipped suite with fewer rows, pairs, methods and seeds."""
    suite = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()) | SMALL
    for one, each in suite["data"].items():
        each |= {"head_rows": 40, "test_rows": 30, "pairs": pairs[one]}
    return suite


def reading(suite: Suite) -> dict[str, str]:
    """What each encoder reads: the name of the input says it, but in cross-lingual suites, which are of text."""
    images = {one for pair in suite.data.values() for one in pair.inputs if one == "image"}
    texts = {one for pair in suite.data.values() for one in pair.inputs if one != "image"}
    vision = ("vit", "dino", "resnet")
    return {name: "image" if images and (not texts or name.startswith(vision)) else "text" for name in suite.encoders}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.glob("*.yaml")))
def test_shipped_suites_run(name: str, hub: HubServer, tmp_path: Path) -> None:
    suite, _ = load_suite(name)
    assert {"auto", "inversion", "absolute", "relative-decoder", "latentis"} <= set(suite.methods)
    assert suite.experiments == EXPERIMENTS
    reads = reading(suite)
    for seed, (repo_id, encoder) in enumerate({spec.model: one for one, spec in suite.encoders.items()}.items()):
        model(hub, str(repo_id), reads=reads[encoder], seed=seed, folder=tmp_path / "models")
    for spec in suite.data.values():
        images = {column for key, column in spec.inputs.items() if key == "image"}
        data(hub, spec, tmp_path / "data", images=images)
    pairs = {one: list({pair[0]: pair for pair in suite.pairs(one)}.values()) for one in suite.data}
    results = run_suite(small(name, pairs), tmp_path / "out", progress=False)
    assert results["failures"] == []
    assert len(results["cells"]) == sum(2 * len(each) for each in pairs.values())
    assert len(results["raw_inputs"]) == sum(len(each) for each in pairs.values())
    assert all(one["accuracy"] == one["accuracy_from_latents"] for one in results["raw_inputs"])
    assert {one["experiment"] for one in results["experiments"]} == set(EXPERIMENTS)
    assert all(about["revision"] for about in results["data"].values())
    write_report(tmp_path / "out")
    shutil.rmtree(tmp_path)


def test_rows_of_another_config_are_matched(hub: HubServer, tmp_path: Path) -> None:
    from hf_relstitch.benchmarks.rows import read_rows
    from hf_relstitch.benchmarks.yaml_schema import Document

    spec = load_suite("cross-lingual-stitching")[0].data["massive"]
    data(hub, spec, tmp_path, images=set())
    small_spec = DataSpec(**{**vars(spec), "head_rows": 40, "test_rows": 30})
    rows = read_rows("massive", small_spec, Document({}), most_anchors=32, given=None)
    english, german = pico.texts(ROWS, seed=0), pico.texts(ROWS, seed=1)
    places = [english.index(text) for text in rows.inputs["english"]]
    assert [german[ROWS - 1 - place] for place in places] == rows.inputs["german"]
    assert rows.labels.tolist() == [place % 3 for place in places]
