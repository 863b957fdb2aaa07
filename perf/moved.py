"""What a moved index finds as its documents are encoded anew, and what a threshold of similarity becomes: two tables.

python perf/moved.py LATENTS.safetensors [--only ENCODER …] [--pairs 1000]

The file has a tensor for each encoder, row for row; they are normalised here. 500 rows are queries, some pairs, half of
the others documents: recall is the share of the ten that the new encoder finds. A threshold comes from these queries
and documents, and is tried on 1,000 other queries and the other half of the documents.
"""

import argparse
import itertools

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch.nn.functional import normalize

from hf_relstitch.bulk import match_threshold, translation_between

SHARES = (0, 0.05, 0.25, 0.5, 0.75)
QUERIES, OTHERS, NEAREST = 500, 1000, 10
MATCHES = (1e-3, 3e-4, 5e-5)
"""Shares of the pairs of a query and a document that match by the old threshold."""


def nearest(queries, documents):
    return (queries @ documents.T).topk(NEAREST).indices


def recalls(queries, documents, moved, share):
    """Recall, recall of new documents and of moved ones, and the share of new documents in what is found."""
    is_new = torch.rand(len(documents), generator=torch.Generator().manual_seed(1)) < share
    wanted = nearest(queries, documents)
    found = nearest(queries, torch.where(is_new[:, None], documents, moved))
    hits = (wanted[:, :, None] == found[:, None, :]).any(-1)
    each = hits, hits[is_new[wanted]], hits[~is_new[wanted]], is_new[found]
    return [float(values.double().mean()) for values in each]


def thresholds(old, new, spaces, parts, others):
    """For each share of matches and each space: the thresholds, what is told, and what other rows have."""
    rows = {}
    for share in MATCHES:
        similarities = (old[parts[0]] @ old[parts[1]].T).flatten()
        before = float(similarities.topk(round(share * len(similarities))).values[-1])
        for name, space in spaces.items():
            found = match_threshold(before, old=[old[rows] for rows in parts], new=space(*parts))
            is_match = old[others[0]] @ old[others[1]].T >= before
            queries, documents = space(*others)
            hits = queries @ documents.T >= found["threshold"]
            times, kept = float(hits.sum() / is_match.sum()), float((hits & is_match).sum() / is_match.sum())
            rows[share, name] = before, found["threshold"], *found["held_out"], found["kept"], times, kept
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents")
    parser.add_argument("--only", nargs="+", help="encoders, all by default")
    parser.add_argument("--pairs", type=int, default=1000)
    args = parser.parse_args()
    latents = {name: normalize(each.float(), dim=1) for name, each in load_file(args.latents).items() if each.ndim == 2}
    names = args.only or list(latents)
    order = torch.randperm(len(latents[names[0]]), generator=torch.Generator().manual_seed(0))
    queries, pairs, other_queries, rest = order.split(
        [QUERIES, args.pairs, OTHERS, len(order) - QUERIES - args.pairs - OTHERS]
    )
    parts, others = (queries, rest[: len(rest) // 2]), (other_queries, rest[len(rest) // 2 :])
    mixed, matches = [], []
    for names_of in itertools.permutations(names, 2):
        old, new = (latents[name] for name in names_of)
        to_new = translation_between(old[pairs], new[pairs])
        to_old = translation_between(new[pairs], old[pairs], translates="queries")
        documents = parts[1]
        mixed.append([recalls(new[queries], new[documents], to_new(old[documents]), share) for share in SHARES])
        spaces = {
            "moved": lambda q, d, new=new, old=old, to_new=to_new: (new[q], to_new(old[d])),
            "encoded anew": lambda q, d, new=new: (new[q], new[d]),
            "queries translated": lambda q, d, new=new, old=old, to_old=to_old: (to_old(new[q]), old[d]),
        }
        matches.append(thresholds(old, new, spaces, parts, others))
        print(names_of, np.round(mixed[-1], 3).tolist(), flush=True)
        for (share, name), row in matches[-1].items():
            print(names_of, f"{share:g}", name, np.round(row, 3).tolist(), flush=True)
    table = Table("encoded anew", "recall@10", "of new", "of moved", "new in found", box=box.MARKDOWN)
    for share, row in zip(SHARES, np.mean(mixed, axis=0), strict=True):
        table.add_row(f"{share:.0%}", *(f"{value:.3f}" for value in row))
    Console(width=120).print(table)
    table = Table("matches", "index", "times as many", "furthest", "told", "kept", "kept, told", box=box.MARKDOWN)
    for key in matches[0]:
        rows = np.array([row[key] for row in matches])
        times, told = np.exp(np.abs(np.log(rows[:, 5]))), np.exp(np.abs(np.log(rows[:, 2:4])).mean(1))
        cells = times.mean(), times.max(), told.mean(), rows[:, 6].mean(), rows[:, 4].mean()
        table.add_row(f"{key[0]:g}", key[1], *(f"{value:.2f}" for value in cells))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
