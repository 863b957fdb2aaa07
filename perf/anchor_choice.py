"""Which anchors to take from more candidates than the budget: five methods on source latents, each with auto.

python perf_anchor_choice.py LATENTS_FOLDER [--anchors 50 100 200 500] [--draws 2]
"""

import argparse
import itertools
from collections import defaultdict

import numpy as np
import torch
from perf_selection import TWENTY_EMOJI, apply_head, data, train_head
from scipy.linalg import qr
from sklearn.cluster import KMeans

from hf_relstitch.core.relative import directions
from hf_relstitch.core.selection import choose_settings
from hf_relstitch.core.sharpening import fit


def random(unit, count, seed):
    return torch.randperm(len(unit), generator=torch.Generator().manual_seed(seed))[:count]


def farthest_point(unit, count, seed):
    rows = [int(random(unit, 1, seed))]
    nearest = unit @ unit[rows[0]]
    for _ in range(count - 1):
        nearest[rows[-1]] = torch.inf
        rows.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, unit @ unit[rows[-1]])
    return torch.tensor(rows)


def medoids(unit, count, seed):
    means = KMeans(count, n_init=1, max_iter=30, random_state=seed).fit(unit.numpy()).cluster_centers_
    distance = torch.cdist(torch.tensor(means), unit)
    taken = []
    for row in distance:
        row[taken] = torch.inf
        taken.append(int(row.argmin()))
    return torch.tensor(taken)


def herding(unit, count, seed):
    kernel = torch.exp(unit @ unit.T - 1)
    mean, total, taken = kernel.mean(1), torch.zeros(len(unit), dtype=unit.dtype), []
    for step in range(count):
        gain = mean - total / (step + 1)
        gain[taken] = -torch.inf
        taken.append(int(gain.argmax()))
        total += kernel[taken[-1]]
    return torch.tensor(taken)


def pivoted_qr(unit, count, seed):
    rows = torch.tensor(qr(unit.T.numpy(), mode="r", pivoting=True)[1][: min(count, unit.shape[1])].copy()).long()
    if len(rows) < count:  # no more independent directions: the rest at random
        rest = random(unit, len(unit), seed)
        rows = torch.cat([rows, rest[~torch.isin(rest, rows)][: count - len(rows)]])
    return rows


def leverage(unit, count, seed):
    u, s, _ = torch.linalg.svd(unit, full_matrices=False)
    scores = ((u * s / (s**2 + (s**2).mean()).sqrt()) ** 2).sum(1)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(scores, count, generator=generator)


METHODS = [random, farthest_point, medoids, herding, pivoted_qr, leverage]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("latents")
    parser.add_argument("--anchors", nargs="+", type=int, default=[50, 100, 200, 500])
    parser.add_argument("--draws", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scores = defaultdict(list)
    for name in ("wordnet", "emoji"):
        latents, labels, heads, tests = data(args.latents, name)
        trained = {k: train_head(v[:heads], labels[:heads]) for k, v in latents.items()}
        pairs = list(itertools.permutations(latents, 2)) if name == "wordnet" else TWENTY_EMOJI
        test = slice(heads, heads + tests)
        for draw, source in itertools.product(range(args.draws), latents):
            targets = [t for s, t in pairs if s == source]
            if not targets:
                continue
            free = heads + tests + random(labels[heads + tests :], 2000, draw)
            candidates = latents[source][free].double()
            unit = directions(candidates, centre=candidates.mean(0))
            for count, method in itertools.product(args.anchors, METHODS):
                rows = free[method(unit, count, draw)]
                for target in targets:
                    x, y, head = latents[source][rows], latents[target][rows], trained[target]
                    settings = choose_settings(x, y, head=head).settings
                    logits = apply_head(head, fit(x, y, settings=settings)(latents[source][test].double()))
                    scores[name, method.__name__, count].append(
                        float((logits.argmax(-1) == labels[test]).double().mean())
                    )
    for name in ("wordnet", "emoji"):
        print(f"{name:16}" + "".join(f"{k:>8}" for k in args.anchors) + "    mean")
        for method in METHODS:
            means = [np.mean(scores[name, method.__name__, k]) for k in args.anchors]
            print(f"{method.__name__:16}" + "".join(f"{m:8.3f}" for m in means) + f"{np.mean(means):8.3f}")


if __name__ == "__main__":
    main()
