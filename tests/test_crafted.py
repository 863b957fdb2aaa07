"""Files that somebody made to hurt: what each gets, in seconds and in little memory; SECURITY.md has the table."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError, load_classifier
from hf_relstitch.benchmarks import load_suite
from hf_relstitch.bulk import SearchTranslation, translation_between
from hf_relstitch.cli.push_pull import pull
from hf_relstitch.data.latents import as_latents
from hf_relstitch.hub.files import checksum
from hf_relstitch.model.persistence import _settings_checksum

SECONDS = 20
"""Time for a case; 5 s on an idle machine."""
MEMORY = 1 << 30
Change = Callable[[Path], Any]


@dataclass
class Crafted:
    """What is wrong with which artifact, how it is made, and what its reader says; None if it loads as it was."""

    what: str
    kind: str
    change: Change
    answer: str | None


def field(file: str, name: str, value: Any) -> Change:
    """Set a field of JSON, by a path of names."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        *parents, last = name.split(".")
        inner = content
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        if "answer_checksums" in content:  # whoever can change the config can change its checksum
            content["answer_checksums"]["settings"] = _settings_checksum(content)
        (folder / file).write_text(json.dumps(content))

    return change


def config(name: str, value: Any) -> Change:
    return field("config.json", name, value)


def text(file: str, content: str | bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def metadata(yaml: str) -> Change:
    return text("README.md", f"---\n{yaml}\n---\n")


def header(old: bytes, new: bytes) -> Change:
    """Replace bytes of a file's header by as many others; of anchors with a new checksum."""

    def change(place: Path) -> None:
        file = place / "anchors.safetensors" if place.is_dir() else place
        content = file.read_bytes()
        assert old in content
        assert len(old) == len(new)
        file.write_bytes(content.replace(old, new, 1))
        if place.is_dir():
            field("anchor_config.json", "checksums", {file.name: checksum(file)})(place)

    return change


def without(*names: str) -> Change:
    """Take away tensors."""

    def change(folder: Path) -> None:
        kept = {key: value for key, value in load_file(folder / "model.safetensors").items() if key not in names}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return change


def growing(folder: Path) -> None:
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 9
    field("tokenizer.json", "normalizer", {"type": "Sequence", "normalizers": steps})(folder)
    sums = json.loads((folder / "config.json").read_text()).get("answer_checksums")
    if sums:
        config("answer_checksums", sums | {"tokenizer.json": checksum(folder / "tokenizer.json")})(folder)


def nested(folder: Path) -> None:
    (folder / "anchor_config.json").write_text("[" * 100_000)


WIDE = [{"layer": "linear", "in_features": a, "out_features": b, "bias": True} for a, b in ((16, 60_000), (60_000, 3))]
ALIASES = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
SCRIPT = "print('I ran'); raise SystemExit(1)"
CASES = [
    Crafted(
        "100,000 layers in the source's config",
        "model",
        config("source_config.num_hidden_layers", 100_000),
        "is 100000: expected 10000 at most",
    ),
    Crafted(
        "9,000 layers in the source's config",
        "model",
        config("source_config.num_hidden_layers", 9_000),
        "asks for more weights than its files hold",
    ),
    Crafted("5e8 labels", "model", config("num_labels", 500_000_000), "is 500000000: expected 1000000 at most"),
    Crafted("a head of 1e8 units", "model", config("d_target", 100_000_000), "expected a whole number up to"),
    Crafted(
        "a head of two 60,000-wide layers",
        "model",
        config("head", {"kind": "mlp", "layers": WIDE}),
        "is not a whole stitched model",
    ),
    Crafted(
        "another, larger architecture",
        "model",
        config("source_config", {"model_type": "llava"}),
        "asks for more weights than its files hold",
    ),
    Crafted(
        "an architecture that is no encoder",
        "model",
        config("source_config", {"model_type": "rag"}),
        "expected an encoder",
    ),
    Crafted("a temperature of 1e-320", "model", config("logit_temperature", 1e-320), "expected a number above 0"),
    Crafted("a modality of 5", "model", config("modality", 5), "expected str, got int"),
    Crafted("results that are a number", "model", config("results", 5), "config of the stitched model cannot be read"),
    Crafted(
        "a version with a shell's $(…)",
        "model",
        lambda place: (config("hf_relstitch_version", "$(touch x)")(place), config("format_version", 99)(place)),
        "pip install -U hf-relstitch$",
    ),
    Crafted(
        "attention from a repo of kernels", "model", config("source_config.attn_implementation", "mallory/x"), None
    ),
    Crafted(
        "code in auto_map",
        "model",
        lambda place: (config("auto_map", {"AutoModel": "evil.X"})(place), text("evil.py", SCRIPT)(place)),
        None,
    ),
    Crafted(
        "an adapter_config.json", "model", text("adapter_config.json", "{}"), "by which PEFT would change its weights"
    ),
    Crafted("YAML aliases in the card", "model", metadata(ALIASES), None),
    Crafted("20,000 levels of YAML in the card", "model", metadata("a: " + "[" * 20_000), None),
    Crafted(
        "a link out of the folder, pulled",
        "pulled",
        lambda place: (place / "x.txt").symlink_to("/etc/hostname"),
        "is a link out of its folder",
    ),
    Crafted("JSON of 100,000 levels", "anchors", nested, "is not valid JSON"),
    Crafted(
        "a header of other sizes",
        "anchors",
        header(b'"shape":[40,16]', b'"shape":[20,16]'),
        "is not a whole anchor set",
    ),
    Crafted(
        "a header with a huge shape",
        "anchors",
        header(b'"shape":[40,16]', b'"shape":[9e9,1]'),
        "is not a whole anchor set",
    ),
    Crafted(
        "a provenance of lists", "anchors", field("anchor_config.json", "provenance.data", ["x"]), "expected a text"
    ),
    Crafted("a header that says fewer rows", "x.npy", header(b"(60, 4)", b"(30, 4)"), "bytes are left"),
    Crafted(
        "a header that holds an expression",
        "x.npy",
        header(b"'<f4', 'fortran", b"eval('1')or'for"),
        "cannot be read as latents",
    ),
    Crafted("a changed digit", "search", header(b'"gamma', b'"gbmma'), "is damaged or was altered"),
    Crafted(
        "code in auto_map and beside it",
        "source",
        lambda place: (
            config("auto_map", {"AutoConfig": "evil.X"})(place),
            config("model_type", "evil")(place),
            text("evil.py", SCRIPT)(place),
        ),
        "trust_remote_code",
    ),
    Crafted(
        "weights of a layer taken away",
        "source",
        without("bert.encoder.layer.1.output.dense.weight"),
        "has no trained weights for",
    ),
    Crafted("100,000 layers", "source", config("num_hidden_layers", 100_000), "is 100000: expected 10000 at most"),
    Crafted("a vocabulary of 1e9", "source", config("vocab_size", 10**9), "asks for more weights than its files hold"),
    Crafted(
        "a pickle in place of weights",
        "source",
        lambda place: (place / "model.safetensors").rename(place / "pytorch_model.bin"),
        "cannot be loaded as an encoder",
    ),
    Crafted("replacements of a by ten, nine times", "source", growing, "makes up to 1,000,000,000 letters of one"),
    Crafted("replacements of a by ten, nine times", "model", growing, "makes up to 1,000,000,000 letters of one"),
    Crafted("5e8 labels", "classifier", config("num_labels", 500_000_000), "is 500000000: expected 1000000 at most"),
    Crafted(
        "aliases that never end",
        "suite",
        text("suite.yaml", ALIASES.replace("a: &a", "name: &a")),
        "deeper, or longer, than a suite can be",
    ),
    Crafted(
        "100,000 keys",
        "suite",
        text("suite.yaml", "".join(f"k{number}: v\n" for number in range(100_000))),
        "is longer than",
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    target = pico.saved("Roberta", folder / "classifier", seed=2)
    source = Encoder.from_pretrained(pico.saved("Bert", folder / "source", seed=1))
    RelativeStitcher.from_parts(source, target, pico.texts(60), progress=False).save_pretrained(folder / "model")
    shutil.copytree(folder / "model", folder / "pulled")
    AnchorSet.encode(source, pico.texts(40), progress=False).save_pretrained(folder / "anchors")
    x = np.random.default_rng(0).normal(size=(60, 4)).astype("f4")
    np.save(folder / "x.npy", x)
    translation_between(x, np.roll(x, 1, 1)).save(folder / "search")
    (folder / "suite").mkdir()
    return folder


def answers(folder: Path) -> Any:
    return RelativeStitcher.from_pretrained(folder).predict(pico.texts(3))


READERS: dict[str, Callable[[Path], Any]] = {
    "model": answers,
    "pulled": lambda folder: pull(str(folder), folder.parent / "here"),
    "anchors": AnchorSet.from_pretrained,
    "x.npy": as_latents,
    "search": SearchTranslation.load,
    "source": lambda folder: Encoder.from_pretrained(str(folder)),
    "classifier": lambda folder: load_classifier(str(folder)),
    "suite": lambda folder: load_suite(str(folder / "suite.yaml")),
}
NAMES = {"model": "a stitched model", "pulled": "a folder to pull", "anchors": "an anchor set", "x.npy": "an npy file"}
NAMES |= {"search": "a translation's file", "source": "a source", "classifier": "a target", "suite": "a suite"}


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.what}")
def test_a_crafted_artifact_gets_its_answer(case: Crafted, whole: Path, tmp_path: Path) -> None:
    copy, read = tmp_path / case.kind, READERS[case.kind]
    (shutil.copytree if (whole / case.kind).is_dir() else shutil.copy)(whole / case.kind, copy)
    case.change(copy)
    start, before = time.monotonic(), resident()
    if case.answer is None:
        assert torch.equal(read(copy), answers(whole / "model"))
    else:
        with pytest.raises(StitchError, match=case.answer.replace("(", r"\(")):
            read(copy)
    assert time.monotonic() - start < SECONDS
    assert resident() - before < MEMORY


def test_the_table_of_them_is_in_the_page_on_security() -> None:
    rows = [
        f"| {NAMES[case.kind]}: {case.what} | {case.answer.rstrip('$') if case.answer else 'loads as it was'} |"
        for case in CASES
    ]
    table = "\n".join(["| crafted | what you get |", "| --- | --- |", *rows])
    page = Path(__file__).parents[1] / "SECURITY.md"
    assert table in page.read_text(), f"SECURITY.md should have\n{table}"
