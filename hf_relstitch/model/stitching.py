"""Stitch two anchor sets and a head: encode the target's, pair and check them, fit a translation and a readout."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_relstitch.core.cross_validation import SPLITS
from hf_relstitch.core.decomposition import Frame
from hf_relstitch.core.distillation import fit_readout
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.head_outputs import (
    apply_head,
    matching_offsets,
    matching_temperature,
    output_scale_for_values,
    probabilities,
)
from hf_relstitch.core.measures import translate_held_out
from hf_relstitch.core.options import Prefer
from hf_relstitch.core.relative import to_working
from hf_relstitch.core.selection import Choice, check_prefer, choose_settings
from hf_relstitch.core.translation import GivenSettings, KernelTranslation, Translation, TranslationSettings, fit
from hf_relstitch.data.ids import ids_of_texts, input_ids
from hf_relstitch.data.inputs import check_kinds, inputs_at, side_of, sides_of
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.heads.head import Head, num_logits
from hf_relstitch.hub.cards import Base
from hf_relstitch.hub.processes import accelerate_state
from hf_relstitch.layers import widths_of
from hf_relstitch.model.anchors import AnchorSet
from hf_relstitch.model.reporting import make_report

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded
SHARES_OF_ONE = 1e-2
"""How far the sum of a head's logits may be from 1 if they are probabilities, in half precision too."""
FREE = {"norm", "seed"}
"""Settings that may be given while the others are chosen."""


@dataclass(frozen=True)
class Stitch:
    """Hold a fitted translation with the paired anchors behind it, and the facts known about it.

    `held_out` are the source anchors, each translated by a fit that has not seen it; `held_out_logits` are their
    logits before the temperature.
    """

    source_anchors: AnchorSet
    target_anchors: AnchorSet
    settings: TranslationSettings
    selection: dict[str, Any] | None
    translation: Translation | KernelTranslation
    readout: Translation | None
    temperature: float
    report: dict[str, Any]
    held_out: Tensor
    held_out_logits: Tensor

    def logits(self, latents: Tensor, *, head: nn.Module) -> Tensor:
        """Return logits `(n, classes)` of source latents `(n, d_source)` by the head, as the stitched model does."""
        logits = apply_head(head, self.translation(latents))
        if self.readout is not None:
            logits = logits + self.readout(latents)
        return logits / self.temperature


class AnchorPair(nn.Module):
    """Hold both sides' anchors, row for row: the data from which the translation can be computed again."""

    source: Tensor
    target: Tensor
    ids: Tensor

    def __init__(self, num_anchors: int, d_source: int, d_target: int) -> None:
        super().__init__()
        self.register_buffer("source", torch.empty(num_anchors, d_source))
        self.register_buffer("target", torch.empty(num_anchors, d_target))
        self.register_buffer("ids", torch.empty(num_anchors, dtype=torch.int64))


def stitch(
    source_anchors: AnchorSet,
    target_anchors: AnchorSet,
    head: Head,
    *,
    source: Provenance,
    prefer: Prefer | None = None,
    **settings: Unpack[GivenSettings],
) -> Stitch:
    """Fit the translation from a source encoder to a head, on the device that accelerate gives.

    Settings of the caller are used unchanged. Without any (`norm` and `seed` aside) they are chosen on the anchors, and
    a readout of the source latents is fitted to the head's answers beside the translation. Anchors are taken in the
    order of their ids, so that their own order changes nothing.

    Raises:
        StitchError: the anchors differ in model from the encoder or the head, or in width from the head,
            or share too few inputs; or `prefer` comes with settings that leave nothing to choose.
    """
    chosen = check_settings(prefer=prefer, **settings)
    selection, readout = None, None
    by_token = target_anchors.provenance.by_token
    if source_anchors.provenance.by_token != by_token:
        one, other = ("words", "whole inputs") if by_token else ("whole inputs", "words")
        raise StitchError(
            f"the target anchors are {one} and the source anchors {other}: for a head that labels tokens both encoders "
            "need pooling='tokens', for any other neither"
        )
    _check_same_model(source_anchors, source, side="source")
    if head.provenance is not None:
        _check_same_model(target_anchors, head.provenance, side="target")
    takes, _ = widths_of(head.module)
    if takes not in (None, target_anchors.dim):
        raise StitchError(
            f"the head takes latents {takes} wide and the target anchors are {target_anchors.dim}: "
            "encode the anchors with the model that the head was trained on, at the head's input"
        )
    if (count := num_logits(head.module, dim=target_anchors.dim)) != len(head.id2label):
        raise StitchError(f"the head gives {count} logits and has {len(head.id2label)} labels: name each class once")
    source_anchors, target_anchors = source_anchors.sorted_by_id().intersect(target_anchors)
    device = accelerate_state().device
    x, y = source_anchors.latents.to(device), target_anchors.latents.to(device)
    target = to_working(y)
    true = apply_head(head.module, target)
    if not true.isfinite().all():
        raise StitchError("the head gives logits that are not finite for the target's anchors: look at its weights")
    _check_logits(true, head)
    frames = Frame.from_anchors(x), Frame.from_anchors(y)
    texts = _texts_of(source_anchors)
    if settings.keys() - FREE:
        translated = translate_held_out(x, y, settings=chosen, groups=texts)
        translation = fit(x, y, settings=chosen, frames=None if chosen.gamma else frames)
    else:
        prefer = prefer or "auto"
        choice = choose_settings(x, y, prefer=prefer, norm=chosen.norm, source_frame=frames[0], groups=texts)
        chosen, selection = replace(choice.settings, seed=chosen.seed), _as_data(choice, prefer=prefer)
        translated = choice.translated
        if not (head.answers or chosen.identity):
            scale = output_scale_for_values(head.module, translated, target)
            chosen = replace(chosen, output_scale=chosen.output_scale * scale)
            translated = target.mean(0) + scale * (translated - target.mean(0))
        translation = fit(x, y, settings=chosen, frames=(choice.source_frame, frames[1]))
    logits = apply_head(head.module, translated)
    answers = probabilities(true, multi_label=head.multi_label)
    keeps_norm = chosen.norm == "keep" and not chosen.identity
    if selection is not None and head.answers and not head.multi_label and keeps_norm:
        readout, logits = _add_readout(x, logits, answers, groups=texts)
    groups = target_anchors.groups
    report = make_report(translated, target, logits, true, head, frames=frames, groups=groups, texts=texts)
    temperature = matching_temperature(logits, answers, multi_label=head.multi_label) if head.answers else 1.0
    return Stitch(
        source_anchors,
        target_anchors,
        settings=chosen,
        selection=selection,
        translation=translation,
        readout=readout,
        temperature=temperature,
        report=report,
        held_out=translated,
        held_out_logits=logits,
    )


def _check_logits(logits: Tensor, head: Head) -> None:
    """Refuse a head that gives probabilities, of which pipelines would make others.

    Raises:
        StitchError: each input's logits are shares of 1, or the head ends in a sigmoid.
    """
    shares = logits.shape[1] > 1 and bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < SHARES_OF_ONE).all())
    if head.problem_type != "regression" and (shares or isinstance([*head.module.modules()][-1], nn.Sigmoid)):
        raise StitchError(
            "the head gives probabilities, and logits are expected, of which pipelines make probabilities: give it "
            "without its last layer, the softmax or sigmoid; where classes are not exclusive, as "
            "Head(module, id2label, 'multi_label_classification'), and for values with 'regression'"
        )


def _texts_of(anchors: AnchorSet) -> Tensor | None:
    """The number of each word's text, since the words of a text are held out together; None for whole inputs.

    Raises:
        StitchError: the words are of fewer texts than there are splits.
    """
    if not anchors.provenance.by_token:
        return None
    texts = ids_of_texts(anchors.ids)
    if (count := len(texts.unique())) < SPLITS:
        raise StitchError(
            f"the anchors are words of {count} texts: at least {SPLITS} are needed, some hundreds are usual"
        )
    return texts


def _add_readout(x: Tensor, logits: Tensor, answers: Tensor, *, groups: Tensor | None) -> tuple[Translation, Tensor]:
    """Fit a readout of source latents, and add it to held-out logits of the translation.

    The sum is the mean of two log-probabilities, up to the temperature that is matched later. Of the readout only what
    sets an input apart from the mean anchor is added: a few hundred answers tell little of an input, and the readout's
    offsets of classes then favour the frequent ones. Offsets that keep the head's shares of classes take their place.
    """
    readout = fit_readout(x, answers, groups=groups)
    scale = matching_temperature(logits, answers)
    both = logits + scale * (readout.held_out - readout.held_out.mean(0))
    offsets = matching_offsets(both, answers)
    layer = Translation(x.shape[1], answers.shape[1], norm="keep")
    layer.centre = to_working(x).mean(0)
    layer.weight = scale * readout.weight.T
    layer.bias = offsets - layer.centre @ layer.weight
    return layer, both + offsets


def check_settings(*, prefer: str | None = None, **settings: Unpack[GivenSettings]) -> TranslationSettings:
    """Return the caller's settings with defaults for the others; also called before anything is encoded.

    Raises:
        StitchError: a name or a value is not valid for a setting, or `prefer` comes with a setting that it chooses.
    """
    names = [field.name for field in fields(TranslationSettings)]
    if unknown := sorted(settings.keys() - set(names)):
        raise StitchError(f"{unknown[0]} is neither an argument nor a setting: settings are {', '.join(names)}, prefer")
    if prefer is not None:
        check_prefer(prefer)
        if given := sorted(settings.keys() - FREE):
            raise StitchError(f"prefer is {prefer!r} and {given[0]} is given: prefer chooses it, so leave one out")
    return TranslationSettings(**settings)


def _as_data(choice: Choice, *, prefer: Prefer) -> dict[str, Any]:
    """Return a choice as plain values: what sets each candidate apart, and its score."""
    candidates = []
    for candidate in choice.candidates:
        settings = candidate.settings
        named = {"identity": True} if settings.identity else {"gamma": settings.gamma, "ridge": settings.ridge}
        candidates.append(named | {"score": candidate.score})
    return {
        "prefer": prefer,
        "criterion": choice.criterion,
        "score": choice.score,
        "standard_error": choice.standard_error,
        "candidates": candidates,
    }


def _check_same_model(anchors: AnchorSet, model: Provenance, *, side: str) -> None:
    """Refuse anchors that another model made: the same width does not make it the same space."""
    if difference := anchors.provenance.difference(model):
        raise StitchError(
            f"the {side} anchors were made by another model than the one given ({difference}): encode the anchor "
            "inputs with this model, or load the model that made them"
        )


def encode_target(
    target: Encoder,
    head: Any,
    anchors: Sequence[Any],
    *,
    num_anchors: int | None,
    key: str | None = None,
    **options: Any,
) -> tuple[AnchorSet, list[Any]]:
    """Encode anchors with a target's encoder; return the `num_anchors` most telling, see `chosen`, and their inputs.

    `options` are those of `AnchorSet.encode`. If the head labels tokens, the inputs are words.

    Raises:
        StitchError: the encoder or the head reads inputs of another kind, or the latents cannot be anchors.
    """
    _, side = sides_of(anchors)
    check_kinds(side_of(anchors, side), modality=target.modality, who="target")
    if isinstance(head, Head):
        head.check_inputs(anchors)
    first = inputs_at(anchors, [0])[0]
    if isinstance(first, tuple) and all(isinstance(one, str) for one in first):
        logger.warning(
            "the anchors are tuples of two texts: the source reads the first, the target the second. A pair of texts "
            'that is one input of both is {"text": …, "text_pair": …}'
        )
    inputs = target.anchor_inputs(anchors)
    ids = input_ids(inputs, key=key)
    target_anchors = AnchorSet.encode(target, inputs, side=side, ids=ids, key=key, **options).chosen(num_anchors)
    return target_anchors, inputs_at(inputs, target_anchors.rows_of(ids))


def write_call(
    method: str,
    source: Provenance,
    head: Any,
    made: Stitch,
    *,
    target: Provenance | None = None,
    **arguments: str | None,
) -> str:
    """Write the call that builds a stitched model, as Python for its card, and with no path of this machine.

    Settings that were chosen are left to be chosen again; others are all written. `arguments` are Python too; None
    stands for an argument that was not passed.
    """
    values = asdict(made.settings)
    if made.selection is not None:
        values = {"prefer": made.selection["prefer"], "norm": made.settings.norm, "seed": made.settings.seed}
    cut = head.provenance if isinstance(head, Head) else None
    code = {
        "source": Base.from_provenance(source.to_dict()).call,
        "target": target and ("target" if cut else Base.from_provenance(target.to_dict()).call),
        **arguments,
        "head": None if head is None else "head",
        **{name: repr(value) for name, value in values.items()},
    }
    given = [f"    {name}={value}," for name, value in code.items() if value is not None]
    loaded = [f"target, head = load_classifier({Base.from_provenance(cut.to_dict()).arguments})"] if cut else []
    return "\n".join([*loaded, f"RelativeStitcher.{method}(", *given, ")"])


def anchors_as_code(anchors: str | Path | AnchorSet, *, name: str) -> str:
    """Write anchors as Python: their Hub id if they have one, or a variable's name."""
    return repr(anchors) if isinstance(anchors, str) and not Path(anchors).exists() else name
