"""What a GPU gives is what the CPU gives. Not part of the default run: `pytest -n 0 -m gpu` on a machine with a GPU."""

from pathlib import Path

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, pipeline

from hf_relstitch import Encoder, Head, RelativeStitcher, TranslationSettings
from hf_relstitch.bulk import translate_files
from hf_relstitch.core.anchor_sampling import choose_anchors
from hf_relstitch.core.measures import translate_held_out
from hf_relstitch.core.selection import choose_settings
from hf_relstitch.core.translation import fit
from hf_relstitch.model.exporting import plain_classifier, to_onnx

pytestmark = pytest.mark.gpu
TEXTS = pico.texts(20, seed=9)


def logits(model: torch.nn.Module, device: str) -> Tensor:
    """Of `TEXTS`, on the CPU."""
    batch = pico.tokenizer()(TEXTS, padding=True, return_tensors="pt").to(device)
    with torch.no_grad():
        return model(**batch).logits.cpu()


@pytest.fixture
def latents() -> tuple[Tensor, Tensor]:
    """Two views of the same factors, so that there is something to choose by."""
    shared = torch.randn(300, 12)
    source, target = (shared @ torch.randn(12, width) + 0.5 * torch.randn(300, width) for width in (32, 24))
    return source, target


@pytest.mark.parametrize("prefer", ["linear", "auto"])
def test_choosing_and_fitting(latents: tuple[Tensor, Tensor], prefer: str) -> None:
    head = torch.nn.Linear(24, 5)  # which stays on the CPU
    here, there = ([side.to(device) for side in latents] for device in ("cpu", "cuda"))
    expected, choice = (choose_settings(*sides, head=head, prefer=prefer) for sides in (here, there))
    assert choice.settings.ridge == expected.settings.ridge
    assert choice.settings.alpha == expected.settings.alpha
    assert choice.settings.gamma == expected.settings.gamma
    assert choice.score == pytest.approx(expected.score, abs=1e-9)
    held_out = translate_held_out(*there, settings=expected.settings)
    assert held_out.is_cuda
    assert_close(held_out.cpu(), translate_held_out(*here, settings=expected.settings))
    made = fit(*there, settings=expected.settings)
    assert_close(made(there[0].double()).cpu(), fit(*here, settings=expected.settings)(here[0].double()))


@pytest.mark.parametrize("settings", [{"alpha": 0.0, "ridge": 0.0}, {"pruning": 0.5, "subspaces": 3}])
def test_the_papers_inversion(latents: tuple[Tensor, Tensor], settings: dict[str, float]) -> None:
    given = TranslationSettings(**settings, norm="mean")
    here, there = ([side.to(device) for side in latents] for device in ("cpu", "cuda"))
    made, expected = (fit(*sides, settings=given) for sides in (there, here))
    assert_close(made(there[0].double()).cpu(), expected(here[0].double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_translating_in_half_precision(latents: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    for norm in ("keep", "mean"):
        made = fit(*latents, settings=TranslationSettings(norm=norm)).float()
        expected = made(latents[0])
        given = latents[0].to("cuda", dtype)
        found = made.to("cuda", dtype)(given)
        assert found.dtype == dtype
        error = (found.cpu().float() - expected).norm() / expected.norm()
        assert error < {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}[dtype]


def test_encoding(source: Encoder) -> None:
    found = source.encode(TEXTS, batch_size=4, progress=False)
    assert source.model.device.type == "cuda"
    assert not found.is_cuda
    source.to_device(torch.device("cpu"))
    batch = dict(source.processor(TEXTS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        assert_close(found, source.latents(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefer", ["linear", "auto"])
def test_a_stitched_model_from_parts_to_pipeline(
    source_folder: str, target_folder: str, tmp_path: Path, prefer: str
) -> None:
    options = {"progress": False, "prefer": prefer, "inputs": TEXTS, "num_anchors": 80}
    model = RelativeStitcher.from_parts(source_folder, target_folder, pico.texts(100), **options)
    tensors = [*model.parameters(), *model.buffers()]
    assert all(one.is_cuda for one in tensors)
    model.save_pretrained(tmp_path)
    loaded = RelativeStitcher.from_pretrained(tmp_path)
    expected = logits(loaded, "cpu")
    assert_close(logits(model, "cuda"), expected, rtol=1e-4, atol=1e-4)
    assert_close(model.predict(TEXTS).cpu(), expected, rtol=1e-4, atol=1e-4)
    assert model.check(TEXTS)["coverage"] == loaded.check(TEXTS)["coverage"]
    if prefer == "linear":
        assert_close(model.relative(TEXTS).values, loaded.relative(TEXTS).values, rtol=1e-3, atol=1e-4)
    answers = [each["label"] for each in pipeline("text-classification", str(tmp_path), device=0)(TEXTS)]
    assert answers == [model.config.id2label[int(row)] for row in expected.argmax(1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loading_onto_the_gpu(stitched: RelativeStitcher, tmp_path: Path, dtype: torch.dtype) -> None:
    expected = logits(stitched, "cuda")
    stitched.save_pretrained(tmp_path)
    for place in ("cuda", "auto"):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path, device_map=place, dtype=dtype)
        assert model.translation.weight.dtype == torch.float32
        found = logits(model, "cuda").float()
        assert (found - expected).norm() / expected.norm() < (1e-5 if dtype == torch.float32 else 0.05)


def test_offloaded_weights(stitched: RelativeStitcher, tmp_path: Path) -> None:
    expected = logits(stitched, "cuda")
    stitched.save_pretrained(tmp_path)
    places = {"encoder": "cpu", "after_pooling": 0, "anchors": 0, "translation": 0, "head": 0}
    model = RelativeStitcher.from_pretrained(tmp_path, device_map=places)
    assert_close(logits(model, "cuda"), expected, rtol=1e-4, atol=1e-4)
    assert_close(model.predict(TEXTS).cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("norm", ["keep", "mean"])
def test_compiled_fused_and_exported(unchecked: None, source_folder: str, target_folder: str, norm: str) -> None:
    source = Encoder.from_pretrained(source_folder, pooling="pooler")
    model = RelativeStitcher.from_parts(
        source, target_folder, pico.texts(60), progress=False, norm=norm, prefer="linear"
    )
    expected = logits(model, "cuda")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    assert_close(logits(compiled, "cuda"), expected, rtol=1e-4, atol=1e-4)
    counter = CompileCounter()
    torch._dynamo.reset()
    counted = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for count in (2, 3, 5):
        with torch.no_grad():
            counted(**pico.tokenizer()(pico.texts(count), padding=True, return_tensors="pt").to("cuda"))
    assert counter.frame_count == 1
    if norm == "keep":
        assert_close(logits(plain_classifier(model), "cuda"), expected, rtol=1e-4, atol=1e-4)
        assert_close(logits(model.fuse(), "cuda"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's own
def test_an_onnx_file(unchecked: None, stitched: RelativeStitcher, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(to_onnx(stitched, tmp_path / "model.onnx"))
    batch = dict(pico.tokenizer()(TEXTS, padding=True, return_tensors="np"))
    (found,) = session.run(None, batch)
    assert_close(torch.from_numpy(found), logits(stitched, "cuda"), rtol=1e-4, atol=1e-4)


def test_stored_latents(stitched: RelativeStitcher, tmp_path: Path) -> None:
    rows = torch.randn(1000, stitched.config.d_source)
    save_file({"latents": rows}, tmp_path / "rows.safetensors")
    translate_files(stitched, str(tmp_path / "rows.safetensors"), str(tmp_path / "out"), progress=False)
    found = load_file(tmp_path / "out" / "rows.safetensors")["latents"]
    assert_close(found, stitched.to("cpu").translate(rows), rtol=1e-4, atol=1e-4)


def test_anchors_are_chosen_alike(latents: tuple[Tensor, Tensor]) -> None:
    here = latents[0].double()
    assert choose_anchors(here.cuda(), 40).tolist() == choose_anchors(here, 40).tolist()


def test_a_head_taken_from_a_model_on_the_gpu(source: Encoder, target: tuple[Encoder, Head]) -> None:
    encoder, head = target
    on_gpu = Head.from_module(head.module.cuda(), labels=list(head.id2label.values()))
    model = RelativeStitcher.from_parts(source, encoder, pico.texts(60), head=on_gpu, progress=False)
    assert logits(model, "cuda").isfinite().all()
