"""Cards: what they say, what the Hub reads of them, and that people's edits stay."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pico
import pytest
import yaml
from example_runs import EXAMPLES, MODEL_CARDS
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard, ModelCardData, parse_eval_result_entries
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError, load_classifier
from hf_relstitch.hub.card_edits import END, START
from hf_relstitch.hub.cards import _eval_result_files, _inline, anchor_card, model_card
from hf_relstitch.hub.repo import Repo

examples = settings(deadline=None, max_examples=50, derandomize=True)
COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
SOURCE = {"model_id": "org/encoder", "revision": COMMIT, "pooling": "mean", "data": "org/news", "license": "mit"}
TARGET = SOURCE | {"model_id": "org/classifier", "pooling": "input of classifier, pooled"}
RESULT = {
    "task_type": "text-classification",
    "dataset_name": "News",
    "dataset_id": "org/news",
    "split": "test",
    "metric": "accuracy",
    "value": 0.75,
}
CONFIG: dict[str, Any] = {
    "model_type": "relative_stitcher",
    "modality": "text",
    "num_anchors": 500,
    "id2label": {"0": "calm", "1": "stormy"},
    "source": SOURCE,
    "target": TARGET,
    "call": "RelativeStitcher.from_parts(\n    alpha=0.7,\n)",
    "report": {
        "cosine": 0.81234,
        "mean_reciprocal_rank": 0.7,
        "agreement": 0.912,
        "source": {"condition_number": 1234.56, "effective_rank": 99.04, "dim": 384},
        "target": {"condition_number": 10.6, "effective_rank": 88.8, "dim": 768},
    },
    "hf_relstitch_version": "0.1.0",
    "transformers_version": "5.0.0",
}
ANCHORS: dict[str, Any] = {
    "provenance": SOURCE,
    "num_anchors": 500,
    "dim": 384,
    "inputs": "0123abcd",
    "hf_relstitch_version": "0.1.0",
}


def changed(**changes: Any) -> dict[str, Any]:
    """The config with other values; `source_license=None` changes a value of its source."""
    config = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        side, _, field = name.partition("_")
        if side in ("source", "target"):
            config[side][field] = value
        else:
            config[name] = value
    return config


def metadata(card: str) -> dict[str, Any]:
    return ModelCard(card).data.to_dict()


def tables(card: str) -> Iterator[list[list[str]]]:
    """The text of each cell of each table, as a Markdown parser of somebody else's sees them."""
    tree = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text))
    for table in (node for node in tree.walk() if node.type == "table"):
        yield [["".join(text(cell)) for cell in row.children] for part in table.children for row in part.children]


def text(node: SyntaxTreeNode) -> Iterator[str]:
    for one in node.walk():
        if one.type in ("text", "text_special", "code_inline"):
            yield one.content


# What the Hub reads


def test_metadata_of_a_model() -> None:
    assert metadata(model_card(CONFIG)) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": ["org/encoder", "org/classifier"],
        "base_model_relation": "merge",
        "datasets": ["org/news"],
        "license": "mit",
        "tags": ["hf_relstitch", "model-stitching", "relative-representations"],
    }
    assert metadata(model_card(changed(modality="image")))["pipeline_tag"] == "image-classification"
    assert metadata(model_card(changed(share="adapter")))["base_model_relation"] == "adapter"


def test_metadata_of_an_anchor_set() -> None:
    assert metadata(anchor_card(ANCHORS)) == {
        "library_name": "hf_relstitch",
        "base_model": ["org/encoder"],
        "base_model_relation": "adapter",
        "datasets": ["org/news"],
        "license": "mit",
        "tags": ["relative-anchors", "anchor-inputs-0123abcd", "model-stitching", "relative-representations"],
    }


def test_metadata_survives_the_hubs_own_reading_and_writing() -> None:
    for card in (model_card(changed(results=[RESULT])), anchor_card(ANCHORS)):
        assert str(ModelCard(card)) == card
        assert ModelCardData(**metadata(card)).to_dict() == metadata(card)


@pytest.mark.parametrize("revision", ["weights:93897c82cc6a44a9db2ec405197c8627", "main", ""])
def test_only_models_at_a_commit_are_base_models(revision: str) -> None:
    card = model_card(changed(source_revision=revision))
    assert metadata(card)["base_model"] == ["org/classifier"]
    assert "huggingface.co/org/classifier/tree" in card
    assert "huggingface.co/org/encoder" not in card
    assert "base_model" not in metadata(model_card(changed(source_revision=revision, target_revision=revision)))


@pytest.mark.parametrize(
    ("data", "found", "shown"),
    [
        ("org/news", ["org/news"], "org/news"),
        ("org/news (train)", ["org/news"], "org/news (train)"),
        ("/home/me/hidden/texts.txt", None, "texts.txt"),
        ("~/hidden/texts", None, "texts"),
        ("../hidden/texts", None, "texts"),
        ("hidden/texts.txt", None, "texts.txt"),
        ("hidden/of/mine", None, "mine"),
        ("C:\\hidden\\texts.txt", None, "texts.txt"),
        ("glosses of animals and/or plants", None, "glosses of animals and/or plants"),
        (None, None, "data without a name"),
    ],
)
def test_data_are_named_without_their_path(data: str | None, found: list[str] | None, shown: str) -> None:
    card = model_card(changed(source_data=data, target_data=data))
    assert metadata(card).get("datasets") == found
    assert f"from {shown}." in card or f"from [{shown}](https://huggingface.co/datasets/org/news)." in card
    assert "hidden" not in card


@pytest.mark.parametrize(
    "path", ["/home/me/hidden/encoder", "hidden/encoder", "C:\\hidden\\encoder", "./hidden/encoder/"]
)
def test_no_path_of_a_model_is_shown(path: str) -> None:
    for card in (
        model_card(changed(source_model_id=path, source_revision="weights:00", results=[RESULT])),
        anchor_card(ANCHORS | {"provenance": SOURCE | {"model_id": path, "revision": "weights:00"}}),
    ):
        assert "encoder" in card
        assert "hidden" not in card


# Licences


@pytest.mark.parametrize(
    ("source", "target", "expected", "note"),
    [
        ("mit", "mit", {"license": "mit"}, "under one licence, mit, and so is this"),
        ("apache-2.0", "cc-by-nc-4.0", {"license": "other", "license_name": "apache-2.0-and-cc-by-nc-4.0"}, "differ"),
        ("other (Gemma Terms)", "other (Gemma Terms)", {"license": "other", "license_name": "gemma-terms"}, "one"),
        ("Apache License, 2", "Apache License, 2", {"license": "other", "license_name": "apache-license-2"}, "one"),
        (
            "other (许可)",
            "mit",
            {"license": "other", "license_name": "mit-and-unnamed"},
            "differ: mit and other (许可)",
        ),
        ("mit", None, {}, "The licence of org/classifier is not known"),
        (None, None, {}, "The licence of org/encoder and of org/classifier is not known"),
    ],
)
def test_licences(source: str | None, target: str | None, expected: dict[str, str], note: str) -> None:
    card = model_card(changed(source_license=source, target_license=target))
    assert {key: value for key, value in metadata(card).items() if key.startswith("license")} == expected
    assert note in card
    assert ("**" in card) == (source != target or source is None)


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: mit\n---\ntext", "mit"),
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "other (gemma)"),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: unknown\n---\n", None),
        ("---\nlicense: [mit, gpl-3.0]\n---\n", None),
        ("---\nlicense: [mit\n---\n", None),
        ("---\njust text\n---\n", None),
        ("---\n\n---\n", None),
        ("no metadata", None),
        (b"---\nlicense: \xff\n---\n", None),
        (None, None),
    ],
)
def test_licence_of_a_model_is_read_from_its_card(
    readme: str | bytes | None, expected: str | None, tmp_path: Path
) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_bytes(readme if isinstance(readme, bytes) else readme.encode())
    assert Repo(str(tmp_path), None).license() == expected


def test_licences_come_into_the_provenance(tmp_path: Path) -> None:
    for folder, name in (
        (pico.saved("Bert", tmp_path / "a"), "mit"),
        (pico.saved("Roberta", tmp_path / "b"), "gpl-3.0"),
    ):
        Path(folder, "README.md").write_text(f"---\nlicense: {name}\n---\n")
    model = RelativeStitcher.from_parts(str(tmp_path / "a"), str(tmp_path / "b"), pico.texts(50), progress=False)
    assert (model.config.source["license"], model.config.target["license"]) == ("mit", "gpl-3.0")
    model.save_pretrained(tmp_path / "stitched")
    assert "**The licences differ: gpl-3.0 and mit.**" in (tmp_path / "stitched" / "README.md").read_text()


def test_licence_sets_no_models_apart(source: Encoder) -> None:
    from dataclasses import replace

    assert source.provenance.difference(replace(source.provenance, license="mit")) == ""


# What the text says


def test_a_stranger_finds_what_to_do_and_what_to_expect() -> None:
    card = model_card(CONFIG, repo_id="me/stitched")
    assert 'pipeline("text-classification", model="me/stitched")' in card
    assert "It chooses between 2 classes: calm, stormy." in card
    assert CONFIG["call"] in card
    assert "from 500 unlabeled inputs" in card
    assert "The 500 anchors" in card
    parts, report = tables(card)
    assert [row[:1] + row[2:] for row in parts[1:]] == [
        ["encoder", "mean", COMMIT, "mit"],
        ["head", "input of classifier, pooled", COMMIT, "mit"],
    ]
    assert [row[1] for row in report[1:]] == [
        "0.812", "0.700", "0.912", "1,234.6", "10.6", "99.0 of 384", "88.8 of 768",
    ]  # fmt: skip
    assert all(len(row[2]) > 20 for row in report[1:])


def test_many_classes_are_cut_short() -> None:
    card = model_card(changed(id2label={str(index): f"class {index}" for index in range(1000)}))
    assert "1000 classes: class 0, class 1," in card
    assert "class 29 and more" in card
    assert "class 30" not in card


def test_a_head_of_one_output_and_an_older_config_say_so() -> None:
    report = CONFIG["report"] | {"agreement": None}
    card = model_card(changed(report=report))
    assert "| expected agreement | not known |" in card
    assert "Verdict" not in card
    bare = {name: CONFIG[name] for name in ("model_type", "source", "target", "num_anchors")}
    bare["source"] = {name: SOURCE[name] for name in ("model_id", "revision", "pooling", "data")}
    card = model_card(bare)
    assert "The call is not recorded." in card
    assert "It was not measured on labeled data." in card
    assert "The licence of org/encoder is not known" in card


def test_keys_and_adapters_are_told() -> None:
    told = "secret key of the hashes"
    assert told in anchor_card(ANCHORS | {"key": "77"})
    assert told not in anchor_card(ANCHORS)
    told = "encoder's weights are not in this repo"
    assert told in model_card(changed(share="adapter"))
    assert told not in model_card(CONFIG)


# Results


def test_results_are_in_the_table_the_model_index_and_the_file() -> None:
    local = RESULT | {"dataset_name": "/home/hidden/mine", "dataset_id": "/home/hidden/mine", "split": None}
    config = changed(results=[RESULT, local, RESULT | {"metric": "f1", "value": "0.7 ± 0.1", "task_id": "topics"}])
    card = model_card(config, repo_id="me/stitched")
    *_, results = tables(card)
    assert results[1:] == [
        ["News", "test", "accuracy", "0.750"],
        ["mine", "", "accuracy", "0.750"],
        ["News", "test", "f1", "0.7 ± 0.1"],
    ]
    (index,) = metadata(card)["model-index"]
    assert index["name"] == "me/stitched"
    assert [(one["dataset"]["type"], len(one["metrics"])) for one in index["results"]] == [("org/news", 2), ("mine", 1)]
    assert "hidden" not in card
    ((name, content),) = _eval_result_files(config).items()
    assert re.fullmatch(r"\.eval_results/\w+\.yaml", name)
    entries = parse_eval_result_entries(yaml.safe_load(content))
    assert [(one.dataset_id, one.task_id, one.value, one.notes) for one in entries] == [
        ("org/news", "default", 0.75, "accuracy, split test"),
        ("org/news", "topics", "0.7 ± 0.1", "f1, split test"),
    ]
    assert _eval_result_files(CONFIG) == {}


def test_a_result_without_its_value_is_an_error() -> None:
    with pytest.raises(StitchError, match="a result of the config has no 'value'"):
        model_card(changed(results=[{name: RESULT[name] for name in RESULT if name != "value"}]))


def test_results_are_saved_and_go_when_they_are_gone(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.config.results = [RESULT]
    stitched.save_pretrained(tmp_path)
    (tmp_path / ".eval_results" / "mine.yaml").write_text("[]")
    assert "value: 0.75" in (tmp_path / ".eval_results" / "hf_relstitch.yaml").read_text()
    loaded = RelativeStitcher.from_pretrained(tmp_path)
    assert loaded.config.results == [RESULT]
    loaded.config.results = []
    loaded.save_pretrained(tmp_path)
    assert [file.name for file in (tmp_path / ".eval_results").iterdir()] == ["mine.yaml"]
    assert "model-index" not in metadata((tmp_path / "README.md").read_text())


# Foreign text


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip))
@examples
def test_foreign_text_is_shown_as_it_is_and_breaks_no_table(name: str) -> None:
    config = changed(
        source_model_id=name.replace("/", "").replace("\\", "") or "x",
        source_revision="weights:" + name,
        source_pooling=name,
        source_license=name,
        id2label={"0": name},
        results=[RESULT | {"dataset_name": f"{name} x y", "dataset_id": None}],
    )
    shown = " ".join(name.split())
    parts, report, results = tables(model_card(config))
    assert {len(row) for row in parts} == {5}
    assert parts[1][2] == shown
    assert parts[1][4] == shown
    assert len(report) == 8
    assert len(results) == 2


@pytest.mark.parametrize(
    "name",
    ["a|b", "a\n\nb", "**b**", "__init__", "`x`", "<script>alert(1)</script>", "![x](y)", END, START, "&amp;", "a\\|b"],
)
def test_foreign_text_is_inert(name: str) -> None:
    shown = " ".join(name.split())
    rendered = (
        MarkdownIt("commonmark").enable("table").render(f"x {_inline(name)}\n\n| h |\n| --- |\n| {_inline(name)} |\n")
    )
    assert not any(begin in _inline(name) for begin in ("://", "www.", "@"))  # what GitHub's Markdown makes a link of
    escaped = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    assert f"<p>x {escaped}</p>" in rendered
    assert f"<td>{escaped}</td>" in rendered
    card = model_card(changed(id2label={"0": name}, source_license=name, call=f"f({name!r})"))
    assert (card.count(START), card.count(END)) == (1, 1)
    assert model_card(changed(id2label={"0": name}, source_license=name, call=f"f({name!r})"), existing=card) == card


def test_remembered_metadata_cannot_leave_their_comment() -> None:
    config = changed(source_model_id="a --> <b>c", source_revision="weights:0", results=[RESULT])
    card = model_card(config)
    comment, *_ = MarkdownIt().parse(ModelCard(card).text)
    assert comment.content.rstrip().endswith("-->")
    assert comment.content.count("-->") == 1
    assert model_card(config, existing=card) == card


def test_a_call_cannot_leave_its_block() -> None:
    card = model_card(changed(call=f"f('''\n```\n# free {END}\n''')"))
    fence = [node for node in MarkdownIt().parse(ModelCard(card).text) if node.type == "fence"][-1]
    assert "# free" in fence.content


# Edits

WORDS = st.text("ab|#-<>*\n é", max_size=40)


@given(before=WORDS, after=WORDS)
@examples
def test_text_outside_of_the_markers_stays(before: str, after: str) -> None:
    generated = model_card(CONFIG)
    start, end = generated.index(START), generated.index(END) + len(END)
    edited = generated[:start] + before + generated[start:end] + after
    anew = model_card(changed(num_anchors=77), existing=edited)
    body = model_card(changed(num_anchors=77))
    assert anew == edited[:start] + before + body[body.index(START) : body.index(END) + len(END)] + after


def test_a_card_made_twice_is_the_same() -> None:
    for make, config in ((model_card, changed(results=[RESULT])), (anchor_card, ANCHORS)):
        card = make(config)
        assert make(config, existing=card) == card


@pytest.mark.parametrize("existing", [None, "", " \n", "\ufeff"])
def test_an_empty_card_is_none(existing: str | None) -> None:
    assert model_card(CONFIG, existing=existing) == model_card(CONFIG)


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("top", ["", "---\nlanguage: de\nlicense: gpl-3.0\ntags:\n- mine\n---\n"])
def test_what_somebody_wrote_before_stays(top: str, line_break: str) -> None:
    existing = (top + "# My model\n\nMine.\n").replace("\n", line_break)
    card = model_card(CONFIG, existing=existing)
    assert "# My model\n\nMine.\n" in card
    assert card.index("Mine.") < card.index(START) < card.index(END)
    found = metadata(card)
    if top:
        assert (found["language"], found["license"]) == ("de", "gpl-3.0")
        assert found["tags"] == ["mine", "hf_relstitch", "model-stitching", "relative-representations"]
    assert found["base_model"] == ["org/encoder", "org/classifier"]
    assert model_card(CONFIG, existing=card) == card


def edited(config: dict[str, Any], **edits: Any) -> str:
    """A card whose metadata somebody has changed; None takes a key away."""
    card = ModelCard(model_card(config))
    for key, value in edits.items():
        card.data[key] = value
    return str(card)


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({}, {"license": "gpl-3.0", "base_model": ["org/other", "org/classifier"]}),
        ({"language": "de", "widget": [{"text": "x"}]}, {"language": "de", "widget": [{"text": "x"}]}),
        ({"pipeline_tag": "zero-shot-classification"}, {"pipeline_tag": "zero-shot-classification"}),
        ({"tags": ["mine", "hf_relstitch", "model-stitching"]}, {"tags": ["mine", "hf_relstitch", "model-stitching"]}),
        ({"base_model": ["org/encoder", "org/x"]}, {"base_model": ["org/x", "org/other"]}),
        ({"base_model": "org/x"}, {"base_model": ["org/x", "org/other"]}),
        ({"license": "cc0-1.0"}, {"license": "cc0-1.0"}),
        ({"license": "other", "license_name": "mine"}, {"license": "other", "license_name": "mine"}),
        ({"license": None}, {"license": None}),
        ({"datasets": None}, {"datasets": None}),
    ],
)
def test_edits_of_the_metadata_stay_and_the_rest_is_made_anew(edits: dict[str, Any], expected: dict[str, Any]) -> None:
    now = changed(source_model_id="org/other", source_license="gpl-3.0", target_license="gpl-3.0")
    found = metadata(model_card(now, existing=edited(CONFIG, **edits)))
    assert {key: found.get(key) for key in expected} == expected


def test_a_licence_that_is_no_longer_known_goes() -> None:
    assert "license" not in metadata(model_card(changed(source_license=None), existing=model_card(CONFIG)))
    conflict = changed(source_license="gpl-3.0")
    assert "license_name" in metadata(model_card(conflict))
    assert "license_name" not in metadata(model_card(CONFIG, existing=model_card(conflict)))
    kept = metadata(model_card(CONFIG, existing=edited(conflict, license="gpl-3.0", license_name=None)))
    assert (kept["license"], kept.get("license_name")) == ("gpl-3.0", None)
    kept = metadata(model_card(conflict, existing=edited(CONFIG, license="cc0-1.0")))
    assert (kept["license"], kept.get("license_name")) == ("cc0-1.0", None)


def test_results_of_others_stay() -> None:
    theirs = ModelCard(model_card(changed(results=[RESULT])))
    added = copy.deepcopy(theirs.data.eval_results[0])
    added.dataset_type = added.dataset_name = "theirs"
    theirs.data.eval_results.append(added)
    now = changed(results=[RESULT | {"value": 0.8}])
    (index,) = metadata(model_card(now, existing=str(theirs)))["model-index"]
    values = {one["dataset"]["type"]: one["metrics"][0]["value"] for one in index["results"]}
    assert values == {"theirs": 0.75, "org/news": 0.8}
    (index,) = metadata(model_card(CONFIG, existing=str(theirs)))["model-index"]
    assert (len(index["results"]), index["name"]) == (1, theirs.data.model_name)


def test_a_broken_memory_makes_all_metadata_peoples() -> None:
    card = model_card(CONFIG).replace('metadata as generated: {"', "metadata as generated: {")
    found = metadata(model_card(changed(source_license="gpl-3.0", source_model_id="org/other"), existing=card))
    assert found["license"] == "mit"
    assert found["base_model"] == ["org/encoder", "org/classifier", "org/other"]


def test_a_lost_end_loses_no_text() -> None:
    card = model_card(CONFIG).replace(END, "my own words")
    anew = model_card(CONFIG, existing=card)
    assert anew.startswith(card)
    assert model_card(CONFIG, existing=anew) == anew
    assert "my own words" in model_card(changed(num_anchors=77), existing=anew)


@pytest.mark.parametrize(
    "broken", ["---\na: [\n---\n", "---\njust text\n---\n", "---\n1: x\n---\n", "---\nmodel-index:\n- name: x\n---\n"]
)
def test_metadata_that_cannot_be_read_are_an_error_and_stay(broken: str, anchor_set: AnchorSet, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(broken)
    with pytest.raises(StitchError, match=r"cannot be read .*: repair it, or remove the file"):
        anchor_set.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == broken


def test_a_card_that_is_no_text_is_an_error(anchor_set: AnchorSet, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(StitchError, match="is not text in UTF-8"):
        anchor_set.save_pretrained(tmp_path)


@given(
    st.dictionaries(
        st.sampled_from(["language", "license", "tags", "datasets", "base_model", "pipeline_tag", "thumbnail"]),
        st.text("abc", min_size=1) | st.lists(st.sampled_from("xyz"), unique=True, min_size=1),
    )
)
@examples
def test_metadata_written_by_hand_is_all_still_there(written: dict[str, Any]) -> None:
    existing = f"---\n{yaml.safe_dump(written)}---\nMine."
    found = metadata(model_card(CONFIG, existing=existing))
    for key, value in written.items():
        kept = found[key] if isinstance(found[key], list) else [found[key]]
        assert set(value if isinstance(value, list) else [value]) <= set(kept), key


# Folders and repos


def test_save_writes_a_card_that_keeps_edits(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    assert stitched.config.call in card.read_text()
    assert json.loads((tmp_path / "config.json").read_text())["call"] == stitched.config.call
    card.write_text(card.read_text() + "\nMy note.\n")
    stitched.save_pretrained(tmp_path)
    assert card.read_text().endswith("\nMy note.\n")
    assert str(tmp_path.parent) not in card.read_text()


@pytest.mark.parametrize(
    "options",
    [{"alpha": 0.5, "ridge": 0.1, "pruning": 0.9, "subspaces": 2}, {}, {"prefer": "linear"}],
    ids=["given", "chosen", "linear"],
)
def test_the_call_makes_the_same_model(
    options: dict[str, Any], source_folder: str, target_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors = pico.texts(100)
    encoder = Encoder.from_pretrained(source_folder, pooling="cls")
    model = RelativeStitcher.from_parts(
        encoder, target_folder, anchors, data="salad", labels=["a", "b", "c"], progress=False, **options
    )
    monkeypatch.chdir(Path(source_folder).parent)
    if not Path("tiny-roberta").exists():
        Path("tiny-roberta").symlink_to(target_folder)
    names = {"RelativeStitcher": RelativeStitcher, "Encoder": Encoder, "load_classifier": load_classifier}
    names |= {"anchors": anchors, "labels": ["a", "b", "c"]}
    prelude, _, call = model.config.call.partition("\n")
    exec(prelude, names)
    again = eval(call, names)
    assert again.config.call == model.config.call
    assert again.config.translation == model.config.translation
    assert again.config.readout == model.config.readout == ("alpha" not in options)
    assert again.predict(anchors[:9]).equal(model.predict(anchors[:9]))


def test_the_call_from_anchor_sets(
    stitched: RelativeStitcher, source: Encoder, anchor_set: AnchorSet, target: Any
) -> None:
    encoder, head = target
    target_anchors = AnchorSet.encode(encoder, pico.texts(100), progress=False)
    model = RelativeStitcher.from_anchor_sets(source, anchor_set, target_anchors, head)
    assert model.config.call.splitlines()[:6] == [
        "target, head = load_classifier('tiny-roberta')",
        "RelativeStitcher.from_anchor_sets(",
        "    source=Encoder.from_pretrained('tiny-bert', pooling='mean'),",
        "    source_anchors=source_anchors,",
        "    target_anchors=target_anchors,",
        "    head=head,",
    ]


def test_anchor_sets_name_their_data_without_a_path(source: Encoder, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("x")
    for data, name in ((str(tmp_path / "texts.txt"), "texts.txt"), ("x" * 5000, "x" * 5000), (None, None)):
        assert AnchorSet.encode(source, pico.texts(40), data=data, progress=False).provenance.data == name


def test_a_pushed_card_names_its_repo_and_keeps_edits_made_on_the_hub(hub: HubServer, anchor_set: AnchorSet) -> None:
    anchor_set.push_to_hub("anchors")
    card = HfApi().hf_hub_download("alice/anchors", "README.md")
    content = Path(card).read_text()
    assert 'AnchorSet.from_pretrained("alice/anchors")' in content
    HfApi().upload_file(
        path_or_fileobj=(content + "\nNoted.\n").encode(), path_in_repo="README.md", repo_id="alice/anchors"
    )
    anchor_set.push_to_hub("alice/anchors")
    assert Path(HfApi().hf_hub_download("alice/anchors", "README.md")).read_text() == content + "\nNoted.\n"
    assert AnchorSet.find(anchor_set) == ["alice/anchors"]


def test_a_pushed_model_has_hub_ids_and_a_licence_from_the_hub(
    hub: HubServer, source_folder: str, target_folder: str, tmp_path: Path
) -> None:
    for name, folder in (("alice/bert", source_folder), ("alice/roberta", target_folder)):
        HfApi().create_repo(name)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
        HfApi().upload_file(path_or_fileobj=b"---\nlicense: mit\n---\n", path_in_repo="README.md", repo_id=name)
    model = RelativeStitcher.from_parts(
        "alice/bert", "alice/roberta", pico.texts(50), data="alice/salad", progress=False
    )
    model.push_to_hub("stitched")
    card = ModelCard.load("alice/stitched")
    assert (card.data.base_model, card.data.license) == (["alice/bert", "alice/roberta"], "mit")
    assert card.data.datasets == ["alice/salad"]
    assert f"load_classifier('alice/roberta', revision='{model.config.target['revision']}')" in card.text
    assert 'model="alice/stitched"' in card.text


# The cards in model_cards/


def alike(card: str) -> tuple[str, list[float]]:
    """A card without what differs from machine to machine: versions, commits, the last digits."""
    card = re.sub(r"(hf_relstitch|transformers) \d[\w.]*", r"\1 VERSION", card)
    card = re.sub(r"\b[0-9a-f]{40}\b", "COMMIT", card)
    number = r"\d[\d,]*\.\d+"
    return re.sub(number, "NUMBER", card), [float(one.replace(",", "")) for one in re.findall(number, card)]


def test_model_cards_are_all_there() -> None:
    names = {Path(name).with_suffix(".md").name for name in EXAMPLES} | {"README.md"}
    assert {file.name for file in MODEL_CARDS.iterdir()} == names


def test_a_card_gives_the_verdict_and_the_interval() -> None:
    verdict = {"grade": "usable", "reason": "the head | answers alike", "remedy": "more anchors"}
    report = CONFIG["report"] | {"verdict": verdict, "agreement_interval": [0.8, 0.95]}
    card = model_card(CONFIG | {"report": report, "selection": {"prefer": "auto", "candidates": []}})
    assert "**Verdict: usable.** The head &#124; answers alike. What would help: more anchors." in card
    assert "| expected agreement | 0.912 (0.800 to 0.950) |" in card
    assert 'chosen on the anchors, without labels, with `prefer="auto"`' in card
