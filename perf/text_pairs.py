"""A classifier of pairs and a reranker, of mpnet, stitched to MiniLM; beside RidgeCV and distillation.

python perf/text_pairs.py [--anchors 200 1000] [--only inference ranking]

Both are fine-tuned on pairs out of WordNet the first time (some minutes on a core); see tests/wordnet_pairs.py. RidgeCV
goes from source latents to the head's input. Distillation is a new head on the source's latents: logistic regression on
the head's probabilities, and of the reranker RidgeCV on its logit. Both get the pairs read jointly and composed.
"""

import argparse
import sys
from copy import deepcopy
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import RidgeCV

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import assets
import wordnet_pairs

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, load_classifier
from hf_relstitch.benchmarks.baselines import PEERS, fit_logistic
from hf_relstitch.core.measures import discounted_gain
from hf_relstitch.core.relative import directions
from hf_relstitch.data.ids import first_ids
from hf_relstitch.model.reporting import expected_score

MOST, TESTS = 1000, 1000


def accuracy(pairs, truth):
    return lambda logits: float((logits.argmax(-1) == torch.tensor(truth)).double().mean())


def ndcg(pairs, truth):
    groups, relevance = first_ids(pairs), torch.tensor(truth).double()
    return lambda logits: discounted_gain(logits[:, 0].double(), relevance, groups)


def distilled_values(x, answers, q):
    centre = x.mean(0)
    ridge = RidgeCV(alphas=[10.0**power for power in range(-4, 3)])
    ridge.fit(directions(x, centre=centre).numpy(), answers.numpy())
    return torch.tensor(ridge.predict(directions(q, centre=centre).numpy())).reshape(len(q), -1)


def measure(folder, anchors, tests, truth, score_of, counts):
    """Scores by number of anchors and method, and the report of each stitched model.

    The stitched model is what `from_parts` makes, out of latents that are computed once.
    """
    encoder, head = load_classifier(str(folder), dtype=torch.bfloat16)
    score, exact = score_of(tests, truth), deepcopy(head.module).double()
    own = exact(encoder.encode(tests).double())
    target = AnchorSet.encode(encoder, anchors)
    sources = Encoder.from_pretrained(str(assets.minilm())).ways_to_read_pairs()
    known = {each.pairs: (each, AnchorSet.encode(each, anchors), each.encode(tests)) for each in sources}
    rows, reports = {}, {}
    for count in counts:
        y, found, models = target.latents[:count].double(), {"own": score(own)}, {}
        answers = exact(y)
        for how, (source, source_anchors, queries) in known.items():
            x, q = source_anchors.latents[:count].double(), queries.double()
            found[f"RidgeCV, {how}"] = score(exact(PEERS["ridge"](x, y, q)))
            made = fit_logistic(x, answers.softmax(-1))(q) if head.answers else distilled_values(x, answers, q)
            found[f"distilled, {how}"] = score(made)
            sides = [first(each, count) for each in (source_anchors, target)]
            models[how] = RelativeStitcher.from_anchor_sets(source, *sides, head)
            found[f"stitched, {how}"] = score(models[how].classify(queries))
        chosen = max(models, key=lambda how: expected_score(models[how].report))
        found["stitched"] = found[f"stitched, {chosen}"]
        if head.answers:
            answers = models[chosen].classify(known[chosen][2]).argmax(-1)
            found["agreement"] = float((answers == own.argmax(-1)).double().mean())
        rows[count], reports[count] = found, models[chosen].report
    return rows, reports


def first(anchors, count):
    rows = slice(0, count)
    return AnchorSet(anchors.latents[rows], anchors.ids[rows], anchors.provenance, groups=anchors.groups[rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anchors", nargs="+", type=int, default=[200, MOST])
    parser.add_argument("--only", nargs="+", default=["inference", "ranking"])
    arguments = parser.parse_args()
    console = Console(width=200)
    scores = {"inference": accuracy, "ranking": ndcg}
    for name in arguments.only:
        score_of = scores[name]
        folder, anchors, tests, truth = wordnet_pairs.problem(name, anchors=MOST, tests=TESTS)
        rows, reports = measure(folder, anchors, tests, truth, score_of, arguments.anchors)
        table = Table(f"{name}: {score_of.__name__}", *map(str, rows), title=name, box=box.MARKDOWN)
        for method in rows[arguments.anchors[0]]:
            table.add_row(method, *(f"{found[method]:.3f}" for found in rows.values()))
        console.print(table)
        for count, report in reports.items():
            keys = ("agreement", "agreement_interval", "values_explained", "spearman", "ndcg")
            console.print(count, {key: report[key] for key in keys if report.get(key) is not None})
            console.print(report.get("verdict"))


if __name__ == "__main__":
    with torch.no_grad():
        main()
