"""The choice of a translation without labels against peers: one table.

python perf/selection.py FOLDER [--anchors 100 200 500 1500 5000] [--draws 3] [--jobs 2] [--slow | --rivals]

FOLDER has wordnet.safetensors and emoji.safetensors, or the sets of fresh_pairs.py; with `--held-out` the sets of
spaces.py are made in it. `--slow` adds cross-validated kernel ridge and an MLP adapter; `--rivals` leaves all out but
RidgeCV, distillation and Procrustes. Rows go to a log, from which a run goes on.
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import spaces
import torch
from peers import PEERS, SLOW_PEERS
from rich import box
from rich.console import Console
from rich.table import Table

from hf_relstitch import AnchorSet, Head
from hf_relstitch.benchmarks.baselines import fit_logistic
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.model.stitching import stitch

DATA, HEADS = {}, {}  # filled before the workers fork
KEYS = ("data", "source", "target", "anchors", "draw")
RIVALS = ("RidgeCV", "distilled", "Procrustes")
FRESH = "fresh head on labels"
METHODS = ["own", *PEERS, *SLOW_PEERS, "distilled", FRESH, "linear", "auto"]


def score(logits, labels):
    """Accuracy, or of values the share of their variance that is explained."""
    if labels.is_floating_point():
        return 1 - float((logits[:, 0] - labels).square().mean() / labels.double().var(correction=0))
    return float((logits.argmax(-1) == labels).double().mean())


def calibration_error(logits, labels, bins=15):
    """Expected calibration error with equal-width bins (Guo et al. 2017)."""
    sure, answer = logits.softmax(-1).max(-1)
    index = (sure * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins, dtype=sure.dtype).index_add(0, index, (answer == labels).to(sure) - sure)
    return float(gaps.abs().sum() / len(labels))


def stitched(prefer, x, y, q, own, labels, head):
    """What a stitched model gives on the queries, and what was expected of it; by name, "" for the accuracy."""
    sides = [AnchorSet(z, torch.arange(len(z)), Provenance(name, "1", "none")) for name, z in (("x", x), ("y", y))]
    names = {index: str(index) for index in range(head.out_features)}
    kind = "regression" if labels.is_floating_point() else "single_label_classification"
    began = time.perf_counter()
    made = stitch(*sides, Head(head, names, kind), source=sides[0].provenance, prefer=prefer)
    seconds = time.perf_counter() - began
    logits = made.logits(q, head=head)
    found = {"": score(logits, labels), "seconds": seconds, "gamma": made.settings.gamma, "ridge": made.settings.ridge}
    found["readout"] = made.readout is not None
    if kind == "regression":
        return found
    low, high = made.report["agreement_interval"]
    return found | {
        "agreement": score(logits, own.argmax(-1)),
        "expected": made.report["agreement"],
        "low": low,
        "high": high,
        "ECE": calibration_error(logits, labels),
    }


def one(job, *, peers):
    """All numbers of one pair, one number of anchors and one draw."""
    torch.set_num_threads(1)
    name, source, target, count, draw = job
    space, head = DATA[name], HEADS[name, target]
    rows, labels = space.anchors(count, draw), space.labels[space.test]
    x, y, q = space.latents[source][rows], space.latents[target][rows], space.latents[source][space.test]
    own = apply_head(head, space.latents[target][space.test].double())
    row = dict(zip(KEYS, job, strict=True)) | {"own": score(own, labels)}
    wide = [latents.double() for latents in (x, y, q)]
    for name in peers:
        peer = (PEERS | SLOW_PEERS).get(name)
        if peer is not None and (made := peer(*wide)) is not None:
            row[name] = score(apply_head(head, made), labels)
    if not labels.is_floating_point():
        row["distilled"] = score(fit_logistic(wide[0], apply_head(head, wide[1]).softmax(-1))(wide[2]), labels)
        if FRESH in peers:
            truth = torch.nn.functional.one_hot(space.labels[rows], head.out_features).double()
            row[FRESH] = score(fit_logistic(wide[0], truth)(wide[2]), labels)
    for prefer in ("linear", "auto"):
        found = stitched(prefer, x, y, wide[2], own, labels, head)
        row |= {f"{prefer} {key}".strip(): value for key, value in found.items()}
    return row


def run(job_and_peers):
    return one(job_and_peers[0], peers=job_and_peers[1])


def jobs(counts, draws):
    for draw, count, space in itertools.product(range(draws), counts, DATA.values()):
        if space.anchors(count, draw) is not None:
            yield from ((space.name, source, target, count, draw) for source, target in space.pairs)


def mean(rows, key):
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else float("nan")


def by_pair(rows, key):
    groups = defaultdict(list)
    for row in rows:
        if row.get(key) is not None:
            groups[row["data"], row["source"], row["target"]].append(row[key])
    return {pair: float(np.mean(values)) for pair, values in groups.items()}


def summary(rows):
    """The targets, for one number of anchors."""
    pairs = by_pair(rows, "auto")
    rivals = {name: by_pair(rows, name) for name in RIVALS}
    rival = max(RIVALS, key=lambda name: mean(rows, name))
    gaps = {pair: pairs[pair] - max(found.get(pair, -9) for found in rivals.values()) for pair in pairs}
    worst = sorted(gaps, key=gaps.get)[:3]
    told = [row for row in rows if row.get("auto expected") is not None]
    near = [abs(row["auto expected"] - row["auto agreement"]) <= 0.05 for row in told]
    inside = [row["auto low"] <= row["auto agreement"] <= row["auto high"] for row in told]
    expected, found = by_pair(told, "auto expected"), by_pair(told, "auto agreement")
    near_pairs = [abs(expected[pair] - found[pair]) <= 0.05 for pair in expected]
    return {
        "auto − best of RidgeCV, distilled, Procrustes": f"{mean(rows, 'auto') - mean(rows, rival):+.4f} ({rival})",
        "auto − best of the three, mean over pairs": f"{np.mean(list(gaps.values())):+.4f}",
        "pairs more than .01 below the best of the three": f"{sum(gap < -0.01 for gap in gaps.values())}",
        "worst pairs": "; ".join(f"{gaps[pair]:+.3f} {pair[0]}: {pair[1]} → {pair[2]}" for pair in worst),
        "auto − linear": f"{mean(rows, 'auto') - mean(rows, 'linear'):+.4f}",
        "expected within .05 of found, runs": f"{np.mean(near):.1%}",
        "expected within .05 of found, pairs": f"{np.mean(near_pairs):.1%}",
        "agreement inside its interval": f"{np.mean(inside):.1%}",
        "ECE of auto": f"{mean(told, 'auto ECE'):.3f}",
        "seconds, auto / linear": f"{mean(rows, 'auto seconds'):.2f} / {mean(rows, 'linear seconds'):.2f}",
        "pairs, runs": f"{len(pairs)}, {len(rows)}",
    }


def report(rows, title, console):
    counts = sorted({row["anchors"] for row in rows})
    groups = {count: [row for row in rows if row["anchors"] == count] for count in counts}
    table = Table("mean over pairs and draws", *map(str, counts), title=title, box=box.MARKDOWN)
    for method in METHODS:
        if any(method in row for row in rows):
            table.add_row(method, *(f"{mean(groups[count], method):.3f}" for count in counts))
    summaries = {count: summary(groups[count]) for count in counts}
    for name in summaries[counts[0]]:
        table.add_row(name, *(summaries[count][name] for count in counts))
    console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--held-out", action="store_true", help="make and measure the 24 pairs of spaces.py")
    parser.add_argument("--anchors", nargs="+", type=int, default=[100, 200, 500, 1500, 5000])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--log", type=Path, help="file of rows, one a line; by default in perf/output")
    args = parser.parse_args()
    data = spaces.held_out(args.folder) if args.held_out else spaces.found(args.folder)
    DATA.update({space.name: space for space in data})
    HEADS.update({(space.name, name): space.head(name) for space in data for name in space.latents})
    began, log = time.perf_counter(), args.log or Path("perf/output", Path(args.folder).name + ".jsonl")
    log.parent.mkdir(exist_ok=True, parents=True)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    done = {tuple(row[key] for key in KEYS) for row in rows}
    peers = RIVALS if args.rivals else [*PEERS, FRESH, *(SLOW_PEERS if args.slow else ())]
    todo = [(job, peers) for job in jobs(args.anchors, args.draws) if job not in done]
    with get_context("fork").Pool(args.jobs) as workers, log.open("a") as file:
        for row in workers.imap_unordered(run, todo):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    console = Console(width=250)
    answers = [row for row in rows if "distilled" in row]
    report(answers, f"accuracy, {len(by_pair(answers, 'own'))} pairs", console)
    if values := [row for row in rows if "distilled" not in row]:
        report(values, "share of the variance of the values that is explained", console)
    for space in data:
        if some := [row for row in rows if row["data"] == space.name]:
            report(some, space.name, console)
    console.print(f"{len(todo)} of {len(rows)} runs in {time.perf_counter() - began:.0f} s; {log}")


if __name__ == "__main__":
    main()
