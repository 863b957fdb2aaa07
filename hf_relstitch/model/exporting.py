"""A stitched model for runtimes without this package: a plain transformers classifier, or an ONNX file."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import TEXT_PAIR, probe_inputs
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.encoders.batches import BATCHINGS
from hf_relstitch.encoders.devices import placement
from hf_relstitch.encoders.onnx_encoder import INSTALL_ONNX
from hf_relstitch.encoders.processors import preprocess
from hf_relstitch.heads.cutting import calls
from hf_relstitch.heads.loading import TASKS
from hf_relstitch.hub.files import atomic_write
from hf_relstitch.model.fusing import fuse
from hf_relstitch.model.modeling_relative_stitcher import RelativeStitcher
from hf_relstitch.model.persistence import AUTO_CLASSES

TOLERANCE = 1e-5
ODD_PARTS = (1.0, 0.5)
"""z = c·(f(z) − f(−z)): c is 1 for f = ReLU, GELU and SiLU, and ½ for none."""


@torch.no_grad()
def plain_classifier(model: RelativeStitcher) -> PreTrainedModel:
    """Export a stitched model as a classifier of its source's own architecture, which runs without `hf_relstitch`.

    The head and the translation become its last layer. If the architecture has a linear layer and an activation before
    that layer, with room for twice the classes, logits pass through these exactly: `z = f(z) − f(−z)` for ReLU, GELU
    and SiLU. Two inputs prove that the classifier gives the model's own logits. For a model in half precision, a copy
    in float32 proves it and is then rounded. The encoder's weights are copies.

    Raises:
        StitchError: the architecture has no classifier, or none that pools like the model, or whose last layers
            are linear with a bias; the translation is not affine.
    """
    _check_padding(model, "a plain classifier")
    if model.config.after_pooling:
        made_by = Provenance.from_dict(model.config.source).describe()
        raise StitchError(
            f"the source's latents are made by {made_by}, which no plain classifier does: save "
            "the stitched model itself, or export it to ONNX"
        )
    _, dtype = placement(model.encoder)
    model = _in_float32(model)
    fused = fuse(model.translation, model.head, model.readout)
    plain = _empty_classifier(model)
    probe = preprocess(model, model.processor, probe_inputs(model.config.modality))
    latents, _ = model.encode_batch(probe)
    expected = fused(latents) / model.config.logit_temperature
    layers = _last_linears(plain, probe)
    if layers[-1].bias is None:
        raise StitchError(f"the last layer of {type(plain).__name__} has no bias, and a translation needs one")
    weight, bias = (part / model.config.logit_temperature for part in (fused.weight, fused.bias))
    ways = [(layers[-1:], 1.0), *((layers[-2:], odd) for odd in ODD_PARTS)]
    for linears, share in ways:
        if _settle(linears, weight, bias, share=share):
            difference = (plain(**probe).logits - expected).abs().max()
            if difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
                return plain.to(dtype)
    raise StitchError(
        f"{type(plain).__name__} does not give the stitched model's logits, whatever its last layers are: it pools in "
        f"another way than {model.config.pooling!r}, or has layers in between that cannot be undone; save the stitched "
        "model itself, or export it to ONNX"
    )


def _check_padding(model: RelativeStitcher, what: str) -> None:
    """Refuse a source whose batches have to be taken apart, which only the stitched model does."""
    model.config.check_one_pass(what)
    if model.config.batching != "padded":
        raise StitchError(
            f"{what} pads inputs of different lengths, and of this source {BATCHINGS[model.config.batching]}: save the "
            "stitched model itself"
        )


def _in_float32(model: RelativeStitcher) -> RelativeStitcher:
    """A copy of a model in half precision; of any other, itself."""
    half = torch.finfo(placement(model.encoder)[1]).bits < 32
    return deepcopy(model).float() if half else model


def _empty_classifier(model: RelativeStitcher) -> PreTrainedModel:
    """The classifier of the source's architecture, with the source's weights and the head's classes."""
    task = AUTO_CLASSES[model.config.task].removeprefix("AutoModel")
    loader: Any = TASKS[task]
    source = model.config.source_config
    if source is None or type(source) not in loader._model_mapping:
        kind = type(model.encoder).__name__
        raise StitchError(f"transformers has no …{task} of {kind}: save the stitched model")
    names: dict[str, Any] = {"id2label": model.config.id2label, "label2id": model.config.label2id}
    config = type(source).from_dict(source.to_dict() | names | {"problem_type": model.config.problem_type})
    plain = loader.from_config(config).eval()
    base = getattr(plain, plain.base_model_prefix)
    missing, _ = base.load_state_dict(model.encoder.state_dict(), strict=False)
    if missing:
        raise StitchError(
            f"the encoder has no {', '.join(sorted(missing))}, which {type(plain).__name__} needs: save the stitched "
            "model itself"
        )
    weights = next(model.parameters())
    return plain.to(weights.device, weights.dtype).requires_grad_(False)


def _last_linears(plain: PreTrainedModel, probe: dict[str, Tensor]) -> list[nn.Linear]:
    """The linear layers outside the encoder, in the order in which a forward pass calls them."""
    inside = f"{plain.base_model_prefix}."
    called = [plain.get_submodule(name) for name in dict.fromkeys(calls(plain, probe)) if not name.startswith(inside)]
    found = [module for module in called if isinstance(module, nn.Linear)]
    if not found:
        raise StitchError(f"{type(plain).__name__} ends in no linear layer: save the stitched model itself")
    return found


def _settle(linears: list[nn.Linear], weight: Tensor, bias: Tensor, *, share: float) -> bool:
    """Write one linear layer into one or, with its negative, into two of them; False where they have not the room."""
    classes, width = weight.shape
    if len(linears) == 1:
        if linears[0].weight.shape != weight.shape:
            return False
        linears[0].weight.copy_(weight)
        linears[0].bias.copy_(bias)
        return True
    first, last = linears if len(linears) == 2 else (None, None)
    if first is None or last is None or first.bias is None:
        return False
    if first.in_features != width or first.out_features < 2 * classes or last.in_features != first.out_features:
        return False
    for layer in linears:
        layer.weight.zero_()
        layer.bias.zero_()
    one = torch.eye(classes).to(weight)
    first.weight[: 2 * classes] = torch.cat([weight, -weight])
    first.bias[: 2 * classes] = torch.cat([bias, -bias])
    last.weight[:, : 2 * classes] = share * torch.cat([one, -one], 1)
    return True


@torch.no_grad()
def to_onnx(model: RelativeStitcher, file: str | Path) -> Path:
    """Write a stitched model as one ONNX file, from the processor's inputs to logits, for any batch size and length.

    The file appears whole or not at all, and only once onnxruntime has given the model's own logits on two inputs that
    it was not traced with. A model in half precision is written in float32, which all runtimes have.

    Raises:
        StitchError: the `onnx` extra is not installed, onnxruntime does not run the file, or it gives other logits.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch exports through it)
    except ImportError as error:
        raise StitchError(f"ONNX files need {error.name}: {INSTALL_ONNX}") from error
    _check_padding(model, "an ONNX file")
    model = _in_float32(model)
    inputs = probe_inputs(model.config.modality)
    if model.config.pairs is not None:
        inputs = [dict(zip(TEXT_PAIR, pair, strict=True)) for pair in (inputs, inputs[::-1])]
    traced = preprocess(model, model.processor, [*inputs, *inputs[:1]])
    file, free = Path(file), torch.export.Dim.DYNAMIC
    axes = {name: {0: free} if model.config.modality == "image" else {0: free, 1: free} for name in traced}
    with atomic_write(file) as written:
        torch.onnx.export(
            Logits(model).eval(),
            (),
            written,
            kwargs={"inputs": dict(traced)},
            input_names=list(traced),
            output_names=["logits"],
            dynamic_shapes={"inputs": axes},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        probe = preprocess(model, model.processor, inputs)
        try:
            session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
            (found,) = session.run(None, {name: tensor.cpu().numpy() for name, tensor in probe.items()})
        except Exception as error:  # onnxruntime's have no class in common
            raise StitchError(f"onnxruntime does not run the ONNX file that torch made: {error}") from error
        expected = model(**probe).logits.cpu()
        difference = float((torch.from_numpy(found) - expected).abs().max())
        if difference > 10 * TOLERANCE * max(1.0, float(expected.abs().max())):
            raise StitchError(f"the ONNX file gives logits that differ by {difference} from the model's own")
    return file


class Logits(nn.Module):
    """Return the logits of a stitched model alone."""

    def __init__(self, model: RelativeStitcher) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return logits `(n, num_labels)`."""
        return self.model(**inputs).logits
