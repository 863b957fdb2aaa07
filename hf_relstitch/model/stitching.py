"""Two anchor sets and a head become a translation and what is known of it: pairing, checks, fit, report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_relstitch.core.cross_validation import folds_of
from hf_relstitch.core.decomposition import Frame
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.expected_agreement import (
    Foretold,
    anchor_coverage,
    answers_used,
    foretell,
    scale_invariance,
    verdict,
)
from hf_relstitch.core.head_outputs import (
    apply_head,
    matching_temperature,
    probabilities,
    stretch_for_values,
    values_explained,
)
from hf_relstitch.core.measures import held_out_translations, mean_cosine, mean_reciprocal_rank
from hf_relstitch.core.options import Prefer
from hf_relstitch.core.relative import to_working
from hf_relstitch.core.selection import Choice, check_prefer, choose_settings
from hf_relstitch.core.translation import SharpenedTranslation, Translation, TranslationSettings, fit
from hf_relstitch.data.provenance import EARLIER_LAYERS, Provenance
from hf_relstitch.encoders.devices import accelerate_state
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.heads.head import Head, num_logits
from hf_relstitch.hub.cards import Base
from hf_relstitch.layers import widths_of
from hf_relstitch.model.anchors import AnchorSet

logger = logging.get_logger(__name__)
FREE = {"scale", "seed"}
"""Settings that may be given while the others are chosen."""


@dataclass(frozen=True)
class Stitch:
    """A fitted translation with the paired anchors that it comes from, and what is known of it."""

    source_anchors: AnchorSet
    target_anchors: AnchorSet
    settings: TranslationSettings
    selection: dict[str, Any] | None
    translation: Translation | SharpenedTranslation
    temperature: float
    report: dict[str, Any]


class AnchorPair(nn.Module):
    """Both sides' anchors, row for row: the truth that the translation can be computed from again."""

    source: Tensor
    target: Tensor
    ids: Tensor

    def __init__(self, num_anchors: int, d_source: int, d_target: int) -> None:
        super().__init__()
        self.register_buffer("source", torch.empty(num_anchors, d_source))
        self.register_buffer("target", torch.empty(num_anchors, d_target))
        self.register_buffer("ids", torch.empty(num_anchors, dtype=torch.int64))

    @classmethod
    def of(cls, source: AnchorSet, target: AnchorSet) -> "AnchorPair":
        """The anchors of two paired sets."""
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

    Settings that are given are used as they are; where none is (`scale` and `seed` aside) they are chosen on the
    anchors, among linear translations or, with `prefer="accuracy"`, sharpened ones too.

    Raises:
        StitchError: anchors of another model than the encoder or the head, of another width than the head takes,
            or too few inputs in common; `prefer` together with settings that leave nothing to choose.
    """
    how, selection = checked_settings(prefer=prefer, **settings), None
    _check_same_model(source_anchors, source, side="source")
    if head.provenance is not None:
        _check_same_model(target_anchors, head.provenance, side="target")
    takes, _ = widths_of(head.module)
    if takes not in (None, target_anchors.dim):
        raise StitchError(
            f"the head takes latents {takes} wide and the target anchors are {target_anchors.dim}: "
            "encode the anchors with the model that the head was trained on, at the head's input"
        )
    if (logits := num_logits(head.module, dim=target_anchors.dim)) != len(head.id2label):
        raise StitchError(f"the head gives {logits} logits and has {len(head.id2label)} labels: name each class once")
    source_anchors, target_anchors = source_anchors.intersect(target_anchors)
    device = accelerate_state().device
    x, y = source_anchors.latents.to(device), target_anchors.latents.to(device)
    folds = folds_of(x, y, scale=how.scale, seed=how.seed)
    if not settings.keys() - FREE:
        choice = choose_settings(
            x,
            y,
            head=head.module if head.answers else None,
            prefer=prefer or "linear",
            scale=how.scale,
            multi_label=head.multi_label,
            seed=how.seed,
            folds=folds,
        )
        how, selection = choice.settings, _as_data(choice, prefer=prefer or "linear")
    frames = Frame.of_anchors(x), Frame.of_anchors(y)
    translated = held_out_translations(x, y, settings=how, folds=folds)
    if selection is not None and not (head.answers or how.identity):
        how = replace(how, stretch=how.stretch * stretch_for_values(head.module, translated, to_working(y)))
        translated = held_out_translations(x, y, settings=how, folds=folds)
    del folds
    accurate = prefer == "accuracy"
    report, temperature = _foretold_report(translated, to_working(y), head, frames=frames, accurate=accurate)
    translation = fit(x, y, settings=how, frames=frames)
    return Stitch(source_anchors, target_anchors, how, selection, translation, temperature, report)


def encoded_source(
    source: Encoder, inputs: Sequence[Any], *, prefer: Prefer | None, target: Provenance, **options: Any
) -> tuple[Encoder, AnchorSet]:
    """The source and its anchors: with its earlier layers where accuracy is preferred and it shows them.

    A source that is the target has nothing to gain by them, and its latents could not be left as they are.
    """
    if prefer == "accuracy" and source.provenance.difference(target):
        try:
            wider = source.with_earlier_layers()
            return wider, AnchorSet.encode(wider, inputs, **options)
        except StitchError as error:
            logger.warning(f"the source is stitched without earlier layers: {error}")
    return source, AnchorSet.encode(source, inputs, **options)


def checked_settings(*, prefer: str | None = None, **settings: Any) -> TranslationSettings:
    """The settings that are given, and what the others are by default; called before anything is encoded, too.

    Raises:
        StitchError: a name or a value that is no setting's, or `prefer` together with what it chooses.
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
    """A choice as plain values: of each candidate what sets it apart, and its score."""
    plain = {field.name: field.default for field in fields(TranslationSettings)} | {"seed": choice.settings.seed}
    varied = {"alpha", "ridge", "beta", "target_ridge", "sharpness", "pruning", "subspaces", "identity"}
    candidates = []
    for candidate in choice.candidates:
        settings = asdict(candidate.settings)
        named = {name for name in varied if settings[name] != plain[name]}
        named = named if settings["identity"] else named | {"alpha", "ridge"}
        candidates.append({name: settings[name] for name in sorted(named)} | {"score": candidate.score})
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
        wider = anchors.provenance.pooling == model.pooling + EARLIER_LAYERS
        raise StitchError(
            f"the {side} anchors were made by another model than the one given ({difference}): encode the anchor "
            "inputs with this model, or load the model that made them"
            + (", by Encoder.from_pretrained(…).with_earlier_layers()" if wider else "")
        )


def _foretold_report(
    translated: Tensor, target: Tensor, head: Head, *, frames: tuple[Frame, Frame], accurate: bool
) -> tuple[dict[str, Any], float]:
    """How good the translation is on anchors held out of its fit, and the temperature that its logits need.

    See `RelativeStitcher.report` for what it holds.
    """
    centre = target.mean(0)
    report = {
        "num_anchors": len(target),
        "cosine": mean_cosine(translated, target, centre=centre),
        "mean_reciprocal_rank": mean_reciprocal_rank(translated, target, centre=centre),
        "source": conditioning(frames[0]),
        "target": conditioning(frames[1]),
    }
    if not head.answers:
        return report | {"agreement": None, "values_explained": values_explained(head.module, translated, target)}, 1.0
    logits, true_logits = apply_head(head.module, translated), apply_head(head.module, target)
    told = foretell(logits, true_logits, multi_label=head.multi_label)
    report |= {
        "agreement": told.agreement,
        "agreement_of": "yes-or-no answers" if head.multi_label else "inputs",
        "agreement_interval": [told.low, told.high],
        "chance_agreement": told.chance,
        "answers_used": answers_used(true_logits, multi_label=head.multi_label),
        "scale_invariance": scale_invariance(head.module, target, multi_label=head.multi_label),
    }
    report["verdict"] = _judged(report, accurate=accurate)
    answers = probabilities(true_logits, multi_label=head.multi_label)
    return report, matching_temperature(logits, answers, multi_label=head.multi_label)


def _judged(report: dict[str, Any], *, accurate: bool, coverage: float | None = None) -> dict[str, str]:
    """The verdict on what a report says and, where it is known, on how much of the inputs the anchors cover."""
    low, high = report["agreement_interval"]
    told = Foretold(report["agreement"], low, high, report["chance_agreement"])
    return asdict(
        verdict(
            told,
            num_anchors=report["num_anchors"],
            rank=report["source"]["rank"],
            answers_used=report["answers_used"],
            coverage=coverage,
            accurate=accurate,
            of=report.get("agreement_of", "inputs"),
        )
    )


def covered(report: dict[str, Any], latents: Tensor, anchors: Tensor, *, accurate: bool) -> dict[str, Any]:
    """A report with the share of source latents that the source anchors cover, and the verdict that it leads to."""
    coverage = anchor_coverage(to_working(latents), to_working(anchors.to(latents.device)))
    found = {**report, "coverage": coverage}
    if report["agreement"] is None:
        return found
    return found | {"verdict": _judged(report, accurate=accurate, coverage=coverage)}


def conditioning(frame: Frame) -> dict[str, Any]:
    """Width, rank, condition number and effective rank of one side's anchors, centred and normalised."""
    return {
        "dim": frame.vh.shape[1],
        "rank": frame.rank,
        "condition_number": frame.condition_number,
        "effective_rank": frame.effective_rank,
    }


def written_call(
    method: str,
    source: Provenance,
    head: Any,
    *,
    settings: TranslationSettings,
    target: Provenance | None = None,
    **arguments: str | None,
) -> str:
    """The call that makes a stitched model, as Python with every setting, and with no path of this machine.

    `arguments` are Python too; None stands for one that was not given.
    """
    cut = head.provenance if isinstance(head, Head) else None
    code = {
        "source": Base.of(asdict(source)).call,
        "target": target and ("target" if cut else Base.of(asdict(target)).call),
        **arguments,
        "head": None if head is None else "head",
        **{name: repr(value) for name, value in asdict(settings).items()},
    }
    given = [f"    {name}={value}," for name, value in code.items() if value is not None]
    loaded = [f"target, head = load_target({Base.of(asdict(cut)).arguments})"] if cut else []
    return "\n".join([*loaded, f"RelativeStitcher.{method}(", *given, ")"])


def written_anchors(anchors: str | Path | AnchorSet, *, name: str) -> str:
    """Anchors as Python: the Hub id that was given, or a variable's name."""
    return repr(anchors) if isinstance(anchors, str) and not Path(anchors).exists() else name
