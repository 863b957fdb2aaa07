"""An encoder with a translation as a sentence-transformers model: the same vectors, without this package."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import assets
import pico
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from test_cli import run
from test_sentence_modules import CHAINS, INPUTS, repo, theirs
from torch.testing import assert_close
from transformers import AutoModel
from typer.testing import CliRunner

from hf_relstitch import AnchorSet, CallableEncoder, Encoder, RelativeStitcher, StitchError
from hf_relstitch.bulk import SearchTranslation, translation_between
from hf_relstitch.cli import app
from hf_relstitch.core.translation import KernelTranslation, Translation

D_TARGET = 24


def affine(d_source: int, *, norm: Any = "keep") -> Translation:
    translation = Translation(d_source, D_TARGET, norm=norm)
    translation.weight, translation.bias = torch.randn(d_source, D_TARGET), torch.randn(D_TARGET)
    translation.centre = 0.1 * torch.randn(d_source)
    return translation


def search(translation: Any, **settings: Any) -> SearchTranslation:
    return SearchTranslation(translation, translates="queries", report={}, **settings)


def encoded(model: Any, inputs: list[str] = INPUTS) -> torch.Tensor:
    return model.encode(inputs, convert_to_tensor=True, show_progress_bar=False, batch_size=4)


def check(exported: Any, folder: Path, expected: torch.Tensor) -> None:
    """The model at hand, the one that its folder gives, and our own encoder of that folder all give these vectors."""
    close = {"rtol": 1e-4, "atol": 1e-4}
    assert_close(encoded(exported), expected, **close)
    assert_close(theirs(str(folder)), expected, **close)
    assert_close(Encoder.from_pretrained(str(folder)).encode(INPUTS, progress=False), expected, **close)


@pytest.mark.parametrize(
    ("chain", "pooling"), [*((chain, "mean") for chain in CHAINS), ("normalize", "cls"), ("dense", "lasttoken")]
)
def test_vectors_are_those_of_the_translation(tmp_path: Path, chain: str, pooling: str) -> None:
    place = repo(tmp_path, pooling=pooling, after=CHAINS[chain]())
    encoder = Encoder.from_pretrained(place)
    latents = encoder.encode(INPUTS, progress=False)
    translation = search(affine(latents.shape[1]))
    exported = translation.after(place, folder=tmp_path / "out")
    check(exported, tmp_path / "out", translation(latents))
    assert_close(encoded(translation.after(encoder)), translation(latents), rtol=1e-4, atol=1e-4)
    assert [type(module).__name__ for module in exported][-1] == "Dense"


@pytest.mark.parametrize("row_norm", [None, 1.0, 3.5])
@pytest.mark.parametrize("norm", ["keep", "mean"])
def test_every_norm_is_that_of_the_translation(tmp_path: Path, row_norm: float | None, norm: Any) -> None:
    place = repo(tmp_path)
    translation = search(affine(16, norm=norm), row_norm=row_norm)
    exported = translation.after(place, folder=tmp_path / "out")
    latents = Encoder.from_pretrained(place).encode(INPUTS, progress=False)
    check(exported, tmp_path / "out", translation(latents))


def test_prompts_are_kept(tmp_path: Path) -> None:
    """As names where the texts were paired without; in the tokenizer where a prompt was before each."""
    place = repo(tmp_path)
    settings = {"prompts": {"query": "storm hits: "}, "default_prompt_name": None}
    Path(place, "config_sentence_transformers.json").write_text(json.dumps(settings))
    translation, model = search(affine(16)), SentenceTransformer(place, device="cpu")
    asked = translation(model.encode(INPUTS, prompt_name="query", convert_to_tensor=True))
    plain = translation.after(place)
    assert_close(plain.encode(INPUTS, prompt_name="query", convert_to_tensor=True), asked, rtol=1e-4, atol=1e-4)
    assert_close(encoded(plain), translation(theirs(place)), rtol=1e-4, atol=1e-4)
    prompted = translation.after(Encoder.from_pretrained(place, prompt="query"), folder=tmp_path / "out")
    check(prompted, tmp_path / "out", asked)


def test_a_stitched_model_is_one_too(tmp_path: Path, target_folder: str) -> None:
    place = repo(tmp_path, after=(Dense(16, 12), Normalize()))
    stitched = RelativeStitcher.from_parts(place, target_folder, pico.texts(60), prefer="linear", progress=False)
    exported = stitched.to_sentence_transformer(tmp_path / "out")
    check(exported, tmp_path / "out", stitched.translate(theirs(place)))
    stitched.save_pretrained(tmp_path / "saved")
    again = RelativeStitcher.from_pretrained(tmp_path / "saved").to_sentence_transformer()
    assert_close(encoded(again), encoded(exported))


def test_an_encoder_in_half_precision_stays_so_and_is_written_in_full(tmp_path: Path) -> None:
    place = repo(tmp_path, after=(Dense(16, 12),))
    encoder = Encoder.from_pretrained(place, dtype=torch.bfloat16)
    translation = search(affine(12))
    exported = translation.after(encoder, folder=tmp_path / "out")
    assert {tensor.dtype for tensor in exported.parameters()} == {torch.float32}
    kept = [*encoder.model.parameters(), *encoder.after_pooling.parameters()]
    assert {parameter.dtype for parameter in kept} == {torch.bfloat16}
    near = translation(encoder.encode(INPUTS, progress=False).float())
    assert ((encoded(exported) - near).norm(dim=1) < 0.05 * near.norm(dim=1)).all()
    assert_close(theirs(str(tmp_path / "out")), encoded(exported))


WITHOUT = """
import sys
sys.modules["hf_relstitch"] = None  # whoever imports it fails
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
save_file({"vectors": model.encode(sys.argv[3:], convert_to_tensor=True)}, sys.argv[2])
"""


def encoded_without_us(folder: Path, texts: list[str]) -> torch.Tensor:
    from safetensors.torch import load_file

    file = folder.parent / "vectors.safetensors"
    subprocess.run([sys.executable, "-c", WITHOUT, str(folder), str(file), *texts], check=True)
    return load_file(file)["vectors"]


@pytest.mark.slow
def test_minilm_speaks_mpnets_space_without_this_package(tmp_path: Path) -> None:
    texts = assets.wordnet_glosses()[0][:120]
    source, target = (Encoder.from_pretrained(str(place)) for place in (assets.minilm(), assets.mpnet()))
    anchors = [AnchorSet.encode(encoder, texts[:100], data="glosses", progress=False) for encoder in (source, target)]
    translation = translation_between(*anchors, translates="queries")
    assert translation.unit
    translation.after(source, folder=tmp_path / "out")
    expected = translation(source.encode(texts[100:], progress=False))
    assert_close(encoded_without_us(tmp_path / "out", texts[100:]), expected, rtol=0, atol=1e-5)
    back = Encoder.from_pretrained(str(tmp_path / "out"))
    assert_close(back.encode(texts[100:], progress=False), expected, rtol=0, atol=1e-5)
    assert "all-mpnet-base-v2" in (tmp_path / "out" / "README.md").read_text()


def test_the_files_have_the_names_that_older_readers_know(tmp_path: Path) -> None:
    """text-embeddings-inference drops a Dense whose type has a newer name, and needs the pooling as flags."""
    search(affine(16), row_norm=1.0).after(repo(tmp_path), folder=tmp_path / "out")
    out = tmp_path / "out"
    modules = json.loads((out / "modules.json").read_text())
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    assert [module["type"] for module in modules] == [f"sentence_transformers.models.{kind}" for kind in kinds]
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    pooling = json.loads((out / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 16
    assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]
    dense = json.loads((out / "2_Dense" / "config.json").read_text())
    assert dense["activation_function"] == "torch.nn.modules.linear.Identity"
    assert json.loads((out / "sentence_bert_config.json").read_text())["max_seq_length"] == 32
    assert (out / "2_Dense" / "model.safetensors").is_file()
    assert not [file for file in out.rglob("*") if file.suffix in (".bin", ".py")]


@pytest.mark.parametrize(("metric", "name"), [("cosine", "cosine"), ("ip", "dot"), ("l2", "euclidean")])
def test_similarity_is_the_metric_of_the_search(tmp_path: Path, metric: Any, name: str) -> None:
    assert search(affine(16), metric=metric).after(repo(tmp_path)).similarity_fn_name == name


def test_a_translation_of_anchor_sets_knows_its_encoders(tmp_path: Path, source: Encoder, target_folder: str) -> None:
    other = Encoder.from_pretrained(target_folder)
    ours = AnchorSet.encode(source, pico.texts(80), data="word salad", progress=False)
    rotated = ours.latents @ torch.linalg.qr(torch.randn(16, 16))[0]
    theirs = AnchorSet(rotated.flip(0), ours.ids.flip(0), other.provenance)
    made = translation_between(ours, theirs)
    rows = ours.sorted_by_id().intersect(theirs)
    assert made.translation.weight.equal(translation_between(rows[0].latents, rows[1].latents).translation.weight)
    made.save(tmp_path / "made.safetensors")
    loaded = SearchTranslation.load(tmp_path / "made.safetensors")
    assert (loaded.source, loaded.target) == (ours.provenance, theirs.provenance)
    with pytest.raises(StitchError, match=r"fitted to latents of another encoder .*model_id is"):
        loaded.after(other)
    with pytest.raises(StitchError, match="one side only is an anchor set"):
        translation_between(ours, theirs.latents)
    loaded.after(source, folder=tmp_path / "out", repo_id="me/exported")
    card = (tmp_path / "out" / "README.md").read_text()
    data = ModelCard(card).data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("sentence-transformers", "sentence-similarity")
    assert "# tiny-bert in the space of tiny-roberta" in card
    assert 'SentenceTransformer("me/exported")' in card
    assert "from 80 unlabeled inputs" in card
    assert f"| recall | {made.report['recall']:.3f} ± {made.report['standard_error']:.3f} |" in card
    assert "It is for documents in an index" in card
    assert "word salad" not in data.get("datasets", [])
    assert str(tmp_path) not in card
    named = translation_between(rows[0].latents, rows[1].latents, models=("a", "text-embedding-3"))
    named.after(other, folder=tmp_path / "named")
    assert "tiny-roberta in the space of text-embedding-3" in (tmp_path / "named" / "README.md").read_text()


def test_a_normalize_before_the_dense_is_told(tmp_path: Path) -> None:
    """text-embeddings-inference applies the Dense modules alone."""
    for name, after in (("plain", ()), ("normalized", (Normalize(),))):
        search(affine(16), row_norm=1.0).after(repo(tmp_path / name, after=after), folder=tmp_path / f"{name}-out")
    said = "text-embeddings-inference leaves out the Normalize"
    assert said not in (tmp_path / "plain-out" / "README.md").read_text()
    assert said in (tmp_path / "normalized-out" / "README.md").read_text()


def test_both_ways_of_pushing_keep_vectors_and_card(tmp_path: Path, hub: HubServer) -> None:
    exported = search(affine(16)).after(repo(tmp_path), folder=tmp_path / "out")
    expected = encoded(exported)
    exported.push_to_hub("alice/theirs")
    HfApi().create_repo("alice/ours")
    HfApi().upload_folder(repo_id="alice/ours", folder_path=tmp_path / "out")
    for name in ("alice/theirs", "alice/ours"):
        assert_close(encoded(SentenceTransformer(name, device="cpu")), expected, rtol=1e-4, atol=1e-5)
        assert_close(Encoder.from_pretrained(name).encode(INPUTS, progress=False), expected, rtol=1e-4, atol=1e-5)
        assert "# repo in the space of" in ModelCard.load(name).text


def test_the_shell_pushes_pulls_and_shows_translations_and_exported_encoders(tmp_path: Path, hub: HubServer) -> None:
    """Each pushed from a folder and from a file, pulled, and pushed again, with its card."""
    place = repo(tmp_path)
    translation = search(affine(16))
    translation.save_pretrained(tmp_path / "translation")
    expected = encoded(translation.after(place, folder=tmp_path / "exported"))
    for name in ("translation", "exported"):
        back = tmp_path / "back" / name
        run("push", tmp_path / name, f"alice/{name}")
        run("pull", f"alice/{name}", back)
        run("pull", f"alice/{name}", back)  # again, into its own folder
        assert f"alice/{name}" in (back / "README.md").read_text()
        (back / "README.md").write_text((back / "README.md").read_text() + "\nSeen on a ship.\n")
        run("push", back, f"alice/{name}")
        assert "Seen on a ship." in ModelCard.load(f"alice/{name}").content
        run("push", back, f"alice/{name}-too")
        assert f"alice/{name}-too" in ModelCard.load(f"alice/{name}-too").text
        shown = run("inspect", f"alice/{name}").stdout, json.loads(run("inspect", back, "--json").stdout)
        assert ("queries" in shown[0], shown[1]["kind"].split()[0]) == (True, {"t": "search", "e": "exported"}[name[0]])
    latents = theirs(place)
    assert SearchTranslation.from_pretrained(tmp_path / "back" / "translation")(latents).equal(translation(latents))
    for loaded in ("alice/exported", "alice/exported-too", str(tmp_path / "back" / "exported")):
        assert_close(theirs(loaded), expected)
    assert "holds an exported encoder" in run("pull", "alice/translation", back, status=1).stderr
    assert "is not of alice/exported" in run("pull", "alice/exported", tmp_path / "exported", status=1).stderr
    assert "expected a stitched model" in run("pull", place, tmp_path / "x", status=1).stderr


KERNEL = KernelTranslation(40, 16, 8, gamma=1.0, norm="keep")


def bert_with(place: str, **settings: Any) -> Encoder:
    return Encoder(AutoModel.from_pretrained(place), pico.tokenizer(), **settings)


REFUSED = {
    "a kernel": (
        KERNEL,
        {},
        "has a kernel, which no module of sentence-transformers computes: fit it with",
    ),
    "a pooler": (
        affine(16),
        {"pooling": "pooler"},
        "pooling is 'pooler', which sentence-transformers has no",
    ),
    "another width": (affine(9), {}, "takes vectors 9 wide and gets 16"),
    "batches of one length": (affine(16), {"batching": "equal length"}, "pads texts of different lengths, and of this"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_exact_is_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    translation, settings, message = REFUSED[what]
    with pytest.raises(StitchError, match=message):
        search(translation).after(bert_with(pico.saved("Bert", tmp_path), **settings))


def test_a_callable_and_an_encoder_of_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StitchError, match="the encoder is a Function: expected a transformers model"):
        search(affine(16)).after(CallableEncoder(lambda texts: torch.ones(len(texts), 16), model_id="me"))
    with pytest.raises(StitchError, match="the encoder is for image: only text encoders"):
        search(affine(16)).after(pico.saved("ViT", tmp_path))


def test_a_library_that_gives_other_vectors_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = repo(tmp_path)
    monkeypatch.setattr(Dense, "forward", lambda self, features: features)
    with pytest.raises(StitchError, match="gives other vectors than the translation"):
        search(affine(16)).after(place, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named_with_its_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        StitchError, match=r'sentence_transformers: pip install "hf-relstitch\[sentence-transformers\]"'
    ):
        search(affine(16)).after(pico.saved("Bert", tmp_path))


def test_only_an_exported_model_is_written_over(tmp_path: Path) -> None:
    place = repo(tmp_path, after=(Normalize(),))
    with pytest.raises(StitchError, match="holds a model of type roberta, which saving there would spoil"):
        search(affine(16)).after(place, folder=place)
    search(affine(16), row_norm=1.0).after(place, folder=tmp_path / "out")
    mine = tmp_path / "out" / "README.md"
    mine.write_text(mine.read_text() + "\nMy own words.\n")
    translation = search(affine(16))
    again = translation.after(place, folder=tmp_path / "out")
    check(again, tmp_path / "out", translation(theirs(place)))
    assert "My own words." in mine.read_text()
    assert not [*(tmp_path / "out" / "4_Normalize").glob("*")]


def test_the_shell_exports_a_stitched_model_and_a_translation(tmp_path: Path, target_folder: str) -> None:
    place = repo(tmp_path)
    stitched = RelativeStitcher.from_parts(place, target_folder, pico.texts(60), prefer="linear", progress=False)
    stitched.save_pretrained(tmp_path / "stitched")
    translation = search(affine(16))
    translation.save(tmp_path / "translation.safetensors")

    def export(name: str, *more: str) -> Any:
        arguments = [
            "export",
            str(tmp_path / name),
            str(tmp_path / "out" / name),
            "--to",
            "sentence-transformers",
            *more,
        ]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return theirs(str(tmp_path / "out" / name))

    assert_close(export("stitched"), stitched.translate(theirs(place)), rtol=1e-4, atol=1e-4)
    assert_close(
        export("translation.safetensors", "--encoder", place), translation(theirs(place)), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(StitchError, match="export it with --to sentence-transformers --encoder"):
        export("translation.safetensors")
    with pytest.raises(StitchError, match="leave --encoder out"):
        export("stitched", "--encoder", place)


def test_the_shell_exports_a_plain_classifier(tmp_path: Path, target_folder: str) -> None:
    from transformers import pipeline

    source = Encoder.from_pretrained(pico.saved("DistilBert", tmp_path / "source"), pooling="cls")
    stitched = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), prefer="linear", progress=False)
    stitched.save_pretrained(tmp_path / "stitched")
    arguments = ["export", str(tmp_path / "stitched"), str(tmp_path / "out"), "--to", "classifier"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    classify = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")
    labels = [stitched.config.id2label[row] for row in stitched.predict(INPUTS).argmax(1).tolist()]
    assert [answer["label"] for answer in classify(INPUTS)] == labels
