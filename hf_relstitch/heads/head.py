"""Head: the layers from a target model's latent to its logits, as a module and as data."""

from collections.abc import Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_relstitch.configuration_relative_stitcher import PROBLEM_TYPES
from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.data.inputs import are_text_pairs, inputs_at
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.encoders.encoder import Encoder
from hf_relstitch.heads.from_sklearn import is_estimator, layers_of_estimator
from hf_relstitch.layers import (
    CHAIN,
    Normalize,
    Prototypes,
    copy_head,
    describe_head,
    flatten_layers,
    widths_of,
)

PAIR_CLASSES = {
    "entailment", "contradiction", "not entailment", "duplicate", "not duplicate", "paraphrase", "not paraphrase",
    "equivalent", "not equivalent",
}  # fmt: skip
"""Names of classes that only pairs of texts have, in lower case, with spaces."""
SETFIT_HEAD = "model_head.pkl"
"""Where SetFit pickles a head; the file's being there is all that is looked at."""


@dataclass(frozen=True)
class Head:
    """Hold the layers from a target model's latent to its logits.

    Attributes:
        module: from latents `(n, d_target)` to logits: its last linear layer, or the chain from an earlier cut on; a
            module in training mode is copied into evaluation mode.
        id2label: the name of each class, by the place of its logit.
        problem_type: as in a transformers config; with None the loss decides.
        provenance: the target model and where it was cut; None for a layer without a model.
        reads: what the head was trained on, `texts` or `pairs` of texts; None if it is not known.
        activation: what sentence-transformers' CrossEncoder makes of the logits, as it writes it down; None if the head
            is not of one.

    Raises:
        StitchError: the problem type is unknown, a class name is not a text, or the classes are not counted from 0.
    """

    module: nn.Module
    id2label: dict[int, str]
    problem_type: str | None = None
    provenance: Provenance | None = None
    reads: Literal["texts", "pairs"] | None = None
    activation: str | None = None

    def __post_init__(self) -> None:
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise StitchError(f"problem_type is {self.problem_type!r}: expected one of {', '.join(PROBLEM_TYPES)}")
        if not isinstance(self.id2label, Mapping):
            raise StitchError(f"id2label is a {type(self.id2label).__name__}: expected a mapping, {{0: name, 1: name}}")
        places = range(len(self.id2label))
        if {*self.id2label} != {*places}:
            raise StitchError(
                f"id2label names the classes {', '.join(map(repr, self.id2label))} and there are {len(places)}: "
                f"expected {', '.join(map(str, places))}, the places of their logits; mend id2label in the "
                "classifier's config"
            )
        object.__setattr__(self, "id2label", {place: self.id2label[place] for place in places})
        if strange := [name for name in self.id2label.values() if not isinstance(name, str)]:
            raise StitchError(f"a class is named {strange[0]!r}, a {type(strange[0]).__name__}: give names as texts")
        if not {name.lower().replace("_", " ") for name in self.id2label.values()}.isdisjoint(PAIR_CLASSES):
            object.__setattr__(self, "reads", "pairs")
        if any(each.training for each in self.module.modules()):
            object.__setattr__(self, "module", deepcopy(self.module).eval())

    @property
    def multi_label(self) -> bool:
        """Tell whether each class has its own yes or no."""
        return self.problem_type == "multi_label_classification"

    @property
    def answers(self) -> bool:
        """Tell whether the logits are answers; a regression has values, and so has a single logit without yes or no."""
        return self.multi_label or (len(self.id2label) > 1 and self.problem_type != "regression")

    def check_inputs(self, inputs: Sequence[Any]) -> None:
        """Refuse inputs of another kind than the head was trained on, single texts or pairs of texts.

        `inputs` are those of the anchors, tuples included.

        Raises:
            StitchError: the head's classes or config say that it reads pairs, and the inputs are not; or the reverse.
        """
        first = inputs_at(inputs, [0])[0]
        tuples = isinstance(first, tuple)
        if self.reads == "texts" and not tuples and are_text_pairs(inputs):
            raise StitchError("the head was trained on single texts and the anchors are pairs of texts: give texts")
        if self.reads != "pairs" or not all(isinstance(one, str) for one in (first if tuples else [first])):
            return
        classes = ", ".join(self.id2label.values())
        advice = 'give each pair as one input, {"text": …, "text_pair": …} (--column and --pair-column of a table)'
        if not tuples:
            raise StitchError(f"the head tells pairs of texts apart ({classes}) and the anchors are texts: {advice}")
        raise StitchError(
            f"the head tells pairs of texts apart ({classes}) and the anchors are tuples, of which the source reads "
            f"the first text and the target the second: {advice}; if the tuples are meant, encode each side by "
            "AnchorSet.encode(…, side=…) and use from_anchor_sets"
        )

    @classmethod
    def from_module(
        cls,
        head: Any,
        *,
        labels: Sequence[str] | Mapping[Any, str] | None = None,
        dim: int | None = None,
        normalized: bool = False,
    ) -> "Head":
        """Return a head unchanged, or build one from a module, a fitted scikit-learn estimator or a whole SetFit model.

        `labels` names the classes: in the order of the logits if the head does not name them itself, else by a mapping
        from its own names. `dim` is the width of the latents, for modules that do not say it. `normalized` says that
        the head was trained on latents of norm 1; a SetFit model says so itself. A module that is not a chain of
        linear, activation and layer-norm layers works, but cannot be saved.

        Raises:
            StitchError: `head` cannot be a head, or the names do not fit its classes.
        """
        if isinstance(labels, str | Set) or not (labels is None or hasattr(labels, "__iter__")):
            raise StitchError(f"labels is a {type(labels).__name__}: expected a list of names, in order, or a mapping")
        if hasattr(head, "model_head") and labels is None:
            labels = _setfit_labels(head)
        normalized = normalized or bool(getattr(head, "normalize_embeddings", False))
        setfit = hasattr(head, "model_head")
        head = getattr(head, "model_head", head)  # of a SetFit model
        head = getattr(head, "best_estimator_", head)  # of a search over scikit-learn's settings
        known: list[Any] | None = None
        if isinstance(head, cls):
            made = head
            own = [*made.id2label.values()]
            if isinstance(labels, Mapping) or not {*(() if labels is None else labels)}.isdisjoint(own):
                known = own  # else there are new names for all of its classes
        elif is_estimator(head):
            module, known, problem_type = layers_of_estimator(head)
            names = _plain_names(num_logits(module, dim=dim)) if known is None else [str(each) for each in known]
            made = cls(module, dict(enumerate(names)), problem_type)
        elif isinstance(head, nn.Module):
            many = getattr(head, "multitarget", False)  # of SetFit's own head
            head = _setfit_layer(head) if type(head).__name__ == "SetFitHead" else head
            module = copy_head(head) if describe_head(head) else deepcopy(head).eval()
            made = cls(
                module, dict(enumerate(_plain_names(num_logits(module, dim=dim)))), PROBLEM_TYPES[1] if many else None
            )
        else:
            raise StitchError(f"the head is a {type(head).__name__}: expected a Head, {CHAIN}; any nn.Module in memory")
        if normalized:
            made = replace(made, module=nn.Sequential(Normalize(), *flatten_layers(made.module)))
        if setfit:
            made = replace(made, reads="texts")
        return made if labels is None else replace(made, id2label=_named(labels, known, count=len(made.id2label)))

    @classmethod
    def from_class_names(
        cls,
        encoder: Encoder,
        names: Sequence[str],
        *,
        template: str | Sequence[str] = "{}",
        temperature: float = 0.01,
    ) -> "Head":
        """Build a zero-shot head: the cosine to each class's name, encoded by the target's encoder or its text side.

        `template`, or each of several, has `{}` for the name, like "a photo of a {}"; with several, the head takes the
        mean of the normalised latents, as CLIP does. The logits are cosines over `temperature`, which is CLIP's by
        default.

        Raises:
            StitchError: there are no names, a template lacks `{}`, or the encoder takes no texts.
        """
        templates = [template] if isinstance(template, str) else list(template)
        if not templates or any("{}" not in one for one in templates):
            raise StitchError(f"the template is {template!r}: it needs {{}} where the name of the class goes")
        if encoder.modality != "text":
            raise StitchError(f"class names are texts and the encoder takes {encoder.modality}s: give latents instead")
        if len(set(names)) < len(names):
            raise StitchError(f"{len(names)} class names and {len(set(names))} different ones: name each class once")
        inputs = [one.replace("{}", name) for name in names for one in templates]
        latents = encoder.encode(inputs, progress=False)
        examples = dict(zip(names, latents.split(len(templates)), strict=True))
        return replace(cls.from_examples(examples, temperature=temperature), reads="texts")

    @classmethod
    def from_examples(cls, latents: Mapping[str, Any], *, temperature: float = 0.01) -> "Head":
        """Build a head of class prototypes: the mean of a few normalised target latents `(n, d_target)` of each class.

        Raises:
            StitchError: there are fewer than two classes, a class has no latents or none with a direction, or the
                latents differ in width.
        """
        module = Prototypes.from_vectors(_class_means(latents), temperature=temperature)
        return cls(module.requires_grad_(False), dict(enumerate(latents)), "single_label_classification")


def _named(labels: Any, known: list[Any] | None, *, count: int) -> dict[int, str]:
    """The name of each class, from `labels` and the classes that a head names itself.

    Raises:
        StitchError: as many names as classes are wanted, or they may be in another order than the head's own.
    """
    own = [*range(count)] if known is None else [each.item() if hasattr(each, "item") else each for each in known]
    if isinstance(labels, Mapping):
        names = [labels.get(each, labels.get(str(each))) for each in own]
        if len(labels) != count or None in names:
            raise StitchError(
                f"labels name {', '.join(map(repr, labels))} and the head's classes are {', '.join(map(repr, own))}: "
                "give a name for each"
            )
    else:
        names = [each.item() if hasattr(each, "item") else each for each in labels]
        if len(names) != count or len(set(names)) < count:
            raise StitchError(f"{len(set(names))} different labels for a head of {count} classes: name each class once")
        if own != [*range(count)] and names != [str(each) for each in own]:
            raise StitchError(
                f"the labels are {', '.join(map(repr, names))} and the head names its own classes, "
                f"{', '.join(map(repr, own))}, which have to be in that order: leave labels out, or give a mapping "
                "from the head's names to yours"
            )
    return dict(enumerate(names))


def _setfit_labels(model: Any) -> list[str] | None:
    """The names that a SetFit model gives the classes 0, 1, …; None where it names none, or its head does."""
    names, classes = getattr(model, "labels", None), getattr(model.model_head, "classes_", None)
    if names is None or (classes is not None and [*classes] != [*range(len(names))]):
        return None
    return [str(name) for name in names]


def _setfit_layer(head: Any) -> nn.Linear:
    """The layer of SetFit's differentiable head, with the temperature that it divides logits by."""
    layer: nn.Linear = deepcopy(head.linear)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(head.temperature + head.eps)
    return layer


def _plain_names(count: int) -> list[str]:
    return [f"LABEL_{index}" for index in range(count)]


def _class_means(latents: Mapping[str, Any]) -> Tensor:
    """The mean of the normalised latents of each class, `(classes, d)`.

    Raises:
        StitchError: fewer than two classes, one without latents, or latents of different widths.
    """
    rows = {name: [*map(torch.as_tensor, one)] for name, one in latents.items()}
    if len(rows) < 2 or not all(one and all(row.ndim == 1 for row in one) for one in rows.values()):
        raise StitchError(f"{len(rows)} classes: prototypes need two or more, with latents (n, d_target) each")
    first, width = next((name, len(one[0])) for name, one in rows.items())
    for name, one in rows.items():
        if other := next((len(row) for row in one if len(row) != width), None):
            raise StitchError(
                f"the latents of class {name!r} are {other} wide and those of {first!r} {width}: give latents of one "
                "model"
            )
    return torch.stack([functional.normalize(torch.stack(one).float(), dim=-1).mean(0) for one in rows.values()])


def num_logits(module: nn.Module, *, dim: int | None) -> int:
    """Count the logits that a head gives for a latent.

    Raises:
        StitchError: the head does not take latents of that width, or gives no row of logits for each.
    """
    _, gives = widths_of(module)
    if gives is not None:
        return gives
    if dim is None:
        raise StitchError(f"the head is a {type(module).__name__}, which does not say its width: give dim")
    try:
        logits = apply_head(module, torch.zeros(2, dim))
        rows, gives = logits.shape
    except Exception as error:  # whatever a module of the user's raises
        raise StitchError(
            f"the head, a {type(module).__name__}, makes no (n, classes) logits of latents (n, {dim}): {error}"
        ) from error
    if rows != 2:
        raise StitchError(f"the head, a {type(module).__name__}, makes {rows} rows of logits of 2 latents")
    return gives
