"""What goes wrong between here and the Hub: each fault is one clear error, and nothing half-made is left."""

import json
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from test_hub import logits, uploaded

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError, load_classifier
from hf_relstitch.hub.repo import push_folder

REPO = "alice/stitched"


@pytest.fixture
def pushed(stitched: RelativeStitcher, hub: HubServer) -> RelativeStitcher:
    """A model that is on the Hub."""
    stitched.push_to_hub(REPO)
    return stitched


@pytest.fixture
def pull(tmp_path: Path) -> Callable[..., RelativeStitcher]:
    """Load the model from the Hub into a cache that is empty at first."""
    return lambda **options: RelativeStitcher.from_pretrained(REPO, cache_dir=tmp_path / "cache", **options)


def republish(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Change the repo's files on the Hub."""
    folder = Path(HfApi().snapshot_download(REPO, local_dir=tmp_path / "changed"))
    change(folder)
    HfApi().upload_folder(repo_id=REPO, folder_path=folder, delete_patterns="*")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# Pushing


def test_push_with_a_wrong_token(stitched: RelativeStitcher, hub: HubServer) -> None:
    with pytest.raises(StitchError, match=r"pushing to alice/stitched failed.*401.*hf auth login"):
        stitched.push_to_hub(REPO, token="hf_wrong")
    assert not hub.repos


def test_push_without_a_token(stitched: RelativeStitcher, hub: HubServer) -> None:
    with pytest.raises(StitchError, match=r"pushing to alice/stitched failed.*401"):
        stitched.push_to_hub(REPO, token=False)
    assert not hub.repos


def test_push_into_the_namespace_of_another(stitched: RelativeStitcher, hub: HubServer) -> None:
    with pytest.raises(StitchError, match=r"403.*namespace of your own"):
        stitched.push_to_hub("bob/stitched")
    assert not hub.repos


def test_push_of_a_bad_repo_name(stitched: RelativeStitcher, hub: HubServer) -> None:
    with pytest.raises(StitchError, match=r"pushing to alice/../stitched failed"):
        stitched.push_to_hub("alice/../stitched")
    assert not hub.repos


@pytest.mark.parametrize(
    ("method", "step", "status"),
    [
        ("POST", "/preupload/", 403),
        ("POST", "/objects/batch", 507),
        ("PUT", "/lfs/", 500),
        ("POST", "/commit/", 429),
        ("POST", "/commit/", 500),
    ],
)
def test_a_push_that_fails_leaves_no_repo(
    stitched: RelativeStitcher, hub: HubServer, method: str, step: str, status: int
) -> None:
    hub.fail(method, step, status=status, times=30, headers={"Retry-After": "0"})
    with pytest.raises(StitchError, match=rf"pushing to alice/stitched failed.*{status}"):
        stitched.push_to_hub(REPO)
    hub.faults.clear()
    assert not hub.repos
    assert stitched.push_to_hub(REPO)


def test_a_push_that_fails_leaves_an_older_model_as_it_was(
    pushed: RelativeStitcher, hub: HubServer, pull: Callable[..., RelativeStitcher]
) -> None:
    before, head = logits(pushed), HfApi().model_info(REPO).sha
    with torch.no_grad():
        pushed.head.bias.add_(1)
    hub.fail("POST", "/commit/", status=500, times=30)
    with pytest.raises(StitchError, match="500"):
        pushed.push_to_hub(REPO)
    hub.faults.clear()
    assert HfApi().model_info(REPO).sha == head
    assert torch.equal(logits(pull()), before)


def test_an_upload_that_is_asked_to_slow_down_goes_on(stitched: RelativeStitcher, hub: HubServer) -> None:
    hub.fail("PUT", "/lfs/", status=429, headers={"Retry-After": "0"})
    hub.slow("/commit/", 1.5)
    stitched.push_to_hub(REPO)
    assert torch.equal(logits(RelativeStitcher.from_pretrained(REPO)), logits(stitched))


def test_a_push_whose_answer_is_lost_has_come_whole(stitched: RelativeStitcher, hub: HubServer) -> None:
    hub.cut("/commit/", after_bytes=0)
    with pytest.raises(StitchError, match="pushing to alice/stitched failed"):
        stitched.push_to_hub(REPO)
    assert torch.equal(logits(RelativeStitcher.from_pretrained(REPO)), logits(stitched))


def test_push_over_somebody_elses_newer_commit(pushed: RelativeStitcher, hub: HubServer) -> None:
    seen = HfApi().model_info(REPO).sha
    with torch.no_grad():
        pushed.head.bias.add_(1)
    theirs = HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="notes.txt", repo_id=REPO).oid
    with pytest.raises(StitchError, match=r"412.*somebody has pushed since"):
        pushed.push_to_hub(REPO, parent_commit=seen)
    assert HfApi().model_info(REPO).sha == theirs
    pushed.push_to_hub(REPO, parent_commit=theirs)


def test_somebody_pushes_while_we_do(pushed: RelativeStitcher, hub: HubServer) -> None:
    def write(folder: Path, repo_id: str) -> None:
        (folder / "config.json").write_text("{}")
        HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="notes.txt", repo_id=repo_id)

    with pytest.raises(StitchError, match=r"412.*somebody has pushed since"):
        push_folder(write, REPO, owned=[], message="ours")
    assert "notes.txt" in HfApi().list_repo_files(REPO)


def test_push_with_no_hub_to_reach(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path / "model")
    with_no_hub = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [str(Path(sys.executable).with_name("hf-relstitch")), "push", str(tmp_path / "model"), REPO]
    done = subprocess.run(command, env=with_no_hub, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: pushing to alice/stitched failed" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


# Pulling


def test_pull_of_a_repo_that_is_not_there(hub: HubServer, pull: Callable[..., RelativeStitcher]) -> None:
    with pytest.raises(StitchError, match=r"alice/stitched is no folder here.*check the name"):
        pull()


def test_pull_of_a_revision_that_is_not_there(pushed: RelativeStitcher, pull: Callable[..., RelativeStitcher]) -> None:
    with pytest.raises(StitchError, match=r"404.*the revision"):
        pull(revision="v7")


@pytest.mark.parametrize("token", ["hf_bob", "hf_wrong", False])
def test_pull_of_a_private_repo(
    pushed: RelativeStitcher, pull: Callable[..., RelativeStitcher], tmp_path: Path, token: str | bool
) -> None:
    HfApi().update_repo_settings(REPO, private=True)
    with pytest.raises(StitchError, match=r"alice/stitched is no folder here.*(token|hf auth login)"):
        pull(token=token)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_download_that_is_cut_goes_on(
    pushed: RelativeStitcher, hub: HubServer, pull: Callable[..., RelativeStitcher]
) -> None:
    hub.cut("model.safetensors", after_bytes=1000, times=2)
    assert torch.equal(logits(pull()), logits(pushed))


def test_a_download_that_is_cut_for_good_leaves_nothing_half_made(
    pushed: RelativeStitcher, hub: HubServer, pull: Callable[..., RelativeStitcher], tmp_path: Path
) -> None:
    hub.cut("model.safetensors", after_bytes=1000, times=1000)
    with pytest.raises(StitchError, match="downloading alice/stitched failed"):
        pull()
    hub.faults.clear()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert torch.equal(logits(pull()), logits(pushed))


@pytest.mark.parametrize("status", [429, 500])
def test_a_download_that_is_refused_for_a_while_goes_on(
    pushed: RelativeStitcher, hub: HubServer, pull: Callable[..., RelativeStitcher], status: int
) -> None:
    hub.fail("GET", "/tree/", status=status, headers={"Retry-After": "0"})
    assert torch.equal(logits(pull()), logits(pushed))


def test_a_hub_that_is_down(pushed: RelativeStitcher, hub: HubServer, pull: Callable[..., RelativeStitcher]) -> None:
    hub.fail("*", "alice/stitched", status=503, times=1000, headers={"Retry-After": "0"})
    with pytest.raises(StitchError, match="alice/stitched is no folder here"):
        pull()
    hub.faults.clear()
    assert torch.equal(logits(pull()), logits(pushed))


def test_a_slow_hub(pushed: RelativeStitcher, hub: HubServer, pull: Callable[..., RelativeStitcher]) -> None:
    hub.slow("model.safetensors", 1.5)
    assert torch.equal(logits(pull()), logits(pushed))


def test_no_space_on_the_disk(pushed: RelativeStitcher, tmp_path: Path) -> None:
    """The process may write files of some kilobytes only, and so cannot download the weights."""
    script = f"""
import resource, signal
from hf_relstitch import RelativeStitcher
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
RelativeStitcher.from_pretrained({REPO!r})
"""
    env = os.environ | {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "StitchError: downloading alice/stitched failed: [Errno 27]" in done.stderr
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# What is in a repo


class Fires:
    """Unpickling it would be seen."""

    def __reduce__(self) -> tuple:
        return (Path("unpickled").touch, ())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl"])
def test_pickles_are_neither_read_nor_downloaded(
    pushed: RelativeStitcher, hub: HubServer, pull: Callable, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def replace_weights(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Fires()))
        edit_config(folder, checksums={})

    republish(tmp_path, replace_weights)
    with pytest.raises(StitchError, match="no safetensors"):
        pull()
    assert not (tmp_path / "unpickled").exists()
    assert not [request for request in hub.requests if request.method == "GET" and request.path.endswith(name)]


def test_altered_weights(pushed: RelativeStitcher, pull: Callable, tmp_path: Path, altered: Callable) -> None:
    republish(tmp_path, lambda folder: altered(folder / "model.safetensors"))
    with pytest.raises(StitchError, match="damaged or was altered"):
        pull()


def test_tensors_of_the_wrong_shape(pushed: RelativeStitcher, pull: Callable, tmp_path: Path) -> None:
    from hf_relstitch.hub.files import checksum

    def widen(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["head.weight"] = torch.zeros(3, 99)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        edit_config(folder, checksums={"model.safetensors": checksum(folder / "model.safetensors")})

    republish(tmp_path, widen)
    with pytest.raises(StitchError, match=r"head.weight of shape \(3, 99\) and not \(3, 16\)"):
        pull()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checksums": {"../model.safetensors": "xxh3_128:0"}}, "expected a safetensors file in the same folder"),
        ({"checksums": {"/etc/passwd": "xxh3_128:0"}}, "expected a safetensors file in the same folder"),
        ({"checksums": ["model.safetensors"]}, "checksums"),
        ({"processor_files": 3}, "the config's processor_files are 3: expected a list of names"),
        ({"source_config": {"model_type": "os.system"}}, "os.system"),
        ({"source_config": {"model_type": "../../evil"}}, "evil"),
        ({"source_config": {}}, "source_config"),
        ({"head": {"kind": "os.system"}}, "expected kind 'linear'"),
        ({"head": {"kind": "linear"}}, "bias"),
        ({"pooling": "__import__"}, "pooling is '__import__'"),
        ({"share": "elsewhere"}, "share is 'elsewhere'"),
        ({"translation": {"alpha": "0"}}, "alpha"),
        ({"model_type": "bert"}, "holds a bert model"),
    ],
)
def test_configs_that_ask_for_what_is_not_in_the_model(
    pushed: RelativeStitcher, pull: Callable, tmp_path: Path, changes: dict, message: str
) -> None:
    republish(tmp_path, lambda folder: edit_config(folder, **changes))
    with pytest.raises(StitchError, match=message):
        pull()


def test_an_index_that_names_files_elsewhere(
    stitched: RelativeStitcher, hub: HubServer, pull: Callable, tmp_path: Path
) -> None:
    stitched.push_to_hub(REPO, max_shard_size="20KB")

    def point_outside(folder: Path) -> None:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"]["head.weight"] = "../../../outside.safetensors"
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    republish(tmp_path, point_outside)
    with pytest.raises(StitchError, match=r"names \.\./\.\./\.\./outside.safetensors"):
        pull()


def test_code_in_a_repo_is_not_run(pushed: RelativeStitcher, pull: Callable, tmp_path: Path) -> None:
    def add_code(folder: Path) -> None:
        (folder / "relative_stitcher.py").write_text("raise SystemExit('run')")
        edit_config(folder, auto_map={"AutoModelForSequenceClassification": "relative_stitcher.Evil"})

    republish(tmp_path, add_code)
    assert torch.equal(logits(pull()), logits(pushed))
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(REPO, cache_dir=tmp_path / "other")


def test_path_names_that_lead_out_of_the_cache(
    pushed: RelativeStitcher, hub: HubServer, pull: Callable, tmp_path: Path
) -> None:
    hub.put_files(REPO, {"../../../outside.json": b"{}"})
    with pytest.raises(StitchError, match=r"downloading alice/stitched failed"):
        pull()
    assert not list(tmp_path.rglob("outside.json"))


@pytest.mark.parametrize("subfolder", ["../other", "/etc"])
def test_a_subfolder_outside_of_the_repo(pushed: RelativeStitcher, pull: Callable, subfolder: str) -> None:
    with pytest.raises(StitchError, match="expected a path inside the repo"):
        pull(subfolder=subfolder)


# The encoder that an adapter leaves on the Hub


@pytest.fixture
def adapter(hub: HubServer, source_folder: str, target_folder: str, tmp_path: Path) -> Path:
    """An adapter whose source encoder is alice/tiny-bert."""
    source = Encoder.from_pretrained(uploaded("alice/tiny-bert", source_folder), cache_dir=tmp_path / "old")
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), progress=False)
    model.save_pretrained(tmp_path / "adapter", share="adapter")
    return tmp_path / "adapter"


def test_an_adapter_whose_source_is_gone(adapter: Path, tmp_path: Path) -> None:
    HfApi().delete_repo("alice/tiny-bert")
    with pytest.raises(StitchError, match="alice/tiny-bert is no folder here"):
        RelativeStitcher.from_pretrained(adapter, cache_dir=tmp_path / "new")


def test_an_adapter_whose_source_has_changed(adapter: Path, hub: HubServer, tmp_path: Path) -> None:
    """A repo of the same name and commit that holds other weights."""
    other = Path(pico.saved("Bert", tmp_path / "other", seed=7), "model.safetensors").read_bytes()
    repo = hub.repos["models", "alice/tiny-bert"]
    files = repo.commit_at("main").files
    files["model.safetensors"] = hub._file("model.safetensors", other)
    with pytest.raises(StitchError, match="does not hold the weights that the adapter was made for"):
        RelativeStitcher.from_pretrained(adapter, cache_dir=tmp_path / "new")


def test_an_adapter_that_names_a_folder(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pico.saved("Bert", tmp_path / "alice" / "tiny-bert", seed=1)
    with pytest.raises(StitchError, match="a folder here has that name"):
        RelativeStitcher.from_pretrained(adapter)


def test_an_adapter_that_names_a_branch(adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "config.json").read_text())
    edit_config(adapter, source=config["source"] | {"revision": "main"})
    with pytest.raises(StitchError, match="at commit main is wanted"):
        RelativeStitcher.from_pretrained(adapter, cache_dir=tmp_path / "new")


# Anchor sets, encoders and targets


def test_an_anchor_set_that_was_altered(
    anchor_set: AnchorSet, hub: HubServer, tmp_path: Path, altered: Callable
) -> None:
    anchor_set.save_pretrained(tmp_path / "set")
    altered(tmp_path / "set" / "anchors.safetensors")
    HfApi().create_repo("alice/anchors")
    HfApi().upload_folder(repo_id="alice/anchors", folder_path=tmp_path / "set")
    with pytest.raises(StitchError, match="damaged or was altered"):
        AnchorSet.from_pretrained("alice/anchors")


def test_a_push_of_anchors_that_fails_leaves_no_repo(anchor_set: AnchorSet, hub: HubServer) -> None:
    hub.fail("POST", "/commit/", status=500, times=30)
    with pytest.raises(StitchError, match="500"):
        anchor_set.push_to_hub("alice/anchors")
    hub.faults.clear()
    assert not hub.repos


def test_a_search_that_fails(anchor_set: AnchorSet, hub: HubServer) -> None:
    hub.fail("GET", "/api/models", status=503, times=30, headers={"Retry-After": "0"})
    with pytest.raises(StitchError, match="searching the Hub failed"):
        AnchorSet.find(anchor_set)
    hub.faults.clear()


@pytest.mark.parametrize("load", [Encoder.from_pretrained, load_classifier])
def test_models_that_are_not_there(hub: HubServer, load: Callable) -> None:
    with pytest.raises(StitchError, match="alice/none is no folder here"):
        load("alice/none")
