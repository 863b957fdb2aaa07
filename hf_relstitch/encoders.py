"""Encoder: a frozen model with its processor and pooling, which turns inputs into latents."""

from collections.abc import Collection, Mapping, Sequence
from inspect import signature
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError
from hf_relstitch.devices import accelerate_state, fingerprint, gathered, on_device, placement, prefetched
from hf_relstitch.head_modules import describe_chain, layers_of
from hf_relstitch.hub import Repo, hub_options, locate
from hf_relstitch.input_checks import INPUTS, check_kinds, check_some
from hf_relstitch.inputs import inputs_at, length_of, load_audio, load_image, probe_inputs
from hf_relstitch.pooling import pool, resolve_pooling, token_mask
from hf_relstitch.provenance import Provenance
from hf_relstitch.sentence_modules import SentenceModules, read_sentence_modules
from hf_relstitch.two_towers import FEATURES, features, keep_side

logger = logging.get_logger(__name__)

MODALITIES = {"input_ids": "text", "pixel_values": "image", "input_values": "audio", "input_features": "audio"}
LOADERS = {"text": AutoTokenizer, "image": AutoImageProcessor, "audio": AutoFeatureExtractor}
KINDS = {"text": PreTrainedTokenizerBase, "image": ImageProcessingMixin, "audio": SequenceFeatureExtractor}


class Encoder:
    """A frozen model, its processor and its pooling: inputs to latents.

    Attributes:
        model: a transformers model, or any module that takes the processor's output by keyword.
        processor: a tokenizer, an image processor or a feature extractor of sound.
        modality: `text`, `image` or `audio`.
        pooling: one of `hf_relstitch.pooling.POOLINGS`, already resolved.
        after_pooling: the layers that a pooled vector goes through to be a latent; often none.
        provenance: which model this is, and where it was `cut` if it was; anchors carry it, and stitching compares it.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        pooling: str = "auto",
        after_pooling: nn.Module | None = None,
        cut: str | None = None,
        model_id: str | None = None,
        revision: str | None = None,
        license: str | None = None,  # noqa: A002  (the name that it has on the Hub)
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.modality = modality_of(processor)
        self.pooling = resolve_pooling(pooling, model=model)
        if self.pooling in FEATURES and self.pooling != f"{self.modality}_features":
            raise StitchError(f"pooling is {self.pooling!r} and the processor is for {self.modality}: give that side's")
        self.after_pooling = nn.Sequential(*layers_of(after_pooling or nn.Sequential())).eval().requires_grad_(False)
        layers = [layer.get("name", layer["layer"]) for layer in describe_chain(self.after_pooling)]
        self.provenance = Provenance(
            model_id=model_id or type(model).__name__,
            revision=revision or fingerprint(model, self.after_pooling),
            pooling=cut or ", ".join([self.pooling, *layers]),
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
            StitchError: no such model, one that is not for text, images or audio, or a pooler without trained weights.
        """
        repo = locate(model_id, revision=revision, **hub_options(model_kwargs))
        options = {"output_loading_info": True, **repo.loading, **model_kwargs}
        try:
            model, loading = AutoModel.from_pretrained(repo.place, **options)
        except ValueError as error:
            said = str(error).partition("\nModel type should be one of")[0]  # and the names of all configs follow
            raise StitchError(f"{repo.name} cannot be loaded as an encoder: {said}") from error
        modules = read_sentence_modules(repo) if pooling == "auto" else None
        chosen = modules.pooling if modules else resolve_pooling(pooling, model=model)
        if pooling == "auto":
            logger.info(f"{repo.name}: pooling is {chosen!r}")
        untrained = set(loading["missing_keys"])
        if chosen == "pooler" and untrained:
            raise StitchError(
                f"{repo.name} has no trained weights for {sorted(untrained)[0]}: choose another pooling than 'pooler'"
            )
        modality = chosen.removesuffix("_features") if chosen in FEATURES else main_modality(model)
        processor = load_processor(repo, modality=modality)
        after = modules.after_pooling.to(*placement(model)) if modules else nn.Sequential()
        if isinstance(processor, PreTrainedTokenizerBase):
            prepare_tokenizer(processor, modules, model=model)
        if chosen in FEATURES:
            if modality == "text":
                model.config.get_text_config().pad_token_id = processor.pad_token_id
            keep_side(model, chosen, preprocess(model, processor, probe_inputs(modality)))
            if unfit := untrained & model.state_dict().keys():
                raise StitchError(f"{repo.name} has no trained weights for {sorted(unfit)[0]} of its {chosen}")
        return cls(
            model,
            processor,
            pooling=chosen,
            after_pooling=after,
            model_id=repo.name,
            revision=repo.commit or fingerprint(model, after, without=untrained),
            license=repo.license(),
        )

    @torch.no_grad()
    def encode(self, inputs: Sequence[Any], *, batch_size: int = 32, progress: bool = True) -> Tensor:
        """Latents `(n, d)`, row for row with the inputs, on the CPU in the model's dtype.

        Runs on the device that accelerate gives; under `accelerate launch` each process encodes its share and all
        get the whole. Inputs are batched by length, so that little of a batch is padding.

        Raises:
            StitchError: no inputs, or inputs of another kind than the encoder takes; or another process failed.
        """
        return in_order(gathered(lambda: self._share(inputs, batch_size=batch_size, progress=progress)))

    def _share(self, inputs: Sequence[Any], *, batch_size: int, progress: bool) -> list[tuple[list[int], Tensor]]:
        """Latents on the CPU of what this process encodes, if it is anything, and their rows."""
        state = accelerate_state()
        self.to_device(state.device)
        batches = batched(inputs, processor=self.processor, batch_size=batch_size)
        mine = batches[state.process_index :: state.num_processes]
        bar = logging.tqdm(mine, desc="encoding", unit="batch", disable=not (progress and state.is_main_process))
        ready = prefetched(lambda rows: preprocess(self.model, self.processor, inputs_at(inputs, rows)), bar)
        encoded = [(rows, self.latents(batch)) for rows, batch in ready]
        return [([*chain(*mine)], torch.cat([latents for _, latents in encoded]).cpu())] if encoded else []

    def latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Latents `(n, d)` of one batch that the processor made."""
        return encode_batch(self.model, batch, pooling=self.pooling, after_pooling=self.after_pooling)[0]

    def to_device(self, device: torch.device) -> None:
        """Move the model, unless accelerate has spread it over devices already."""
        if getattr(self.model, "hf_device_map", None) is None:
            self.model.to(device)
            self.after_pooling.to(placement(self.model)[0])


def preprocess(model: nn.Module, processor: Any, inputs: Sequence[Any]) -> dict[str, Tensor]:
    """What the processor makes of a batch of texts, images or sounds, on the model's device and in its dtype.

    Raises:
        StitchError: inputs of another kind than the processor takes.
    """
    modality = modality_of(processor)
    check_kinds(inputs, modality=modality)
    if modality == "text":
        batch = processor(list(inputs), padding=True, truncation=True, return_tensors="pt")
    elif modality == "image":
        batch = processor(images=[load_image(one) for one in inputs], return_tensors="pt")
    else:
        rate = processor.sampling_rate
        sounds = [load_audio(one, sampling_rate=rate) for one in inputs]
        padding = {} if pads_by_itself(processor) else {"padding": True}
        batch = processor(sounds, sampling_rate=rate, return_tensors="pt", **padding)
    device, dtype = placement(model)
    return {name: on_device(tensor, device, dtype) for name, tensor in batch.items()}


def modality_at(source: str | Encoder) -> str | None:
    """The modality of an encoder, or of one at a place, by its config alone; None where that does not tell.

    Raises:
        StitchError: a model of a type that is no encoder, such as a stitched one.
    """
    if isinstance(source, Encoder):
        return source.modality
    repo = locate(source)
    try:
        config = AutoConfig.from_pretrained(repo.place, **repo.loading)
    except (OSError, ValueError):  # loading it says what is wrong
        return None
    if type(config) not in MODEL_MAPPING:
        raise StitchError(f"{repo.name} holds a {config.model_type} model: expected an encoder")
    return MODALITIES.get(getattr(MODEL_MAPPING[type(config)], "main_input_name", ""))


def batched(inputs: Sequence[Any], *, processor: Any, batch_size: int) -> list[list[int]]:
    """The rows of the inputs that go into each batch: by length, so that little of a batch is padding.

    Sounds of different lengths come together only where the processor pads on its own account: in many speech models
    the first layers normalise over the padding too, and a latent must not depend on what else is in its batch.

    Raises:
        StitchError: no inputs, or inputs of another kind than the processor takes.
    """
    check_some(inputs, batch_size=batch_size)
    check_kinds(inputs, modality=modality_of(processor))
    lengths = [length_of(one, modality=modality_of(processor)) for one in inputs]
    order = sorted(range(len(inputs)), key=lambda row: -lengths[row])
    alike = modality_of(processor) == "audio" and not pads_by_itself(processor)
    groups = [list(rows) for _, rows in groupby(order, key=lambda row: lengths[row] if alike else None)]
    return [rows[start : start + batch_size] for rows in groups for start in range(0, len(rows), batch_size)]


def in_order(encoded: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Latents `(n, d)` in the order of the inputs, from batches with their rows."""
    latents = torch.cat([latents for _, latents in encoded])
    return latents[torch.tensor([row for rows, _ in encoded for row in rows]).argsort()]


def pads_by_itself(processor: Any) -> bool:
    """Whether a feature extractor pads a batch without being told to, as those of fixed length do."""
    padding = signature(processor.__call__).parameters.get("padding")
    return padding is None or padding.default is not False


def encode_batch(
    model: nn.Module, batch: Mapping[str, Any], *, pooling: str, after_pooling: nn.Module, **options: Any
) -> tuple[Tensor, Any]:
    """Latents `(n, d)` of one batch, and the output that they come from: of an encoder-decoder, its encoder's."""
    home = next(iter(batch.values())).device  # parts of a model that accelerate has spread give latents elsewhere
    if pooling in FEATURES:
        output = features(model, batch, side=pooling, **options)
        return after_pooling(pool(output, attention_mask=None, pooling=pooling).to(home)), output
    config = getattr(model, "config", None)
    encoder: Any = model
    if getattr(config, "is_encoder_decoder", False):
        encoder = encoder.get_encoder()
    output = encoder(**batch, **options)
    mask = token_mask(model, output, batch.get("attention_mask"))
    return after_pooling(pool(output, attention_mask=mask, pooling=pooling).to(home)), output


def check_inputs(given: Collection[str], *, modality: str) -> None:
    """Refuse what another kind of processor made.

    Raises:
        StitchError: there is no main input of this modality, or one of another.
    """
    main = {name for name in given if name in MODALITIES}
    if not main or any(MODALITIES.get(name, modality) != modality for name in main):
        raise StitchError(
            f"the model takes {INPUTS[modality][0]}, and what came is {', '.join(sorted(main or given)) or 'nothing'}: "
            "make its inputs with model.processor, and use the pipeline of its modality"
        )


def modality_of(processor: Any) -> str:
    """`text` for a tokenizer, `image` for an image processor, `audio` for a feature extractor of sound."""
    for modality, kind in KINDS.items():
        if isinstance(processor, kind):
            return modality
    raise StitchError(
        f"the processor is a {type(processor).__name__}: expected a tokenizer, an image processor or a "
        "feature extractor of sound"
    )


def main_modality(model: nn.Module) -> str:
    """`text`, `image` or `audio`, by a transformers model's main input."""
    name = getattr(model, "main_input_name", None)
    if name not in MODALITIES:
        raise StitchError(
            f"{type(model).__name__} takes {name}: supported are {', '.join(MODALITIES)} (text, image and audio models)"
        )
    return MODALITIES[name]


def load_processor(repo: Repo, *, modality: str) -> Any:
    """The processor of a repo; a tokenizer without padding token pads with its end token."""
    processor = LOADERS[modality].from_pretrained(repo.place, **repo.loading)
    if modality == "text" and processor.pad_token is None:
        processor.pad_token = processor.eos_token
    return processor


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, modules: SentenceModules | None, *, model: Any) -> None:
    """Make a tokenizer cut texts where the repo says, or else where the model's positions end."""
    text = model.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if modules is not None:
        modules.prepare(tokenizer)
    if (modules is None or modules.max_length is None) and isinstance(positions, int) and positions > 0:
        embeddings = (each for name, each in model.named_modules() if name.endswith("position_embeddings"))
        padding = getattr(next(embeddings, None), "padding_idx", None)  # where RoBERTa and its like begin
        unused = 0 if padding is None else padding + 1
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions - unused)
