"""Cards: the README.md of a model, a translation, an exported encoder or an anchor set, from its config alone."""

import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from jinja2 import Environment, FileSystemLoader
from yaml import safe_dump

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.modality import task_of
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.hub.card_edits import keep_edits
from hf_relstitch.hub.files import FACTS, RESULTS_NAME
from hf_relstitch.hub.repo import is_commit

CARD_NAME = "README.md"
TEMPLATES = Path(__file__).with_name("templates")
ANCHORS_TAG = "relative-anchors"
TRANSLATION_TAG = "search-translation"
"""Field of an exported encoder's config for what its card says."""
TAGS = ["model-stitching", "relative-representations"]
NAMESPACE, NAME = "[A-Za-z0-9][A-Za-z0-9._-]*/", "[A-Za-z0-9._-]+"


def model_card(config: dict[str, Any], *, existing: str | None = None, repo_id: str | None = None) -> str:
    """Write the card of a stitched model, from the content of its `config.json`.

    `existing` is an earlier README.md, whose edits stay: see `hf_relstitch.hub.card_edits`.

    Raises:
        StitchError: the metadata of `existing` cannot be read, or a result lacks its value or names.
    """
    bases = [Base.from_provenance(config.get(side, {})) for side in ("source", "target")]
    results = eval_results(config)
    metadata = {
        "library_name": "transformers",  # else pipeline(model=repo) refuses to read the task from the card
        "pipeline_tag": task_of(config),
        "tags": ["hf_relstitch", *TAGS],
        "eval_results": results or None,
        "model_name": (repo_id or f"{bases[0].name} with a head made for {bases[1].name}") if results else None,
    }
    template = {
        "classes": list(config.get("id2label", {}).values()),
        "report": {"source": {}, "target": {}} | config.get("report", {}),
        "results": results,
        "config": config,
        "repo_id": repo_id,
    }
    relation = "adapter" if config.get("share") == "adapter" else "merge"
    return _render("model_card.md", bases, relation, metadata, template, existing=existing)


def anchor_card(config: dict[str, Any], *, existing: str | None = None, repo_id: str | None = None) -> str:
    """Write the card of an anchor set, from the content of its `anchor_config.json`; for `existing` see `model_card`.

    Raises:
        StitchError: the metadata of `existing` cannot be read.
    """
    bases = [Base.from_provenance(config.get("provenance", {}))]
    inputs = [inputs_tag(config["inputs"])] if config.get("inputs") else []
    metadata = {"library_name": "hf_relstitch", "tags": [ANCHORS_TAG, *inputs, *TAGS]}
    template = {"config": config, "repo_id": repo_id}
    return _render("anchor_card.md", bases, "adapter", metadata, template, existing=existing)


def encoder_card(config: dict[str, Any], *, existing: str | None = None, repo_id: str | None = None) -> str:
    """Write the card of an exported encoder, from the content of its `config_sentence_transformers.json`.

    For `existing` see `model_card`.

    Raises:
        StitchError: the metadata of `existing` cannot be read.
    """
    facts = config[FACTS]
    bases = [Base.from_provenance(facts.get(side) or {}) for side in ("source", "target")]
    metadata = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", *TAGS],
    }
    report = facts.get("report", {})
    template = {
        "facts": facts,
        "report": report,
        "translates": facts.get("translates"),
        "pairs": report.get("pairs", report.get("num_anchors")),
        "config": config,
        "repo_id": repo_id,
    }
    return _render("encoder_card.md", bases, "merge", metadata, template, existing=existing)


def translation_card(config: dict[str, Any], *, existing: str | None = None, repo_id: str | None = None) -> str:
    """Write the card of a translation for search, from the content of its file; for `existing` see `model_card`.

    Raises:
        StitchError: the metadata of `existing` cannot be read.
    """
    bases = [Base.from_provenance(config.get(side) or {}) for side in ("source", "target")]
    metadata = {"library_name": "hf_relstitch", "tags": [TRANSLATION_TAG, *TAGS]}
    named = {"report": config["report"], "translates": config["translates"]}
    template = named | {"config": config, "repo_id": repo_id}
    return _render("translation_card.md", bases, "adapter", metadata, template, existing=existing)


def write_card(config: dict[str, Any], written: Path, *, folder: str | Path, repo_id: str | None = None) -> None:
    """Write card and results into `written`, which later becomes `folder`, whose own card may hold edits to keep.

    Raises:
        StitchError: as in `model_card`.
    """
    cards = {"provenance": anchor_card, FACTS: encoder_card, "translates": translation_card}
    make = next((card for field, card in cards.items() if field in config), model_card)
    card = make(config, existing=read_card(Path(folder)), repo_id=repo_id)
    (written / CARD_NAME).write_text(card, encoding="utf-8")
    for name, content in _eval_result_files(config).items():
        (written / name).parent.mkdir(exist_ok=True)
        (written / name).write_text(content, encoding="utf-8")


def inputs_tag(fingerprint: str) -> str:
    """Return the tag on the Hub that anchor sets over the same inputs share."""
    return f"anchor-inputs-{fingerprint}"


def read_card(folder: Path) -> str | None:
    """Read the README.md of a folder; return None if it has none.

    Raises:
        StitchError: the file is not text in UTF-8.
    """
    card = folder / CARD_NAME
    try:
        return card.read_text(encoding="utf-8-sig") if card.is_file() else None
    except UnicodeDecodeError as error:
        raise StitchError(f"{card} is not text in UTF-8 ({error}): repair or remove it") from error


def eval_results(config: Mapping[str, Any]) -> list[EvalResult]:
    """Return the measured results of a config, in the form of the Hub's model-index.

    Raises:
        StitchError: a result lacks its value or names.
    """
    try:
        return [
            EvalResult(
                task_type=one["task_type"],
                dataset_type=_public_data_name(one.get("dataset_id") or one["dataset_name"]),
                dataset_name=_public_data_name(one["dataset_name"]),
                dataset_config=one.get("config"),
                dataset_split=one.get("split"),
                dataset_revision=one.get("revision"),
                metric_type=one["metric"],
                metric_value=one["value"],
                metric_name=f"{one['metric']} on {one['rows']} rows" if one.get("rows") else None,
            )
            for one in config.get("results") or []
        ]
    except KeyError as error:
        raise StitchError(
            f"a result of the config has no {error}: results need task, data, metric and value"
        ) from error


def _eval_result_files(config: Mapping[str, Any]) -> dict[str, str]:
    """Name and content of the `.eval_results/` file: the results on data sets of the Hub, if there are any.

    The Hub shows those whose data set is a benchmark there and has the task `task_id`; `default` if none is given. A
    leaderboard has one value for a task, so of several metrics on one the first is written.
    """
    entries: dict[tuple[str, str], EvalResultEntry] = {}
    for one in config.get("results") or []:
        if dataset_id(one.get("dataset_id")):
            entry = EvalResultEntry(
                dataset_id=one["dataset_id"],
                task_id=one.get("task_id", "default"),
                value=one["value"],
                dataset_revision=one.get("revision"),
                notes=", ".join(notes(one)),
            )
            entries.setdefault((entry.dataset_id, entry.task_id), entry)
    content = eval_result_entries_to_yaml(list(entries.values()))
    return {RESULTS_NAME: safe_dump(content, sort_keys=False)} if entries else {}


def notes(result: Mapping[str, Any]) -> list[str]:
    """List the metric and the data of a result, as far as they are known."""
    on = [f"{name} {result[name]}" for name in ("config", "split") if result.get(name)]
    return [result["metric"], *on, *([f"{result['rows']} rows"] if result.get("rows") else [])]


@dataclass(frozen=True)
class Base:
    """Name a model behind a card's subject, by names fit to publish: none is a path of this machine."""

    name: str
    on_hub: bool
    data: str | None
    origin: Provenance

    @property
    def link(self) -> str:
        """Return the name, linked to the Hub's model if there is one."""
        shown, revision = _inline(self.name), self.origin.revision
        return f"[{shown}](https://huggingface.co/{self.name}/tree/{revision})" if self.on_hub else shown

    @property
    def pooling(self) -> str:
        """Describe how the model's output becomes a latent."""
        prompted = f", after the prompt {_inline(self.origin.prompt)}" if self.origin.prompt else ""
        return f"{_inline(self.origin.describe())}{prompted}"

    @property
    def data_link(self) -> str:
        """Return the name of the data, linked to the Hub's data set if there is one."""
        shown = _inline(self.data or "data without a name")
        found = dataset_id(self.data)
        return f"[{shown}](https://huggingface.co/datasets/{found})" if found else shown

    @property
    def arguments(self) -> str:
        """Write what loads the model as Python arguments; only the Hub has revisions."""
        origin, cut = self.origin, self.origin.cut
        is_early = cut is not None and len(cut.layers) > 1 and not cut.averaged
        named = {
            "revision": origin.revision if self.on_hub else None,
            "prompt": origin.prompt,
            "pairs": origin.pairs,
            "cut": cut.layers[0] if cut is not None and is_early else None,
            # the repo's own layers are read if no pooling is named
            "pooling": None if cut or origin.after_pooling else origin.pooling,
        }
        return ", ".join([repr(self.name), *(f"{name}={value!r}" for name, value in named.items() if value)])

    @property
    def call(self) -> str:
        """Write the call that loads the encoder of the latents, or cuts it from a classifier."""
        if self.origin.cut:
            return f"load_classifier({self.arguments})[0]"
        return f"Encoder.from_pretrained({self.arguments})"

    @classmethod
    def from_provenance(cls, provenance: Mapping[str, Any]) -> "Base":
        """Read the fields of a `Provenance`; those that are missing are empty."""
        origin = Provenance.from_dict({"model_id": "", "revision": "", "pooling": ""} | dict(provenance))
        model_id, revision = origin.model_id, origin.revision
        on_hub = is_commit(revision) and re.fullmatch(f"({NAMESPACE})?{NAME}", model_id) is not None
        name = model_id if on_hub else " ".join(PureWindowsPath(model_id).name.split()) or "an unnamed model"
        return cls(name, on_hub, origin.data and _public_data_name(origin.data), origin)


def dataset_id(data: str | None) -> str | None:
    """Find the Hub id in the name of data: `namespace/name`, maybe with a split or the like after it in brackets."""
    found = re.fullmatch(rf"({NAMESPACE}{NAME})(?: \([^()]*\))?", data or "")
    is_file = found and mimetypes.guess_type(found[1])[0]  # as in texts/train.txt
    return found[1] if found and not is_file else None


def _public_data_name(data: str) -> str:
    """The name of data without the folders of a local path."""
    if dataset_id(data) is not None:
        return data
    is_path = re.match(r"(~|\.{1,2}|[A-Za-z]:|file:)?[\\/]", data) or not re.search(r"\s", data)
    return PureWindowsPath(data).name if is_path else data


def _licensing(bases: list[Base]) -> tuple[dict[str, Any], str]:
    """The licence's metadata keys, and the note that says where it comes from."""
    unknown = dict.fromkeys(_inline(base.name) for base in bases if base.origin.license is None)
    licenses = sorted({base.origin.license for base in bases if base.origin.license is not None})
    if unknown:
        who = " and of ".join(unknown)
        return {}, f"**The licence of {who} is not known.** Find out what it allows before you use or share this."
    named, slugs = " and ".join(map(_inline, licenses)), "-and-".join(map(_slug, licenses))
    keys = {"license": slugs} if slugs == licenses[0] else {"license": "other", "license_name": slugs}
    if len(licenses) == 1:
        return keys, f"What it is made of is under one licence, {named}, and so is this."
    return keys, (
        f"**The licences differ: {named}.** Parts of both models are in this one, so whoever uses or shares it has to "
        "keep to both. Read them to see whether they go together."
    )


def _slug(license_name: str) -> str:
    """A licence's name as the Hub takes it."""
    return re.sub(r"[^a-z0-9.+]+", "-", license_name.removeprefix("other ").lower()).strip("-") or "unnamed"


def number(value: object, digits: int) -> str:
    """Format a number for a table."""
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "not known"


def _inline(text: object) -> str:
    """Foreign text as one line of Markdown that means nothing but itself, in a table too."""
    line = " ".join(str(text).split())
    special = r"[\\`*\[\]|~<>&$@]|(?<!\w)_+|_+(?!\w)|:(?=//)|(?<=www)\."  # the last two begin links
    return re.sub(special, lambda found: "".join(f"&#{ord(one)};" for one in found[0]), line)


def _code(text: str) -> str:
    """Foreign text for a fenced block of code, which it cannot end."""
    return text.replace("`", "'").replace("<!--", "<!==")


def _render(
    name: str,
    bases: list[Base],
    relation: str,
    metadata: dict[str, Any],
    template: dict[str, Any],
    *,
    existing: str | None,
) -> str:
    """A card from its template, over an existing one with the edits of that; bases are related to what it is of."""
    license_keys, license_note = _licensing(bases)
    hub_ids = list(dict.fromkeys(base.name for base in bases if base.on_hub)) or None
    data = ModelCardData(
        base_model=hub_ids,
        base_model_relation=relation if hub_ids else None,
        datasets=list(dict.fromkeys(filter(None, (dataset_id(base.data) for base in bases)))) or None,
        **metadata,
        **license_keys,
    )
    values = template | {"bases": bases, "license_note": license_note, "card_data": data.to_yaml()}
    functions = {"inline": _inline, "code": _code, "number": number}
    templates = Environment(loader=FileSystemLoader(TEMPLATES))  # noqa: S701  (Markdown; `inline` escapes)
    card = ModelCard(templates.get_template(name).render({**data.to_dict(), **values, **functions}))
    return keep_edits(card.text, data, existing)
