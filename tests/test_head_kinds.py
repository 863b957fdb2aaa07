"""Heads that are more than one linear layer: chains, earlier cuts, prototypes, and modules that only work in memory."""

import json
import shutil
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from hub_server import HubServer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers import pipeline
from transformers.activations import ACT2FN

from hf_relstitch import AnchorSet, Encoder, Head, RelativeStitcher, StitchError, load_classifier, split_classifier
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.encoders.processors import preprocess
from hf_relstitch.heads.loading import load_head
from hf_relstitch.layers import ACTIVATIONS, activation_name, build_head, describe_head

CHAINS = {
    "tanh": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 3)),
    "norm": lambda: nn.Sequential(
        nn.LayerNorm(16, eps=1e-3),
        nn.Sequential(nn.Linear(16, 5), nn.GELU())[:1],
        nn.ReLU(),
        nn.Linear(5, 3, bias=False),
    ),
    "gelu": lambda: nn.Sequential(nn.Linear(16, 8), ACT2FN["gelu_new"], nn.LayerNorm(8), nn.Linear(8, 3)),
}


@torch.no_grad()
def logits(model: RelativeStitcher) -> torch.Tensor:
    return model(**model.processor(pico.texts(6, seed=9), padding=True, return_tensors="pt")).logits


@pytest.fixture
def stitch(source: Encoder, target: tuple[Encoder, Head]) -> Any:
    """Stitches the tiny source to a head on the tiny target's latents."""
    anchors = [AnchorSet.encode(one, pico.texts(80), progress=False) for one in (source, target[0])]
    return lambda head, **options: RelativeStitcher.from_anchor_sets(source, *anchors, head, **options)


def grown(module: nn.Module) -> nn.Module:
    """Random weights that are large enough for the head not to be nearly linear."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.7)
    return module.eval()


@pytest.mark.parametrize("kind", CHAINS)
def test_a_chain_is_what_it_was_in_the_stitched_model_and_after_save_and_load(
    kind: str, stitch: Any, source: Encoder, tmp_path: Path
) -> None:
    module = grown(CHAINS[kind]())
    model = stitch(module, labels=["a", "b", "c"])
    latents = source.encode(pico.texts(6, seed=9), batch_size=6, progress=False)
    expected = pico.logits_by_hand(model, module, latents)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = RelativeStitcher.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert json.loads((tmp_path / "config.json").read_text())["head"]["kind"] == "mlp"
    assert not any(one is other for one in module.parameters() for other in model.head.parameters())


def test_a_head_in_training_mode_is_held_as_a_copy_that_is_not(stitch: Any) -> None:
    module = nn.Sequential(grown(CHAINS["tanh"]()))
    module.train()
    held = Head(module, pico.LABELS)
    model, expected = stitch(held), stitch(module, labels=list(pico.LABELS.values()))
    assert model.report == expected.report
    assert model.config.translation == expected.config.translation
    assert model.config.logit_temperature == expected.config.logit_temperature
    assert all(one.training for one in module.modules())
    assert Head(module.eval(), pico.LABELS).module is module


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_found_by_its_values(name: str) -> None:
    found = activation_name(ACT2FN[name])
    probe = torch.linspace(-30, 30, 999)
    assert found is not None
    torch.testing.assert_close(ACT2FN[found](probe), ACT2FN[name](probe), rtol=1e-5, atol=1e-5)


def test_torch_activations_have_transformers_names_and_others_have_none() -> None:
    assert activation_name(nn.GELU("tanh")) in ("gelu_pytorch_tanh", "gelu_new")
    assert (activation_name(nn.ReLU()), activation_name(nn.ReLU6()), activation_name(nn.SiLU())) == (
        "relu",
        "relu6",
        "silu",
    )
    per_row = (nn.Softmax(-1), nn.Softmax(1), nn.Softmax(0), nn.Softmax2d(), nn.LogSoftmax(1), nn.GLU(), nn.GLU(0))
    for other in (*per_row, nn.PReLU(), nn.LeakyReLU(0.3), nn.Hardtanh(-9, 9), nn.ELU()):
        assert activation_name(other) is None


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 3)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.last(latents + self.first(latents).tanh())


def test_any_module_works_in_memory_and_says_that_it_cannot_be_saved(
    stitch: Any, source: Encoder, tmp_path: Path
) -> None:
    module = grown(Residual())
    model = stitch(module, labels=["a", "b", "c"])
    latents = source.encode(pico.texts(6, seed=9), batch_size=6, progress=False)
    expected = pico.logits_by_hand(model, module, latents)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert model.config.selection["criterion"] == "leave-one-out"
    with pytest.raises(
        StitchError, match=r"the head is a Residual, which works in memory.*what can be is an nn.Linear"
    ):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("activation", [nn.LogSoftmax(dim=1), nn.GLU()])
def test_a_head_with_an_activation_of_whole_rows_works_in_memory(activation: nn.Module, stitch: Any) -> None:
    module = grown(nn.Sequential(nn.Linear(16, 6), activation))
    model = stitch(module)
    assert model.config.head == {"kind": "module", "type": "Sequential"}
    latents = torch.randn(5, model.config.d_source)
    expected = pico.logits_by_hand(model, module, latents)
    torch.testing.assert_close(model.classify(latents), expected, rtol=1e-4, atol=1e-5)


class Shares(nn.Linear):
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return super().forward(latents).softmax(-1)


@pytest.mark.parametrize(
    "module",
    [nn.Sequential(nn.Linear(16, 3), nn.Softmax(-1)), nn.Sequential(nn.Linear(16, 3), nn.Sigmoid()), Shares(16, 3)],
)
def test_a_head_that_gives_probabilities_is_refused(module: nn.Module, stitch: Any) -> None:
    """Pipelines would make a softmax of the softmax: the same answers with scores that are nearly equal."""
    with pytest.raises(StitchError, match=r"gives probabilities, and logits are expected.*without its last layer"):
        stitch(module)
    assert stitch(Head(module, pico.LABELS, "regression")).report["agreement"] is None


@pytest.mark.parametrize("names", [{1: "a", 2: "b", 3: "c"}, {0: "a", 2: "b", 5: "c"}, {"0": "a", "1": "b", "2": "c"}])
def test_classes_that_are_not_counted_from_0_are_refused(names: dict[Any, str]) -> None:
    with pytest.raises(StitchError, match=r"id2label names the classes .* and there are 3: expected 0, 1, 2"):
        Head(nn.Linear(16, 3), names)


def test_classes_of_a_config_in_another_order_keep_their_places(
    target: tuple[Encoder, Head], target_folder: str, tmp_path: Path
) -> None:
    folder = tmp_path / "target"
    shutil.copytree(target_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"2": "closed", "0": "calm", "1": "stormy"}
    (folder / "config.json").write_text(json.dumps(config))
    _, head = load_classifier(str(folder))
    assert [*head.id2label.items()] == [*target[1].id2label.items()]
    assert Head.from_module(head, labels={"calm": "x", "stormy": "y", "closed": "z"}).id2label == {
        0: "x",
        1: "y",
        2: "z",
    }
    config["id2label"] = {"1": "calm", "2": "stormy", "3": "closed"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StitchError, match="mend id2label in the classifier's config"):
        load_classifier(str(folder))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(16, 8), nn.Linear(9, 3)), "from latents 16 wide to 3 logits"),
        (nn.Linear(12, 3), "the head takes latents 12 wide and the target anchors are 16"),
        (nn.Bilinear(16, 16, 3), r"the head, a Bilinear, makes no \(n, classes\) logits of latents \(n, 16\)"),
        (nn.Flatten(0), "the head, a Flatten, makes no"),
        (Head(nn.Linear(16, 3), {0: "a"}), "the head gives 3 logits and has 1 labels"),
    ],
)
def test_refuses_a_head_that_does_not_fit(stitch: Any, module: Any, message: str) -> None:
    with pytest.raises(StitchError, match=message):
        stitch(module)


LINEAR = {"layer": "linear", "in_features": 16, "out_features": 3, "bias": True}


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "mlp"},
        {"kind": "mlp", "layers": []},
        {"kind": "mlp", "layers": [LINEAR | {"out_features": 4}]},
        {"kind": "mlp", "layers": [LINEAR | {"in_features": 12}]},
        {"kind": "mlp", "layers": [LINEAR, {"layer": "activation", "name": "system"}]},
        {"kind": "mlp", "layers": [{"layer": "norm", "features": 16}]},
        {"kind": "mlp", "layers": "tanh"},
        {"kind": "mlp", "layers": [LINEAR | {"in_features": "16"}]},
        {"kind": "mlp", "layers": [LINEAR | {"in_features": -16}]},
        {"kind": "prototypes"},
        {"kind": "prototypes", "temperature": 0},
        {"kind": "linear"},
        {"kind": "module", "type": "Residual"},
    ],
)
def test_a_folder_whose_head_is_no_such_thing_is_refused(
    stitched: RelativeStitcher, tmp_path: Path, head: dict[str, Any]
) -> None:
    stitched.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"head": head}))
    with pytest.raises(StitchError, match="the config's head is"):
        RelativeStitcher.from_pretrained(tmp_path)


def test_a_chain_whose_weights_are_another_chains_is_refused(stitch: Any, tmp_path: Path) -> None:
    stitch(grown(CHAINS["tanh"]())).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["head"]["layers"][0]["out_features"] = config["head"]["layers"][2]["in_features"] = 8
    file.write_text(json.dumps(config))
    with pytest.raises(StitchError, match=r"config\.json is damaged or was altered: one of .*head"):
        RelativeStitcher.from_pretrained(tmp_path)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([None, *ACTIVATIONS]), st.booleans()), min_size=1, max_size=4)
)
def test_any_chain_is_data_and_a_chain_again(shape: list[tuple[int, str | None, bool]]) -> None:
    layers: list[nn.Module] = []
    width = 4
    for out, activation, norm in shape:
        layers += [nn.Linear(width, out, bias=norm)] + [ACT2FN[activation or "relu"]] * bool(activation)
        layers += [nn.LayerNorm(out)] * norm
        width = out
    chain = nn.Sequential(*layers)
    description = json.loads(json.dumps(describe_head(chain)))
    built = build_head(description, d_target=4, num_labels=width)
    for here, there in zip(built.parameters(), chain.parameters(), strict=True):
        here.data.copy_(there.data)
    latents = torch.randn(7, 4)
    torch.testing.assert_close(built(latents), chain(latents), rtol=1e-5, atol=1e-5)


CUTS = {
    ("Roberta", "classifier.dense"): "classifier.dense then tanh then classifier.out_proj, pooled",
    ("Roberta", "classifier"): "classifier.dense then tanh then classifier.out_proj, pooled",
    ("Electra", "classifier.dense"): "classifier.dense then gelu then classifier.out_proj, pooled",
    ("Bert", "bert.pooler.dense"): "bert.pooler.dense then tanh then classifier, pooled",
    ("DistilBert", "pre_classifier"): "pre_classifier then relu then classifier, pooled",
    ("Bert", "classifier"): "classifier, pooled",
}


@pytest.mark.parametrize(("architecture", "at"), CUTS)
def test_an_earlier_cut_gives_the_models_own_logits(architecture: str, at: str, tmp_path: Path) -> None:
    encoder, head = load_classifier(pico.saved(architecture, tmp_path), cut=at)
    model = pico.classifier(architecture)
    batch = preprocess(model, pico.tokenizer(), pico.texts(9, seed=5))
    with torch.no_grad():
        own = model(**batch).logits
        torch.testing.assert_close(head.module(encoder.latents(batch)), own, rtol=1e-5, atol=1e-5)
    assert encoder.provenance.describe() == f"input of {CUTS[architecture, at]}"
    assert head.provenance == encoder.provenance
    assert (head.id2label, describe_head(head.module)["kind"]) == (
        pico.LABELS,
        "linear" if at == "classifier" and architecture == "Bert" else "mlp",
    )


def test_stitched_at_an_earlier_cut(source: Encoder, target_folder: str, tmp_path: Path) -> None:
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(80), cut="classifier.dense", progress=False)
    assert "cut='classifier.dense'" in model.config.call
    assert model.config.target["cut"]["layers"][:2] == ["classifier.dense", "tanh"]
    model.save_pretrained(tmp_path)
    answers = pipeline("text-classification", model=str(tmp_path))(pico.texts(6, seed=9))
    assert [answer["label"] for answer in answers] == [pico.LABELS[i] for i in logits(model).argmax(1).tolist()]


class TokenScores(nn.Module):
    """A head on each token, of which the first is taken at the end, with an activation as a function."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.activation = activation
        self.dense, self.out = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.out(self.activation(self.dense(latents)))


def with_head(head: nn.Module) -> Any:
    model = pico.classifier("Bert")
    model.classifier = grown(head)
    return model


@pytest.mark.parametrize("name", ["relu", "relu6", "tanh", "gelu", "quick_gelu", "leaky_relu"])
def test_an_activation_that_is_a_function_is_told_from_its_like(name: str) -> None:
    function = ACT2FN[name].forward  # a bound method, and no module that a hook could see
    encoder, head = split_classifier(with_head(TokenScores(function)), pico.tokenizer(), at="classifier.dense")
    assert name in encoder.provenance.cut.layers
    latents = 30 * torch.randn(20, 16)
    dense, out = encoder.model.model.classifier.dense, encoder.model.model.classifier.out
    with torch.no_grad():
        torch.testing.assert_close(head.module(latents), out(function(dense(latents))))


@pytest.mark.parametrize(
    ("head", "at", "message"),
    [
        (Residual(), "classifier.first", r"classifier.first, classifier.last give logits that differ.*cut it later"),
        (TokenScores(torch.sin), "classifier.dense", "so that there is more between them"),
        (
            nn.Linear(16, 3),
            "classifier.dense",
            r"calls no module 'classifier.dense': cut it at one of the last, .*classifier",
        ),
        (
            nn.Linear(16, 3),
            "bert.encoder.layer.1.attention.self",
            "give logits that differ|differ from the model's own",
        ),
        (
            nn.Sequential(nn.Linear(16, 4), nn.PReLU(), nn.Linear(4, 3)),
            "classifier.0",
            r"goes on with classifier.1, a PReLU",
        ),
        (nn.Sequential(nn.Tanh(), nn.Linear(16, 3)), "classifier", "begins with an activation"),
    ],
)
def test_refuses_an_earlier_cut_that_is_not_the_whole_way(head: nn.Module, at: str, message: str) -> None:
    with pytest.raises(StitchError, match=message):
        split_classifier(with_head(head), pico.tokenizer(), at=at)


def test_refuses_a_cut_of_what_has_its_head_given(source: Encoder, target: tuple[Encoder, Head]) -> None:
    with pytest.raises(StitchError, match="head is given, and cut is 'classifier'"):
        RelativeStitcher.from_parts(source, target[0], pico.texts(40), head=target[1], cut="classifier")


def test_class_names_are_prototypes_as_in_clip(target: tuple[Encoder, Head]) -> None:
    """Cosines over a temperature; of several templates the mean of normalised latents, by hand."""
    encoder, names = target[0], ["storm", "quiet harbour"]
    head = Head.from_class_names(encoder, names, template=["a {}", "ships in a {}"], temperature=0.05)
    assert head.id2label == {0: "storm", 1: "quiet harbour"}
    each = [[f"a {name}", f"ships in a {name}"] for name in names]
    latents = [functional.normalize(encoder.encode(one, progress=False), dim=-1).mean(0) for one in each]
    x = torch.randn(5, 16)
    expected = functional.cosine_similarity(x[:, None], torch.stack(latents), dim=-1) / 0.05
    torch.testing.assert_close(apply_head(head.module, x), expected, rtol=1e-4, atol=1e-4)


def test_zero_shot_model_saves_and_loads(stitch: Any, target: tuple[Encoder, Head], tmp_path: Path) -> None:
    names = ["storm", "harbour", "bread", "old books"]
    model = stitch(Head.from_class_names(target[0], names, template="the {}"))
    assert model.config.head == {"kind": "prototypes", "temperature": 0.01}
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(RelativeStitcher.from_pretrained(tmp_path)), logits(model))
    assert pipeline("text-classification", model=str(tmp_path))("bread rises")[0]["label"] in names


def test_prototypes_of_a_few_examples_answer_with_the_class_of_each(target: tuple[Encoder, Head]) -> None:
    latents = target[0].encode(pico.texts(12), progress=False)
    head = Head.from_examples({str(row): latents[row : row + 1] for row in range(12)})
    assert apply_head(head.module, 7 * latents).argmax(1).tolist() == list(range(12))
    for made in (torch.Tensor.tolist, list):  # a list of lists, and one of tensors
        of_lists = Head.from_examples({str(row): made(latents[row : row + 1]) for row in range(12)})
        assert torch.equal(of_lists.module.weight, head.module.weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda encoder: Head.from_class_names(encoder, ["storm"], template="a photo"), "it needs {} where the name"),
        (lambda encoder: Head.from_class_names(encoder, ["storm", "calm"], temperature=0), "the temperature is 0"),
        (lambda encoder: Head.from_examples({"a": torch.zeros(2, 4), "b": torch.ones(2, 4)}), "not finite or zero"),
        (lambda encoder: Head.from_examples({"a": torch.ones(1, 4), "b": torch.ones(1, 4) / 0}), "not finite or zero"),
        (lambda encoder: Head.from_examples({"a": torch.ones(2, 4), "b": torch.zeros(0, 4)}), "with latents .* each"),
        (
            lambda encoder: Head.from_examples({"a": torch.ones(2, 4), "b": [torch.ones(4), torch.ones(5)]}),
            "the latents of class 'b' are 5 wide and those of 'a' 4: ",
        ),
        (
            lambda encoder: Head.from_examples({"a": torch.ones(2, 4), "b": torch.ones(2, 5)}),
            "class 'b' are 5 wide and",
        ),
        (
            lambda encoder: Head.from_examples({"a": [[1.0], [1.0, 2.0]], "b": [[1.0]]}),
            "class 'a' are 2 wide and .* 1:",
        ),
        (lambda encoder: Head.from_examples({"a": torch.ones(2, 4)}), "1 classes: prototypes need two or more"),
        (lambda encoder: Head.from_class_names(encoder, []), "give at least one"),
    ],
)
def test_refuses_prototypes_that_are_none(target: tuple[Encoder, Head], make: Any, message: str) -> None:
    with pytest.raises(StitchError, match=message):
        make(target[0])


def test_class_names_need_a_text_encoder(tmp_path: Path) -> None:
    encoder, _ = load_classifier(pico.saved("ViT", tmp_path))
    with pytest.raises(StitchError, match="class names are texts and the encoder takes images"):
        Head.from_class_names(encoder, ["storm"])


def test_a_chain_is_read_from_its_model_on_the_hub(hub: HubServer, target_folder: str) -> None:
    files = {file.name: file.read_bytes() for file in Path(target_folder).iterdir()}
    hub.put_files("bob/classifier", files)
    encoder, head = load_classifier("bob/classifier", cut="classifier.dense")
    read = load_head(encoder.provenance)
    latents = torch.randn(5, 16)
    with torch.no_grad():
        torch.testing.assert_close(read.module(latents), head.module(latents), rtol=0, atol=0)
    assert (read.id2label, read.provenance) == (head.id2label, head.provenance)


class Cosine(nn.Linear):
    """A linear layer by its class, and none by what it does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * functional.linear(functional.normalize(x, dim=-1), functional.normalize(self.weight, dim=-1))


def test_a_kind_of_linear_layer_is_not_taken_for_a_linear_layer(stitch: Any, target: tuple[Encoder, Head]) -> None:
    head = Cosine(16, 3, bias=False).requires_grad_(False)
    latents = target[0].encode(pico.texts(9), progress=False)
    torch.testing.assert_close(Head.from_module(head, dim=16).module(latents), head(latents))
    model = stitch(Head.from_module(head, dim=16))
    expected = pico.logits_by_hand(model, head, latents)
    torch.testing.assert_close(model.classify(latents), expected, rtol=1e-4, atol=1e-4)


def test_a_classifier_that_ends_in_a_kind_of_linear_layer_is_refused() -> None:
    model = pico.classifier("Bert")
    model.classifier = Cosine(16, 3, bias=False)
    with pytest.raises(StitchError, match=r"ends in classifier, a Cosine: only heads that end in a linear layer"):
        split_classifier(model, pico.tokenizer())


def test_class_names_are_given_once(target: tuple[Encoder, Head]) -> None:
    with pytest.raises(StitchError, match="3 class names and 2 different ones: name each class once"):
        Head.from_class_names(target[0], ["storm", "storm", "calm"])
    with pytest.raises(StitchError, match="1 different labels for a head of 2 classes: name each class once"):
        Head.from_module(nn.Linear(4, 2), labels=["a", "a"])
