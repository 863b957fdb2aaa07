"""Stitch two anchor sets and a head: pair and check them, fit a translation and a readout, and report on them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_relstitch.core.cross_validation import SPLITS
from hf_relstitch.core.decomposition import Frame
from hf_relstitch.core.distillation import fit_readout
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.expected_agreement import (
    AgreementEstimate,
    anchor_coverage,
    answers_used,
    estimate_agreement,
    scale_invariance,
    verdict,
)
from hf_relstitch.core.head_outputs import (
    apply_head,
    matching_temperature,
    output_scale_for_values,
    probabilities,
    values_explained,
)
from hf_relstitch.core.measures import (
    discounted_gain,
    mean_cosine,
    mean_reciprocal_rank,
    rank_correlation,
    translate_held_out,
)
from hf_relstitch.core.options import Prefer
from hf_relstitch.core.relative import to_working
from hf_relstitch.core.selection import Choice, check_prefer, choose_settings
from hf_relstitch.core.translation import KernelTranslation, Translation, TranslationSettings, fit
from hf_relstitch.data.ids import ids_of_texts
from hf_relstitch.data.inputs import inputs_at
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.data.words import entity_f1, has_entities
from hf_relstitch.heads.head import Head, num_logits
from hf_relstitch.hub.cards import Base
from hf_relstitch.hub.processes import accelerate_state
from hf_relstitch.layers import widths_of
from hf_relstitch.model.anchors import AnchorSet

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded
SURE = 2.0
"""Standard errors on each side of a 95 % interval."""
READOUT_WEIGHT = 0.5
"""Weight of the readout beside the translation: it knows the head by its answers to the anchors only."""
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

    @classmethod
    def from_sets(cls, source: AnchorSet, target: AnchorSet) -> "AnchorPair":
        """Return the anchors of two paired sets."""
        pair = cls(0, 0, 0)
        pair.source, pair.target, pair.ids = source.latents, target.latents, source.ids
        return pair


def stitch(
    source_anchors: AnchorSet,
    target_anchors: AnchorSet,
    head: Head,
    *,
    source: Provenance,
    prefer: Prefer | None = None,
    **settings: Any,
) -> Stitch:
    """Fit the translation from a source encoder to a head, on the device that accelerate gives.

    Settings of the caller are used unchanged. Without any (`norm` and `seed` aside) they are chosen on the anchors, and
    a readout of the source latents is fitted to the head's answers beside the translation. Anchors are taken in the
    order of their ids, so that their own order changes nothing.

    Raises:
        StitchError: the anchors differ in model from the encoder or the head, or in width from the head,
            or share too few inputs; or `prefer` comes with settings that leave nothing to choose.
    """
    how, selection = check_settings(prefer=prefer, **settings), None
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
    frames, texts = (Frame.from_anchors(x), Frame.from_anchors(y)), _texts_of(source_anchors)
    if settings.keys() - FREE:
        translated = translate_held_out(x, y, settings=how, groups=texts)
        translation = fit(x, y, settings=how, frames=None if how.gamma else frames)
    else:
        prefer = prefer or "auto"
        choice = choose_settings(x, y, prefer=prefer, norm=how.norm, source_frame=frames[0], groups=texts)
        how, selection = replace(choice.settings, seed=how.seed), _as_data(choice, prefer=prefer)
        translated = choice.translated
        if not (head.answers or how.identity):
            scale = output_scale_for_values(head.module, translated, target)
            how = replace(how, output_scale=how.output_scale * scale)
            translated = target.mean(0) + scale * (translated - target.mean(0))
        translation = fit(x, y, settings=how, frames=(choice.source_frame, frames[1]))
    logits, readout = apply_head(head.module, translated), None
    answers = probabilities(true, multi_label=head.multi_label)
    if selection is not None and head.answers and not head.multi_label and how.norm == "keep" and not how.identity:
        readout, logits = _add_readout(x, logits, answers, groups=texts)
    groups = target_anchors.groups
    report = _make_report(translated, target, logits, true, head, frames=frames, groups=groups, texts=texts)
    temperature = matching_temperature(logits, answers, multi_label=head.multi_label) if head.answers else 1.0
    facts = selection, translation, readout, temperature, report
    return Stitch(source_anchors, target_anchors, how, *facts, held_out=translated, held_out_logits=logits)


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


def _add_readout(
    x: Tensor, logits: Tensor, answers: Tensor, *, groups: Tensor | None
) -> tuple[Translation | None, Tensor]:
    """Add a readout of source latents to held-out logits of the translation, unless it is better alone.

    The sum is a weighted mean of log-probabilities, up to the temperature that is matched later. The translation is
    better alone where its cross-entropy with the head's answers is lower by more than one standard
    error of the difference.
    """
    readout = fit_readout(x, answers, groups=groups)
    temperature = matching_temperature(logits, answers)
    scale = READOUT_WEIGHT * temperature
    both = logits + scale * readout.held_out

    def losses(logits: Tensor, temperature: float) -> Tensor:
        return -(answers * (logits / temperature).log_softmax(-1)).sum(-1)

    worse = losses(both, matching_temperature(both, answers)) - losses(logits, temperature)
    if worse.mean() > worse.std() / len(worse) ** 0.5:
        return None, logits
    layer = Translation(x.shape[1], answers.shape[1], norm="keep")
    layer.weight, layer.bias = scale * readout.weight.T, scale * readout.bias
    layer.centre = to_working(x).mean(0)
    return layer, both


def check_settings(*, prefer: str | None = None, **settings: Any) -> TranslationSettings:
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


def _make_report(
    translated: Tensor,
    target: Tensor,
    logits: Tensor,
    true_logits: Tensor,
    head: Head,
    *,
    frames: tuple[Frame, Frame],
    groups: Tensor | None,
    texts: Tensor | None,
) -> dict[str, Any]:
    """Describe a stitched model by anchors held out of its fit; see `RelativeStitcher.report` for the fields.

    For words `texts` says which are of one text.
    """
    centre = target.mean(0)
    report = {
        "num_anchors": len(target),
        "cosine": mean_cosine(translated, target, centre=centre),
        "mean_reciprocal_rank": mean_reciprocal_rank(translated, target, centre=centre),
        "source": describe_frame(frames[0]),
        "target": describe_frame(frames[1]),
    }
    if not head.answers:
        report |= {"agreement": None, **_describe_values(translated, target, logits, true_logits, head, groups)}
        return report | {"verdict": _give_verdict(report)}
    estimate = estimate_agreement(logits, true_logits, multi_label=head.multi_label, groups=texts)
    of = "inputs" if texts is None else "words"
    report |= {
        "agreement": estimate.agreement,
        "agreement_of": "yes-or-no answers" if head.multi_label else of,
        "agreement_interval": [estimate.low, estimate.high],
        "chance_agreement": estimate.chance,
        "answers_used": answers_used(true_logits, multi_label=head.multi_label),
        "scale_invariance": scale_invariance(head.module, target, multi_label=head.multi_label),
    }
    if texts is not None and not head.multi_label and has_entities(head.id2label.values()):
        found, own = ([head.id2label[index] for index in each.argmax(-1).tolist()] for each in (logits, true_logits))
        report["entity_agreement"] = entity_f1(found, own, texts.tolist())
    return report | {"verdict": _give_verdict(report)}


def _describe_values(
    translated: Tensor, target: Tensor, logits: Tensor, true_logits: Tensor, head: Head, groups: Tensor | None
) -> dict[str, Any]:
    """Return how well held-out values explain a head's own, and of a single value how well they keep its order."""
    share, error = values_explained(head.module, translated, target)
    half = SURE * 2**0.5 * error  # of the difference between the anchors and as many other inputs
    interval = [share - half, min(1.0, share + half)]
    report: dict[str, Any] = {"values_explained": share, "values_explained_interval": interval}
    if true_logits.shape[1] > 1:
        return report
    made, own = logits[:, 0], true_logits[:, 0]
    report["spearman"] = rank_correlation(made, own)
    ndcg = None if groups is None else discounted_gain(made, own, groups.to(own.device))
    return report if ndcg is None else report | {"ndcg": ndcg}


def _give_verdict(report: dict[str, Any], *, coverage: float | None = None) -> dict[str, str]:
    """Return the verdict on a report and, where it is known, on how much of the inputs the anchors cover."""
    has_values = report["agreement"] is None
    name = "values_explained" if has_values else "agreement"
    low, high = report[f"{name}_interval"]
    estimate = AgreementEstimate(report[name], low, high, report.get("chance_agreement", 0.0))
    return asdict(
        verdict(
            estimate,
            num_anchors=report["num_anchors"],
            rank=report["source"]["rank"],
            answers_used=report.get("answers_used", 1.0),
            coverage=coverage,
            of="values" if has_values else report.get("agreement_of", "inputs"),
        )
    )


def expected_score(report: dict[str, Any]) -> float:
    """Return what a report expects, agreement or values explained, by which models of one head are compared."""
    return float(report["values_explained"] if report["agreement"] is None else report["agreement"])


def check_head_inputs(head: Any, anchors: Sequence[Any]) -> None:
    """Refuse anchors of another kind than a head reads, and say how tuples of two texts are taken.

    Raises:
        StitchError: the head reads pairs of texts and the anchors are texts or tuples of them, or the reverse.
    """
    if isinstance(head, Head):
        head.check_inputs(anchors)
    first = inputs_at(anchors, [0])[0]
    if isinstance(first, tuple) and all(isinstance(one, str) for one in first):
        logger.warning(
            "the anchors are tuples of two texts: the source reads the first, the target the second. A pair of texts "
            'that is one input of both is {"text": …, "text_pair": …}'
        )


def add_coverage(report: dict[str, Any], latents: Tensor, anchors: Tensor) -> dict[str, Any]:
    """Add to a report the share of source latents that the source anchors cover, and renew its verdict."""
    coverage = anchor_coverage(to_working(latents), to_working(anchors.to(latents.device)))
    covered = {**report, "coverage": coverage}
    if report["agreement"] is None and "values_explained_interval" not in report:  # as in older formats
        return covered
    return covered | {"verdict": _give_verdict(report, coverage=coverage)}


def describe_frame(frame: Frame) -> dict[str, Any]:
    """Return width, rank, condition number and effective rank of one side's anchors, centred and normalised."""
    return {
        "dim": frame.vh.shape[1],
        "rank": frame.rank,
        "condition_number": frame.condition_number,
        "effective_rank": frame.effective_rank,
    }


def write_call(
    method: str,
    source: Provenance,
    head: Any,
    *,
    settings: TranslationSettings,
    prefer: str | None,
    target: Provenance | None = None,
    **arguments: str | None,
) -> str:
    """Write the call that builds a stitched model, as Python, and with no path of this machine.

    Settings that were chosen by `prefer` are left to be chosen again; others are all written. `arguments` are Python
    too; None stands for an argument that was not passed.
    """
    values = asdict(settings) if prefer is None else {"prefer": prefer, "norm": settings.norm, "seed": settings.seed}
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


def write_anchors(anchors: str | Path | AnchorSet, *, name: str) -> str:
    """Write anchors as Python: their Hub id if they have one, or a variable's name."""
    return repr(anchors) if isinstance(anchors, str) and not Path(anchors).exists() else name
