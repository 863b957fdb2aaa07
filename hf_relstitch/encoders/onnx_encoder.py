"""ONNX files as encoders, run by onnxruntime (an extra)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.modality import BY_TENSOR
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.encoders.processors import load_processor
from hf_relstitch.encoders.sentence_transformers_repo import (
    SentenceModules,
    prepend_prompt,
    read_prompts,
    read_sentence_modules,
)
from hf_relstitch.hub.files import checksum
from hf_relstitch.hub.repo import Repo, locate

INSTALL_ONNX = 'pip install "hf-relstitch[onnx]"'
FILES = ("onnx/model.onnx", "model.onnx")
USUAL_OUTPUTS = ("sentence_embedding", "last_hidden_state", "token_embeddings")
DTYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float16)": np.float16}


class OnnxModel(nn.Module):
    """Wrap an ONNX file as a module from the processor's tensors to one output of the file."""

    place: Tensor

    def __init__(self, session: Any, *, output: str) -> None:
        super().__init__()
        self.session = session
        self.output = output
        self.register_buffer("place", torch.empty(0), persistent=False)  # the device that outputs are wanted on
        self.main_input_name = next((one.name for one in session.get_inputs() if one.name in BY_TENSOR), None)

    def forward(self, **batch: Tensor) -> Tensor | BaseModelOutput:
        """Return the output: vectors `(n, d)`, or hidden states `(n, t, d)` to pool.

        Raises:
            StitchError: the file takes an input that the processor does not make.
        """
        wanted = {one.name: DTYPES.get(one.type, np.float32) for one in self.session.get_inputs()}
        if missing := wanted.keys() - batch.keys():
            raise StitchError(
                f"the ONNX file takes {', '.join(sorted(missing))}, and its processor makes {', '.join(batch)}: give "
                "the processor that it was exported with"
            )
        feed = {name: batch[name].cpu().numpy().astype(dtype) for name, dtype in wanted.items()}
        made = torch.from_numpy(self.session.run([self.output], feed)[0]).to(self.place.device)
        return made if made.ndim == 2 else BaseModelOutput(last_hidden_state=made)


def onnx_encoder(
    place: str | Path,
    *,
    processor: Any = None,
    output: str | None = None,
    pooling: str = "auto",
    model_id: str | None = None,
    license: str | None = None,  # noqa: A002  (the name that it has on the Hub)
) -> Encoder:
    """Load the encoder in an ONNX file, or in a folder or a Hub repo with an ONNX file and its processor.

    `output` names the output to take, if there are several and none has a usual name. Hidden states are pooled by the
    rule of a sentence-transformers repo, or else by their mean. A model stitched with it works in memory and cannot be
    saved.

    Raises:
        StitchError: the `onnx` extra is not installed, the ONNX file or processor is missing, or
            `output` is needed.
    """
    try:
        import onnxruntime  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise StitchError(f"ONNX encoders need {error.name}: {INSTALL_ONNX}") from error
    repo = locate(Path(place).parent if Path(place).is_file() else place)
    file = Path(place) if Path(place).is_file() else _file_of(repo)
    try:
        session = onnxruntime.InferenceSession(file, providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime has a class for each fault
        raise StitchError(f"{file} cannot be read as an ONNX model: {error}") from error
    name, is_pooled = _output_of(session, output)
    model = OnnxModel(session, output=name)
    if processor is None:
        if model.main_input_name is None:
            raise StitchError(f"{repo.name} takes none of {', '.join(BY_TENSOR)}: give the processor")
        try:
            processor = load_processor(repo, modality=BY_TENSOR[model.main_input_name])
        except (OSError, ValueError) as error:
            raise StitchError(
                f"{repo.name} holds no processor that can be loaded: give processor= ({error})"
            ) from error
    modules = read_sentence_modules(repo) if pooling == "auto" and not is_pooled else None
    chosen = _chosen_pooling(pooling, is_pooled, modules)
    if modules is not None and isinstance(processor, PreTrainedTokenizerBase):
        processor = modules.prepare(processor)
    prompts, default = read_prompts(repo) if modules is not None else ({}, None)
    if default is not None:
        processor = prepend_prompt(processor, prompts[default])
    encoder = Encoder(
        model,
        processor,
        pooling=chosen,
        after_pooling=modules.after_pooling if modules else None,
        model_id=model_id or (repo.name if file.stem == "model" else file.stem),
        revision=repo.commit or checksum(file),
        license=license or repo.license(),
        prompt=prompts[default] if default is not None else None,
    )
    encoder.provenance = replace(encoder.provenance, output=output)
    return encoder


def _file_of(repo: Repo) -> Path:
    """The ONNX file of a repo, where optimum and sentence-transformers put it.

    Raises:
        StitchError: there is none.
    """
    if file := next((found for name in FILES if (found := repo.file(name))), None):
        return file
    raise StitchError(f"{repo.name} has no {' or '.join(FILES)}: give the path of the file")


def _output_of(session: Any, name: str | None) -> tuple[str, bool]:
    """The name of the output to take, and whether it is pooled already.

    Raises:
        StitchError: there is no such output, or several and none with a usual name.
    """
    ranks = {one.name: len(one.shape) for one in session.get_outputs() if one.type.startswith("tensor(float")}
    usual = [one for one in USUAL_OUTPUTS if one in ranks] or (list(ranks) if len(ranks) == 1 else [])
    chosen = name or next(iter(usual), "")
    if chosen not in ranks:
        said = f"has no output {name!r} of floats" if name else "does not say which output is the latent"
        raise StitchError(f"the ONNX file {said}: name one by output=, of {', '.join(map(repr, ranks))}")
    return chosen, ranks[chosen] == 2


def _chosen_pooling(pooling: str, is_pooled: bool, modules: SentenceModules | None) -> str:
    """How a latent is made of the output."""
    if pooling != "auto":
        return pooling
    if modules is not None:
        return modules.pooling
    return "none" if is_pooled else "mean"
