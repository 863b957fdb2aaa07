"""The command line, as a user runs it."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pico
import pytest
from hub_server import HubServer
from PIL import Image

from hf_relstitch import (
    AnchorSet,
    CallableEncoder,
    Encoder,
    RelativeStitcher,
    StitchError,
    __version__,
    load_classifier,
)
from hf_relstitch.cli import main
from hf_relstitch.cli.predict import predict
from hf_relstitch.data.ids import input_ids
from hf_relstitch.data.reading import read_inputs


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


def run(*arguments: object, status: int = 0) -> Done:
    """Run `hf-relstitch` in this process, where the libraries are imported already, and check its exit status."""
    with pytest.MonkeyPatch.context() as patch, StringIO() as stdout, StringIO() as stderr:
        patch.setattr(sys, "argv", ["hf-relstitch", *map(str, arguments)])
        patch.setenv("COLUMNS", "300")
        with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == status, stdout.getvalue() + stderr.getvalue()
        return Done(stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="module")
def model(source_folder: str, target_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that `hf-relstitch stitch` made of a text file."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "texts.txt").write_text("\n".join(pico.texts(80)) + "\n\n")
    done = run(
        "stitch", source_folder, target_folder, folder / "model", "--anchors", folder / "texts.txt", "--alpha", "0.5"
    )
    assert "condition_number" in done.stdout
    return folder / "model"


def test_stitch_records_where_the_anchors_come_from(model: Path) -> None:
    description = json.loads(run("inspect", model, "--json").stdout)
    assert description["kind"] == "stitched model"
    assert description["source"]["data"] == description["target"]["data"] == "texts.txt"
    assert description["report"]["num_anchors"] == 80
    assert description["translation"]["alpha"] == 0.5
    assert description["selection"] == {"criterion": "none: the settings were given"}
    assert description["source"]["effective_rank"] > 1
    assert description["target"]["cut"] == {"layers": ["classifier.out_proj"], "row": "pooled", "averaged": False}


def test_stitch_offers_what_may_be_chosen() -> None:
    for option, choices in {"--prefer": ("auto", "linear"), "--norm": ("keep", "mean")}.items():
        refused = run("stitch", "a", "b", "c", "--anchors", "d", option, "else", status=2).stderr
        assert all(choice in refused for choice in (option, *choices))


def test_the_verdict_comes_last_with_what_to_type_next(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run("inspect", model).stdout
    assert all(word in shown for word in ("stitched model", "tiny-bert", "agreement", "effective_rank"))
    report = json.loads(run("inspect", model, "--json").stdout)["report"]
    agreement, low, high = (round(100 * one) for one in (report["agreement"], *report["agreement_interval"]))
    lines = [re.split(r"  +", line.strip(), maxsplit=1) for line in shown.splitlines()]
    assert len(lines) <= 25
    assert report["verdict"]["grade"] == "do not use"
    assert lines[-6:] == [
        ["anchors", "80"],
        ["expected agreement", f"{agreement} % ({low}–{high} %) of inputs"],
        ["verdict", report["verdict"]["grade"]],
        ["reason", report["verdict"]["reason"]],
        ["remedy", report["verdict"]["remedy"]],
        ["next", f"hf-relstitch plot {model} stitched.png"],  # since it is not for use
    ]
    assert "{" not in shown
    assert not re.search(r"0\.\d{7}|[1-9]\.\d{4}", shown), "more than 4 digits"


def test_a_choice_is_shown_with_its_best_candidates(source_folder: str, target_folder: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(pico.texts(80)))
    arguments = ("--anchors", tmp_path / "texts.txt", "--limit", "40", "--prefer", "auto")
    shown = run("stitch", source_folder, target_folder, tmp_path / "model", *arguments).stdout
    assert all(word in shown for word in ("best candidates", "gamma", "expected agreement", "do not use"))
    assert re.search(rf"\n  next +hf-relstitch plot {tmp_path / 'model'} stitched.png\n$", shown)  # not for use
    description = json.loads(run("inspect", tmp_path / "model", "--json").stdout)
    assert description["report"]["num_anchors"] == 40
    assert description["selection"]["prefer"] == "auto"
    (candidates,) = (line for line in shown.splitlines() if line.strip().startswith("best candidates"))
    listed = [f"{name} " in candidates for name in description["best candidates"]]
    assert all(listed[:3])
    assert not any(listed[3:])
    scores = list(description["best candidates"].values())
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == description["selection"]["score"]


def test_a_stitched_folder_is_not_written_over_unless_it_is_forced(
    model: Path, source_folder: str, target_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("stitch", source_folder, target_folder, model, "--anchors", model.with_name("texts.txt"))
    before = (model / "config.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", None)  # it is told before
        done = run(*arguments, status=1)
    assert "model holds a stitched model already: give another folder, or --force" in " ".join(done.stderr.split())
    assert (model / "config.json").read_bytes() == before
    made = json.loads(run(*arguments, "--alpha", "0.5", "--force", "--json").stdout)
    assert made == json.loads(run("inspect", model, "--json").stdout)


def test_inputs_come_from_the_standard_input(
    model: Path, source_folder: str, target_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("\n".join(pico.texts(80)) + "\n\n"))
    made = json.loads(
        run(
            "stitch", source_folder, target_folder, tmp_path / "out", "--anchors", "-", "--alpha", "0.5", "--json"
        ).stdout
    )
    assert (made["report"]["num_anchors"], made["source"]["data"]) == (80, None)
    assert made["report"]["agreement"] == json.loads(run("inspect", model, "--json").stdout)["report"]["agreement"]
    monkeypatch.setattr(sys, "stdin", StringIO("storm hits\nquiet day\n"))
    rows = json.loads(run("predict", model, "ships sail", "-", "--json").stdout)
    assert [row["input"] for row in rows] == ["ships sail", "storm hits", "quiet day"]
    monkeypatch.setattr(sys, "stdin", StringIO("\n"))
    assert "- holds no input" in run("predict", model, "-", status=1).stderr


def test_pooling_and_device_are_options(model: Path, source_folder: str, target_folder: str, tmp_path: Path) -> None:
    arguments = ("stitch", source_folder, target_folder, tmp_path / "out", "--anchors", model.with_name("texts.txt"))
    made = json.loads(run(*arguments, "--pooling", "cls", "--device", "cpu", "--json").stdout)
    assert made["source"]["pooling"] == "cls"
    run("predict", tmp_path / "out", "storm hits", "--device", "cpu")
    refused = run("predict", tmp_path / "out", "storm hits", "--device", "cuda:77", status=2).stderr
    assert "cannot be used here" in refused


def test_ids_are_not_cut_off_in_a_narrow_pipe(model: Path) -> None:
    command = [sys.executable, "-c", "from hf_relstitch.cli import main; main()", "predict", str(model), "storm " * 40]
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    assert "storm " * 39 in done.stdout


@pytest.mark.parametrize("delay", [0.3, 1.0, 2.0, 4.0, 7.0])
def test_ctrl_c_is_one_line(delay: float, tmp_path: Path) -> None:
    script = "import hf_relstitch.cli as cli; print('ready', flush=True); cli.main()"
    command = [sys.executable, "-c", script, "quickstart", "--out", str(tmp_path)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    said = [line for line in stderr.replace("\r", "\n").splitlines() if line.strip() and "it/s" not in line]
    assert said[-1] == "interrupted: what was finished is kept; run the same command again"
    assert "Traceback" not in stderr
    assert "Aborted" not in stderr


def test_inspect_describes_an_anchor_set(source: Encoder, tmp_path: Path) -> None:
    AnchorSet.encode(source, pico.texts(50), data="salad", progress=False).save_pretrained(tmp_path)
    description = json.loads(run("inspect", tmp_path, "--json").stdout)
    assert (description["kind"], description["num_anchors"]) == ("anchor set", 50)
    assert description["provenance"]["data"] == "salad"
    assert description["conditioning"]["condition_number"] >= 1


def test_predict_takes_texts_and_files_of_texts(model: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("storm hits\nquiet day\n")
    rows = json.loads(run("predict", model, "ships sail", tmp_path / "more.txt", "--json").stdout)
    assert [row["input"] for row in rows] == ["ships sail", "storm hits", "quiet day"]
    assert {row["label"] for row in rows} <= set(pico.LABELS.values())
    assert "ships sail" in run("predict", model, "ships sail").stdout


def test_predict_names_a_text_without_a_known_word(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    run("predict", model, "ships sail")
    assert "knows no word" not in caplog.text
    assert "xyzzy plugh" in run("predict", model, "ships sail", "xyzzy plugh").stdout
    assert "the tokenizer knows no word of row 1 (counted from 0), 'xyzzy plugh'" in caplog.text


def test_predict_takes_a_column_of_a_table(model: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("label,headline\n1,storm hits\n0,quiet day\n")
    (tmp_path / "more.txt").write_text("ships sail\n")
    given = (tmp_path / "test.csv", tmp_path / "more.txt", "rain falls")
    rows = json.loads(run("predict", model, *given, "--column", "headline", "--json").stdout)
    assert [row["input"] for row in rows] == ["storm hits", "quiet day", "ships sail", "rain falls"]
    assert "has no column 'text': it has label, headline" in run(
        "predict", model, *given, "--column", "text", status=1
    ).stderr.replace("\n", " ")


def test_predict_takes_a_column_of_pictures(tmp_path: Path) -> None:
    for index in range(40):
        Image.linear_gradient("L").rotate(9 * index).resize((8, 8)).save(tmp_path / f"{index}.png")
    (tmp_path / "table.csv").write_text("picture\n" + "".join(f"{index}.png\n" for index in range(40)))
    source, target = (pico.saved(kind, tmp_path / kind) for kind in ("ViT", "ResNet"))
    column = ("--column", "picture")
    run("stitch", source, target, tmp_path / "model", "--anchors", tmp_path / "table.csv", *column)
    rows = json.loads(run("predict", tmp_path / "model", tmp_path / "table.csv", *column, "--json").stdout)
    assert [row["input"] for row in rows] == [str(tmp_path / f"{index}.png") for index in range(40)]


def test_predict_refuses_what_the_model_does_not_take(model: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    Image.linear_gradient("L").save(tmp_path / "one.png")
    for argument, message in {
        tmp_path / "missing.txt": "there is no file or folder",
        f"{tmp_path}/missing/": "there is no file or folder",
        tmp_path / "latin.txt": "is not text in UTF-8",
        tmp_path / "one.png": r"takes texts and what came in row 0 .* is a PosixPath: give it its own kind of input$",
    }.items():
        with pytest.raises(StitchError, match=message):
            predict(str(model), [str(argument)])
    assert predict(str(model), ["see missing.txt"])[0]["input"] == "see missing.txt"


def test_what_is_no_stitched_model_does_not_predict(target_folder: str) -> None:
    assert f"{target_folder} holds a roberta model: expected a" in run("predict", target_folder, "a", status=1).stderr
    assert "nosuch is no folder here, and asking the Hub" in run("predict", "nosuch", "a", status=1).stderr


def test_a_stitched_model_is_no_source(
    model: Path, target_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StitchError, match="model holds a relative_stitcher model: expected an encoder"):
        Encoder.from_pretrained(str(model))
    monkeypatch.setattr(Encoder, "encode", None)  # it is told before
    done = run("stitch", model, target_folder, tmp_path, "--anchors", model.with_name("texts.txt"), status=1)
    assert "model holds a relative_stitcher model: expected an encoder" in done.stderr


def test_a_target_without_a_head_may_be_swapped(source: Encoder, target_folder: str, tmp_path: Path) -> None:
    source.model.save_pretrained(tmp_path / "bare")
    (tmp_path / "none").mkdir()
    (tmp_path / "texts.txt").write_text("\n".join(pico.texts(40)))
    anchors = ("--anchors", tmp_path / "texts.txt")
    shown = run("stitch", target_folder, tmp_path / "bare", tmp_path / "out", *anchors, status=1).stderr
    assert "only the source is a classifier: were they swapped? bare is BertModel: the target has" in shown
    shown = run("stitch", tmp_path / "bare", tmp_path / "bare", tmp_path / "out", *anchors, status=1).stderr
    assert "error: bare is BertModel: the target has" in shown
    shown = run("stitch", target_folder, tmp_path / "none", tmp_path / "out", *anchors, status=1).stderr
    assert "error: none holds no model that transformers knows: Unrecognized model" in shown


def test_predict_shows_a_text_as_it_is_however_long_it_is(model: Path) -> None:
    shown = run("predict", model, "see [/b] [really] here", "storm " * 80).stdout
    assert "see [/b] [really] here" in shown
    run("predict", model, "storm " * 80, "--json")


def test_the_version_is_shown() -> None:
    assert run("--version").stdout == f"hf-relstitch {__version__}\n"


def test_an_error_keeps_its_brackets(tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "[onnx]", status=1)
    assert "[onnx]" in done.stderr


def test_stitch_does_not_write_over_its_source_or_target(
    source_folder: str, target_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so before anything is encoded."""
    (tmp_path / "texts.txt").write_text("\n".join(pico.texts(40)))
    monkeypatch.setattr(Encoder, "encode", None)
    for out in (source_folder, target_folder):
        done = run("stitch", source_folder, target_folder, out, "--anchors", tmp_path / "texts.txt", status=1)
        assert f"{out} holds a model of type" in done.stderr


def test_an_output_that_cannot_be_written_is_told_first(
    source_folder: str, target_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("\n".join(pico.texts(40)))
    monkeypatch.setattr(Encoder, "encode", None)
    stitch = ("stitch", source_folder, target_folder)
    for arguments in (
        (*stitch, file, "--anchors", file),
        (*stitch, file / "a" / "b", "--anchors", file),
        ("quickstart", "--out", file),
        ("benchmark", "text-stitching", "--out", file),
    ):
        assert f"{file} is a file: give a folder to save to" in run(*arguments, status=1).stderr
    if Path("/proc/self").is_dir():
        assert "saving to /proc/x failed" in run(*stitch, "/proc/x", "--anchors", file, status=1).stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_stitch_and_predict_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    gradient = Image.linear_gradient("L")
    for index in range(40):
        gradient.rotate(9 * index).resize((8, 8)).save(tmp_path / "images" / f"{index:02}.png")
    source, target = (pico.saved(kind, tmp_path / kind) for kind in ("ViT", "ResNet"))
    run("stitch", source, target, tmp_path / "model", "--anchors", tmp_path / "images", "--limit", "32")
    rows = json.loads(run("predict", tmp_path / "model", tmp_path / "images", "--json").stdout)
    assert len(rows) == 40
    assert json.loads(run("inspect", tmp_path / "model", "--json").stdout)["report"]["num_anchors"] == 32
    with pytest.raises(StitchError, match=r"there is no file or folder gone: check the path"):
        predict(str(tmp_path / "model"), ["gone"])
    (tmp_path / "images" / "40.png").write_bytes(b"no picture")
    done = run("predict", tmp_path / "model", tmp_path / "images", status=1)
    assert "40.png cannot be read as an image" in done.stderr


def test_a_column_of_a_data_set_is_read(tmp_path: Path) -> None:
    from datasets import Dataset

    (tmp_path / "news").mkdir()
    Dataset.from_dict({"headline": pico.texts(64)}).to_parquet(tmp_path / "news" / "train.parquet")
    from hf_relstitch.data.reading import read_columns

    assert read_columns(str(tmp_path / "news"), ["headline"], split="train[:3]") == [pico.texts(3)]


def test_stitch_and_recommend_over_pairs_of_a_table_at_an_earlier_cut(source_folder: str, tmp_path: Path) -> None:
    """What the source takes and what the target takes are columns; pictures are paths, relative to the table."""
    texts, gradient = pico.texts(40), Image.linear_gradient("L")
    (tmp_path / "data" / "images").mkdir(parents=True)
    for index in range(40):
        gradient.rotate(9 * index).resize((8, 8)).save(tmp_path / "data" / "images" / f"{index}.png")
    rows = ["image,text", *(f"images/{index}.png,{text}" for index, text in enumerate(texts))]
    table = tmp_path / "data" / "pairs.csv"
    table.write_text("\n".join(rows))
    vit, roberta = (pico.saved(kind, tmp_path / kind) for kind in ("ViT", "Roberta"))
    anchors = ("--anchors", table, "--column", "image", "--target-column", "text", "--cut", "classifier.dense")
    run("stitch", vit, roberta, tmp_path / "model", *anchors)
    pairs = list(zip([table.parent / "images" / f"{index}.png" for index in range(40)], texts, strict=True))
    assert read_inputs(str(table), column="image", target_column="text") == pairs
    description = json.loads(run("inspect", tmp_path / "model", "--json").stdout)
    assert description["target"]["cut"]["layers"][0] == "classifier.dense"
    assert RelativeStitcher.from_pretrained(tmp_path / "model").anchors.ids.equal(input_ids(pairs).sort().values)
    ranked = json.loads(run("recommend", roberta, "-c", vit, source_folder, *anchors, "--json", status=1).stdout)
    assert [row["candidate"] for row in ranked] == [vit, source_folder]
    assert ranked[0]["error"] is None
    assert "takes texts and what came in row 0 (counted from 0) and 39 others is a" in ranked[1]["error"]


@pytest.mark.parametrize("kind", ["parquet", "csv", "json", "jsonl", "folder"])
def test_inputs_are_a_column_of_a_table(kind: str, tmp_path: Path) -> None:
    from datasets import Dataset

    table = Dataset.from_dict({"headline": pico.texts(5), "n": list(range(5))})
    (tmp_path / "news").mkdir()
    file = tmp_path / "news" / f"train.{'parquet' if kind == 'folder' else kind}"
    {"parquet": table.to_parquet, "folder": table.to_parquet, "csv": table.to_csv}.get(kind, table.to_json)(file)
    place = str(file.parent if kind == "folder" else file)
    assert read_inputs(place, column="headline") == pico.texts(5)
    assert read_inputs(place, column="headline", target_column="n")[4] == (pico.texts(5)[4], 4)
    with pytest.raises(StitchError, match="has no column 'text': it has headline, n"):
        read_inputs(place, column="text")


def test_words_of_a_csv_file_that_pandas_takes_for_empty_cells_are_texts(tmp_path: Path) -> None:
    words = ["NA", "null", "None", "nan", "N/A", "storm"]
    rows = [f"{word},{row},{'NA' if row else 1}" for row, word in enumerate(words)]
    file = tmp_path / "words.csv"
    file.write_text("\n".join(["text,n,score", *rows]))
    assert read_inputs(str(file), column="text") == words
    assert read_inputs(str(file), column="text", target_column="n") == list(zip(words, range(6), strict=True))
    file.write_text("\n".join(["text,n,score", *rows, ",6,1", '"",7,1']))
    with pytest.raises(StitchError, match=r"column 'text' of .* is empty in row 6 \(counted from 0\) and 1 other"):
        read_inputs(str(file), column="text")


def test_more_inputs_than_are_wanted_are_drawn_from_all_of_them(
    source_folder: str, target_folder: str, tmp_path: Path
) -> None:
    """Data are often sorted by class, so that the first rows are of one."""
    from datasets import Dataset

    texts, labels = pico.texts(1200), [row // 300 for row in range(1200)]
    for split in ("train", "test"):
        Dataset.from_dict({"text": texts, "label": labels}).to_parquet(tmp_path / f"{split}.parquet")
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    label_of = dict(zip(texts, labels, strict=True))
    drawn = read_inputs(str(tmp_path / "texts.txt"), count=128)
    assert drawn == sorted(drawn, key=texts.index)
    assert len(set(drawn)) == 128
    assert read_inputs(str(tmp_path), column="text", count=128) == drawn
    assert [label for _, label in read_inputs(str(tmp_path), column="text", target_column="label", count=128)] == [
        label_of[one] for one in drawn
    ]
    arguments = ("--anchors", tmp_path / "texts.txt", "--limit", "32")
    run("stitch", source_folder, target_folder, tmp_path / "model", *arguments)
    ids = set(RelativeStitcher.from_pretrained(tmp_path / "model").anchors.ids.tolist())
    assert len(ids) == 32
    assert ids <= set(input_ids(drawn).tolist())


def test_a_line_of_text_ends_where_a_line_of_a_file_does(tmp_path: Path) -> None:
    texts = ["still\u2028one\x85line\x0c.", "another\x1d"]
    (tmp_path / "texts.txt").write_bytes("\r\n".join([*texts, " ", ""]).encode())
    assert read_inputs(str(tmp_path / "texts.txt")) == texts


def test_a_table_without_a_column_is_not_read_as_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("image,text\n1.png,one\n")
    with pytest.raises(StitchError, match=r"pairs\.csv is a table: name its column of inputs"):
        read_inputs(str(tmp_path / "pairs.csv"))


@pytest.mark.parametrize("name", ["nosuch.csv", "nosuch.txt", "./nosuch", "../nosuch", "/nosuch/data", "~/nosuch"])
@pytest.mark.parametrize("columns", [{}, {"column": "text"}, {"column": "text", "target_column": "image"}])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(
    name: str, columns: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_relstitch.data.reading.load_dataset", lambda *_, **__: pytest.fail("it was looked for"))
    with pytest.raises(StitchError, match=f"there is no file or folder {name}: check the path"):
        read_inputs(name, **columns)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("", "No columns to parse from file"),
        ("text\n", "corresponds to no data"),
        ("text\na\na;b,1\n", "Expected 1 fields in line 3, saw 2; expected is UTF-8 with commas between columns"),
    ],
)
def test_a_table_that_is_empty_or_cannot_be_read_says_so(content: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text(content)
    with pytest.raises(StitchError, match=rf"some\.csv is empty or cannot be read as csv: .*{cause}"):
        read_inputs(str(tmp_path / "some.csv"), column="text")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"some text;label\na;1\n", "it has some text;label; expected is UTF-8 with commas"),
        ("some text,label\ncafé,1\n".encode("latin-1"), "expected is UTF-8 with commas"),
    ],
)
def test_a_csv_of_another_form_says_which_is_expected(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_bytes(content)
    with pytest.raises(StitchError, match=message):
        read_inputs(str(tmp_path / "some.csv"), column="some text")


def test_an_error_is_one_message_and_leaves_nothing(source_folder: str, target_folder: str, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("storm hits\nquiet day\n")
    done = run("stitch", source_folder, target_folder, tmp_path / "model", "--anchors", tmp_path / "few.txt", status=1)
    assert "error: 2 anchors: at least 32 different inputs are needed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", str(Path(__file__).parent)], "has no file config.json"),
        (["stitch", "nowhere", "no", "out", "--anchors", "nothing-here"], "no text file, no folder, and no data set"),
    ],
)
def test_errors_say_what_to_do(arguments: list[str], message: str) -> None:
    assert message in " ".join(run(*arguments, status=1).stderr.split())


@pytest.mark.slow
def test_quickstart_from_networks_to_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The paper's setting at its smallest; the numbers are those that the README claims."""
    done = run("quickstart", "--out", tmp_path, "--seed", "1")
    assert "LOAD REPORT" not in caplog.text
    Encoder.from_pretrained(str(tmp_path / "vit"))
    assert "LOAD REPORT" in caplog.text, "it is kept back elsewhere too"
    rows = [line.split("│")[1:3] for line in done.stdout.splitlines() if line.startswith("│")]
    accuracy = {name.strip(): float(value) for name, value in rows}
    own, stitched = accuracy["target encoder, its own head"], accuracy["source encoder, stitched"]
    assert own > 0.9
    assert stitched >= own - 0.05
    assert accuracy["source encoder, zero-padded (absolute)"] < 0.35
    assert stitched > accuracy["source encoder, the paper's inversion"]
    assert "pipeline('image-classification')" in " ".join(done.stdout.split())
    with Image.open(tmp_path / "quickstart.png") as picture:
        assert picture.size[0] > 1000
    assert (tmp_path / "stitched" / "model.safetensors").is_file()


def test_hf_runs_it_as_an_extension(tmp_path: Path) -> None:
    """`hf relstitch` runs the console script that `hf extensions install` finds in an installed package."""
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-relstitch"
    manifest = {
        "owner": "me",
        "repo": "hf-relstitch",
        "repo_id": "me/hf-relstitch",
        "short_name": "relstitch",
        "executable_path": str(Path(sys.executable).with_name("hf-relstitch")),
        "type": "python",
        "installed_at": "2026-01-01T00:00:00",
    }
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    hf = str(Path(sys.executable).with_name("hf"))
    env = os.environ | {"HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    done = subprocess.run([hf, "relstitch", "--help"], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert all(command in done.stdout for command in ("stitch", "push", "pull", "find", "migrate"))


def test_anchor_sets_are_made_and_published(
    source_folder: str, target_folder: str, tmp_path: Path, hub: HubServer
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(pico.texts(60)))
    given = ("--anchors", tmp_path / "texts.txt")
    run("anchors", source_folder, tmp_path / "ours", *given, "--prompt", "storm hits ", "--push", "alice/ours")
    found = AnchorSet.from_pretrained("alice/ours")
    encoder = Encoder.from_pretrained(source_folder, prompt="storm hits ")
    assert found.latents.equal(AnchorSet.encode(encoder, pico.texts(60), progress=False).latents)
    assert found.provenance.prompt == "storm hits "
    shown = json.loads(run("anchors", target_folder, tmp_path / "theirs", *given, "--target", "--json").stdout)
    assert (shown["anchors"], shown["dim"], shown["commit"]) == (60, 16, None)
    theirs = AnchorSet.from_pretrained(tmp_path / "theirs")
    assert theirs.provenance.cut is not None
    assert RelativeStitcher.from_anchor_sets(encoder, found, theirs, load_classifier(target_folder)[1]).report
    assert "leave one out" in run("anchors", source_folder, tmp_path / "x", *given, "--cut", "y", status=1).stderr


API = """
seen, limit = [], 48

def embed(texts):
    if len(seen) + len(texts) > limit:
        raise ConnectionError("429 too many requests")
    seen.extend(texts)
    return [[float(len(text)), *(float(ord(letter)) for letter in (text * 20)[5:40:4])] for text in texts]
"""


def test_the_anchor_set_of_an_api_is_told_its_cost_and_goes_on_after_a_failure(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    texts = list(dict.fromkeys(pico.texts(100)))
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    (tmp_path / "made_api.py").write_text(API)
    given = ("out", "--anchors", "texts.txt", "--function", "made_api:embed", "--batch-size", "16", "--json")
    told = json.loads(run("anchors", "vendor/embedder", *given, "--dry-run", "--price", "20").stdout)
    characters = sum(map(len, texts))
    assert (told["inputs"], told["kept"], told["characters"]) == (len(texts), 0, characters)
    assert (told["tokens"], told["cost"]) == (characters // 4, pytest.approx(characters // 4 * 20 / 1e6))
    stopped = run("anchors", "vendor/embedder", *given, "--retries", "0", status=1)
    assert "100 inputs to encode, " in stopped.stderr
    assert "429 too many requests (of 16 inputs, the first " in stopped.stderr
    api = sys.modules["made_api"]
    assert api.seen == texts[:48]
    other = json.loads(run("anchors", "vendor/other", *given, "--dry-run").stdout)
    assert (other["inputs"], other["cost"]) == (len(texts), None)
    monkeypatch.setattr(api, "limit", 1000)
    done = json.loads(run("anchors", "vendor/embedder", *given, "--push", "alice/api").stdout)
    assert api.seen == texts
    assert (done["anchors"], done["encoded"]["inputs"], done["encoded"]["kept"]) == (len(texts), len(texts) - 48, 48)
    whole = AnchorSet.encode(CallableEncoder(api.embed, model_id="vendor/embedder"), texts, data="texts.txt")
    published = AnchorSet.from_pretrained("alice/api")
    assert published.latents.equal(whole.latents)
    assert published.provenance == whole.provenance
    assert not [*(tmp_path / "out").glob(".partial*")]
    for name in ("made_api:nothing", "made_api", "no_such:embed"):
        refused = run("anchors", "x", *given[:4], name, status=1).stderr
        assert "give MODULE:NAME of a function from a list of texts to their" in refused.replace("\n", " ")
    assert "leave one out" in run("anchors", "x", *given, "--target", status=1).stderr
