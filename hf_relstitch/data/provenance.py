"""Where latents come from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import is_here

NOT_KNOWN = "not known"
"""The revision of a model that nobody named one for: another may go by the same `model_id`."""

STORED = "stored"
"""The pooling of latents that were computed elsewhere."""

ROWS = ("last", "mean", "first", "next")
"""The row that a classifier may take of several before its head."""
ONLY, EACH = "pooled", "each"
"""There is one row, or, in a model that labels tokens, each is taken."""


@dataclass(frozen=True)
class Cut:
    """Say where a classifier is split into encoder and head.

    `layers` are the layers from the cut to the logits, in their order; or, if `averaged`, the two layers whose mean the
    logits are. `row` is the latent's row in the input of the first: one of `ROWS`, `ONLY` or `EACH`.
    """

    layers: tuple[str, ...]
    row: str
    averaged: bool = False

    def describe(self) -> str:
        """Return the cut in words."""
        return f"input of {(' and ' if self.averaged else ' then ').join(self.layers)}, {self.row}"

    @classmethod
    def from_dict(cls, content: Any) -> "Cut":
        """Read a cut from its fields.

        Raises:
            StitchError: a field is missing or has a value that no cut has.
        """
        has_fields = isinstance(content, Mapping) and content.keys() == {"layers", "row", "averaged"}
        if not has_fields or content["row"] not in (*ROWS, ONLY, EACH) or not isinstance(content["averaged"], bool):
            raise StitchError(
                f"the cut of a provenance is {content!r}: expected layers, a row of {', '.join((*ROWS, ONLY, EACH))}, "
                "and averaged, true or false"
            )
        return cls(_as_names("layers", content["layers"]), content["row"], content["averaged"])


@dataclass(frozen=True)
class Provenance:
    """Hold the origin of latents.

    Attributes:
        model_id: the name of the model.
        revision: the commit hash of a Hub model, or a hash of the weights of any other.
        pooling: how the model's output becomes one vector.
        data: the name of the inputs.
        license: the model's; None if it is not known.
        prompt: the text that the encoder puts before each input, like "query: ".
        after_pooling: the layers between the pooled vector and the latent.
        cut: where the model was split, if it is a classifier.
        pairs: "compose" if latents of pairs are made of the latents of their two texts.
        output: the name of the output that is pooled, if it was chosen, of a model in an ONNX file.
    """

    model_id: str
    revision: str
    pooling: str
    data: str | None = None
    license: str | None = None
    prompt: str | None = None
    after_pooling: tuple[str, ...] = ()
    cut: Cut | None = None
    pairs: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        for name in ("model_id", "revision", "pooling", "data", "license", "prompt", "pairs", "output"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("model_id", "revision", "pooling")):
                raise StitchError(f"the {name} of a provenance is {value!r}: expected a text")

    @classmethod
    def from_dict(cls, content: Any) -> "Provenance":
        """Read what `to_dict` returned, or an older file, whose pooling is the text that `describe` returns.

        Raises:
            StitchError: a field is missing, not known, or has a value that no provenance has.
        """
        if not isinstance(content, Mapping):
            raise StitchError(f"a provenance is {content!r}: expected its fields")
        if missing := sorted({"model_id", "revision", "pooling"} - content.keys()):
            raise StitchError(f"a provenance is {content!r}: {missing[0]} is missing")
        if unknown := sorted(map(str, content.keys() - {field.name for field in fields(cls)})):
            raise StitchError(f"a provenance has a field {unknown[0]!r}, which this version does not know")
        found = dict(content)
        if isinstance(found["pooling"], str):
            found |= _read_description(found["pooling"])
        found["after_pooling"] = _as_names("after_pooling", found.get("after_pooling", ()))
        if content.get("cut") is not None:
            found["cut"] = Cut.from_dict(content["cut"])
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; of those that older files have not, the ones that say something."""
        content = asdict(self) | {"after_pooling": list(self.after_pooling)}
        if self.cut is not None:
            content["cut"]["layers"] = list(self.cut.layers)
        always = ("model_id", "revision", "pooling", "data", "license")
        return {name: value for name, value in content.items() if value or name in always}

    def describe(self) -> str:
        """Return in words how the model's output becomes a latent."""
        pooled = f"{self.pooling} of {self.output}" if self.output else self.pooling
        made = self.cut.describe() if self.cut else ", ".join([pooled, *self.after_pooling])
        return f"{made}, composed pairs" if self.pairs == "compose" else made

    @property
    def by_token(self) -> bool:
        """Tell whether there is a latent for each token: of words in their texts, and not of whole inputs."""
        return self.pooling == "tokens"

    def difference(self, other: "Provenance") -> str:
        """Describe in words how two models differ; return an empty text if latents of both lie in one space."""
        ours, theirs = (
            {"model_id": each.model_id, "revision": each.revision, "pooling": each.describe(), "prompt": each.prompt}
            for each in (self, other)
        )
        apart = [name for name in ours if ours[name] != theirs[name]]
        return ", ".join(f"{name} is {ours[name]!r} and not {theirs[name]!r}" for name in apart)


def data_name(data: str | None) -> str | None:
    """Return the name of data for publishing; for a path on this machine, return its last part."""
    return data if data is None or not is_here(data) else Path(data).resolve().name


def _as_names(field: str, value: Any) -> tuple[str, ...]:
    """Return a list of names as a tuple."""
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise StitchError(f"the {field} of a provenance are {value!r}: expected a list of names")
    return tuple(value)


def _read_description(text: str) -> dict[str, Any]:
    """Read the fields that older files wrote as one text, like "mean, normalize" and "input of classifier, pooled"."""
    made = text.removesuffix(", composed pairs")
    pairs = {"pairs": "compose"} if made != text else {}
    if made.startswith("input of "):
        names, _, row = made.removeprefix("input of ").rpartition(", ")
        averaged = " and " in names
        cut = Cut(tuple(names.split(" and " if averaged else " then ")), row, averaged)
        return {"pooling": "tokens" if row == EACH else "none", "cut": cut, **pairs}
    pooled, *after = made.split(", ")
    pooling, _, output = pooled.partition(" of ")
    named = {"after_pooling": tuple(after), "output": output} | pairs
    return {"pooling": pooling, **{name: value for name, value in named.items() if value}}
