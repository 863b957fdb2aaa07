"""Sources that are no transformers model: callables, ONNX files, and latents that were computed elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pandas as pd
import pico
import pyarrow as pa
import pytest
import torch
from onnx import TensorProto, helper, save
from pyarrow import parquet
from safetensors.torch import save_file
from torch import nn
from trained import trained_head
from transformers import AutoTokenizer, ViTImageProcessor

from hf_relstitch import AnchorSet, CallableEncoder, Encoder, Head, RelativeStitcher, StitchError, onnx_encoder
from hf_relstitch.bulk import translate_files
from hf_relstitch.data.ids import input_ids

TEXTS, NEW = pico.texts(60), pico.texts(9, seed=8)
KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "torch": lambda latents: latents,
    "numpy": lambda latents: latents.numpy(),
    "float64": lambda latents: latents.double().numpy(),
    "lists": lambda latents: latents.tolist(),
}


def embedding(source: Encoder, kind: str = "numpy") -> CallableEncoder:
    """The source encoder behind a callable."""
    function = lambda texts: KINDS[kind](source.encode(texts, progress=False))  # noqa: E731
    return CallableEncoder(function, model_id="vendor/embedder", revision="3")


@pytest.mark.parametrize("kind", KINDS)
def test_a_callable_encodes_as_what_is_behind_it(source: Encoder, kind: str) -> None:
    found = embedding(source, kind).encode(TEXTS, batch_size=7, progress=False)
    torch.testing.assert_close(found, source.encode(TEXTS, progress=False), rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32


def test_a_callable_stitches_as_what_is_behind_it(
    source: Encoder, target: tuple[Encoder, Head], target_folder: str, tmp_path: Path
) -> None:
    encoder = embedding(source)
    model = RelativeStitcher.from_parts(encoder, target_folder, TEXTS, progress=False)
    expected = RelativeStitcher.from_parts(source, target_folder, TEXTS, progress=False)
    torch.testing.assert_close(model.predict(NEW, batch_size=4), expected.predict(NEW), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.classify(encoder.encode(NEW, progress=False)), model.predict(NEW))
    assert model.check(NEW)["coverage"] == expected.check(NEW)["coverage"]
    assert (model.config.source["model_id"], model.config.source["revision"]) == ("vendor/embedder", "3")
    with pytest.raises(StitchError, match=r"is a callable of raw inputs and got input_ids: use model\.predict"):
        model(input_ids=torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(
        StitchError,
        match="the source, vendor/embedder, is a callable or was not given",
    ):
        model.save_pretrained(tmp_path)


def test_a_callable_is_a_target_too(source: Encoder, target: tuple[Encoder, Head]) -> None:
    model = RelativeStitcher.from_parts(source, embedding(source), TEXTS, head=nn.Linear(16, 3), progress=False)
    torch.testing.assert_close(model.anchors.target, model.anchors.source, rtol=1e-4, atol=1e-5)


class FirstThree(nn.Module):
    """A head without parameters."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3]


def test_a_callable_and_a_head_without_parameters_classify(source: Encoder) -> None:
    encoder = embedding(source)
    model = RelativeStitcher.from_parts(encoder, embedding(source), TEXTS, head=FirstThree(), progress=False)
    latents = encoder.encode(NEW, progress=False)
    expected = model.translate(latents)[:, :3] / model.config.logit_temperature
    torch.testing.assert_close(model.predict(NEW), expected, rtol=1e-4, atol=1e-5)


def test_latents_of_a_callable_come_to_where_the_model_is(source: Encoder) -> None:
    model = RelativeStitcher.from_parts(
        embedding(source), embedding(source), TEXTS, head=nn.Linear(16, 3), alpha=0.5, progress=False
    )
    assert model.relative(NEW).values.shape == (9, 60)
    assert model.to("meta")._latents(NEW, batch_size=4).is_meta


def test_a_callable_has_no_processor_and_says_what_to_use(source: Encoder) -> None:
    model = RelativeStitcher.from_parts(
        embedding(source), embedding(source), TEXTS, head=nn.Linear(16, 3), progress=False
    )
    with pytest.raises(StitchError, match=r"the source, vendor/embedder, is a callable.*: give raw inputs to model"):
        _ = model.processor


def test_predict_is_what_the_model_gives(stitched: RelativeStitcher) -> None:
    batch = stitched.processor(NEW, padding=True, return_tensors="pt")
    torch.testing.assert_close(stitched.predict(NEW), stitched(**batch).logits, rtol=1e-4, atol=1e-5)


def test_lists_of_tensors_are_stacked(source: Encoder) -> None:
    latents = source.encode(TEXTS, progress=False).bfloat16()
    encoder = CallableEncoder(lambda texts: list(latents[: len(texts)]), model_id="me")
    assert encoder.encode(TEXTS, batch_size=60, progress=False).equal(latents.float())
    assert AnchorSet.from_latents(list(latents), TEXTS, model="me").latents.equal(latents.float())


def test_a_column_of_vectors_is_a_matrix(source: Encoder) -> None:
    latents = source.encode(TEXTS, progress=False)
    anchors = AnchorSet.from_latents(pd.Series(list(latents.numpy())), TEXTS, model="me")
    assert anchors.latents.equal(latents)
    assert "tensor" not in repr(anchors)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda texts: np.zeros((1, 4)), r"gave torch.float32 of shape \(1, 4\) for 2 inputs: expected one vector for"),
        (lambda texts: np.zeros(2), r"gave torch.float32 of shape \(2,\)"),
        (lambda texts: torch.zeros(2, 3, dtype=torch.int64), "gave torch.int64"),
        (lambda texts: ["a", "b"], "gave a list that is no matrix of numbers"),
        (lambda texts: [[1.0], [1.0, 2.0]], "gave a list that is no matrix of numbers"),
        (lambda texts: [torch.ones(1), torch.ones(2)], "gave a list that is no matrix of numbers"),
    ],
)
def test_refuses_what_a_callable_may_not_give(function: Callable[[Any], Any], message: str) -> None:
    encoder = CallableEncoder(function, model_id="odd")
    with pytest.raises(StitchError, match=message):
        encoder.encode(["a", "b"], progress=False)
    with pytest.raises(StitchError, match="modality is 'video'"):
        CallableEncoder(function, model_id="odd", modality="video")


def stored(latents: torch.Tensor, kind: str, folder: Path) -> Any:
    """Latents as people keep them."""
    if kind in KINDS:
        return KINDS[kind](latents)
    file = folder / f"latents.{kind}"
    if kind == "npy":
        np.save(file, latents.numpy())
    elif kind == "safetensors":
        save_file({"latents": latents, "other": latents[:, :1].contiguous()}, file)
    else:
        column = pa.FixedSizeListArray.from_arrays(latents.flatten().numpy(), latents.shape[1])
        parquet.write_table(pa.table({"text": TEXTS, "latents": column}), file)
    return file


@pytest.mark.parametrize("kind", ["torch", "numpy", "lists", "npy", "safetensors", "parquet"])
def test_stored_latents_are_anchors(source: Encoder, kind: str, tmp_path: Path) -> None:
    expected = AnchorSet.encode(source, TEXTS, progress=False)
    given = stored(source.encode(TEXTS, progress=False), kind, tmp_path)
    found = AnchorSet.from_latents(given, TEXTS, model=source.provenance)
    assert found.latents.equal(expected.latents)
    assert found.ids.equal(expected.ids)
    assert (found.provenance, found.inputs) == (expected.provenance, expected.inputs)


def test_stored_latents_stitch_without_a_source(source: Encoder, target: tuple[Encoder, Head], tmp_path: Path) -> None:
    """From latents of documents that go by a name, to logits of latents."""
    names = [f"document {row}" for row in range(60)]
    latents = source.encode(TEXTS, progress=False)
    ours = AnchorSet.from_latents(latents, names, model="vendor/embedder")
    theirs = AnchorSet.from_latents(target[0].encode(TEXTS, progress=False), names, model=target[1].provenance)
    model = RelativeStitcher.from_anchor_sets(None, ours, theirs, target[1])
    whole = RelativeStitcher.from_parts(source, target[0], TEXTS, head=target[1], progress=False)
    new = source.encode(NEW, progress=False)
    torch.testing.assert_close(model.translate(new), whole.translate(new), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.classify(new), pico.logits_by_hand(model, model.head, new))
    with pytest.raises(StitchError, match=r"from stored latents of vendor/embedder, without its encoder: give latents"):
        model.predict(NEW)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "new.npy", new.numpy())
    translate_files(model, tmp_path / "in", tmp_path / "out")
    translated = torch.from_numpy(np.load(tmp_path / "out" / "new.npy"))
    torch.testing.assert_close(translated, model.translate(new))


def test_repeated_inputs_and_latents_are_left_out(source: Encoder) -> None:
    latents = source.encode(TEXTS, progress=False)
    doubled = torch.cat([latents[:3], latents, latents[5:6]])
    found = AnchorSet.from_latents(doubled, [*TEXTS[:3], *TEXTS, "another name"], model="me")
    assert found.ids.equal(input_ids(TEXTS))
    assert found.latents.equal(latents)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "latents.txt",
            r"latents\.txt is no file of latents: expected one that ends in \.npy, \.safetensors, \.parquet",
        ),
        ("latents.npy", r"latents\.npy cannot be read as latents"),
        ("latents.safetensors", r"latents\.safetensors has no 'vectors': say column=, one of latents, other"),
        ("latents.parquet", r"latents\.parquet has no 'vectors': say column=, one of text, latents"),
    ],
)
def test_refuses_files_that_are_no_latents(name: str, message: str, tmp_path: Path) -> None:
    if Path(name).suffix in (".safetensors", ".parquet"):
        stored(torch.randn(60, 3), Path(name).suffix[1:], tmp_path)
    else:
        (tmp_path / name).write_text("no latents")
    with pytest.raises(StitchError, match=message):
        AnchorSet.from_latents(tmp_path / name, TEXTS, model="me", column="vectors")


def test_refuses_latents_that_are_not_row_for_row() -> None:
    with pytest.raises(StitchError, match="there are 59 latents and 60 inputs: give them row for row"):
        AnchorSet.from_latents(torch.randn(59, 3), TEXTS, model="me")
    with pytest.raises(StitchError, match=r"the latents are torch.int64 of shape \(60, 1\): expected \(n, d\) floats"):
        AnchorSet.from_latents([[row] for row in range(60)], TEXTS, model="me")


def exported(module: nn.Module, example: dict[str, torch.Tensor], outputs: list[str], file: Path) -> Path:
    """An ONNX file of a module, with any number of rows and, in texts, of tokens."""
    free = torch.export.Dim.DYNAMIC
    axes = {name: {0: free, 1: free} if one.ndim == 2 else {0: free} for name, one in example.items()}
    torch.onnx.export(
        module.eval(),
        (),
        file,
        kwargs=example,
        input_names=list(example),
        output_names=outputs,
        dynamic_shapes=axes,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return file


class Hidden(nn.Module):
    """A transformer that gives its hidden states alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


TORCHS_OWN = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


@pytest.mark.slow
@TORCHS_OWN
def test_a_folder_with_an_onnx_file_is_the_encoder_that_it_was(
    source: Encoder, source_folder: str, target_folder: str, tmp_path: Path
) -> None:
    """As sentence-transformers and optimum lay it out: onnx/model.onnx beside config and tokenizer."""
    source.processor.save_pretrained(tmp_path)
    source.model.config.save_pretrained(tmp_path)
    (tmp_path / "onnx").mkdir()
    batch = source.processor(NEW, padding=True, return_tensors="pt")
    file = exported(Hidden(source.model), dict(batch), ["last_hidden_state"], tmp_path / "onnx" / "model.onnx")
    encoder = onnx_encoder(tmp_path)
    torch.testing.assert_close(encoder.encode(TEXTS), source.encode(TEXTS), rtol=1e-4, atol=1e-5)
    model = RelativeStitcher.from_parts(encoder, target_folder, TEXTS, progress=False)
    expected = RelativeStitcher.from_parts(source, target_folder, TEXTS, progress=False)
    torch.testing.assert_close(model(**batch).logits, expected(**batch).logits, rtol=1e-3, atol=1e-4)
    with pytest.raises(StitchError, match="the source encoder is a OnnxModel, whose architecture cannot be stored"):
        model.save_pretrained(tmp_path / "saved")
    before = encoder.provenance
    file.write_bytes(file.read_bytes() + b"\x00")  # one more byte is another file
    with pytest.raises(StitchError, match=r"cannot be read as an ONNX model"):
        onnx_encoder(tmp_path)
    assert before.revision.startswith("xxh3_128:")


@pytest.mark.slow
@TORCHS_OWN
def test_digits_through_onnx(tmp_path: Path) -> None:
    """A network trained on digits, exported, in front of the head of another."""
    images, classes = assets.digits()
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    nets = [trained_net(pixels[:900], torch.tensor(classes[:900]), seed=seed) for seed in (0, 1)]
    file = exported(nets[0][0], {"pixel_values": pixels[:2]}, ["features"], tmp_path / "digits.onnx")
    source = onnx_encoder(file, processor=processor)
    torch.testing.assert_close(source.encode(images[:50]), nets[0][0](pixels[:50]), rtol=1e-4, atol=1e-4)
    assert (source.provenance.model_id, source.pooling) == ("digits", "none")
    target = Encoder(nets[1][0], processor, model_id="net 1")
    model = RelativeStitcher.from_parts(source, target, images[900:1200], head=nets[1][1], progress=False)
    truth = torch.tensor(classes[1200:])
    stitched = float((model.predict(images[1200:]).argmax(1) == truth).double().mean())
    own = float((nets[1][1](nets[1][0](pixels[1200:])).argmax(1) == truth).double().mean())
    print(f"digits through ONNX: own {own:.3f}, stitched {stitched:.3f}")
    assert stitched > 0.95 * own


def trained_net(pixels: torch.Tensor, classes: torch.Tensor, *, seed: int) -> tuple[nn.Module, nn.Linear]:
    torch.manual_seed(seed)
    body, head = Flat(), nn.Linear(48, 10)
    optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(body(pixels)), classes).backward()
        optimiser.step()
    return body.eval().requires_grad_(False), head.requires_grad_(False)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 * 8 * 8, 96), nn.ReLU(), nn.Linear(96, 48), nn.Tanh())

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layers(pixel_values.flatten(1))


@pytest.mark.slow
def test_para3_through_onnx_in_front_of_a_head_of_minilms() -> None:
    texts, classes = assets.wordnet_glosses()
    rows = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()[:1900]
    texts, classes = [texts[row] for row in rows], [classes[row] for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(assets.minilm())
    source = onnx_encoder(assets.para3(), processor=tokenizer, output="onnx::Shape_422")
    assert source.provenance.model_id == "paraphrase-MiniLM-L3-v2"
    pooled = onnx_encoder(assets.para3(), processor=tokenizer, output="461")  # the file's own mean pooling
    torch.testing.assert_close(source.encode(texts[:40]), pooled.encode(texts[:40]), rtol=1e-4, atol=1e-5)
    assert (
        source.provenance.difference(pooled.provenance) == "pooling is 'mean of onnx::Shape_422' and not 'none of 461'"
    )
    target = Encoder.from_pretrained(str(assets.minilm()))
    latents = target.encode(texts, progress=False)
    head = trained_head(latents[:1500], classes[:1500], C=10)
    model = RelativeStitcher.from_parts(source, target, texts[:500], head=head, progress=False)
    truth = torch.tensor(classes[1500:])
    own, stitched = (
        float((one.argmax(1) == truth).double().mean()) for one in (head(latents[1500:]), model.predict(texts[1500:]))
    )
    print(f"para3 → minilm: own {own:.3f}, stitched {stitched:.3f}, agreement {model.report['agreement']:.3f}")
    assert stitched > 0.7 * own


def constant_onnx(file: Path, inputs: list[str], outputs: list[str]) -> Path:
    """A file whose outputs are a sum of nothing, to be refused or named."""
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in inputs]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "t"]) for name in outputs]
    nodes = [helper.make_node("Cast", [inputs[0]], [name], to=TensorProto.FLOAT) for name in outputs]
    graph = helper.make_graph(nodes, "casts", values, given)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    return file


@pytest.mark.parametrize(
    ("inputs", "outputs", "options", "message"),
    [
        (["input_ids"], ["a", "b"], {}, "does not say which output is the latent: name one by output=, of 'a', 'b'"),
        (["input_ids"], ["a", "b"], {"output": "c"}, "has no output 'c' of floats: name one by output="),
        (["x"], ["a"], {"processor": None}, "takes none of input_ids, pixel_values.*: give the processor"),
        (["input_ids"], ["a"], {"processor": None}, "holds no processor that can be loaded: give processor="),
        (["input_ids", "bbox"], ["a"], {}, "the ONNX file takes bbox, and its processor makes input_ids"),
    ],
)
def test_says_what_an_onnx_file_wants(
    inputs: list[str], outputs: list[str], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = constant_onnx(tmp_path / "casts.onnx", inputs, outputs)
    with pytest.raises(StitchError, match=message):
        onnx_encoder(file, **{"processor": pico.tokenizer()} | options).encode(["storm"], progress=False)


def test_says_where_an_onnx_file_should_be(source_folder: str, tmp_path: Path) -> None:
    with pytest.raises(StitchError, match=r"tiny-bert has no onnx/model\.onnx or model\.onnx: give the path"):
        onnx_encoder(source_folder)
    (tmp_path / "broken.onnx").write_text("no model")
    with pytest.raises(StitchError, match=r"broken\.onnx cannot be read as an ONNX model"):
        onnx_encoder(tmp_path / "broken.onnx")


def test_a_call_that_fails_is_made_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr("hf_relstitch.encoders.callable_encoder.sleep", waits.append)
    calls: list[int] = []

    def busy(texts: list[str]) -> torch.Tensor:
        calls.append(len(texts))
        if len(calls) < 4:
            raise ConnectionError("429")
        return torch.ones(len(texts), 3)

    encoder = CallableEncoder(busy, model_id="vendor/embedder", retries=3)
    assert encoder.encode(["a", "b"], progress=False).shape == (2, 3)
    assert (waits, calls) == ([1, 2, 4], [2, 2, 2, 2])
    calls.clear()
    with pytest.raises(StitchError, match=r"the callable fails at row 0.*429"):
        CallableEncoder(busy, model_id="vendor/embedder").encode(["a", "b"], progress=False)
