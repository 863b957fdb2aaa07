"""Pairs of texts out of WordNet, and classifiers of pairs that are fine-tuned from mpnet on them.

No English set of natural language inference or of search was found in a package. So pairs of WordNet's entries stand
for one: an entry entails what is above it (its hypernym; of an adjective what it is similar to), contradicts its
antonym, and is neutral to another entry of its kind. For a reranker a word is the query, and the definitions to rank
are its own, that of its hypernym, those of its siblings, and others of its kind.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import assets
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

CLASSES = ("entailment", "neutral", "contradiction")
ABOVE = {"noun": "@", "verb": "@", "adj": "&", "adv": "\\"}
GRADES = (3, 2, 1, 1, 1, 0, 0, 0)
"""How relevant a query's documents are: its definition, its hypernym's, its siblings', and others'."""
FROZEN, EPOCHS, BATCH = 10, 2, 32
TRAINED = {"inference": 2400, "ranking": 1600}
"""Pairs that each classifier is trained on; those of a query stand together."""
Pair = dict[str, str]


@dataclass
class Entry:
    """A synset: its file and lexicographer class, its first word, its definition, and pointers by their symbol."""

    part: str
    kind: str
    word: str
    definition: str
    pointers: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def text(self) -> str:
        return f"{self.word}: {self.definition}"


@cache
def entries() -> dict[tuple[str, str], Entry]:
    """All synsets by part of speech and offset."""
    found = {}
    for part in ABOVE:
        file = assets.WORDNET_NOUNS.with_name(f"data.{part}")
        if not file.is_file():
            assets.missing(str(file), install="apt-get install wordnet-base")
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            content, gloss = line.split(" | ", 1)
            cells = content.split()
            words = int(cells[3], 16)
            word = re.sub(r"\(.*\)", "", cells[4]).replace("_", " ")
            entry = Entry(part, f"{part} {cells[1]}", word, gloss.split('; "')[0].strip())
            at = 4 + 2 * words
            for start in range(at + 1, at + 1 + 4 * int(cells[at]), 4):
                symbol, offset, kind, _ = cells[start : start + 4]
                entry.pointers[symbol].append(({"n": "noun", "v": "verb", "r": "adv"}.get(kind, "adj"), offset))
            found[part, cells[0]] = entry
    return found


def inference(seed: int = 0) -> tuple[list[Pair], list[int]]:
    """Pairs of entries and the class of each: as many of each class in each part of speech, shuffled."""
    drawn, known = random.Random(seed), entries()
    by_kind: dict[str, list[Entry]] = defaultdict(list)
    for entry in known.values():
        by_kind[entry.kind].append(entry)
    pairs: list[Pair] = []
    labels: list[int] = []
    for part, symbol in ABOVE.items():
        own = [entry for entry in known.values() if entry.part == part]
        opposites = {
            frozenset((entry.text, known[to].text)) for entry in own for to in entry.pointers["!"] if to[0] == part
        }
        chosen = [tuple(drawn.sample(sorted(pair), 2)) for pair in sorted(opposites, key=sorted) if len(pair) == 2]
        above = [(entry.text, known[to].text) for entry in own for to in entry.pointers[symbol][:1]]
        others = [(entry.text, drawn.choice(by_kind[entry.kind]).text) for entry in drawn.sample(own, len(chosen))]
        above = drawn.sample(above, min(len(above), len(chosen)))
        for label, some in enumerate((above, others[: len(above)], chosen[: len(above)])):
            pairs += [{"text": one, "text_pair": other} for one, other in some]
            labels += [label] * len(some)
    order = drawn.sample(range(len(pairs)), len(pairs))
    return [pairs[row] for row in order], [labels[row] for row in order]


def ranking(queries: int, seed: int = 0) -> tuple[list[Pair], list[int]]:
    """Pairs of a word and a definition, eight for each query, and how relevant each definition is, 0 to 3."""
    drawn, known = random.Random(seed), entries()
    nouns = [entry for entry in known.values() if entry.part == "noun" and entry.pointers["@"]]
    children: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    by_kind: dict[str, list[Entry]] = defaultdict(list)
    for entry in nouns:
        children[entry.pointers["@"][0]].append(entry)
        by_kind[entry.kind].append(entry)
    pairs: list[Pair] = []
    grades: list[int] = []
    for entry in drawn.sample(nouns, len(nouns)):
        above = entry.pointers["@"][0]
        siblings = [other for other in children[above] if other is not entry]
        others = [other for other in by_kind[entry.kind] if other.pointers["@"][0] != above]
        if len(siblings) < 3 or len(others) < 3:
            continue
        documents = [entry, known[above], *drawn.sample(siblings, 3), *drawn.sample(others, 3)]
        pairs += [{"text": entry.word, "text_pair": document.definition} for document in documents]
        grades += GRADES
        if len(grades) == queries * len(GRADES):
            return pairs, grades
    raise ValueError(f"WordNet has fewer than {queries} queries")


def problem(name: str, *, anchors: int, tests: int) -> tuple[Path, list[Pair], list[Pair], list[int]]:
    """A classifier of `inference` or `ranking`, unlabeled anchors, and tests with their labels or grades.

    The rows that the classifier was trained on, the anchors and the tests are apart.
    """
    trained = TRAINED[name]
    needed = trained + anchors + tests
    pairs, labels = inference() if name == "inference" else ranking(-(-needed // len(GRADES)))
    classes = CLASSES if name == "inference" else ("relevance",)
    folder = fine_tuned(f"wordnet-{name}", pairs[:trained], labels[:trained], classes=classes)
    rest = slice(trained + anchors, needed)
    return folder, pairs[trained : trained + anchors], pairs[rest], labels[rest]


def fine_tuned(name: str, pairs: Sequence[Pair], labels: Sequence[int], *, classes: Sequence[str]) -> Path:
    """Folder of an mpnet whose last layers and head were trained on pairs, made the first time.

    One class is one logit, trained by cross-entropy to `labels` as shares of the largest.
    """
    folder = assets.cache() / f"{name}-{FROZEN}-{EPOCHS}"
    if not folder.is_dir():
        model, tokenizer = _train(pairs, labels, classes=classes)
        made = folder.with_name(f"{folder.name}-partial")
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        assets.move_once(made, folder)
    return folder


def _train(pairs: Sequence[Pair], labels: Sequence[int], *, classes: Sequence[str]) -> tuple[PreTrainedModel, Any]:
    """An mpnet with its tokenizer; what the frozen layers give is computed once."""
    torch.manual_seed(0)
    names = dict(enumerate(classes))
    tokenizer = AutoTokenizer.from_pretrained(assets.mpnet())
    model = AutoModelForSequenceClassification.from_pretrained(
        assets.mpnet(), id2label=names, label2id={label: index for index, label in names.items()}
    )
    encoder = model.mpnet.encoder
    layers = encoder.layer
    order = sorted(range(len(pairs)), key=lambda row: len(pairs[row]["text"]) + len(pairs[row]["text_pair"]))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    encoder.layer = layers[:FROZEN]
    known = [_frozen_part(model.eval(), tokenizer, [pairs[row] for row in rows]) for rows in batches]
    encoder.layer = layers[FROZEN:]
    trained = [*encoder.layer.parameters(), *model.classifier.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.01)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1, (step + 1) / 30) * (1 - step / steps))
    goal = torch.tensor(labels) if len(classes) > 1 else torch.tensor(labels)[:, None] / max(labels)
    loss_of = functional.cross_entropy if len(classes) > 1 else functional.binary_cross_entropy_with_logits
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(batches)).tolist():
            hidden, mask = known[batch]
            loss = loss_of(model.classifier(encoder(hidden, mask)[0]), goal[batches[batch]])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
    encoder.layer = layers
    return model.eval(), tokenizer


@torch.no_grad()
def _frozen_part(model: PreTrainedModel, tokenizer: Any, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states `(n, t, d)` of pairs after the frozen layers, and what is added to the attention to padding."""
    texts = [[pair[key] for pair in pairs] for key in ("text", "text_pair")]
    tokens = tokenizer(*texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    return model.mpnet(**tokens).last_hidden_state, (1.0 - tokens["attention_mask"][:, None, None, :]) * -1e4
