"""Sharing over HTTP: the real client, a Hub on loopback, and other processes with caches of their own."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pico
import pytest
import torch
from datasets import Dataset
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from test_cli import run
from torch import nn
from transformers import AutoModelForSequenceClassification, pipeline

from hf_relstitch import AnchorSet, Encoder, Head, RelativeLatents, RelativeStitcher, StitchError, load_classifier
from hf_relstitch.cli.push_pull import pull, push
from hf_relstitch.heads.loading import load_head

TEXTS = pico.texts(100)
BATCH = ["storm hits the northern coast", "quiet day"]


@pytest.fixture
def source_id(hub: HubServer, source_folder: str) -> str:
    """The source encoder on the Hub."""
    return uploaded("alice/tiny-bert", source_folder)


@pytest.fixture
def target_id(hub: HubServer, target_folder: str) -> str:
    """The target classifier on the Hub."""
    return uploaded("bob/tiny-roberta", target_folder, token="hf_bob")


def uploaded(repo_id: str, folder: str, *, token: str = "hf_alice") -> str:
    """Put a folder on the Hub."""
    api = HfApi(token=token)
    api.create_repo(repo_id)
    api.upload_folder(repo_id=repo_id, folder_path=folder)
    return repo_id


@pytest.fixture
def model(source_id: str, target_id: str) -> RelativeStitcher:
    """A model stitched from Hub ids."""
    return RelativeStitcher.from_parts(source_id, target_id, TEXTS, data="word salad", progress=False)


@torch.no_grad()
def logits(model: RelativeStitcher) -> torch.Tensor:
    return model(**model.processor(BATCH, padding=True, return_tensors="pt")).logits


def new_process(script: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that has an empty cache."""
    command, env = [sys.executable, "-c", script], os.environ | {"HF_HOME": str(home)} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=home.parent, timeout=120)


def printed(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LOAD_AND_PRINT = f"""
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
model = AutoModelForSequenceClassification.from_pretrained("alice/stitched", **OPTIONS)
batch = AutoTokenizer.from_pretrained("alice/stitched", **OPTIONS)({BATCH!r}, padding=True, return_tensors="pt")
with torch.no_grad():
    print(model(**batch).logits.double().tolist())
print(pipeline("text-classification", model="alice/stitched", **OPTIONS)("storm hits the coast")[0]["label"])
"""
WITH_IMPORT = f"import hf_relstitch\nOPTIONS = {{}}\n{LOAD_AND_PRINT}"
WITHOUT_IMPORT = f"OPTIONS = {{'trust_remote_code': True}}\n{LOAD_AND_PRINT}"


@pytest.mark.parametrize("share", ["full", "adapter"])
@pytest.mark.parametrize("script", [WITH_IMPORT, WITHOUT_IMPORT], ids=["imported", "trust_remote_code"])
def test_another_process_pulls_the_same_model(model: RelativeStitcher, tmp_path: Path, share: str, script: str) -> None:
    model.push_to_hub("alice/stitched", share=share)
    found, label = printed(new_process(script, tmp_path / "home"))
    assert json.loads(found) == logits(model).double().tolist()
    assert (
        label
        == pipeline("text-classification", model=model, tokenizer=model.processor)("storm hits the coast")[0]["label"]
    )


def test_a_push_is_one_commit_of_a_complete_repo(model: RelativeStitcher) -> None:
    address = model.push_to_hub("alice/stitched")
    commits = HfApi().list_repo_commits("alice/stitched")
    assert len(commits) == 2  # the one that the Hub itself makes, and ours
    assert address.endswith(commits[0].commit_id)
    files = {"config.json", "model.safetensors", "relative_stitcher.py", "tokenizer.json", "tokenizer_config.json"}
    assert files <= set(HfApi().list_repo_files("alice/stitched"))


def test_an_adapter_is_small_and_names_its_source(model: RelativeStitcher, source_id: str, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, share="adapter")
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("encoder.")]
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["share"], config["source"]["model_id"]) == ("adapter", source_id)
    assert config["source"]["revision"] == HfApi().model_info(source_id).sha
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "full")
    assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path / "full")), logits(model))


def test_an_adapter_pins_its_source_to_a_commit(model: RelativeStitcher, source_id: str, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, share="adapter")
    uploaded_again = pico.saved("Bert", tmp_path / "newer", seed=5)
    HfApi().upload_folder(repo_id=source_id, folder_path=uploaded_again)
    assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_adapter_loads_in_another_dtype(model: RelativeStitcher, tmp_path: Path, dtype: torch.dtype) -> None:
    model.save_pretrained(tmp_path / "adapter", share="adapter")
    model.save_pretrained(tmp_path / "full")
    adapter, full = (RelativeStitcher.from_pretrained(tmp_path / name, dtype=dtype) for name in ("adapter", "full"))
    assert adapter.dtype == adapter.encoder.dtype == dtype
    assert torch.equal(logits(adapter), logits(full))


def test_an_adapter_is_refused_for_weights_that_are_not_on_the_hub(
    model: RelativeStitcher, stitched: RelativeStitcher, tmp_path: Path
) -> None:
    with pytest.raises(StitchError, match="was not loaded from the Hub"):
        stitched.save_pretrained(tmp_path / "local", share="adapter")
    with torch.no_grad():
        next(model.encoder.parameters()).add_(0.1)
    with pytest.raises(StitchError, match="weights are not those of alice/tiny-bert"):
        model.save_pretrained(tmp_path / "changed", share="adapter")
    assert not list(tmp_path.iterdir())


def test_without_the_package_transformers_says_what_to_install(model: RelativeStitcher, tmp_path: Path) -> None:
    model.push_to_hub("alice/stitched")
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "hf_relstitch" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    script = f"import sys; sys.path.insert(0, {str(packages)!r})\n{WITHOUT_IMPORT}"
    command = [sys.executable, "-S", "-c", script]
    env = os.environ | {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert "requires the following packages" in done.stderr
    assert "pip install hf_relstitch" in done.stderr


def test_from_pretrained_takes_what_transformers_models_take(model: RelativeStitcher, tmp_path: Path) -> None:
    model.push_to_hub("alice/stitched", private=True)
    first = HfApi().model_info("alice/stitched").sha
    with torch.no_grad():
        model.head.bias.add_(1)
    model.push_to_hub("alice/stitched")
    cache = {"cache_dir": tmp_path / "cache", "token": "hf_alice"}
    newest = RelativeStitcher.from_pretrained("alice/stitched", force_download=True, **cache)
    assert torch.equal(logits(newest), logits(model))
    older = RelativeStitcher.from_pretrained("alice/stitched", revision=first, **cache)
    assert torch.equal(older.head.bias, model.head.bias - 1)
    offline = RelativeStitcher.from_pretrained("alice/stitched", local_files_only=True, cache_dir=tmp_path / "cache")
    assert torch.equal(logits(offline), logits(model))
    with pytest.raises(StitchError, match="alice/stitched is no folder here"):
        RelativeStitcher.from_pretrained("alice/stitched", local_files_only=True, cache_dir=tmp_path / "empty")


def test_a_model_in_a_subfolder(model: RelativeStitcher, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    HfApi().create_repo("alice/several")
    HfApi().upload_folder(repo_id="alice/several", folder_path=tmp_path, path_in_repo="best")
    loaded = AutoModelForSequenceClassification.from_pretrained("alice/several", subfolder="best")
    assert torch.equal(logits(loaded), logits(model))


def test_sharded_weights_and_the_shards_that_a_later_push_replaces(model: RelativeStitcher) -> None:
    model.push_to_hub("alice/stitched", max_shard_size="20KB")
    assert "model.safetensors.index.json" in HfApi().list_repo_files("alice/stitched")
    assert torch.equal(logits(RelativeStitcher.from_pretrained("alice/stitched")), logits(model))
    model.push_to_hub("alice/stitched")
    weights = [name for name in HfApi().list_repo_files("alice/stitched") if "safetensors" in name]
    assert weights == ["model.safetensors"]
    assert torch.equal(logits(RelativeStitcher.from_pretrained("alice/stitched")), logits(model))


def test_a_push_to_a_branch(model: RelativeStitcher) -> None:
    model.push_to_hub("alice/stitched")
    before = HfApi().model_info("alice/stitched").sha
    model.push_to_hub("alice/stitched", revision="trial", share="adapter")
    assert HfApi().model_info("alice/stitched").sha == before
    assert RelativeStitcher.from_pretrained("alice/stitched", revision="trial").config.share == "adapter"


def test_a_new_branch_begins_with_the_edits_of_the_main_one(model: RelativeStitcher) -> None:
    model.push_to_hub("alice/stitched")
    edited = str(ModelCard.load("alice/stitched")) + "\nSeen on a ship.\n"
    HfApi().upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id="alice/stitched")
    model.push_to_hub("alice/stitched", revision="trial")
    card = HfApi().hf_hub_download("alice/stitched", "README.md", revision="trial")
    assert Path(card).read_text().endswith("Seen on a ship.\n")


def card_of(repo_id: str, revision: str | None = None) -> str:
    return Path(HfApi().hf_hub_download(repo_id, "README.md", revision=revision)).read_text()


def edit_on_the_hub(repo_id: str, words: str) -> None:
    card = (card_of(repo_id) + words).encode()
    HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo_id)


def edit(folder: Path, words: str) -> None:
    with (folder / "README.md").open("a") as card:
        card.write(words)


def pushed(folder: Path, repo_id: str = "alice/it", revision: str | None = None) -> str:
    push(str(folder), repo_id, share="full", private=None, revision=revision)
    return card_of(repo_id, revision)


@pytest.mark.parametrize("kind", ["model", "anchors"])
def test_a_pushed_folder_brings_its_cards_edits(
    model: RelativeStitcher, source_id: str, tmp_path: Path, kind: str
) -> None:
    anchors = AnchorSet.encode(Encoder.from_pretrained(source_id), TEXTS, progress=False)
    made = model if kind == "model" else anchors
    made.save_pretrained(tmp_path)
    pushed(tmp_path)
    edit(tmp_path, "\nIn the folder.\n")
    assert pushed(tmp_path).endswith("\nIn the folder.\n")
    edit(tmp_path, "More.\n")
    assert pushed(tmp_path).endswith("\nIn the folder.\nMore.\n")
    assert '"alice/it"' in pushed(tmp_path)
    edit_on_the_hub("alice/it", "On the Hub.\n")
    assert pushed(tmp_path).endswith("More.\nOn the Hub.\n")  # nothing was edited here since
    assert pushed(tmp_path, "alice/new").endswith("\nIn the folder.\nMore.\n")
    made.push_to_hub("alice/plain")
    assert pushed(tmp_path, "alice/plain").endswith("\nIn the folder.\nMore.\n")


def test_a_pulled_card_that_nobody_touched_does_not_replace_the_hubs(model: RelativeStitcher, tmp_path: Path) -> None:
    model.push_to_hub("alice/it")
    edit_on_the_hub("alice/it", "\nFirst.\n")
    pull("alice/it", tmp_path)
    edit_on_the_hub("alice/it", "Second.\n")
    model.save_pretrained(tmp_path)
    assert pushed(tmp_path).endswith("\nFirst.\nSecond.\n")
    assert pushed(tmp_path, revision="trial").endswith("\nFirst.\nSecond.\n")
    assert not any(name.startswith(".cache") for name in HfApi().list_repo_files("alice/it"))
    pull("alice/it", tmp_path)
    edit(tmp_path, "Third.\n")
    assert pushed(tmp_path, revision="trial").endswith("\nThird.\n")
    assert pushed(tmp_path).endswith("\nFirst.\nSecond.\nThird.\n")


def test_cards_edited_on_both_sides_are_refused(model: RelativeStitcher, tmp_path: Path) -> None:
    model.push_to_hub("alice/it")
    pull("alice/it", tmp_path)
    edit(tmp_path, "\nHere.\n")
    with pytest.raises(StitchError, match=r"README\.md has edits that pulling would lose: push them, or move"):
        pull("alice/it", tmp_path)
    edit_on_the_hub("alice/it", "\nThere.\n")
    with pytest.raises(StitchError, match=r"README\.md was edited both in .* and on the Hub: move the folder's away"):
        pushed(tmp_path)
    (tmp_path / "README.md").replace(tmp_path / "mine.md")
    assert pushed(tmp_path).endswith("\nThere.\n")
    pull("alice/it", tmp_path)
    assert (tmp_path / "README.md").read_text().endswith("\nThere.\n")
    edit(tmp_path, "Here.\n")
    assert pushed(tmp_path).endswith("\nThere.\nHere.\n")
    edit(tmp_path, "Pushed.\n")
    pushed(tmp_path)
    pull("alice/it", tmp_path)
    assert (tmp_path / "README.md").read_text().endswith("\nThere.\nHere.\nPushed.\n")


def test_a_repo_id_without_namespace_is_the_users(model: RelativeStitcher) -> None:
    model.push_to_hub("stitched")
    assert HfApi().repo_exists("alice/stitched")


def test_gated_repos_open_to_those_who_were_granted(model: RelativeStitcher, hub: HubServer, tmp_path: Path) -> None:
    model.push_to_hub("alice/stitched")
    HfApi().update_repo_settings("alice/stitched", gated="manual")
    with pytest.raises(StitchError, match="ask for access"):
        RelativeStitcher.from_pretrained("alice/stitched", token="hf_bob", cache_dir=tmp_path)
    hub.grant("alice/stitched", "bob")
    loaded = RelativeStitcher.from_pretrained("alice/stitched", token="hf_bob", cache_dir=tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_provenance_of_hub_models_is_their_commit(model: RelativeStitcher, source_id: str, target_id: str) -> None:
    for side, repo_id in ((model.config.source, source_id), (model.config.target, target_id)):
        assert (side["model_id"], side["revision"]) == (repo_id, HfApi().model_info(repo_id).sha)


def test_anchor_sets_from_the_hub(source_id: str, hub: HubServer, tmp_path: Path) -> None:
    anchors = AnchorSet.encode(Encoder.from_pretrained(source_id), TEXTS, data="word salad", progress=False)
    anchors.push_to_hub("alice/anchors", private=True)
    first = HfApi().model_info("alice/anchors").sha
    anchors._subset(list(range(50))).push_to_hub("alice/anchors")
    assert len(AnchorSet.from_pretrained("alice/anchors")) == 50
    loaded = AnchorSet.from_pretrained("alice/anchors", revision=first, token="hf_alice", cache_dir=tmp_path)
    assert torch.equal(loaded.latents, anchors.latents)
    assert torch.equal(loaded.ids, anchors.ids)
    assert (loaded.provenance, loaded.inputs) == (anchors.provenance, anchors.inputs)
    with pytest.raises(StitchError, match="alice/anchors is no folder here"):
        AnchorSet.from_pretrained("alice/anchors", token="hf_bob", cache_dir=tmp_path / "other")


@pytest.mark.slow
def test_three_processes_stitch_what_none_of_them_has_whole(
    source_id: str, target_id: str, target_folder: str, tmp_path: Path
) -> None:
    """One has the source, one the target, and the third neither the inputs nor the target's encoder."""
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    alice = """
import json
from hf_relstitch import AnchorSet, Encoder
encoder = Encoder.from_pretrained("alice/tiny-bert")
AnchorSet.encode(encoder, json.load(open("texts.json")), progress=False).push_to_hub("alice/bert-anchors")
"""
    bob = """
import json
from hf_relstitch import AnchorSet, load_classifier
encoder, head = load_classifier("bob/tiny-roberta")
inputs = json.load(open("texts.json"))[::-1]
AnchorSet.encode(encoder, inputs, progress=False).push_to_hub("bob/roberta-anchors")
"""
    third = f"""
import sys, torch
from hf_relstitch import AnchorSet, RelativeStitcher
source_anchors = AnchorSet.from_pretrained("alice/bert-anchors")
found = AnchorSet.find(source_anchors)
assert found == ["alice/bert-anchors", "bob/roberta-anchors"], found
model = RelativeStitcher.from_anchor_sets("alice/tiny-bert", source_anchors, found[1])
assert "transformers.models.roberta.modeling_roberta" not in sys.modules
with torch.no_grad():
    print(model(**model.processor({BATCH!r}, padding=True, return_tensors="pt")).logits.double().tolist())
print(model.config.id2label)
"""
    printed(new_process(alice, tmp_path / "a"))
    printed(new_process(bob, tmp_path / "b", HF_TOKEN="hf_bob"))
    (tmp_path / "texts.json").unlink()
    found, labels = printed(new_process(third, tmp_path / "c"))
    at_once = RelativeStitcher.from_parts(source_id, target_id, TEXTS, progress=False)
    assert torch.allclose(torch.tensor(json.loads(found), dtype=torch.float64), logits(at_once).double(), atol=1e-5)
    assert labels == str(pico.LABELS)


def test_keyed_sets_are_found_and_paired_by_who_has_the_key(source_id: str, target_id: str) -> None:
    source, (target, head) = Encoder.from_pretrained(source_id), load_classifier(target_id)
    keyed = AnchorSet.encode(source, TEXTS, key="swordfish", progress=False)
    AnchorSet.encode(target, TEXTS, key="swordfish", progress=False).push_to_hub("bob/keyed", token="hf_bob")
    AnchorSet.encode(target, TEXTS, progress=False).push_to_hub("bob/open", token="hf_bob")
    assert AnchorSet.find(keyed) == ["bob/keyed"]
    RelativeStitcher.from_anchor_sets(source, keyed, "bob/keyed", head)
    with pytest.raises(StitchError, match="with no key: encode both with the same key"):
        RelativeStitcher.from_anchor_sets(source, keyed, "bob/open", head)
    with pytest.raises(StitchError, match="the key of fingerprint"):
        RelativeStitcher.from_anchor_sets(source, AnchorSet.encode(source, TEXTS, key="cod"), "bob/keyed", head)
    assert not set(keyed.ids.tolist()) & set(AnchorSet.encode(source, TEXTS, progress=False).ids.tolist())


def test_the_head_alone_is_read_from_its_model(target_id: str, target_folder: str, tmp_path: Path) -> None:
    encoder, head = load_classifier(target_id)
    read = load_head(encoder.provenance)
    assert torch.equal(read.module.weight, head.module.weight)
    assert torch.equal(read.module.bias, head.module.bias)
    assert (read.id2label, read.provenance) == (head.id2label, head.provenance)
    pico.classifier("Roberta", seed=2).save_pretrained(tmp_path, max_shard_size="5KB")
    HfApi(token="hf_bob").upload_folder(repo_id=target_id, folder_path=tmp_path, delete_patterns="model.safetensors")
    sharded = load_head(load_classifier(target_id)[0].provenance)
    assert torch.equal(sharded.module.weight, head.module.weight)


def test_a_head_that_cannot_be_read_has_to_be_given(source: Encoder, source_id: str, anchor_set: AnchorSet) -> None:
    with pytest.raises(StitchError, match="give the head"):
        RelativeStitcher.from_anchor_sets(source, anchor_set, anchor_set)
    from_hub = AnchorSet.encode(Encoder.from_pretrained(source_id), TEXTS, progress=False)
    with pytest.raises(StitchError, match="give the head"):
        RelativeStitcher.from_anchor_sets(source_id, from_hub, from_hub)
    RelativeStitcher.from_anchor_sets(source_id, from_hub, from_hub, nn.Linear(16, 2))


@pytest.mark.parametrize(
    "settings",
    [{}, {"alpha": 0.0, "ridge": 0.1}, {"norm": "mean"}, {"alpha": 0.3, "pruning": 0.5, "subspaces": 3, "ridge": 0.1}],
)
def test_relative_latents_inverted_elsewhere_are_the_translated_ones(
    source: Encoder, target: tuple[Encoder, Head], tmp_path: Path, settings: dict
) -> None:
    encoder, head = target
    model = RelativeStitcher.from_parts(source, encoder, TEXTS, head=head, progress=False, **settings)
    model.relative(BATCH, batch_size=1).save(tmp_path / "sent.safetensors")
    held = AnchorSet.encode(encoder, ["a day more", *TEXTS[::-1], "a storm more"], progress=False)
    received = held.invert(RelativeLatents.load(tmp_path / "sent.safetensors"))
    translated = model.translate(source.encode(BATCH, progress=False))
    assert torch.allclose(received, translated, atol=1e-5 * float(translated.abs().max()))


def test_relative_latents_of_other_anchors_are_refused(
    stitched: RelativeStitcher, source: Encoder, target: tuple[Encoder, Head], tmp_path: Path
) -> None:
    relative = stitched.relative(BATCH)
    with pytest.raises(StitchError, match="another target"):
        AnchorSet.encode(source, TEXTS, progress=False).invert(relative)
    with pytest.raises(StitchError, match="50 of the 100 anchors of the relative latents are not in this set"):
        AnchorSet.encode(target[0], TEXTS[:50], progress=False).invert(relative)
    (tmp_path / "broken").write_bytes(b"no safetensors")
    for name in ("broken", "missing"):
        with pytest.raises(StitchError, match="not a whole file of relative latents"):
            RelativeLatents.load(tmp_path / name)


def test_command_line_from_hub_id_to_hub_id(source_id: str, target_id: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    run("stitch", source_id, target_id, tmp_path / "model", "--anchors", tmp_path / "texts.txt")
    assert "/alice/stitched/commit/" in run("push", tmp_path / "model", "alice/stitched", "--private").stdout
    assert HfApi().model_info("alice/stitched").private
    assert json.loads(run("inspect", "alice/stitched", "--json").stdout)["source"]["model_id"] == source_id
    assert json.loads(run("predict", "alice/stitched", "storm", "--json").stdout)[0]["label"] in pico.LABELS.values()
    run("pull", "alice/stitched", tmp_path / "pulled")
    pulled = RelativeStitcher.from_pretrained(tmp_path / "pulled")
    assert torch.equal(logits(pulled), logits(RelativeStitcher.from_pretrained(tmp_path / "model")))


def test_a_folder_is_pulled_onto_itself_as_it_is(model: RelativeStitcher, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / ".partial-of-a-killed-save").mkdir()
    pull(str(tmp_path), tmp_path)
    pull(str(tmp_path), tmp_path / "copy")
    model.encoder.save_pretrained(tmp_path / "bert")
    with pytest.raises(StitchError, match="bert holds a model of type bert"):
        pull(str(tmp_path), tmp_path / "bert")
    assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path / "copy")), logits(model))
    assert not (tmp_path / "copy" / ".partial-of-a-killed-save").exists()


def test_a_link_out_of_a_folder_is_not_followed(model: RelativeStitcher, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(StitchError, match=r"notes.txt is a link out of its folder"):
        pull(str(tmp_path / "model"), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_command_line_finds_anchor_sets(source_id: str, target_id: str, tmp_path: Path) -> None:
    for repo_id, encoder in {
        "alice/bert-anchors": Encoder.from_pretrained(source_id),
        "alice/roberta-anchors": load_classifier(target_id)[0],
    }.items():
        AnchorSet.encode(encoder, TEXTS, data="salad", progress=False).save_pretrained(tmp_path / repo_id)
        run("push", tmp_path / repo_id, repo_id)
    rows = json.loads(run("find", tmp_path / "alice" / "bert-anchors", "--json").stdout)
    assert [(row["repo"], row["model_id"], row["anchors"]) for row in rows] == [
        ("alice/bert-anchors", source_id, 100),
        ("alice/roberta-anchors", target_id, 100),
    ]
    assert "alice/roberta-anchors" in run("find", "alice/bert-anchors").stdout
    other = AnchorSet.encode(Encoder.from_pretrained(source_id), TEXTS[:50], progress=False)
    other.push_to_hub("alice/other")
    card = ModelCard.load("alice/bert-anchors")
    HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="alice/other")
    assert "alice/other" in AnchorSet.find(AnchorSet.from_pretrained("alice/bert-anchors"))
    assert "alice/other" not in run("find", "alice/bert-anchors").stdout


@pytest.fixture
def data_id(hub: HubServer, tmp_path: Path) -> str:
    """A data set on the Hub with 120 texts for training and 40 for testing, each with one of three labels."""
    HfApi().create_repo("alice/salads", repo_type="dataset")
    for split, texts in {"train": pico.texts(120, seed=3), "test": pico.texts(40, seed=4)}.items():
        file = tmp_path / f"{split}.parquet"
        Dataset.from_dict({"text": texts, "label": [len(text) % 3 for text in texts]}).to_parquet(file)
        HfApi().upload_file(
            path_or_fileobj=file, path_in_repo=f"data/{split}.parquet", repo_id="alice/salads", repo_type="dataset"
        )
    return "alice/salads"


def test_command_line_takes_anchors_from_a_data_set(
    source_id: str, target_id: str, data_id: str, tmp_path: Path
) -> None:
    options = ["--anchors", data_id, "--column", "text", "--split", "test"]
    run("stitch", source_id, target_id, tmp_path / "model", *options)
    description = json.loads(run("inspect", tmp_path / "model", "--json").stdout)
    assert description["report"]["num_anchors"] == 40
    assert description["source"]["data"] == description["target"]["data"] == data_id
    refused = run("stitch", source_id, target_id, tmp_path / "no", "--anchors", data_id, "--column", "txt", status=1)
    assert "has no column 'txt': it has text, label" in " ".join(refused.stderr.split())


def test_files_of_other_folders_stay_when_a_model_is_pushed_again(hub: HubServer, stitched: RelativeStitcher) -> None:
    stitched.push_to_hub("alice/several")
    others = ["model-small/model.safetensors", "models/other.safetensors"]
    for name in others:
        HfApi().upload_file(path_or_fileobj=b"another model", path_in_repo=name, repo_id="alice/several")
    HfApi().upload_file(
        path_or_fileobj=b"old", path_in_repo="model-00001-of-00002.safetensors", repo_id="alice/several"
    )
    stitched.push_to_hub("alice/several")
    there = HfApi().list_repo_files("alice/several")
    assert set(others) <= set(there)
    assert "model.safetensors" in there
    assert "model-00001-of-00002.safetensors" not in there
