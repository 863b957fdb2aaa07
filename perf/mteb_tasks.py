"""Exported encoders by mteb's own evaluator, on two small tasks of WordNet: a Markdown table.

pip install mteb; apt-get install wordnet-base
python perf/mteb_tasks.py OLD NEW [--pairs 1000] [--documents 1000] [--queries 300]

OLD and NEW are encoders, folders or Hub ids. The tasks are to find a synset's gloss by its words, and to tell a gloss's
class of 26 from eight examples of each. The translations are fitted on glosses that are in neither task. Rows: both
encoders; each as a sentence-transformers model that speaks the other's space; and for retrieval also the two together,
queries of the one in an index of the other.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import mteb
import torch
from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval
from mteb.models import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from hf_relstitch import AnchorSet, Encoder
from hf_relstitch.bulk import translation_between

NOUNS = Path("/usr/share/wordnet/data.noun")
FIRST_CLASS = 3


def read_nouns():
    """Words, gloss and class of each synset whose gloss no other has, in a random order."""
    synsets = {}
    for line in NOUNS.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            fields, gloss = line.split(" | ", 1)
            fields = fields.split()
            words = ", ".join(fields[4 + 2 * row].replace("_", " ") for row in range(int(fields[3], 16)))
            synsets.setdefault(gloss.split('; "')[0].strip(), (words, int(fields[1]) - FIRST_CLASS))
    rows = [(words, gloss, label) for gloss, (words, label) in synsets.items()]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[row] for row in order]


def metadata(name, kind, score):
    return TaskMetadata(
        name=name,
        description=name,
        type=kind,
        eval_langs=["eng-Latn"],
        main_score=score,
        dataset={"path": "wordnet-base", "revision": "3.0"},
    )


class Definitions(AbsTaskRetrieval):
    metadata = metadata("WordNetDefinitions", "Retrieval", "ndcg_at_10")
    rows, queries = (), 0

    def load_data(self, **_):
        corpus = [{"id": str(row), "title": "", "text": gloss} for row, (_, gloss, _) in enumerate(self.rows)]
        asked = [{"id": f"q{row}", "text": words} for row, (words, _, _) in enumerate(self.rows[: self.queries])]
        found = {f"q{row}": {str(row): 1} for row in range(self.queries)}
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(asked),
            "relevant_docs": found,
            "top_ranked": None,
        }
        self.dataset, self.data_loaded = {"default": {"test": split}}, True


class Classes(AbsTaskClassification):
    metadata = metadata("WordNetClasses", "Classification", "accuracy")
    rows, num_train = (), 0

    def load_data(self, **_):
        rows = [{"text": gloss, "label": label} for _, gloss, label in self.rows]
        train, test = rows[: self.num_train], rows[self.num_train :]
        self.dataset = DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test))
        self.data_loaded = True


class Mixed(SentenceTransformerEncoderWrapper):
    """Queries by one model, documents by another."""

    def __init__(self, queries, documents):
        super().__init__(documents)
        self.queries = SentenceTransformerEncoderWrapper(queries)

    def encode(self, inputs, *, prompt_type=None, **options):
        if prompt_type == PromptType.query:
            return self.queries.encode(inputs, prompt_type=prompt_type, **options)
        return super().encode(inputs, prompt_type=prompt_type, **options)


def score(model, task):
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    return result.task_results[0].get_score()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=300)
    options = parser.parse_args()
    nouns = read_nouns()
    pairs, rest = nouns[: options.pairs], nouns[options.pairs :]
    Definitions.rows, Definitions.queries = rest[: options.documents], options.queries
    Classes.rows, Classes.num_train = rest[options.documents : 2 * options.documents], options.documents * 6 // 10
    encoders = [Encoder.from_pretrained(place) for place in (options.old, options.new)]
    anchors = [AnchorSet.encode(encoder, [gloss for _, gloss, _ in pairs], progress=False) for encoder in encoders]
    models = [SentenceTransformer(place, device="cpu") for place in (options.old, options.new)]
    with TemporaryDirectory() as folder:
        stitched = []
        for source, target in ((1, 0), (0, 1)):
            made = translation_between(anchors[source], anchors[target], translates="queries")
            made.after(encoders[source], folder=Path(folder, str(target)))
            stitched.append(SentenceTransformer(str(Path(folder, str(target))), device="cpu"))
    rows = [
        ("old encoder", models[0], True),
        ("new encoder", models[1], True),
        ("new encoder in the old one's space", stitched[0], True),
        ("old encoder in the new one's space", stitched[1], True),
        ("queries of the new encoder, translated, documents of the old one", Mixed(stitched[0], models[0]), False),
        ("queries of the old encoder, translated, documents of the new one", Mixed(stitched[1], models[1]), False),
    ]
    print("| | definitions, nDCG@10 | classes, accuracy |\n| --- | --- | --- |", flush=True)
    for name, model, is_one in rows:
        found = [f"{score(model, Definitions()):.3f}", f"{score(model, Classes()):.3f}" if is_one else ""]
        print(f"| {name} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
