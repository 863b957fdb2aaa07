"""What a vector index finds after a change of encoder, by translations and by what others map with: one table.

pip install isotrieve rebasis    # rebasis takes Python 3.12; without it its rows are left out
python perf/search.py LATENTS.safetensors [--pairs 300 1000 4000] [--draws 1] [--only ENCODER …]

The file has a tensor for each encoder, row for row; they are normalised here. A tenth of the rows, 500 at most, are
queries, some are pairs, and all others the documents: none is two of these. Recall is the share of the ten documents
nearest to a query by the new encoder that is found; it is a mean over all ordered pairs of encoders and the draws.
rebasis's mappings are those of Drift-Adapter: Procrustes, plain and centred, with a diagonal on top of it (dsm), ridge
regression, its low-rank part, and a residual MLP.
"""

import argparse
import itertools
import time
import warnings
from collections import defaultdict
from functools import partial

import numpy as np
import torch
from isotrieve.mapping.linear import OrthogonalProcrustesMapping, RidgeMapping
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch.nn.functional import normalize

from hf_relstitch.bulk import translation_between
from hf_relstitch.core.scoring import share_found


def nearest(queries, documents, count=10):
    return (queries @ documents.T).topk(count).indices


def recall(queries, documents, wanted, candidates=None):
    """The share of the wanted documents, (queries, count), among as many nearest, or among so many candidates."""
    return float(share_found(wanted, nearest(queries, documents, candidates or wanted.shape[1])).mean())


def reachable(queries, documents, wanted):
    """The share among 200 candidates, which is what ranking them by the new encoder finds."""
    return recall(queries, documents, wanted, candidates=200)


def mapping(kind, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it recommends more pairs
        made = kind().fit(x.numpy(), y.numpy())
    return lambda latents: torch.from_numpy(made.transform(latents.numpy())).float()


def rebasis_mapping(method, x, y):
    from rebasis.core.selection import fit_candidates

    (candidate,) = fit_candidates(x.numpy(), y.numpy(), methods=[method], skip_unavailable=False)
    return lambda latents: normalize(torch.from_numpy(candidate.adapter.apply(latents.numpy())).float(), dim=1)


def rebasis_methods():
    try:
        from rebasis.core.selection import CANDIDATE_METHODS
    except ImportError:
        return []
    return list(CANDIDATE_METHODS)


def one(old, new, queries, pairs, documents):
    """What is found, and what was expected, of one change of encoder."""
    wanted = nearest(new[queries], new[documents])
    row = {
        "the old encoder": recall(old[queries], old[documents], wanted),
        "the old encoder, 200 re-ranked": reachable(old[queries], old[documents], wanted),
    }
    for role, (x, y) in {"documents": (old, new), "queries": (new, old)}.items():
        ways = {f"linear, {role}": "linear", f"auto, {role}": "auto"}
        ways[f"isotrieve ridge, {role}"] = partial(mapping, RidgeMapping)
        if x.shape[1] == y.shape[1]:
            ways[f"isotrieve Procrustes, {role}"] = partial(mapping, OrthogonalProcrustesMapping)
        ways |= {f"rebasis {method}, {role}": partial(rebasis_mapping, method) for method in rebasis_methods()}
        for name, way in ways.items():
            began = time.perf_counter()
            if isinstance(way, str):
                made = translation_between(x[pairs], y[pairs], translates=role, prefer=way)
            else:
                made = way(x[pairs], y[pairs])
            row[f"seconds: {name}"] = time.perf_counter() - began

            def ask(rows, wanted, made=made, role=role, find=recall):
                if role == "documents":
                    return find(new[queries], made(old[rows]), wanted)
                return find(made(new[queries]), old[rows], wanted)

            row[name] = ask(documents, wanted)
            row[f"{name}, 200 re-ranked"] = ask(documents, wanted, find=reachable)
            if isinstance(way, str):
                some = documents[: made.report["documents"]]
                found = ask(some, nearest(new[queries], new[some], made.report["nearest"]))
                row[f"expected − found, mean absolute: {name}"] = abs(made.report["recall"] - found)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents")
    parser.add_argument("--pairs", nargs="+", type=int, default=[300, 1000, 4000])
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="encoders, all by default")
    args = parser.parse_args()
    latents = {name: normalize(each.float(), dim=1) for name, each in load_file(args.latents).items() if each.ndim == 2}
    encoders = args.only or list(latents)
    count = len(latents[encoders[0]])
    asked = min(500, count // 10)
    columns = {}
    for pairs in args.pairs:
        rows = defaultdict(list)
        for draw, (old, new) in itertools.product(range(args.draws), itertools.permutations(encoders, 2)):
            order = torch.randperm(count, generator=torch.Generator().manual_seed(draw))
            parts = order[:asked], order[asked : asked + pairs], order[asked + max(args.pairs) :]
            found = one(latents[old], latents[new], *parts)
            for name, value in found.items():
                rows[name].append(value)
            print(pairs, old, new, {name: round(value, 3) for name, value in found.items()}, flush=True)
        columns[pairs] = {name: (float(np.mean(values)), len(values)) for name, values in rows.items()}
    documents = count - asked - max(args.pairs)
    title = f"recall@10 of {asked} queries among {documents:,} documents"
    table = Table(title, *(f"{pairs:,} pairs" for pairs in args.pairs), "runs", box=box.MARKDOWN)
    for name in columns[args.pairs[0]]:
        values = [columns[pairs][name] for pairs in args.pairs]
        table.add_row(name, *(f"{value:.3f}" for value, _ in values), str(values[0][1]))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
