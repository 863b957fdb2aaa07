"""Encoder: a frozen model with its processor and pooling, which turns inputs into latents."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import inputs_at, probe_inputs
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.encoders.devices import accelerate_state, fingerprint, gathered, placement, prefetched
from hf_relstitch.encoders.dual_encoders import FEATURES, features, keep_side
from hf_relstitch.encoders.pooling import pool, resolve_pooling, token_mask
from hf_relstitch.encoders.processors import (
    MODALITIES,
    batched,
    load_processor,
    main_modality,
    modality_of,
    prepare_tokenizer,
    preprocess,
)
from hf_relstitch.encoders.sentence_transformers_repo import read_sentence_modules
from hf_relstitch.hub.repo import hub_options, locate
from hf_relstitch.layers import describe_chain, layers_of

logger = logging.get_logger(__name__)


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


def in_order(encoded: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Latents `(n, d)` in the order of the inputs, from batches with their rows."""
    latents = torch.cat([latents for _, latents in encoded])
    return latents[torch.tensor([row for rows, _ in encoded for row in rows]).argsort()]


def encode_batch(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    pooling: str,
    after_pooling: nn.Module,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Latents `(n, d)` of one batch, and the output that they come from: of an encoder-decoder, its encoder's."""
    home = next(iter(batch.values())).device  # parts of a model that accelerate has spread give latents elsewhere
    if pooling in FEATURES:
        output = features(model, batch, side=pooling, **options)
        return after_pooling(pool(output, attention_mask=None, pooling=pooling).to(home)), output
    output = _encoder_of(model)(**batch, **options)
    mask = token_mask(model, output, batch.get("attention_mask"))
    return after_pooling(pool(output, attention_mask=mask, pooling=pooling).to(home)), output


def _encoder_of(model: Any) -> Any:
    """What gives the hidden states: of an encoder-decoder its encoder, of any other model itself."""
    return model.get_encoder() if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else model
