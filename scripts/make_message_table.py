"""Make common mistakes with tiny models, and write docs/messages.md from what is said of them.

    python scripts/make_message_table.py

Each mistake has to be a StitchError: any other error, or none, stops the script.
"""

import os
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("HF_ENDPOINT", None)
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import faiss
import lancedb
import numpy as np
import pico
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn

from hf_relstitch import AnchorSet, CallableEncoder, Encoder, Head, RelativeStitcher, StitchError, load_classifier
from hf_relstitch.bulk import Reranker, move_index, move_table, translate_files, translation_between
from hf_relstitch.bulk.migration import sample_index
from hf_relstitch.cli.predict import predict
from hf_relstitch.cli.recommend import recommend
from hf_relstitch.data.inputs import load_audio, load_image
from hf_relstitch.data.reading import read_inputs

PAGE = Path(__file__).parents[1] / "docs" / "messages.md"
HEAD = """# Messages

What is said of common mistakes. Every message is a `StitchError`; the shell prints it after `error:`.
`python scripts/make_message_table.py` makes each mistake with tiny models and writes this page.
"""
TEXTS = pico.texts(64)
PAIRS = [{"text": one, "text_pair": other} for one, other in pairwise(TEXTS)]
CLASSES = [int("storm" in text) for text in TEXTS]
X = np.random.default_rng(0).normal(size=(64, 16)).astype("f4")


def mistakes(folder: Path) -> list[tuple[str, str, Callable[[], object]]]:
    """Make models and files in a folder, and return for each mistake its heading, its title, and a function."""
    source, target = pico.saved("Bert", folder / "encoder", seed=1), pico.saved("Roberta", folder / "classifier")
    images, cut = pico.saved("ViT", folder / "images"), "classifier.nothing"
    pairs = pico.saved("Roberta", folder / "nli", id2label={0: "entailment", 1: "neutral", 2: "contradiction"})
    encoder, (theirs, head) = Encoder.from_pretrained(source), load_classifier(target)
    ours, other = (AnchorSet.encode(one, TEXTS, progress=False) for one in (encoder, theirs))
    few = AnchorSet.encode(theirs, pico.texts(64, seed=1), progress=False)
    kept = RelativeStitcher.from_anchor_sets(encoder, ours, other, head)
    memory = RelativeStitcher.from_anchor_sets(None, ours, other, head)
    kept.save_pretrained(folder / "stitched")
    translation = translation_between(X, X[:, ::-1].copy())
    lancedb.connect(folder / "lance").create_table("docs", [{"id": n, "vector": row} for n, row in enumerate(X)])
    index = faiss.IndexFlatIP(16)
    index.add(X)
    faiss.write_index(index, str(folder / "old.faiss"))
    np.save(folder / "wide.npy", np.zeros((3, 7), "f4"))
    for name, content in {
        "table.csv": "text,label\na,1\n",
        "odd.csv": "text\na\na;b,1\n",
        "empty.txt": "\n",
        "gaps.csv": "text,label\na,1\n,2\n",
        "sound.wav": "no sound",
        "photo.png": "no photo",
    }.items():
        (folder / name).write_text(content)
    forest, linear = (kind.fit(X, CLASSES) for kind in (RandomForestClassifier(3), LogisticRegression()))

    def stitch(anchors, source=encoder, target=target, **options):
        return lambda: RelativeStitcher.from_parts(source, target, anchors, progress=False, **options)

    def read(name, **columns):
        return lambda: read_inputs(str(folder / name), **columns)

    return [
        ("Anchors", "20 anchors", stitch(TEXTS[:20])),
        ("Anchors", "one text instead of a list", stitch("a storm")),
        ("Anchors", "numbers instead of texts", stitch(list(range(40)))),
        ("Anchors", "the same text many times", stitch(["a storm"] * 64)),
        ("Anchors", "texts of an unknown alphabet", stitch([f"xyzzy {'plugh ' * n}" for n in range(40)])),
        ("Anchors", "sets of different inputs", lambda: RelativeStitcher.from_anchor_sets(encoder, ours, few, head)),
        ("Anchors", "the sets swapped", lambda: RelativeStitcher.from_anchor_sets(encoder, other, ours, head)),
        ("Anchors", "a setting that there is not", stitch(TEXTS, epochs=3)),
        ("Sources", "a folder that is not there", lambda: Encoder.from_pretrained(str(folder / "nothing"))),
        ("Sources", "a pooling that there is not", lambda: Encoder.from_pretrained(source, pooling="sum")),
        ("Sources", "a stitched model as source", lambda: Encoder.from_pretrained(str(folder / "stitched"))),
        ("Sources", "no inputs", lambda: encoder.encode([])),
        ("Sources", "images in front of a text classifier", stitch(TEXTS, source=images)),
        (
            "Sources",
            "a callable that gives no vectors",
            lambda: CallableEncoder(lambda _: None, model_id="a/b").encode(["a"]),
        ),
        (
            "Sources",
            "latents and inputs of different numbers",
            lambda: AnchorSet.from_latents(X, TEXTS[:9], model="a/b"),
        ),
        ("Sources", "latents that are not numbers", lambda: AnchorSet.from_latents(X * np.nan, TEXTS, model="a/b")),
        ("Heads", "an encoder as target, without head", stitch(TEXTS, target=encoder)),
        ("Heads", "a scikit-learn classifier as target", stitch(TEXTS, target=linear)),
        ("Heads", "a cut that there is not", stitch(TEXTS, cut=cut)),
        ("Heads", "a head and a cut", stitch(TEXTS, target=theirs, head=head, cut=cut)),
        ("Heads", "a random forest", lambda: Head.from_module(forest)),
        ("Heads", "an estimator that is not fitted", lambda: Head.from_module(LogisticRegression())),
        ("Heads", "a head of another width", stitch(TEXTS, target=theirs, head=nn.Linear(7, 2))),
        ("Heads", "one class name", lambda: Head.from_class_names(encoder, ["storm"])),
        ("Labels", "too few labels", lambda: Head.from_module(linear, labels=["storm"])),
        ("Labels", "the same label twice", lambda: Head.from_module(linear, labels=["storm", "storm"])),
        ("Pairs of texts", "single texts to a classifier of pairs", stitch(TEXTS, target=pairs)),
        ("Pairs of texts", "tuples to a classifier of pairs", stitch([*zip(TEXTS, TEXTS, strict=True)], target=pairs)),
        ("Pairs of texts", "a pair without its second text", lambda: encoder.encode([{"text": "a"}])),
        ("Pairs of texts", "a pair to a model of single texts", lambda: kept.predict(PAIRS[:1])),
        ("Tokens", "words of a model with one answer an input", lambda: kept.words(TEXTS)),
        ("Tokens", "an image encoder with pooling tokens", lambda: Encoder.from_pretrained(images, pooling="tokens")),
        (
            "Sounds and images",
            "a sound that cannot be read",
            lambda: load_audio(folder / "sound.wav", sampling_rate=16000),
        ),
        ("Sounds and images", "an image that cannot be read", lambda: load_image(folder / "photo.png")),
        ("Sounds and images", "texts to an image encoder", lambda: Encoder.from_pretrained(images).encode(TEXTS)),
        ("Tables and files", "a file that is not there", read("nothing.csv", column="text")),
        ("Tables and files", "a table without a column's name", read("table.csv")),
        ("Tables and files", "a column that there is not", read("table.csv", column="body")),
        ("Tables and files", "a CSV of another form", read("odd.csv", column="text")),
        ("Tables and files", "empty cells", read("gaps.csv", column="text")),
        ("Tables and files", "an empty text file", read("empty.txt")),
        ("Using a model", "one text instead of a list", lambda: kept.predict("a storm")),
        ("Using a model", "latents that are an array", lambda: kept.classify(X)),
        ("Using a model", "latents of another width", lambda: kept.classify(torch.zeros(2, 7))),
        ("Using a model", "texts to a model of stored latents", lambda: memory.predict(TEXTS)),
        ("Saving and loading", "a model of stored latents", lambda: memory.save_pretrained(folder / "saved")),
        ("Saving and loading", "an encoder's folder", lambda: RelativeStitcher.from_pretrained(source)),
        ("Saving and loading", "an anchor set's folder", lambda: AnchorSet.from_pretrained(folder / "stitched")),
        ("Hub", "a name that is no repo's", lambda: RelativeStitcher.from_pretrained("me/nothing")),
        ("Hub", "pushing without a connection", lambda: kept.push_to_hub("me/stitched")),
        ("Stored latents and indexes", "20 pairs", lambda: translation_between(X[:20], X[:20])),
        ("Stored latents and indexes", "unequal numbers of latents", lambda: translation_between(X, X[:50])),
        ("Stored latents and indexes", "a metric that there is not", lambda: translation_between(X, X, metric="dot")),
        (
            "Stored latents and indexes",
            "latents of another width",
            lambda: translate_files(translation, folder / "wide.npy", folder / "out"),
        ),
        (
            "Stored latents and indexes",
            "a table that is not there",
            lambda: move_table(translation, folder / "lance", "nothing", "new"),
        ),
        (
            "Stored latents and indexes",
            "a new name that is taken",
            lambda: move_table(translation, folder / "lance", "docs", "docs"),
        ),
        (
            "Stored latents and indexes",
            "a FAISS file over another",
            lambda: move_index(translation, folder / "old.faiss", folder / "old.faiss"),
        ),
        (
            "Stored latents and indexes",
            "FAISS to migrate",
            lambda: sample_index(folder / "old.faiss", "docs", text="text", vector="vector", count=40),
        ),
        (
            "Stored latents and indexes",
            "a column of texts that there is not",
            lambda: sample_index(folder / "lance", "docs", text="text", vector="vector", count=40),
        ),
        (
            "Stored latents and indexes",
            "queries and candidates of different numbers",
            lambda: Reranker(encoder, list)(["a"], []),
        ),
        ("Shell", "predict with a file that is not there", lambda: predict(str(folder / "stitched"), ["nothing.txt"])),
        ("Shell", "recommend without candidates", lambda: recommend(target, [], TEXTS)),
    ]


def page() -> str:
    """Make all mistakes and return the page."""
    with TemporaryDirectory() as place:
        lines, heading = [HEAD], ""
        for under, title, mistake in mistakes(Path(place)):
            try:
                mistake()
            except StitchError as error:
                said = " ".join(str(error).replace(f"{place}/", "").split()).replace("|", "\\|")
                said = re.sub("weights:[0-9a-f]{32}", "weights:…", said)
            else:
                raise SystemExit(f"{title}: no error")
            if under != heading:
                lines.append(f"\n## {under}\n\n| what was done | what the message says |\n| --- | --- |\n")
                heading = under
            lines.append(f"| {title} | {said} |\n")
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
