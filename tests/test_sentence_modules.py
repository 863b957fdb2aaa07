"""sentence-transformers repos: the same latents as that library gives, whole through save, load, Hub and exports."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pico
import pytest
import tiny_models
import torch
import transformers
from hub_server import HubServer
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling, WeightedLayerPooling
from torch import nn
from transformers import AutoTokenizer

from hf_relstitch import AnchorSet, CallableEncoder, Encoder, Head, RelativeStitcher, StitchError
from hf_relstitch.data.ids import input_ids
from hf_relstitch.encoders.sentence_transformers_repo import prepend_prompt
from hf_relstitch.model.exporting import plain_classifier, to_onnx
from hf_relstitch.model.persistence import read_config

LONG = " ".join(pico.WORDS)  # 36 words, of which the tokenizer takes 30
INPUTS = [*pico.texts(8), "storm", LONG, "STORM hits Ships"]


def repo(folder: Path, *, pooling: str | tuple[str, ...] = "mean", after: tuple[nn.Module, ...] = (), **changes: Any):
    """A repo that sentence-transformers has saved, over a tiny RoBERTa, whose positions do not count padding."""
    torch.manual_seed(3)
    place = pico.saved("Roberta", folder / "plain", seed=1)
    modules = [Transformer(place, **changes), Pooling(16, pooling_mode=pooling), *after]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "repo"))
    return str(folder / "repo")


def theirs(place: str, inputs: list[str] = INPUTS) -> torch.Tensor:
    model = SentenceTransformer(place, device="cpu")
    return model.encode(inputs, convert_to_tensor=True, show_progress_bar=False, batch_size=4)


def projecting(**options: Any) -> Dense:
    return Dense(16, 12, **options)


CHAINS: dict[str, Callable[[], tuple[nn.Module, ...]]] = {
    "nothing": lambda: (),
    "normalize": lambda: (Normalize(),),
    "dense": lambda: (projecting(),),
    "dense, normalize": lambda: (projecting(activation_function=nn.Identity(), bias=False), Normalize()),
    "layer norm, dropout": lambda: (LayerNorm(16), Dropout(0.5)),
    "two of them": lambda: (projecting(activation_function=nn.GELU()), Dense(12, 20), Normalize()),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_latents_are_those_of_sentence_transformers(tmp_path: Path, chain: str) -> None:
    place = repo(tmp_path, after=CHAINS[chain]())
    torch.testing.assert_close(Encoder.from_pretrained(place).encode(INPUTS, progress=False), theirs(place))


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "max", "weightedmean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_pooling_is_theirs(tmp_path: Path, pooling: str, side: str) -> None:
    place = repo(tmp_path, pooling=pooling, processor_kwargs={"padding_side": side})
    torch.testing.assert_close(Encoder.from_pretrained(place).encode(INPUTS, progress=False), theirs(place))


def test_arguments_that_change_nothing_are_harmless(tmp_path: Path) -> None:
    place = repo(tmp_path)
    settings = {"max_seq_length": 20, "do_lower_case": False, "model_args": {"add_pooling_layer": False}}
    Path(place, "sentence_bert_config.json").write_text(json.dumps(settings))
    torch.testing.assert_close(Encoder.from_pretrained(place).encode(INPUTS, progress=False), theirs(place))


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("dim", [8, 40])
def test_vectors_are_truncated_as_the_repo_says(tmp_path: Path, chain: str, dim: int, target_folder: str) -> None:
    place = repo(tmp_path, after=CHAINS[chain]())
    model = SentenceTransformer(place, device="cpu", truncate_dim=dim)
    model.save_pretrained(place)
    encoder, expected = Encoder.from_pretrained(place), theirs(place)
    assert expected.shape[1] <= dim
    torch.testing.assert_close(encoder.encode(INPUTS, progress=False), expected)
    if chain == "normalize" and dim == 8:
        stitched = RelativeStitcher.from_parts(encoder, target_folder, pico.texts(40), progress=False)
        stitched.save_pretrained(tmp_path / "stitched")
        loaded = RelativeStitcher.from_pretrained(tmp_path / "stitched")
        torch.testing.assert_close(loaded.predict(INPUTS), stitched.classify(expected))


def test_the_layout_with_a_folder_for_the_transformer_is_read(
    tmp_path: Path, hub: HubServer, target_folder: str
) -> None:
    place = Path(repo(tmp_path))
    (place / "0_Transformer").mkdir()
    moved = [file for file in place.iterdir() if file.is_file() and "sentence_transformers" not in file.name]
    for file in moved:
        if file.name != "modules.json":
            file.rename(place / "0_Transformer" / file.name)
    modules = json.loads((place / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (place / "modules.json").write_text(json.dumps(modules))
    encoder = Encoder.from_pretrained(str(place))
    torch.testing.assert_close(encoder.encode(INPUTS, progress=False), theirs(str(place)))
    assert Encoder.from_pretrained(str(place), pooling="cls").pooling == "cls"
    HfApi().create_repo("alice/old")
    HfApi().upload_folder(repo_id="alice/old", folder_path=place)
    published = RelativeStitcher.from_parts("alice/old", target_folder, pico.texts(40), progress=False)
    torch.testing.assert_close(published.predict(INPUTS), published.classify(theirs(str(place))))
    published.save_pretrained(tmp_path / "adapter", share="adapter")
    loaded = RelativeStitcher.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(loaded.predict(INPUTS), published.predict(INPUTS))


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_the_encoder_of_a_text_to_text_model_is_taken(tmp_path: Path, kind: str, target_folder: str) -> None:
    tiny_models.classifier("sequence", kind).save_pretrained(tmp_path / "plain")
    pico.tokenizer().save_pretrained(tmp_path / "plain")
    modules = [Transformer(str(tmp_path / "plain")), Pooling(32), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "repo"))
    encoder, expected = Encoder.from_pretrained(str(tmp_path / "repo")), theirs(str(tmp_path / "repo"))
    torch.testing.assert_close(encoder.encode(INPUTS, progress=False), expected, rtol=1e-4, atol=1e-4)
    stitched = RelativeStitcher.from_parts(encoder, target_folder, pico.texts(40), progress=False)
    stitched.save_pretrained(tmp_path / "stitched")
    loaded = RelativeStitcher.from_pretrained(tmp_path / "stitched")
    torch.testing.assert_close(loaded.predict(INPUTS), stitched.classify(expected), rtol=1e-4, atol=1e-4)


def test_static_embeddings_are_refused_with_the_way_out(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = StaticEmbedding(pico.tokenizer().backend_tokenizer, embedding_dim=8)
    model = SentenceTransformer(modules=[static], device="cpu")
    model.save_pretrained(str(tmp_path))
    with pytest.raises(StitchError, match=r"has the module StaticEmbedding.*CallableEncoder"):
        Encoder.from_pretrained(str(tmp_path))
    encoder = CallableEncoder(model.encode, model_id="me/static")
    torch.testing.assert_close(encoder.encode(INPUTS, progress=False), theirs(str(tmp_path)))


def weighted_layers(place: str) -> list[nn.Module]:
    hidden = Transformer(place, config_kwargs={"output_hidden_states": True})
    return [hidden, WeightedLayerPooling(16, num_hidden_layers=2, layer_start=1), Pooling(16)]


REFUSED: dict[str, tuple[Callable[[str], list[nn.Module]], str]] = {
    "weighted layers": (weighted_layers, "has the module WeightedLayerPooling"),
    "two ways to pool": (
        lambda place: [Transformer(place), Pooling(16, pooling_mode=("mean", "cls"))],
        "pools by mean and cls",
    ),
    "two poolings": (lambda place: [Transformer(place), Pooling(16), Pooling(16)], "has the modules Transformer, Pool"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_poolings_are_refused_with_a_way_out_that_works(tmp_path: Path, kind: str, target_folder: str) -> None:
    modules, message = REFUSED[kind]
    theirs = SentenceTransformer(modules=modules(pico.saved("Roberta", tmp_path / "plain", seed=1)), device="cpu")
    theirs.save_pretrained(str(tmp_path / "repo"))
    anchors = pico.texts(60)
    for source in (str(tmp_path / "repo"), theirs):
        with pytest.raises(StitchError, match=rf"{message}.*CallableEncoder\(SentenceTransformer\(…\)\.encode"):
            RelativeStitcher.from_parts(source, target_folder, anchors, progress=False)
    source = CallableEncoder(theirs.encode, model_id="me/theirs")
    model = RelativeStitcher.from_parts(source, target_folder, anchors, progress=False)
    assert model.config.d_source == theirs.get_embedding_dimension()


def test_texts_are_cut_and_lowered_as_the_repo_says(tmp_path: Path) -> None:
    place = repo(tmp_path)
    uncut = theirs(place)
    Path(place, "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6, "do_lower_case": True}))
    expected = theirs(place)
    assert not torch.allclose(uncut[-2], expected[-2])
    assert not torch.allclose(uncut[-1], expected[-1])
    encoder = Encoder.from_pretrained(place)
    torch.testing.assert_close(encoder.encode(INPUTS, progress=False), expected)
    encoder.processor.save_pretrained(tmp_path / "saved")
    again = type(encoder.processor).from_pretrained(tmp_path / "saved")
    assert again(INPUTS, truncation=True)["input_ids"] == encoder.processor(INPUTS, truncation=True)["input_ids"]
    assert len(again(LONG, truncation=True)["input_ids"]) == 6


def test_a_tokenizer_without_a_limit_cuts_where_the_positions_end(tmp_path: Path) -> None:
    place = pico.saved("Bert", tmp_path, max_position_embeddings=10)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 10**30}))
    encoder = Encoder.from_pretrained(place)
    assert encoder.encode([LONG], progress=False).shape == (1, 16)
    torch.testing.assert_close(encoder.encode([LONG], progress=False), theirs(place, [LONG]), rtol=1e-4, atol=1e-5)


def old_repo(folder: Path, modules: list[str], **configs: dict[str, Any]) -> str:
    """A repo in the first layout of sentence-transformers, `configs` by the folder of each module."""
    place = pico.saved("Bert", folder)
    paths = ["" if kind == "Transformer" else f"{index}_{kind}" for index, kind in enumerate(modules)]
    for path, config in configs.items():
        file = folder / path.lstrip("_") / "config.json" if path.startswith("_") else folder / f"{path}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(config))
    kinds = [kind if "." in kind else f"sentence_transformers.models.{kind}" for kind in modules]
    listed = [{"name": f"{path} ", "path": path, "type": kind} for path, kind in zip(paths, kinds, strict=True)]
    (folder / "modules.json").write_text(json.dumps(listed))
    return place


MEAN = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def test_the_first_layout_is_read_as_they_read_it(tmp_path: Path) -> None:
    place = old_repo(
        tmp_path,
        ["Transformer", "Pooling", "Dense", "Normalize"],
        _1_Pooling=MEAN,
        _2_Dense={"in_features": 16, "out_features": 4, "bias": True},
        sentence_bert_config={"max_seq_length": 8, "do_lower_case": False},
    )
    weights = {"linear.weight": torch.randn(4, 16), "linear.bias": torch.randn(4)}
    save_file(weights, tmp_path / "2_Dense" / "model.safetensors")
    encoder = Encoder.from_pretrained(place)
    torch.testing.assert_close(encoder.encode(INPUTS, progress=False), theirs(place))
    assert encoder.provenance.describe() == "mean, linear, tanh, normalize"
    alone = Encoder.from_pretrained(place, pooling="mean")
    assert (alone.provenance.describe(), len(alone.after_pooling)) == ("mean", 0)
    save_file(weights | {"linear.bias": torch.zeros(4)}, tmp_path / "2_Dense" / "model.safetensors")
    assert "revision" in Encoder.from_pretrained(place).provenance.difference(encoder.provenance)


PROMPTS = {"query": "storm hits: ", "document": ""}


@pytest.mark.parametrize("lower_case", [False, True])
def test_a_prompt_is_put_before_each_text_as_they_do(tmp_path: Path, lower_case: bool, target_folder: str) -> None:
    place = repo(tmp_path)
    settings = {"prompts": PROMPTS, "default_prompt_name": None}
    Path(place, "config_sentence_transformers.json").write_text(json.dumps(settings))
    if lower_case:
        Path(place, "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    asked = SentenceTransformer(place, device="cpu").encode(INPUTS, prompt_name="query", convert_to_tensor=True)
    plain, prompted = Encoder.from_pretrained(place), Encoder.from_pretrained(place, prompt="query")
    assert not torch.allclose(asked, theirs(place))
    torch.testing.assert_close(plain.encode(INPUTS, progress=False), theirs(place))
    torch.testing.assert_close(prompted.encode(INPUTS, progress=False), asked)
    literal = Encoder.from_pretrained(place, prompt="storm hits: ")
    assert prompted.provenance == literal.provenance
    assert plain.provenance.difference(prompted.provenance) == "prompt is None and not 'storm hits: '"
    assert (plain.prompts, prompted.prompts) == ({"query": "storm hits: "}, {})
    with pytest.raises(StitchError, match=r"has no prompt 'qurey': give one of 'query', or the text"):
        Encoder.from_pretrained(place, prompt="qurey")
    settings["default_prompt_name"] = "query"
    Path(place, "config_sentence_transformers.json").write_text(json.dumps(settings))
    default = Encoder.from_pretrained(place)
    torch.testing.assert_close(default.encode(INPUTS, progress=False), theirs(place))
    torch.testing.assert_close(theirs(place), asked)
    stitched = RelativeStitcher.from_parts(default, target_folder, pico.texts(40), progress=False)
    stitched.save_pretrained(tmp_path / "stitched")
    loaded = RelativeStitcher.from_pretrained(tmp_path / "stitched")
    torch.testing.assert_close(loaded.predict(INPUTS), stitched.classify(asked))
    assert "mean, after the prompt storm hits:" in (tmp_path / "stitched" / "README.md").read_text()
    assert "prompt='storm hits: '" in loaded.config.call


VOCABULARY = {
    word: row for row, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "storm", "hits", ":"])
}
PIECES = [(word, -1.0) for word in ("<s>", "<pad>", "</s>", "<unk>", "▁storm", "▁hits", ":", "s", "<mask>")]


@pytest.mark.parametrize("kind", ["Bert", "MPNet", "XLMRoberta"])
def test_a_prompt_is_saved_by_tokenizers_that_make_their_own_normalizer(tmp_path: Path, kind: str) -> None:
    own = getattr(transformers, f"{kind}Tokenizer")(vocab=PIECES if kind == "XLMRoberta" else VOCABULARY)
    own.model_max_length = 9
    prompted = prepend_prompt(own, "storm hits: ")
    prompted.save_pretrained(tmp_path)
    getattr(transformers, f"{kind}Config")().save_pretrained(tmp_path)
    texts, options = ["Storm", "hits storm " * 9], {"truncation": True, "padding": True}
    expected = own([f"storm hits: {text}" for text in texts], **options)
    for found in (prompted, AutoTokenizer.from_pretrained(tmp_path)):
        assert found(texts, **options) == expected
        assert found.all_special_ids == own.all_special_ids
    assert own("storm") != prompted("storm")


PLAIN = ["Transformer", "Pooling"]
DENSE = {"in_features": 16, "out_features": 4, "bias": True}


@pytest.mark.parametrize(
    ("modules", "configs", "message"),
    [
        ([*PLAIN, "LSTM"], {"_1_Pooling": MEAN}, "has the module LSTM; read are Transformer, Pooling, Dense"),
        (["custom_st.Transformer", "Pooling"], {"_1_Pooling": MEAN}, r"has the module custom_st\.Transformer"),
        (["Pooling", "Transformer"], {"_1_Pooling": MEAN}, "Transformer and Pooling have to come first"),
        (PLAIN, {"_1_Pooling": {"pooling_mode_mean_sqrt_len_tokens": True}}, "pools by mean_sqrt_len_tokens"),
        (PLAIN, {"_1_Pooling": {"pooling_mode": ["mean", "max"]}}, "pools by mean and max"),
        (
            PLAIN,
            {"_1_Pooling": MEAN, "sentence_bert_config": {"tokenizer_args": {"padding_side": "left"}}},
            "Transformer with tokenizer_args",
        ),
        (
            [*PLAIN, "Dense"],
            {"_1_Pooling": MEAN, "_2_Dense": DENSE},
            r"no 2_Dense/model\.safetensors, and nothing else",
        ),
        (
            [*PLAIN, "Dense"],
            {"_1_Pooling": MEAN, "_2_Dense": DENSE | {"module_input_name": "token_embeddings"}},
            "a Dense whose module_input_name is 'token_embeddings'",
        ),
        ([*PLAIN, "Dense"], {"_1_Pooling": MEAN, "_2_Dense": DENSE | {"use_residual": True}}, "Dense with a residual"),
    ],
)
def test_refuses_what_it_cannot_read(tmp_path: Path, modules: list[str], configs: dict[str, Any], message: str) -> None:
    place = old_repo(tmp_path, modules, **configs)
    with pytest.raises(StitchError, match=f"{message}.*: name a pooling to use the transformer alone"):
        Encoder.from_pretrained(place)
    assert Encoder.from_pretrained(place, pooling="mean").pooling == "mean"


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_a_module_outside_of_the_repo_is_refused(tmp_path: Path, kind: str) -> None:
    place = old_repo(tmp_path / "repo", [*PLAIN, "Dense"], _1_Pooling=MEAN, _2_Dense=DENSE)
    (tmp_path / "repo" / "2_Dense").rename(tmp_path / "outside")
    save_file({"weight": torch.randn(4, 16), "bias": torch.randn(4)}, tmp_path / "outside" / "model.safetensors")
    modules = json.loads((tmp_path / "repo" / "modules.json").read_text())
    modules[2]["path"] = "../outside" if kind == "relative" else str(tmp_path / "outside")
    (tmp_path / "repo" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(StitchError, match=r"names is '.*outside/config\.json': expected a path inside the repo"):
        Encoder.from_pretrained(place)


@pytest.mark.parametrize("activation", ["os.system", "torch.load", "torch.nn.modules.activation.MultiheadAttention"])
def test_an_activation_is_looked_up_and_never_imported(tmp_path: Path, activation: str) -> None:
    place = old_repo(tmp_path, [*PLAIN, "Dense"], _1_Pooling=MEAN, _2_Dense=DENSE | {"activation_function": activation})
    save_file(
        {"linear.weight": torch.randn(4, 16), "linear.bias": torch.randn(4)}, tmp_path / "2_Dense" / "model.safetensors"
    )
    with pytest.raises(StitchError, match="a Dense with the activation"):
        Encoder.from_pretrained(place)


def stitched_of(place: str, target: tuple[Encoder, Head], **settings: Any) -> RelativeStitcher:
    encoder, head = target
    return RelativeStitcher.from_parts(place, encoder, pico.texts(60), head=head, progress=False, **settings)


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A repo with a Dense and a Normalize module."""
    return repo(tmp_path, after=(projecting(), Normalize()))


@pytest.fixture
def plain_target(source_folder: str) -> tuple[Encoder, Head]:
    torch.manual_seed(5)
    return Encoder.from_pretrained(source_folder), Head.from_module(nn.Linear(16, 3))


def test_a_stitched_model_keeps_them_through_save_and_load(
    place: str, plain_target: tuple[Encoder, Head], tmp_path: Path
) -> None:
    model = stitched_of(place, plain_target)
    batch = model.processor(INPUTS, padding=True, truncation=True, return_tensors="pt")
    expected = pico.logits_by_hand(model, plain_target[1].module, theirs(place))
    torch.testing.assert_close(model(**batch).logits, expected)
    model.save_pretrained(tmp_path / "saved")
    loaded = RelativeStitcher.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert "after_pooling.0.weight" in load_file(tmp_path / "saved" / "model.safetensors")
    assert "Encoder.from_pretrained('repo')" in loaded.config.call
    torch.testing.assert_close(loaded.fuse()(**batch).logits, expected)
    with pytest.raises(StitchError, match="are made by mean, linear, tanh, normalize, which no plain classifier does"):
        plain_classifier(model)


def test_such_a_repo_is_a_target_too(place: str, source: Encoder, tmp_path: Path) -> None:
    head = nn.Linear(12, 3)
    model = RelativeStitcher.from_parts(source, place, pico.texts(60), head=head, progress=False)
    order = input_ids(pico.texts(60)).argsort()
    torch.testing.assert_close(model.anchors.target, theirs(place, pico.texts(60))[order])


def test_an_adapter_keeps_them(place: str, plain_target: tuple[Encoder, Head], hub: HubServer) -> None:
    files = [file for file in Path(place).rglob("*") if file.is_file()]
    hub.put_files("alice/sentences", {str(file.relative_to(place)): file.read_bytes() for file in files})
    model = stitched_of("alice/sentences", plain_target)
    model.push_to_hub("alice/stitched", share="adapter")
    loaded = RelativeStitcher.from_pretrained("alice/stitched")
    batch = model.processor(INPUTS, padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's own
def test_an_onnx_file_keeps_them(place: str, plain_target: tuple[Encoder, Head], tmp_path: Path) -> None:
    """It is compared with the model's own logits before it is there."""
    assert to_onnx(stitched_of(place, plain_target), tmp_path / "model.onnx").is_file()


def test_a_model_of_the_first_format_loads_as_it_was(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content.pop("after_pooling") == []
    assert content.pop("answer_checksums")  # which the first formats did not have
    (tmp_path / "config.json").write_text(json.dumps(content | {"format_version": 1}))
    batch = stitched.processor(INPUTS, padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(RelativeStitcher.from_pretrained(tmp_path)(**batch).logits, stitched(**batch).logits)


@pytest.mark.parametrize(
    "layers",
    [[{"layer": "linear"}], [{"layer": "os.system"}], [{"layer": "layer_norm", "features": 3, "eps": 1, "bias": True}]],
)
def test_a_config_whose_layers_are_none_is_refused(
    stitched: RelativeStitcher, tmp_path: Path, layers: list[dict[str, Any]]
) -> None:
    stitched.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"after_pooling": layers}))
    with pytest.raises(StitchError, match="the config's layers are"):
        read_config(tmp_path)


def test_anchors_of_the_transformer_alone_are_not_those_of_the_whole(place: str, plain_target: Any) -> None:
    encoder, head = plain_target
    alone = AnchorSet.encode(Encoder.from_pretrained(place, pooling="mean"), pico.texts(40), progress=False)
    theirs = AnchorSet.encode(encoder, pico.texts(40), progress=False)
    with pytest.raises(StitchError, match="pooling is 'mean' and not 'mean, linear, tanh, normalize'"):
        RelativeStitcher.from_anchor_sets(place, alone, theirs, head)
