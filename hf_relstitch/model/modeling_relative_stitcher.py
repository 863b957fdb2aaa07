"""RelativeStitcher: source encoder, translation and target head as one transformers model."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.core.options import Prefer
from hf_relstitch.core.projection import encode_relative
from hf_relstitch.core.relative import check_latents
from hf_relstitch.core.translation import GivenSettings, KernelTranslation, Translation, empty_translation
from hf_relstitch.data.inputs import (
    are_text_pairs,
    check_kinds,
    check_pairs,
    check_rates,
    check_some,
    side_of,
    sides_of,
)
from hf_relstitch.data.modality import MODALITIES
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.data.report import Report
from hf_relstitch.data.words import Word
from hf_relstitch.encoders.batches import encode_batch, encode_inputs, in_order
from hf_relstitch.encoders.callable_encoder import Function, absent_encoder
from hf_relstitch.encoders.devices import fingerprint, placement
from hf_relstitch.encoders.encoder import Encoder, modality_at, to_encoder
from hf_relstitch.encoders.pairs import describe_pairs, describe_separators
from hf_relstitch.encoders.pooling import as_configured
from hf_relstitch.encoders.processors import PIXELS_AS_TOKENS, TOKENIZER, check_growth, check_inputs
from hf_relstitch.encoders.sentence_transformers_folder import to_sentence_transformer, translation_layers
from hf_relstitch.encoders.words import find_words
from hf_relstitch.heads.head import Head
from hf_relstitch.heads.loading import check_word_inputs, is_classifier, load_head, to_target
from hf_relstitch.hub.files import STITCHED_MODEL
from hf_relstitch.hub.processes import accelerate_state
from hf_relstitch.hub.repo import push_folder
from hf_relstitch.layers import build_head, copy_head, describe_chain, describe_head
from hf_relstitch.model.anchors import AnchorSet, RelativeLatents, check_count
from hf_relstitch.model.fusing import Fused, fuse
from hf_relstitch.model.persistence import (
    AUTO_CLASSES,
    PARTS,
    load_model,
    save_model,
)
from hf_relstitch.model.reporting import add_coverage, expected_score
from hf_relstitch.model.stitching import (
    AnchorPair,
    Stitch,
    anchors_as_code,
    check_settings,
    encode_target,
    stitch,
    write_call,
)


def _problem_type(head: Head, *, modality: str) -> str | None:
    """The problem type by which pipelines choose what to make of the logits; none make a softmax of one.

    A single logit of a text whose type is not known stays so: its pipeline makes a sigmoid of it, as it did before.
    """
    if head.answers or (modality == "text" and head.problem_type is None and len(head.id2label) == 1):
        return head.problem_type
    return "regression"


OUTPUTS = {
    "text-classification": SequenceClassifierOutput,
    "token-classification": TokenClassifierOutput,
    "image-classification": ImageClassifierOutput,
    "audio-classification": SequenceClassifierOutput,
}


class RelativeStitcher(PreTrainedModel):
    """Run a source encoder, a translation and a target's head as one model (arXiv 2406.15057).

    inputs → source encoder → pooling → translation → target head → logits.

    `from_parts` and `from_anchor_sets` build it, without labels and without training; from then on it is a transformers
    model like any other.
    """

    config: RelativeStitcherConfig
    encoder: Any
    after_pooling: nn.Module
    anchors: AnchorPair
    translation: Translation | KernelTranslation
    readout: Translation | None
    head: nn.Module
    fused: Fused | None
    _processor: Any = None
    _processor_folder: Path | None = None

    config_class = RelativeStitcherConfig
    base_model_prefix = "relative_stitcher"
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["anchors", "translation", "readout"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: RelativeStitcherConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForTokenClassification" if config.by_token else "ForSequenceClassification"
        inside = config.source_config is not None and config.share == "full"
        empty = AutoModel.from_config(config.source_config, trust_remote_code=False) if inside else None
        self.encoder = as_configured(empty, config.source_config) if inside else None
        self.layout, self.separators = config.layouts()
        self.after_pooling = config.empty_after_pooling()
        self.anchors = AnchorPair(config.num_anchors, config.d_source, config.d_target)
        sizes = config.num_anchors, config.d_source, config.d_target
        self.translation = empty_translation(*sizes, settings=config.translation_settings)
        self.readout = Translation(config.d_source, config.num_labels, norm="keep") if config.readout else None
        self.head = build_head(config.head, d_target=config.d_target, num_labels=config.num_labels)
        self.fused: Fused | None = None
        self.post_init()

    @classmethod
    def from_parts(
        cls,
        source: Any,
        target: Any,
        anchors: Sequence[Any],
        *,
        head: Any = None,
        cut: str | None = None,
        labels: Sequence[str] | Mapping[Any, str] | None = None,
        num_anchors: int | None = None,
        inputs: Sequence[Any] | None = None,
        data: str | None = None,
        key: str | None = None,
        batch_size: int = 32,
        progress: bool = True,
        prefer: Prefer | None = None,
        **settings: Unpack[GivenSettings],
    ) -> "RelativeStitcher":
        """Stitch a source encoder to a target's head over anchor inputs, which both models encode here.

        Args:
            source: the new encoder: a folder, a Hub id, an `Encoder`, a transformers model or a SentenceTransformer.
            target: a classifier of texts, tokens, images or sounds (a folder, a Hub id, a transformers model or a
                SetFit model), which is cut into encoder and head; or, with `head`, the encoder that the head was
                trained on.
            anchors: unlabeled inputs that both models take: texts, PIL images, numpy arrays of sound, or Paths of
                images or sounds. A pair of texts that is one input is `{"text": …, "text_pair": …}`. If the models take
                no common input, tuples, with the source's input first, like (image, text), (German, English). For a
                head that labels tokens they are texts, and each of their words is an anchor.
            head: the map from target latents to logits, if `target` is an encoder: a `Head`, a module, or a fitted
                scikit-learn estimator; see `Head.from_module`.
            cut: the module of `target` to cut at, if it is not the last linear layer; see `split_classifier`.
            labels: the names of the head's classes, or a mapping from its own names; see `Head.from_module`.
            num_anchors: how many of the anchor inputs, or of their words, to keep, chosen by `choose_anchors`; None
                keeps all.
            inputs: some unlabeled inputs that the model is for: the report then says whether the anchors are like them.
            data: the name of the data that the anchors come from, for the record.
            key: a secret for the anchors' ids, see `AnchorSet.encode`.
            batch_size: inputs to encode at a time.
            progress: True to show progress bars.
            prefer: "auto" (the default) chooses among linear and kernel translations; "linear" keeps to one matrix,
                which fuses with a linear head. See `choose_settings`.
            **settings: fields of `TranslationSettings`, used unchanged. Without any (`norm` and `seed` aside) they are
                chosen on the anchors.

        Raises:
            StitchError: the parts cannot be loaded, cut, or stitched to each other.
        """
        check_settings(prefer=prefer, **settings)
        if num_anchors is not None:
            check_count(num_anchors)
        options: dict[str, Any] = {"data": data, "key": key, "batch_size": batch_size, "progress": progress}
        if head is not None and cut is not None:
            raise StitchError(f"pass either head or cut, not both: head is given, and cut is {cut!r}")
        if head is None and isinstance(target, Encoder):
            raise StitchError("the target is an encoder without a head: give the head, or a classifier as target")
        source = source if isinstance(source, str) else to_encoder(source)
        source_side, _ = sides_of(anchors)
        source_inputs = side_of(anchors, source_side)
        modality = modality_at(source)
        check_word_inputs(target, anchors, source_takes=modality)
        check_kinds(source_inputs, modality=modality, who="source")
        if head is None:
            try:
                target, head = to_target(target, at=cut)
            except StitchError as error:
                names = [each for each in (target, source) if isinstance(each, str)]
                if [is_classifier(name) for name in names] == [False, True]:
                    raise StitchError(f"only the source is a classifier: were they swapped? {error}") from error
                raise
        else:
            target = to_encoder(target)
        rate = getattr(target.processor, "sampling_rate", None)
        target_anchors, kept = encode_target(target, head, anchors, num_anchors=num_anchors, **options)
        del target
        source = to_encoder(source, by_token=target_anchors.provenance.by_token)
        check_rates(source_inputs, rate, getattr(source.processor, "sampling_rate", None))
        named_head = Head.from_module(head, labels=labels, dim=target_anchors.dim)
        ways: list[tuple[Encoder, Stitch]] = []
        for encoder in source.ways_to_read_pairs() if are_text_pairs(source_inputs) else [source]:
            source_anchors = AnchorSet.encode(encoder, kept, side=source_side, ids=target_anchors.ids, **options)
            made = stitch(
                source_anchors, target_anchors, named_head, source=encoder.provenance, prefer=prefer, **settings
            )
            ways.append((encoder, made))
        encoder, made = max(ways, key=lambda way: expected_score(way[1].report))
        call = write_call(
            "from_parts",
            encoder.provenance,
            head,
            made,
            target=target_anchors.provenance,
            anchors="anchors",
            num_anchors=None if num_anchors is None else repr(num_anchors),
            data=repr(target_anchors.provenance.data),
            key="key" if key else None,
            labels="labels" if labels is not None else None,
        )
        model = cls._assemble(encoder, named_head, made, call=call)
        if len(ways) > 1:
            scores = {describe_pairs(each.layout)["how"]: expected_score(way.report) for each, way in ways}
            model.config.report = model.config.report | {"pairs": scores}
        if inputs is not None:
            model.config.report = model.check(inputs).to_dict()
        return model

    @classmethod
    def from_anchor_sets(
        cls,
        source: Any,
        source_anchors: str | Path | AnchorSet,
        target_anchors: str | Path | AnchorSet,
        head: Any = None,
        *,
        labels: Sequence[str] | Mapping[Any, str] | None = None,
        prefer: Prefer | None = None,
        **settings: Unpack[GivenSettings],
    ) -> "RelativeStitcher":
        """Stitch a source encoder to a head through two anchor sets; the target model is not loaded.

        The sets (or their folders or Hub ids) are paired by id, so the order of their rows does not matter. Without a
        head, it is read from the classifier on the Hub that the target anchors come from. With the source None, the
        model takes latents only, by `classify` and `translate`. For the other arguments see `from_parts`.

        Raises:
            StitchError: the anchors differ in model or width from the encoder or the head, or share too few inputs.
        """
        check_settings(prefer=prefer, **settings)
        arguments: dict[str, Any] = {
            "source_anchors": anchors_as_code(source_anchors, name="source_anchors"),
            "target_anchors": anchors_as_code(target_anchors, name="target_anchors"),
            "labels": "labels" if labels is not None else None,
        }
        source_anchors, target_anchors = (
            one if isinstance(one, AnchorSet) else AnchorSet.from_pretrained(one)
            for one in (source_anchors, target_anchors)
        )
        found = load_head(target_anchors.provenance) if head is None else head
        named_head = Head.from_module(found, labels=labels, dim=target_anchors.dim)
        if source is None:
            encoder: Encoder = absent_encoder(source_anchors.provenance)
        else:
            encoder = to_encoder(source, by_token=target_anchors.provenance.by_token)
        origin = encoder.provenance
        made = stitch(source_anchors, target_anchors, named_head, source=origin, prefer=prefer, **settings)
        call = write_call("from_anchor_sets", origin, head, made, **arguments)
        return cls._assemble(encoder, named_head, made, call=call)

    @classmethod
    def _assemble(cls, encoder: Encoder, head: Head, made: Stitch, *, call: str) -> "RelativeStitcher":
        """Put an encoder, the translation of its latents and a copy of the head into one model."""
        encoder.to_device(accelerate_state().device)
        described = describe_head(head.module)
        is_of_pairs = encoder.layout is not None or made.source_anchors.groups is not None
        config = RelativeStitcherConfig(
            getattr(encoder.model, "config", None),
            modality=encoder.modality,
            pooling=encoder.pooling,
            after_pooling=describe_chain(encoder.after_pooling),
            batching=encoder.batching,
            pairs=describe_pairs(encoder.layout) if is_of_pairs else None,
            separators=None if encoder.layout else describe_separators(encoder.processor),
            d_source=made.source_anchors.dim,
            d_target=made.target_anchors.dim,
            num_anchors=len(made.source_anchors),
            translation=asdict(made.settings),
            selection=made.selection,
            readout=made.readout is not None,
            logit_temperature=made.temperature,
            head=described,
            source=made.source_anchors.provenance.to_dict(),
            target=made.target_anchors.provenance.to_dict(),
            report=made.report,
            call=call,
            id2label=head.id2label,
            label2id={label: index for index, label in head.id2label.items()},
            problem_type=_problem_type(head, modality=encoder.modality),
        )
        if head.activation is not None:
            config.sentence_transformers = {"activation_fn": head.activation}  # for its CrossEncoder
        with torch.device("meta"):
            model = cls(config)
        device, dtype = placement(encoder.model)
        model.after_pooling = encoder.after_pooling
        exact = torch.promote_types(dtype, torch.float32)
        model.translation = made.translation.to(device, exact)
        model.readout = made.readout and made.readout.to(device, exact)
        head_module = copy_head(head.module) if described else deepcopy(head.module)
        model.head = head_module.to(device, dtype)
        model.config.head = described or {"kind": "module", "type": type(head_module).__name__}
        model.anchors.source, model.anchors.target = made.source_anchors.latents, made.target_anchors.latents
        model.anchors.ids = made.source_anchors.ids
        model.attach(encoder.model)
        model._processor = encoder.processor
        model.config.fingerprints = model._fingerprints()
        return model.eval()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | TokenClassifierOutput | ImageClassifierOutput | BaseModelOutputWithPooling:
        """Return logits for the source processor's output, and a loss if there are labels.

        Returns:
            A `SequenceClassifierOutput`, or for images an `ImageClassifierOutput`, with logits `(n, num_labels)`; of a
            model that labels tokens a `TokenClassifierOutput`, with logits `(n, t, num_labels)`.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
            "input_values": input_values,
            "input_features": input_features,
        }
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        tokens = getattr(self.config.source_config, "model_type", None) in PIXELS_AS_TOKENS
        check_inputs(given.keys() | kwargs.keys(), modality="text" if tokens else self.config.modality)
        if self.separators is not None and "input_ids" in given and not torch.compiler.is_compiling():
            self.separators.check(given, pairs=self.config.pairs is not None)
        latents, encoded = self.encode_batch(given, **kwargs)
        states = {name: getattr(encoded, name, None) for name in ("hidden_states", "attentions")}
        return self._output(latents, labels, **states)

    def _output(self, latents: Tensor, labels: Tensor | None, **states: Any) -> Any:
        """Return logits, and a loss if there are labels, of source latents `(n, d_source)` or `(n, t, d_source)`."""
        logits = self.classify(latents.flatten(0, -2)).unflatten(0, latents.shape[:-1])
        loss = None
        if labels is not None:
            loss = (
                self.loss_function(logits, labels, self.config)
                if self.config.by_token
                else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
            )
        return OUTPUTS[self.config.task](loss=loss, logits=logits, **states)

    def encode_batch(self, batch: Mapping[str, Tensor], **options: Any) -> tuple[Tensor, Any]:
        """Return source latents `(n, d_source)` of a processed batch, and the encoder's output that they come from.

        Of a model that labels tokens they are `(n, t, d_source)`.
        """
        return encode_batch(
            self.encoder,
            batch,
            pooling=self.config.pooling,
            after_pooling=self.after_pooling,
            batching=self.config.batching,
            layout=self.layout,
            **options,
        )

    def translate(self, latents: Tensor) -> Tensor:
        """Translate source latents `(n, d_source)` to target latents `(n, d_target)`, in their dtype.

        Raises:
            StitchError: `latents` is not a tensor of floats of this shape.
        """
        self._check(latents)
        return self.translation(latents)

    def classify(self, latents: Tensor) -> Tensor:
        """Return logits `(n, num_labels)` of source latents `(n, d_source)` computed elsewhere, in the model's dtype.

        Raises:
            StitchError: `latents` is not a tensor of floats of this shape.
        """
        self._check(latents)
        latents = latents.to(next(self.head.parameters(), latents).dtype)
        if self.fused is not None:
            return self.fused(latents) / self.config.logit_temperature
        logits = self.head(self.translation(latents))
        if self.readout is not None:
            logits = logits + self.readout(latents)
        return logits / self.config.logit_temperature

    def extra_repr(self) -> str:
        """Return the names of both models, and what is expected of the stitched one."""
        config, grade = self.config, self.config.report.get("verdict", {}).get("grade", "not known")
        return (
            f"{config.source['model_id']!r} with the head of {config.target['model_id']!r}, {config.num_anchors} "
            f"anchors, verdict: {grade}"
        )

    def get_input_embeddings(self) -> nn.Module:
        """Return the source encoder's embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the source encoder's embeddings."""
        self.encoder.set_input_embeddings(value)

    def _fingerprints(self, names: Sequence[str] = PARTS) -> dict[str, str]:
        """Return hashes of the weights of these parts, callables aside, and the dtype that they are in."""
        parts = {name: getattr(self, name) for name in names}
        hashes = {name: fingerprint(part) for name, part in parts.items() if not isinstance(part, Function)}
        return {"dtype": str(placement(self.encoder)[1]), **hashes}

    def _check_encoder(self) -> None:
        """Refuse an encoder that was trained after the anchors were encoded."""
        before, is_quantised = self.config.fingerprints, getattr(self.encoder, "hf_quantizer", None) is not None
        now = self._fingerprints(["encoder"]) if before and not is_quantised else before
        same = before.get("dtype") != now.get("dtype") or before.get("encoder") == now.get("encoder")
        if "encoder" in self.config.trained or not same:
            raise StitchError(
                "the source encoder was trained further, and the anchors are latents of what it was: encode the anchor "
                "inputs with it and stitch again"
            )

    def _check(self, latents: Tensor) -> None:
        check_latents(latents, width=self.config.d_source, of=f" of the source, {self.config.source['model_id']}")

    @torch.no_grad()
    def predict(self, inputs: Sequence[Any], *, batch_size: int = 32) -> Tensor:
        """Return logits `(n, num_labels)` of raw inputs; for sources without a pipeline, like callables.

        A model that labels tokens gives those of each of `words(inputs)`.

        Raises:
            StitchError: there are no inputs, or an input is of another kind than the source takes.
        """
        return self.classify(self._latents(inputs, batch_size=batch_size))

    def words(self, texts: Sequence[str]) -> list[Word]:
        """Return the words of texts that a model that labels tokens gives a label to, by the word's first token.

        Raises:
            StitchError: the inputs are not texts, or the model gives one answer an input.
        """
        if not self.config.by_token:
            raise StitchError("the model gives one answer an input, and labels no words: use predict(inputs)")
        return find_words(texts, tokenizer=self.processor)

    @torch.no_grad()
    def relative(self, inputs: Sequence[Any], *, batch_size: int = 32) -> RelativeLatents:
        """Return relative latents of raw inputs; a holder of the target's anchors turns them into target latents.

        `AnchorSet.invert` of them equals `translate`, to rounding; see `core/projection.py` for the formula.

        Raises:
            StitchError: there are no inputs, or an input is of another kind than the source takes.
        """
        self._check_encoder()
        values = encode_relative(
            self._latents(inputs, batch_size=batch_size),
            source_anchors=self.anchors.source,
            target_anchors=self.anchors.target,
            settings=self.config.translation_settings,
        )
        target = Provenance.from_dict(self.config.target)
        return RelativeLatents(values.float().cpu(), self.anchors.ids.cpu(), self.config.translation_settings, target)

    def check(self, inputs: Sequence[Any]) -> Report:
        """Return the report with `coverage`, the share of these inputs that are like the anchors, and a new verdict.

        The agreement that a report expects holds only for inputs like the anchors.
        """
        self._check_encoder()
        latents = self._latents(inputs, batch_size=32)
        return Report(add_coverage(self.config.report, latents, self.anchors.source))

    @torch.no_grad()
    def _latents(self, inputs: Sequence[Any], *, batch_size: int) -> Tensor:
        """Source latents `(n, d_source)` of raw inputs, on the device that the model is on; in evaluation mode."""
        self.eval()
        check_some(inputs, batch_size=batch_size)
        check_pairs(inputs, pairs=self.config.pairs is not None)
        if isinstance(self.encoder, Function):
            return self.encoder.latents(inputs, batch_size=batch_size).to(self.anchors.source.device)
        encoded = encode_inputs(
            inputs,
            lambda batch: self.encode_batch(batch)[0],
            model=self.encoder,
            processor=self.processor,
            by_token=self.config.by_token,
            batch_size=batch_size,
        )
        return in_order([*encoded]).to(self.anchors.source.device)

    def fuse(self) -> "RelativeStitcher":
        """Fuse the model into one linear layer for logits, and return it; `translate` and saved folders stay the same.

        Raises:
            StitchError: the translation has a kernel or `norm="mean"`, or the head is not one linear layer.
        """
        self.fused = fuse(self.translation, self.head, self.readout)
        return self

    def to_sentence_transformer(self, folder: str | Path | None = None, *, repo_id: str | None = None) -> Any:
        """Return a SentenceTransformer that encodes into the target's space; write it to `folder` too if one is given.

        It gives `translate` of the source's latents, `(n, d_target)`, and runs without this package. Head and readout
        are left out: they make logits. The folder has a card, which shows `repo_id`.

        Raises:
            StitchError: the translation has a kernel (stitch with `prefer="linear"`), sentence-transformers has no
                module for a part of the source, or the `sentence-transformers` extra is not installed.

        Example:
            >>> model.to_sentence_transformer("exported").encode(["A storm hits the coast"]).shape
            (1, 768)
        """
        self._check_encoder()
        self.config.check_one_pass("a sentence-transformers model")
        return to_sentence_transformer(
            folder,
            model=self.encoder,
            processor=self._processor if isinstance(self.encoder, Function) else self.processor,
            pooling=self.config.pooling,
            layers=[self.after_pooling, *translation_layers(self.translation)],
            batching=self.config.batching,
            facts={"source": self.config.source, "target": self.config.target, "report": self.config.report},
            repo_id=repo_id,
        )

    @property
    def report(self) -> Report:
        """Return the facts known when the model was stitched, before any label was seen.

        These are measured on anchors held out of the fit, in five folds: `cosine` and `mean_reciprocal_rank` between
        translated and true target latents; `agreement`, the share of inputs on which the head is expected to answer the
        same as on the target's own latent, with its 95 % interval and the agreement by chance (with several labels,
        `agreement_of` yes-or-no answers, one for each input and class; of a head that labels tokens, words;
        then texts are held out, and `entity_agreement` is the F1 of its entities with the head's own, if it has any).
        `scale_invariance` is the share of answers that the head keeps when latents are scaled; `verdict` is good,
        usable or do not use, with the reason and the likely remedy. For a head that gives values, `agreement` is None
        and `values_explained` is a share of the variance of its own values, with its 95 % interval; for a single value
        also `spearman`, the rank correlation with its own, and, for pairs of texts, `ndcg` of the pairs with the same
        first text ranked by it. `pairs` has what was expected of each way to read pairs. `source` and `target` give
        each side's width, rank, condition number and effective rank.

        Fields are items and attributes, `report.verdict.grade`; it prints as a table.
        """
        return Report(self.config.report)

    def plot(self, file: str | Path) -> dict[int, float]:
        """Draw both spaces, the answers to held-out anchors, and the learning curve as one PNG; return the curve.

        The curve says what is expected with each number of anchors: with a quarter and half of them, with all, and,
        estimated, with twice as many. The anchors are stitched again for it; no encoder runs.

        Raises:
            StitchError: matplotlib is not installed.

        Example:
            >>> model.plot("stitched.png")  # doctest: +SKIP
            {50: 0.71, 100: 0.78, 200: 0.83, 400: 0.87}
        """
        try:
            from hf_relstitch.model.plots import draw_model, learning_curve, stitch_parts  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise StitchError("a picture needs matplotlib: pip install 'hf-relstitch[benchmark]'") from error
        head = Head(self.head, dict(self.config.id2label), self.config.problem_type)
        stitches = stitch_parts(self.config, self.anchors, head)
        curve = learning_curve(stitches)
        draw_model(stitches[-1][0], curve, head, file)
        return curve

    @property
    def processor(self) -> Any:
        """Return the source's tokenizer, image processor or feature extractor.

        Raises:
            StitchError: the source has no processor, like a callable.
        """
        if self._processor is None:
            if self._processor_folder is None:
                raise StitchError(
                    f"the source, {self.config.source['model_id']}, is a callable without a processor: give raw inputs "
                    "to model.predict, or latents to model.classify"
                )
            load = getattr(transformers, MODALITIES[self.config.modality].loader).from_pretrained
            check_growth(Path(self._processor_folder, TOKENIZER))
            with wrap_errors(f"the processor in {self._processor_folder} cannot be loaded"):
                self._processor = load(self._processor_folder, trust_remote_code=False)
        return self._processor

    def save_pretrained(
        self, save_directory: str | Path, *, share: str = "full", repo_id: str | None = None, **kwargs: Any
    ) -> None:
        """Write the whole model: config, safetensors weights, processor, card; a failure leaves the folder unchanged.

        Edits of an existing card stay; the card shows `repo_id`. With several processes only the main one writes.

        `share="adapter"` leaves the source encoder's weights out and names its Hub repo and commit instead, from which
        loading gets them. Saving and each loading check that the repo holds the same weights.

        Raises:
            StitchError: there is no source encoder, or it is not a transformers model, so its architecture cannot be
                stored, or an adapter's is not on the Hub; the folder holds another model or an anchor set.
        """
        save_model(self, save_directory, share=share, repo_id=repo_id, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        share: str = "full",
        commit_message: str = "Push a stitched model",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        parent_commit: str | None = None,
        max_shard_size: int | str = "50GB",
    ) -> str:
        """Push the whole model as one commit, and return the commit's address; see `save_pretrained` for `share`.

        With several processes only the main one pushes; the others return an empty address.

        Raises:
            StitchError: the Hub refuses or cannot be reached, or its branch is not at `parent_commit` (by default: has
                moved since this push began).
        """
        return push_folder(
            lambda folder, name: self.save_pretrained(
                folder, share=share, repo_id=name, max_shard_size=max_shard_size, token=token
            ),
            repo_id,
            owned=STITCHED_MODEL.owned,
            message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent_commit,
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a folder or a Hub repo, as for any transformers model; only safetensors are read.

        Raises:
            StitchError: the model is missing, its weights are missing, damaged or do not fit the config, it has a
                newer format, or an adapter's source encoder has changed.
        """
        return load_model(cls, pretrained_model_name_or_path, *args, output_loading_info=output_loading_info, **kwargs)

    def attach(self, encoder: nn.Module) -> None:
        """Put the source encoder in, and the rest on its device."""
        self.encoder = None
        self.to(placement(encoder)[0])
        self.encoder = encoder
        self.config.source_config = getattr(encoder, "config", None)
        if (device_map := getattr(encoder, "hf_device_map", None)) is not None:
            self.hf_device_map = {f"encoder.{name}".rstrip("."): device for name, device in device_map.items()}


class RelativeStitcherModel(RelativeStitcher):
    """Run a stitched model without its head: inputs to latents in the target's space.

    `AutoModel.from_pretrained` and the feature-extraction pipelines load it from a stitched model's folder or repo.

    `forward` returns a `BaseModelOutputWithPooling`. `pooler_output` holds the latents `(n, d_target)`;
    `last_hidden_state` holds them as the one row of each input, `(n, 1, d_target)`, so that its mean and its first row
    are the latent. Of a model that labels tokens `last_hidden_state` is `(n, t, d_target)` and `pooler_output` None.
    """

    def _output(self, latents: Tensor, labels: Tensor | None, **states: Any) -> BaseModelOutputWithPooling:
        """Return target latents as the output of a model without a head."""
        if labels is not None:
            raise StitchError("labels go with a head, which AutoModel leaves out: load the model by RelativeStitcher")
        translated = self.translate(latents.flatten(0, -2)).unflatten(0, latents.shape[:-1])
        if self.config.by_token:
            return BaseModelOutputWithPooling(last_hidden_state=translated, **states)
        return BaseModelOutputWithPooling(last_hidden_state=translated[:, None], pooler_output=translated, **states)


AutoModel.register(RelativeStitcherConfig, RelativeStitcherModel)


def _register(auto: Any, task: str) -> None:
    """Register the model with an Auto class, which refuses a model for another task: all have one class here."""

    class ForTask(RelativeStitcher):
        @classmethod
        def from_pretrained(cls, place: str | Path, *args: Any, config: RelativeStitcherConfig, **kwargs: Any) -> Any:  # type: ignore[override]
            if config.task != task:
                raise StitchError(
                    f"{place} is a model for {config.task}, and not for {task}: use pipeline({config.task!r}, …) or "
                    f"{AUTO_CLASSES[config.task]}"
                )
            return RelativeStitcher.from_pretrained(place, *args, config=config, **kwargs)

        @classmethod
        def _from_config(cls, config: RelativeStitcherConfig, **kwargs: Any) -> Any:
            return RelativeStitcher._from_config(config, **kwargs)

    ForTask.__name__ = RelativeStitcher.__name__  # by which pipelines know what they take
    auto.register(RelativeStitcherConfig, ForTask)


for _task, _auto in AUTO_CLASSES.items():
    _register(getattr(transformers, _auto), _task)
