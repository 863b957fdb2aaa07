"""Encoder: a frozen model with its processor and pooling, which turns inputs into latents."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError
from hf_relstitch.devices import accelerate_state
from hf_relstitch.hub import Repo, hub_options, locate
from hf_relstitch.inputs import load_image
from hf_relstitch.pooling import pool, resolve_pooling
from hf_relstitch.provenance import Provenance

logger = logging.get_logger(__name__)

MODALITIES = {"input_ids": "text", "pixel_values": "image"}
LOADERS = {"text": AutoTokenizer, "image": AutoImageProcessor}
KINDS = {"text": PreTrainedTokenizerBase, "image": ImageProcessingMixin}


class Encoder:
    """A frozen model, its processor and its pooling: inputs to latents.

    Attributes:
        model: a transformers model, or any module that takes the processor's output by keyword.
        processor: a tokenizer or an image processor.
        modality: `text` or `image`.
        pooling: one of `hf_relstitch.pooling.POOLINGS`, already resolved.
        provenance: which model this is, and where it was `cut` if it was; anchors carry it, and stitching compares it.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        pooling: str = "auto",
        cut: str | None = None,
        model_id: str | None = None,
        revision: str | None = None,
        license: str | None = None,  # noqa: A002  (the name that it has on the Hub)
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.modality = modality_of(processor)
        self.pooling = resolve_pooling(pooling, model=model)
        self.provenance = Provenance(
            model_id=model_id or type(model).__name__,
            revision=revision or fingerprint(model),
            pooling=cut or self.pooling,
            license=license,
        )

    @classmethod
    def from_pretrained(
        cls, model_id: str, *, pooling: str = "auto", revision: str | None = None, **model_kwargs: Any
    ) -> "Encoder":
        """Load the encoder of a folder or a Hub repo through `AutoModel`, with its processor.

        `pooling="auto"` is what a sentence-transformers repo asks for, or else the field's usual choice for the
        architecture; a log line says which. Other keywords (`token`, `dtype`, `device_map`, …) go to `AutoModel`.

        Raises:
            StitchError: no such model, one that is not for text or images, or a pooler without trained weights.
        """
        repo = locate(model_id, revision=revision, **hub_options(model_kwargs))
        model, loading = AutoModel.from_pretrained(repo.place, output_loading_info=True, **repo.loading | model_kwargs)
        chosen = resolve_pooling(pooling, model=model, repo=repo)
        if pooling == "auto":
            logger.info(f"{repo.name}: pooling is {chosen!r}")
        untrained = set(loading["missing_keys"])
        if chosen == "pooler" and untrained:
            raise StitchError(
                f"{repo.name} has no trained weights for {sorted(untrained)[0]}: choose another pooling than 'pooler'"
            )
        processor = load_processor(repo, modality=main_modality(model))
        return cls(
            model,
            processor,
            pooling=chosen,
            model_id=repo.name,
            revision=repo.commit or fingerprint(model, without=untrained),
            license=repo.license(),
        )

    @torch.no_grad()
    def encode(self, inputs: Sequence[Any], *, batch_size: int = 32, progress: bool = True) -> Tensor:
        """Latents `(n, d)`, row for row with the inputs, on the CPU in the model's dtype.

        Runs on the device that accelerate gives; under `accelerate launch` each process encodes its share and all
        get the whole. Inputs are batched by length, so that little of a batch is padding.

        Raises:
            StitchError: no inputs, or inputs of another kind than the encoder takes.
        """
        if not len(inputs):
            raise StitchError("there are no inputs to encode: give at least one")
        state = accelerate_state()
        self.to_device(state.device)
        order = sorted(range(len(inputs)), key=lambda row: -len(inputs[row]) if isinstance(inputs[row], str) else 0)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        mine = batches[state.process_index :: state.num_processes]
        bar = logging.tqdm(mine, desc="encoding", unit="batch", disable=not (progress and state.is_main_process))
        encoded = [
            (rows, self.latents(preprocess(self.model, self.processor, [inputs[row] for row in rows])).cpu())
            for rows in bar
        ]
        gathered = gather_object(encoded) if state.num_processes > 1 else encoded
        latents = torch.cat([latents for _, latents in gathered])
        return latents[torch.tensor([row for rows, _ in gathered for row in rows]).argsort()]

    def latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Latents `(n, d)` of one batch that the processor made."""
        return pool(self.model(**batch), attention_mask=batch.get("attention_mask"), pooling=self.pooling)

    def to_device(self, device: torch.device) -> None:
        """Move the model, unless accelerate has spread it over devices already."""
        if getattr(self.model, "hf_device_map", None) is None:
            self.model.to(device)


def preprocess(model: nn.Module, processor: Any, inputs: Sequence[Any]) -> dict[str, Tensor]:
    """What the processor makes of a batch of texts or images, on the model's device and in its dtype.

    Raises:
        StitchError: inputs of another kind than the processor takes.
    """
    modality = modality_of(processor)
    kinds = (str,) if modality == "text" else (Image.Image, Path)
    if strange := [one for one in inputs if not isinstance(one, kinds)]:
        expected = "texts" if modality == "text" else "PIL images or Paths of images"
        raise StitchError(f"the model takes {expected} and one input is a {type(strange[0]).__name__}")
    if modality == "text":
        batch = processor(list(inputs), padding=True, truncation=True, return_tensors="pt")
    else:
        batch = processor(images=[load_image(one) for one in inputs], return_tensors="pt")
    weights = next(model.parameters())
    return {
        name: tensor.to(weights.device, weights.dtype if tensor.is_floating_point() else None)
        for name, tensor in batch.items()
    }


def modality_of(processor: Any) -> str:
    """`text` for a tokenizer, `image` for an image processor."""
    for modality, kind in KINDS.items():
        if isinstance(processor, kind):
            return modality
    raise StitchError(f"the processor is a {type(processor).__name__}: expected a tokenizer or an image processor")


def main_modality(model: nn.Module) -> str:
    """`text` or `image`, by a transformers model's main input."""
    name = getattr(model, "main_input_name", None)
    if name not in MODALITIES:
        raise StitchError(
            f"{type(model).__name__} takes {name}: supported are {' and '.join(MODALITIES)} (text and image models)"
        )
    return MODALITIES[name]


def load_processor(repo: Repo, *, modality: str) -> Any:
    """The tokenizer (which pads with its end token where it has no padding token) or image processor of a repo."""
    processor = LOADERS[modality].from_pretrained(repo.place, **repo.loading)
    if modality == "text" and processor.pad_token is None:
        processor.pad_token = processor.eos_token
    return processor


def fingerprint(model: nn.Module, *, without: Collection[str] = ()) -> str:
    """A hash of a model's weights, for models that no commit hash names."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in without:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"weights:{digest.hexdigest()}"
