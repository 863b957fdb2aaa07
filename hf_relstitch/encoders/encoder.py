"""Encoder: a frozen model with its processor and pooling, which turns inputs into latents."""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import replace
from inspect import signature
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.data.inputs import check_pairs, probe_inputs
from hf_relstitch.data.modality import BY_TENSOR
from hf_relstitch.data.provenance import Cut, Provenance
from hf_relstitch.data.words import Word
from hf_relstitch.encoders.batches import choose_batching, encode_batch, encode_inputs, in_order
from hf_relstitch.encoders.devices import fingerprint, gather, placement
from hf_relstitch.encoders.pairs import PAIRS, PairLayout
from hf_relstitch.encoders.pooling import FEATURES, keep_side, leave_out, resolve_pooling
from hf_relstitch.encoders.processors import (
    PIXELS_AS_TOKENS,
    check_vocabulary,
    load_processor,
    main_modality,
    modality_of,
    prepare_tokenizer,
    preprocess,
)
from hf_relstitch.encoders.sentence_transformers_repo import (
    prepend_prompt,
    read_prompts,
    read_sentence_modules,
    transformer_in,
)
from hf_relstitch.encoders.words import check_offsets, find_words
from hf_relstitch.hub.files import STITCHED
from hf_relstitch.hub.processes import accelerate_state
from hf_relstitch.hub.repo import Repo, hub_options, locate
from hf_relstitch.layers import describe_chain, flatten_layers

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded


WITH_PROCESSOR = "give Encoder(model, processor), or as a target split_classifier(model, processor)"


class Encoder:
    """Hold a frozen model, its processor and its pooling, and turn inputs into latents.

    Attributes:
        model: a transformers model, or any module that takes the processor's output by keyword.
        processor: a tokenizer, an image processor or a feature extractor of sound.
        modality: `text`, `image` or `audio`.
        pooling: one of `hf_relstitch.encoders.pooling.POOLINGS`, already resolved.
        after_pooling: the layers that turn a pooled vector into a latent; often none.
        batching: which inputs may share a batch, one of `hf_relstitch.encoders.batches.BATCHINGS`.
        pairs: how pairs of texts are read, one of `hf_relstitch.encoders.pairs.PAIRS`; None reads them jointly, unless
            stitching finds that composing them agrees better.
        layout: how a tokenizer's pairs are split into their texts, if they are composed.
        prompts: the texts that the model's repo may put before an input, by name; empty if the tokenizer does it.
        provenance: the model, and the module at which `cut` split it, if any; anchors carry it, stitching compares it.
    """

    prompts: Mapping[str, str] = MappingProxyType({})
    pairs: str | None = None
    layout: PairLayout | None = None

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        pooling: str = "auto",
        after_pooling: nn.Module | None = None,
        cut: Cut | None = None,
        batching: str | None = None,
        pairs: str | None = None,
        model_id: str | None = None,
        revision: str | None = None,
        license: str | None = None,  # noqa: A002  (the name that it has on the Hub)
        prompt: str | None = None,
    ) -> None:
        """For the record, `prompt` is the text that the tokenizer puts before each input."""
        if not isinstance(model, nn.Module):
            raise StitchError(f"the model is a {type(model).__name__}: expected a transformers model or an nn.Module")
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.modality = modality_of(processor)
        self.pooling = resolve_pooling(pooling, model=model)
        if self.pooling in FEATURES and self.pooling != f"{self.modality}_features":
            raise StitchError(f"pooling is {self.pooling!r} and the processor is for {self.modality}: give that side's")
        if self.pooling == "tokens":
            if self.modality != "text":
                raise StitchError(f"pooling is 'tokens' and the model takes {self.modality}: only texts have tokens")
            check_offsets(processor)
            if prompt is not None:
                raise StitchError(
                    f"the encoder puts the prompt {prompt!r} before each text, whose tokens would pass for the "
                    "first word's: load it with pooling='tokens' and without a prompt"
                )
        self.after_pooling = (
            nn.Sequential(*flatten_layers(after_pooling or nn.Sequential())).eval().requires_grad_(False)
        )
        name = model_id or type(model).__name__
        if isinstance(processor, PreTrainedTokenizerBase):
            check_vocabulary(processor, model, name=name)
        self.batching = batching or choose_batching(self._padded, model, processor, name=name)
        layers = [layer.get("name", layer["layer"]) for layer in describe_chain(self.after_pooling)]
        self.provenance = Provenance(
            model_id=name,
            revision=revision or fingerprint(model, self.after_pooling),
            pooling=self.pooling,
            after_pooling=tuple(layers),
            cut=cut,
            license=license,
            prompt=prompt,
        )
        if pairs is not None:
            self._read_pairs(pairs)

    def __repr__(self) -> str:
        made_by = self.provenance
        return f"{type(self).__name__}({made_by.model_id!r}, {made_by.describe()!r}, {self.modality}, {self.batching})"

    def _read_pairs(self, how: str) -> None:
        """Set how pairs of texts are read.

        Raises:
            StitchError: there is no such way, the encoder takes no texts, or its tokenizer's pairs cannot be split.
        """
        if how not in PAIRS:
            raise StitchError(f"pairs is {how!r}: expected one of {', '.join(PAIRS)}")
        if self.modality != "text":
            raise StitchError(f"pairs is {how!r} and the encoder takes {self.modality}: leave it out")
        if how == "joint" and self.pooling in FEATURES:
            raise StitchError("a dual encoder reads single texts only: use pairs='compose'")
        self.pairs = how
        if how == "compose":
            self.layout = PairLayout.from_tokenizer(self.processor)
            self.provenance = replace(self.provenance, pairs="compose")

    def ways_to_read_pairs(self) -> list["Encoder"]:
        """Return the encoder with each way in which it can read pairs of texts; alone, if its way is set.

        Raises:
            StitchError: there is no such way.
        """
        if self.pairs is not None or not isinstance(self.processor, PreTrainedTokenizerBase):
            return [self]
        ways, errors = [], []
        for how in PAIRS:
            encoder = copy(self)
            try:
                encoder._read_pairs(how)
                ways.append(encoder)
            except StitchError as error:
                errors.append(error)
        if not ways:
            raise errors[-1]
        return ways

    @classmethod
    def from_pretrained(
        cls,
        model_id: str,
        *,
        pooling: str = "auto",
        pairs: str | None = None,
        prompt: str | None = None,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> "Encoder":
        """Load the encoder of a folder or a Hub repo through `AutoModel`, with its processor.

        `pooling="auto"` takes the pooling that a sentence-transformers repo asks for, or else the field's usual choice
        for the architecture; a log line says which. `prompt` is put before each text: the name of one of the repo's
        prompts, or the text itself, like "query: "; without it, the repo's default prompt if it has one. Other keywords
        (`token`, `dtype`, `device_map`, …) go to `AutoModel`. Code of the repo runs, for model, config and processor,
        only with `trust_remote_code=True`.

        Raises:
            StitchError: the model is missing or is not for text, images or audio, or its pooler has no trained weights.
        """
        with wrap_errors(f"{model_id} cannot be loaded as an encoder"):
            trust = bool(model_kwargs.pop("trust_remote_code", False))
            repo = locate(model_id, revision=revision, trust_remote_code=trust, **hub_options(model_kwargs))
            modules = read_sentence_modules(repo) if pooling == "auto" else None
            inside = transformer_in(repo)
            options = {"output_loading_info": True, **inside.model_loading, **model_kwargs}
            if not trust and inside.file("config.json") is not None:  # a folder of an adapter alone has none
                _check_encodes(repo, inside.config())
            with inside.limited_build():
                model, loading = AutoModel.from_pretrained(repo.place, **options)
            _refuse_stitched(repo, model.config)
            merge_adapters(model)
            if _lacks_decoder(model, loading["missing_keys"]):
                leave_out(model, ["decoder"])
            chosen = modules.pooling if modules else resolve_pooling(pooling, model=model)
            if pooling == "auto":
                logger.info(f"{repo.name}: pooling is {chosen!r}")
            untrained = set(loading["missing_keys"])
            modality = chosen.removesuffix("_features") if chosen in FEATURES else main_modality(model)
            processor = load_processor(inside, modality=modality)
            after = modules.after_pooling.to(*placement(model)) if modules else nn.Sequential()
            if isinstance(processor, PreTrainedTokenizerBase):
                processor = prepare_tokenizer(processor, modules, model=model)
            prompts, default = read_prompts(repo)
            text = _prompt_text(prompt or (default if modules else None), prompts, name=repo.name)
            if text is not None:
                processor = prepend_prompt(processor, text)
            if chosen in FEATURES:
                if modality == "text":
                    model.config.get_text_config().pad_token_id = processor.pad_token_id
                keep_side(model, chosen, preprocess(model, processor, probe_inputs(modality)))
            encoder = cls(
                model,
                processor,
                pooling=chosen,
                after_pooling=after,
                pairs=pairs,
                model_id=repo.name,
                revision=repo.commit or fingerprint(model, after, without=untrained),
                license=repo.license(),
                prompt=text,
            )
            encoder.prompts = {} if text else prompts
            if unfit := encoder.first_that_matters(untrained):
                raise StitchError(
                    f"{repo.name} has no trained weights for {unfit}, which its latents are made by: choose another "
                    f"pooling than {chosen!r} if that belongs to it, or download or train the model again"
                )
            return encoder

    @torch.no_grad()
    def first_that_matters(self, names: Collection[str]) -> str | None:
        """Return the first of these tensors that latents depend on: with NaN in the tensor, latents are NaN."""
        tensors = {name: tensor for name, tensor in self.model.state_dict().items() if name in names}
        for name, tensor in sorted(tensors.items()):
            if tensor.is_meta or not tensor.is_floating_point():
                continue
            kept = tensor.clone()
            tensor.fill_(torch.nan)
            latents = self._padded(preprocess(self.model, self.processor, probe_inputs(self.modality)))
            tensor.copy_(kept)
            if latents.isnan().any():
                return name
        return None

    @torch.no_grad()
    def encode(self, inputs: Sequence[Any], *, batch_size: int = 32, progress: bool = True) -> Tensor:
        """Return latents `(n, d)`, row for row with the inputs, on the CPU in the model's dtype.

        With pooling "tokens" the inputs are `Word`s, or texts, which stand for their words: see `words`.

        The model runs on the device that accelerate gives; under `accelerate launch` each process encodes its share and
        all get the whole. Inputs are batched by length, so that little of a batch is padding.

        Raises:
            StitchError: there are no inputs, an input is of another kind than the encoder takes, or a process failed.
        """
        return in_order(gather(lambda: self._share(inputs, batch_size=batch_size, progress=progress)))

    def _share(self, inputs: Sequence[Any], *, batch_size: int, progress: bool) -> list[tuple[list[int], Tensor]]:
        """Latents on the CPU of what this process encodes, if it is anything, and their rows."""
        state = accelerate_state()
        self.to_device(state.device)
        check_pairs(inputs, pairs=True if self.layout else False if self.pooling in FEATURES else None)
        work = encode_inputs(
            inputs,
            self.latents,
            model=self.model,
            processor=self.processor,
            by_token=self.pooling == "tokens",
            batch_size=batch_size,
            share=(state.process_index, state.num_processes),
            progress=progress and state.is_main_process,
        )
        encoded = [*work]
        rows = [*chain(*(rows for rows, _ in encoded))]
        return [(rows, torch.cat([latents for _, latents in encoded]).cpu())] if encoded else []

    def words(self, inputs: Sequence[str | Word]) -> list[Word]:
        """Return the words of texts, or those of these words, which have a latent; of an encoder with pooling "tokens".

        A word has one if a token begins at its first character and truncation leaves it whole.

        Raises:
            StitchError: the inputs are not texts.
        """
        return find_words(inputs, tokenizer=self.processor)

    def anchor_inputs(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Return what anchors are made of: the inputs, or their words, of an encoder with a latent for each token."""
        return self.words(inputs) if self.provenance.by_token else inputs

    def with_token_latents(self) -> "Encoder":
        """Return an encoder of the same model with a latent for each token, for heads that label tokens.

        Raises:
            StitchError: it has no tokens, like a callable or a model of images.
        """
        if self.pooling == "tokens":
            return self
        if self.pooling in (*FEATURES, "none") or self.modality != "text":
            raise StitchError(
                f"the head labels tokens, and {self.provenance.model_id} gives one latent an input (of "
                f"{self.modality}, with pooling {self.pooling!r}): give a text model that transformers loads"
            )
        made_by = self.provenance
        return Encoder(
            self.model,
            self.processor,
            pooling="tokens",
            model_id=made_by.model_id,
            revision=None if any(True for _ in self.after_pooling.parameters()) else made_by.revision,
            license=made_by.license,
            prompt=made_by.prompt,
        )

    def for_search(self) -> tuple["Encoder", "Encoder"]:
        """Return the encoder of documents and that of queries: each with its prompt if the model's repo has one for it.

        The names are those of sentence-transformers' `encode_document` and `encode_query`.
        """
        return self._prompted("document", "passage", "corpus"), self._prompted("query")

    def _prompted(self, *names: str) -> "Encoder":
        """Return the encoder with the first of these prompts that its repo has."""
        text = next((self.prompts[name] for name in names if name in self.prompts), None)
        if text is None:
            return self
        encoder = copy(self)
        encoder.processor = prepend_prompt(self.processor, text)
        encoder.provenance, encoder.prompts = replace(self.provenance, prompt=text), {}
        return encoder

    def latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return latents `(n, d)` of one batch from the processor; `(n, t, d)` with pooling "tokens"."""
        latents, _ = encode_batch(
            self.model,
            batch,
            pooling=self.pooling,
            after_pooling=self.after_pooling,
            batching=self.batching,
            layout=self.layout,
        )
        return latents

    def _padded(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the latents of one batch that may hold padding; of tokens the mean."""
        pooling = "mean" if self.pooling == "tokens" else self.pooling
        return encode_batch(self.model, batch, pooling=pooling, after_pooling=self.after_pooling)[0]

    def to_device(self, device: torch.device) -> None:
        """Move the model, unless accelerate has spread it over devices already."""
        if getattr(self.model, "hf_device_map", None) is None:
            self.model.to(device)
            self.after_pooling.to(placement(self.model)[0])


def to_encoder(source: Any, *, by_token: bool | None = None) -> Encoder:
    """Return an encoder of a folder, a Hub id, a transformers model or a SentenceTransformer; an Encoder unchanged.

    The processor of a transformers model is read from the place that the model was loaded from. With `by_token` the
    encoder gives a latent for each token; with False it must not.

    Raises:
        StitchError: the source is of another kind, its processor is not known, or it gives no latents for tokens, or
            only such.
    """
    if by_token and isinstance(source, str | Path):
        return Encoder.from_pretrained(str(source), pooling="tokens")
    if isinstance(source, Encoder):
        encoder = source
    elif isinstance(source, str | Path):
        encoder = Encoder.from_pretrained(str(source))
    elif hasattr(source, "model_card_data") and hasattr(source, "encode"):
        encoder = _of_sentence_transformer(source)
    elif isinstance(source, PreTrainedModel):
        encoder = Encoder(source, processor_beside(source), model_id=_name_of(source))
    else:
        raise StitchError(
            f"an encoder is wanted and what came is a {type(source).__name__}: give a folder, a Hub id, an "
            "Encoder(model, processor), a transformers model, a SentenceTransformer, or a CallableEncoder(function, "
            "model_id=…)"
        )
    if by_token is False and encoder.pooling == "tokens":
        raise StitchError(
            f"{encoder.provenance.model_id} gives a latent for each token, and the head takes one an input: load it "
            "with another pooling than 'tokens', or give a head that labels tokens"
        )
    return encoder.with_token_latents() if by_token else encoder


def processor_beside(model: Any) -> Any:
    """Return the processor that lies where a transformers model was loaded from.

    Raises:
        StitchError: the model does not say where, or no processor lies there.
    """
    kind, name = type(model).__name__, getattr(model, "name_or_path", "")
    if not name:
        raise StitchError(
            f"the {kind} does not say where it was loaded, nor what reads inputs for it: {WITH_PROCESSOR}"
        )
    try:
        return load_processor(locate(name), modality=main_modality(model))
    except StitchError as error:
        raise StitchError(f"the {kind} was loaded from {Path(name).name}: {error}; or {WITH_PROCESSOR}") from error


def _name_of(model: Any) -> str:
    """The Hub id, or the folder's name, that a transformers model was loaded from; empty for none."""
    name = getattr(model, "name_or_path", "")
    return Path(name).resolve().name if name and Path(name).is_dir() else name


def _of_sentence_transformer(model: Any) -> Encoder:
    """An encoder that gives what a SentenceTransformer gives, compared on probes.

    Raises:
        StitchError: it has modules that are not read here.
    """
    name = _name_of(getattr(model[0], "auto_model", None)) or type(model).__name__
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, Path(name).name)
        model.save(str(folder), create_model_card=False)
        encoder = Encoder.from_pretrained(str(folder))
    encoder.provenance = replace(encoder.provenance, model_id=name)
    probes = probe_inputs(encoder.modality)
    own = torch.as_tensor(model.encode(probes, convert_to_numpy=True, show_progress_bar=False))
    if not torch.allclose(encoder.encode(probes, progress=False).to(own), own, rtol=1e-3, atol=1e-4):
        raise StitchError(
            "the SentenceTransformer gives other vectors than its modules: give it as CallableEncoder(model.encode, "
            "model_id=…)"
        )
    return encoder


def merge_adapters(model: Any) -> None:
    """Replace the layers that PEFT has wrapped by layers with its adapters merged in."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return
    wrapped = [name for name, module in model.named_modules() if hasattr(module, "get_base_layer")]
    for name in wrapped:
        layer = model.get_submodule(name)
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    model._hf_peft_config_loaded = False


def modality_at(source: str | Path | Encoder) -> str | None:
    """Return the modality of an encoder, or of one at a path or Hub id, by its config alone; None if that is silent.

    Raises:
        StitchError: the model's type is not an encoder, like a stitched model.
    """
    if isinstance(source, Encoder):
        return source.modality
    repo = locate(source)
    try:
        config = transformer_in(repo).config()
    except (OSError, ValueError):  # loading it says what is wrong
        return None
    _check_encodes(repo, config)
    if config.model_type in PIXELS_AS_TOKENS:
        return "image"
    return BY_TENSOR.get(getattr(MODEL_MAPPING[type(config)], "main_input_name", ""))


def _lacks_decoder(model: Any, missing: Collection[str]) -> bool:
    """Whether a text-to-text model was loaded from a folder that holds its encoder alone."""
    if "decoder_input_ids" not in signature(model.forward).parameters:
        return False
    names = {name for name, _ in model.named_parameters() if name.startswith("decoder.")}
    return bool(names) and names <= {*missing}


def _prompt_text(prompt: str | None, prompts: Mapping[str, str], *, name: str) -> str | None:
    """Return the text of a prompt: of one of the repo's by its name, else the prompt itself.

    Raises:
        StitchError: the prompt is one word, like a name, and the repo has no prompt of that name.
    """
    if prompt is None or prompt in prompts:
        return prompts.get(prompt or "")
    if prompt.isidentifier():
        known = ", ".join(map(repr, prompts)) or "none, since it has no prompts"
        raise StitchError(
            f"{name} has no prompt {prompt!r}: give one of {known}, or the text to put before inputs, like 'query: '"
        )
    return prompt


def _check_encodes(repo: Repo, config: Any) -> None:
    """Refuse a model that AutoModel does not load, or that is stitched, before it is loaded."""
    _refuse_stitched(repo, config)
    if type(config) not in MODEL_MAPPING:
        raise StitchError(f"{repo.name} holds a {config.model_type} model: expected an encoder")


def _refuse_stitched(repo: Repo, config: Any) -> None:
    """Refuse a stitched model, which AutoModel loads, as an encoder."""
    if config.model_type == STITCHED:
        raise StitchError(
            f"{repo.name} holds a {STITCHED} model: expected an encoder; "
            "model.to_sentence_transformer(folder) makes one of it"
        )
