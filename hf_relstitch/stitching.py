"""Two anchor sets and a head become a translation and what is known of it: pairing, checks, fit, report."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_relstitch.anchors import AnchorSet
from hf_relstitch.cards import Base
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.fidelity import agreement, held_out_translations, mean_cosine, mean_reciprocal_rank
from hf_relstitch.core.inversion import Frame, Translation, TranslationSettings, fit_translation
from hf_relstitch.core.relative import directions, precision_of, to_working
from hf_relstitch.devices import accelerate_state
from hf_relstitch.heads import Head
from hf_relstitch.provenance import Provenance


@dataclass(frozen=True)
class Stitch:
    """A fitted translation with the paired anchors that it comes from, and its report."""

    source_anchors: AnchorSet
    target_anchors: AnchorSet
    translation: Translation
    report: dict[str, Any]


def stitch(
    source_anchors: AnchorSet,
    target_anchors: AnchorSet,
    head: Head,
    *,
    source: Provenance,
    settings: TranslationSettings,
) -> Stitch:
    """Fit the translation from a source encoder to a head, on the device that accelerate gives.

    Raises:
        StitchError: anchors of another model than the encoder or the head, of another width than the head takes,
            or too few inputs in common.
    """
    check_same_model(source_anchors, source, side="source")
    if head.provenance is not None:
        check_same_model(target_anchors, head.provenance, side="target")
    if head.linear.in_features != target_anchors.dim:
        raise StitchError(
            f"the head takes latents {head.linear.in_features} wide and the target anchors are {target_anchors.dim}: "
            "encode the anchors with the model that the head was trained on, at the head's input"
        )
    source_anchors, target_anchors = source_anchors.intersect(target_anchors)
    device = accelerate_state().device
    x, y = source_anchors.latents.to(device), target_anchors.latents.to(device)
    translation = fit_translation(x, y, settings=settings)
    return Stitch(source_anchors, target_anchors, translation, report(x, y, head, settings=settings))


def check_same_model(anchors: AnchorSet, model: Provenance, *, side: str) -> None:
    """Refuse anchors that another model made: the same width does not make it the same space."""
    if difference := anchors.provenance.difference(model):
        raise StitchError(
            f"the {side} anchors were made by another model than the one given ({difference}): encode the anchor "
            "inputs with this model, or load the model that made them"
        )


def report(x: Tensor, y: Tensor, head: Head, *, settings: TranslationSettings) -> dict[str, Any]:
    """How good the translation is on anchors held out of its fit, and how well conditioned both sides are.

    `cosine` and `mean_reciprocal_rank` compare translated with true target latents; `agreement` is the share of
    answers that the head gives alike on both.
    """
    translated, target = held_out_translations(x, y, settings=settings), to_working(y)
    centre = target.mean(0)
    weight = head.linear.weight.detach().to(target)
    bias = 0 if head.linear.bias is None else head.linear.bias.detach().to(target)
    multi_label = head.problem_type == "multi_label_classification"
    logits = translated @ weight.T + bias, target @ weight.T + bias
    return {
        "num_anchors": len(x),
        "cosine": mean_cosine(translated, target, centre=centre),
        "mean_reciprocal_rank": mean_reciprocal_rank(translated, target, centre=centre),
        "agreement": agreement(*logits, multi_label=multi_label) if head.linear.out_features > 1 else None,
        "source": conditioning(x),
        "target": conditioning(y),
    }


def conditioning(anchors: Tensor) -> dict[str, Any]:
    """Width, rank, condition number and effective rank of one side's anchors, centred and normalised."""
    latents = to_working(anchors)
    frame = Frame.of(directions(latents, centre=latents.mean(0)), precision=precision_of(anchors))
    return {
        "dim": anchors.shape[1],
        "rank": frame.rank,
        "condition_number": frame.condition_number,
        "effective_rank": frame.effective_rank,
    }


def written_call(
    method: str,
    source: Provenance,
    head: Head | nn.Linear | None,
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
        "head": "head" if head else None,
        **{name: repr(value) for name, value in asdict(settings).items()},
    }
    given = [f"    {name}={value}," for name, value in code.items() if value is not None]
    loaded = [f"target, head = load_target({Base.of(asdict(cut)).arguments})"] if cut else []
    return "\n".join([*loaded, f"RelativeStitcher.{method}(", *given, ")"])


def written_anchors(anchors: str | AnchorSet, *, name: str) -> str:
    """Anchors as Python: the Hub id that was given, or a variable's name."""
    return repr(anchors) if isinstance(anchors, str) and not Path(anchors).exists() else name
