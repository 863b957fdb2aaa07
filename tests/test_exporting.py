"""Stitched models fused, compiled, and in other runtimes: the same logits everywhere."""

from pathlib import Path

import numpy as np
import pico
import pytest
import test_padding
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from hf_relstitch import Encoder, RelativeStitcher, StitchError
from hf_relstitch.core.translation import KernelTranslation, Translation
from hf_relstitch.model.exporting import plain_classifier, to_onnx
from hf_relstitch.model.modeling_relative_stitcher import fuse

TEXTS = pico.texts(5, seed=9)


def logits(model: nn.Module, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return model(**pico.tokenizer()(texts, padding=True, return_tensors="pt")).logits


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)),
    size=st.floats(1e-3, 1e3),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_fused_is_the_head_after_the_translation(seed, widths, size, bias, dtype):
    torch.manual_seed(seed)
    d_source, d_target, classes = widths
    translation = Translation(d_source, d_target, norm="keep")
    translation.weight, translation.bias = size * torch.randn(d_source, d_target), size * torch.randn(d_target)
    head = nn.Linear(d_target, classes, bias=bias).requires_grad_(False).to(dtype)
    translation, x = translation.to(dtype), torch.randn(6, d_source, dtype=dtype)
    fused = fuse(translation, head)
    assert fused.weight.shape == (classes, d_source)
    sizes = x.abs() @ translation.weight.abs() + translation.bias.abs()
    allowed = 20 * torch.finfo(dtype).eps * (sizes @ head.weight.abs().T + 1)
    assert ((fused(x) - head(translation(x))).abs() <= allowed).all()


def test_a_fused_model_gives_the_same_logits_and_saves_as_ever(
    source: Encoder, target_folder: str, tmp_path: Path
) -> None:
    stitched = RelativeStitcher.from_parts(source, target_folder, pico.texts(100), prefer="linear", progress=False)
    assert stitched.readout is not None
    before, names = logits(stitched, TEXTS), set(stitched.state_dict())
    assert stitched.fuse() is stitched
    assert_close(logits(stitched, TEXTS), before, rtol=1e-4, atol=1e-5)
    assert set(stitched.state_dict()) == names
    stitched.save_pretrained(tmp_path / "saved")
    assert_close(logits(RelativeStitcher.from_pretrained(tmp_path / "saved"), TEXTS), before)
    stitched.fused.bias += 1
    assert (logits(stitched, TEXTS) - before).abs().max() > 0.1, "the fused layer is not in use"


@pytest.mark.parametrize(
    ("given", "message"), [({"norm": "mean", "prefer": "linear"}, "norm='mean'"), ({"gamma": 1.0}, "has a kernel")]
)
def test_what_is_not_affine_does_not_fuse(given, message, source: Encoder, target_folder: str) -> None:
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), progress=False, **given)
    with pytest.raises(StitchError, match=message):
        model.fuse()


@pytest.mark.parametrize(("kind", "pooling"), [("Bert", "pooler"), ("DistilBert", "cls"), ("Electra", "cls")])
def test_a_plain_classifier_gives_the_stitched_logits(kind, pooling, target_folder: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForSequenceClassification

    pico.saved(kind, tmp_path / "source", seed=3)
    if pooling == "pooler":
        torch.manual_seed(5)
        model = AutoModel.from_pretrained(tmp_path / "source")
        encoder = Encoder(model, pico.tokenizer(), pooling=pooling)
    else:
        encoder = Encoder.from_pretrained(str(tmp_path / "source"), pooling=pooling)
    model = RelativeStitcher.from_parts(encoder, target_folder, pico.texts(80), prefer="linear", progress=False)
    plain_classifier(model).save_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert type(plain).__name__ == f"{kind}ForSequenceClassification"
    assert plain.config.id2label == model.config.id2label
    assert_close(logits(plain, TEXTS), logits(model, TEXTS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "pooling", "message"),
    [
        ("Bert", "mean", "does not give the stitched model's logits.* another way than 'mean'"),
        ("Roberta", "cls", "does not give the stitched model's logits"),
        ("GPT2", "last", "the last layer of GPT2ForSequenceClassification has no bias"),
    ],
)
def test_a_plain_classifier_that_would_be_another_is_refused(
    kind, pooling, message, target_folder: str, tmp_path: Path
) -> None:
    encoder = Encoder.from_pretrained(pico.saved(kind, tmp_path / "source", seed=3), pooling=pooling)
    model = RelativeStitcher.from_parts(encoder, target_folder, pico.texts(80), prefer="linear", progress=False)
    with pytest.raises(StitchError, match=message):
        plain_classifier(model)


@pytest.mark.parametrize(
    "export", [plain_classifier, lambda model: to_onnx(model, "model.onnx")], ids=["plain", "onnx"]
)
def test_a_source_that_sees_padding_is_not_exported(export, target_folder: str, tmp_path: Path) -> None:
    """ConvBERT's convolutions reach into padding, which a file without this package would let them do."""
    source = test_padding.saved("convbert", tmp_path / "source")
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), prefer="linear", progress=False)
    assert model.config.batching == "equal length"
    with pytest.raises(StitchError, match="only inputs of one length come together"):
        export(model)


HALVES = [torch.bfloat16, torch.float16]


def half_model(dtype: torch.dtype, target_folder: str, folder: Path) -> RelativeStitcher:
    """A stitched model whose source is in half precision."""
    from transformers import AutoModel

    pico.saved("Bert", folder, seed=3)
    torch.manual_seed(5)
    encoder = Encoder(AutoModel.from_pretrained(folder, dtype=dtype), pico.tokenizer(), pooling="pooler")
    return RelativeStitcher.from_parts(encoder, target_folder, pico.texts(80), progress=False)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_plain_classifier_of_half_precision(dtype: torch.dtype, target_folder: str, tmp_path: Path) -> None:
    model = half_model(dtype, target_folder, tmp_path)
    plain = plain_classifier(model)
    assert {one.dtype for one in plain.parameters()} == {dtype} == {one.dtype for one in model.encoder.parameters()}
    own = logits(model, TEXTS)
    assert_close(logits(plain, TEXTS), own, rtol=0, atol=8 * torch.finfo(dtype).eps * float(own.abs().max()))


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_does_not_make_another_pooling_pass(dtype, target_folder: str, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(pico.saved("Bert", tmp_path, seed=3), pooling="mean", dtype=dtype)
    model = RelativeStitcher.from_parts(encoder, target_folder, pico.texts(80), prefer="linear", progress=False)
    with pytest.raises(StitchError, match="another way than 'mean'"):
        plain_classifier(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's own
@pytest.mark.parametrize("dtype", HALVES)
def test_an_onnx_file_of_half_precision_is_in_float32(unchecked, dtype, target_folder: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = half_model(dtype, target_folder, tmp_path / "source")
    session = onnxruntime.InferenceSession(to_onnx(model, tmp_path / "model.onnx"))
    batch = pico.tokenizer()(TEXTS, padding=True, return_tensors="np")
    (found,) = session.run(None, {name: np.asarray(values) for name, values in batch.items()})
    assert found.dtype == np.float32
    assert next(model.encoder.parameters()).dtype == dtype
    own = logits(model, TEXTS).float()
    assert_close(torch.from_numpy(found), own, rtol=0, atol=8 * torch.finfo(dtype).eps * float(own.abs().max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's own
def test_what_onnxruntime_cannot_run_is_refused_and_leaves_no_file(
    unchecked, source: Encoder, target_folder: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    from torch.onnx import ops

    class Unheard(nn.Module):
        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return ops.symbolic("ours::Unheard", (latents,), dtype=latents.dtype, shape=(latents.shape[0], 3))

    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), progress=False)
    model.head = Unheard()
    with pytest.raises(StitchError, match=r"onnxruntime does not run the ONNX file .*Unheard"):
        to_onnx(model, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["keep", "mean", "kernel", "fused"])
def test_compiles_to_one_graph_for_all_batch_sizes(unchecked, how, source: Encoder, target_folder: str) -> None:
    given = {"mean": {"norm": "mean", "prefer": "linear"}, "kernel": {"gamma": 1.0}}.get(how, {"prefer": "linear"})
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), progress=False, **given)
    assert isinstance(model.translation, KernelTranslation) == (how == "kernel")
    if how == "fused":
        model.fuse()
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for count in (2, 3, 5):
        texts = pico.texts(count, seed=count)
        assert_close(logits(compiled, texts), logits(model, texts))
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's own
@pytest.mark.parametrize("settings", [{}, {"norm": "mean"}, {"gamma": 1.0}], ids=["auto", "mean", "kernel"])
def test_an_onnx_file_gives_the_stitched_logits(
    unchecked, settings, source: Encoder, target_folder: str, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), progress=False, **settings)
    file = to_onnx(model, tmp_path / "model.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(file)
    for count in (1, 4):
        batch = pico.tokenizer()(pico.texts(count, seed=count), padding=True, return_tensors="np")
        (found,) = session.run(None, {name: np.asarray(values) for name, values in batch.items()})
        assert_close(torch.from_numpy(found), logits(model, pico.texts(count, seed=count)), rtol=1e-4, atol=1e-4)


def test_exports_through_torch(unchecked, stitched: RelativeStitcher) -> None:
    batch = dict(pico.tokenizer()(pico.texts(3), padding=True, return_tensors="pt"))
    axes = {name: {0: torch.export.Dim("n"), 1: torch.export.Dim("t", max=32)} for name in batch}
    exported = torch.export.export(stitched, (), batch, dynamic_shapes=axes).module()
    other = dict(pico.tokenizer()(TEXTS, padding=True, return_tensors="pt"))
    assert_close(exported(**other).logits, logits(stitched, TEXTS))
