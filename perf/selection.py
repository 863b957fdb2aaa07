"""The choice of a translation without labels against peers: one table, one picture.

python perf/selection.py LATENTS [--held-out FOLDER] [--anchors 100 200 500 1500] [--draws 3] [--jobs 2]

With `--held-out` it measures on pairs made here instead of the stored ones.
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
from peers import PEERS, every_member, inversions
from rich import box
from rich.console import Console
from rich.table import Table

from hf_relstitch.core.expected_agreement import foretell
from hf_relstitch.core.head_outputs import apply_head, matching_temperature
from hf_relstitch.core.measures import held_out_translations
from hf_relstitch.core.selection import choose_settings
from hf_relstitch.core.translation import TranslationSettings, fit

DATA, HEADS = {}, {}  # filled before the workers fork
KEYS = ("data", "source", "target", "anchors", "draw")
CHOICES = ("auto", "accuracy of latents alone", "accuracy")
METHODS = ["own", *PEERS, "one default", "auto", "best member by test labels", *CHOICES[1:]]


def share(logits, answers):
    """Of inputs for which these logits give these answers."""
    return float((logits.argmax(-1) == answers).double().mean())


def accuracy(head, latents, labels):
    return share(apply_head(head, latents), labels)


def calibration_error(logits, labels, bins=15):
    """Expected calibration error with equal-width bins (Guo et al. 2017)."""
    sure, answer = logits.softmax(-1).max(-1)
    index = (sure * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins, dtype=sure.dtype).index_add(0, index, (answer == labels).to(sure) - sure)
    return float(gaps.abs().sum() / len(labels))


def measured(prefer, x, y, q, own, labels, head):
    """What a choice made of anchors gives on the queries, and what was foretold of it; by name, "" for the accuracy."""
    began = time.perf_counter()
    choice = choose_settings(x, y, head=head, prefer=prefer)
    seconds = time.perf_counter() - began
    logits = apply_head(head, fit(x, y, settings=choice.settings)(q))
    held, true = apply_head(head, held_out_translations(x, y, settings=choice.settings)), apply_head(head, y.double())
    told, temperature = foretell(held, true), matching_temperature(held, true.softmax(-1))
    return {
        "": share(logits, labels),
        "seconds": seconds,
        "settings": {key: value for key, value in vars(choice.settings).items() if key not in ("scale", "seed")},
        "agreement": share(logits, own.argmax(-1)),
        "foretold": told.agreement,
        "low": told.low,
        "high": told.high,
        "share": share(held, true.argmax(-1)),
        "ECE before": calibration_error(logits, labels),
        "ECE after": calibration_error(logits / temperature, labels),
    }


def one(job):
    """All numbers of one pair, one number of anchors and one draw."""
    torch.set_num_threads(1)
    name, source, target, count, draw = job
    space, head = DATA[name], HEADS[name, target]
    rows, labels = space.anchors(count, draw), space.labels[space.test]
    s, t = space.latents[source].double(), space.latents[target].double()
    x, y, q, truth = s[rows], t[rows], s[space.test], t[space.test]
    row = dict(zip(KEYS, job, strict=True))
    own = apply_head(head, truth)
    row |= {"own": share(own, labels), "own ECE": calibration_error(own, labels)}
    for name, peer in PEERS.items():
        made = inversions(x, y, q) if peer is None else [peer(x, y, q)]
        scores = [accuracy(head, latents, labels) for latents in made]
        row |= {name: max(scores), **({"inversion, all anchors": scores[0]} if peer is None else {})}
    row["one default"] = accuracy(head, fit(x.float(), y.float(), settings=TranslationSettings())(q), labels)
    row["best member by test labels"] = max(share(logits, labels) for logits in every_member(x, y, q, head))

    def chosen(prefer, latents):
        return measured(prefer, latents[rows], y.float(), latents[space.test].double(), own, labels, head)

    plain, wider = space.latents[source], space.wider[source]
    auto, alone = chosen("linear", plain), chosen("accuracy", plain)
    accurate = alone if wider is plain else chosen("accuracy", wider)
    for method, found in zip(CHOICES, (auto, alone, accurate), strict=True):
        row |= {f"{method} {key}".strip(): value for key, value in found.items()}
    return row


def jobs(counts, draws):
    for draw, count, space in itertools.product(range(draws), counts, DATA.values()):
        if space.anchors(count, draw) is not None:
            yield from ((space.name, source, target, count, draw) for source, target in space.pairs)


def mean(rows, key):
    return float(np.mean([row[key] for row in rows]))


def by_pair(rows, key):
    groups = defaultdict(list)
    for row in rows:
        groups[row["data"], row["source"], row["target"]].append(row[key])
    return {pair: float(np.mean(values)) for pair, values in groups.items()}


def summary(rows):
    """The targets, for one number of anchors."""
    auto, pairs = mean(rows, "auto"), by_pair(rows, "auto")
    peer = max(PEERS, key=lambda name: mean(rows, name))
    gaps = {pair: pairs[pair] - max(by_pair(rows, name)[pair] for name in PEERS) for pair in pairs}
    worst = min(gaps, key=gaps.get)
    near = [abs(row["auto foretold"] - row["auto agreement"]) <= 0.05 for row in rows]
    told, found = by_pair(rows, "auto foretold"), by_pair(rows, "auto agreement")
    near_pairs = [abs(told[pair] - found[pair]) <= 0.05 for pair in told]
    inside = [row["auto low"] <= row["auto agreement"] <= row["auto high"] for row in rows]
    old = [abs(row["auto share"] - row["auto agreement"]) <= 0.05 for row in rows]
    return {
        "best member by test labels − auto": f"{mean(rows, 'best member by test labels') - auto:+.4f}",
        "auto − best single peer": f"{auto - mean(rows, peer):+.4f} ({peer})",
        "auto − best peer, worst pair": f"{gaps[worst]:+.4f} ({worst[1]} → {worst[2]})",
        "accuracy − auto": f"{mean(rows, 'accuracy') - auto:+.4f}",
        "accuracy of latents alone − auto": f"{mean(rows, 'accuracy of latents alone') - auto:+.4f}",
        "foretold within .05, runs": f"{np.mean(near):.1%} (share alone {np.mean(old):.1%})",
        "foretold within .05, pairs, in the mean of the draws": f"{np.mean(near_pairs):.1%}",
        "agreement inside its interval": f"{np.mean(inside):.1%}",
        "ECE before → after (own)": f"{mean(rows, 'auto ECE before'):.3f} → {mean(rows, 'auto ECE after'):.3f} "
        f"({mean(rows, 'own ECE'):.3f})",
        "seconds, auto / accuracy": f"{mean(rows, 'auto seconds'):.2f} / {mean(rows, 'accuracy seconds'):.2f}",
        "pairs, runs": f"{len(pairs)}, {len(rows)}",
    }


def report(rows, title, console):
    counts = sorted({row["anchors"] for row in rows})
    groups = {count: [row for row in rows if row["anchors"] == count] for count in counts}
    table = Table("accuracy, mean over pairs and draws", *map(str, counts), title=title, box=box.MARKDOWN)
    for method in METHODS:
        table.add_row(method, *(f"{mean(groups[count], method):.3f}" for count in counts))
    summaries = {count: summary(groups[count]) for count in counts}
    for name in summaries[counts[0]]:
        table.add_row(name, *(summaries[count][name] for count in counts))
    console.print(table)


def picture(rows, file):
    from matplotlib.figure import Figure

    colours = [
        "#888888",
        "#BBBBBB",
        "#EE6677",
        "#CCBB44",
        "#228833",
        "#66CCEE",
        "#AA3377",
        "#4477AA",
        "#4477AA",
        "#DDAA77",
        "#EE7733",
    ]
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(5 * len(names), 4.5), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        some = [row for row in rows if row["data"] == name]
        counts = sorted({row["anchors"] for row in some})
        for method, colour, marker in zip(METHODS, colours, ".vsD^<>ox1P", strict=True):
            axes.plot(
                counts,
                [mean([row for row in some if row["anchors"] == count], method) for count in counts],
                marker=marker,
                color=colour,
                label=method,
                linewidth=2.5 if method in CHOICES else 1.2,
                linestyle=":" if method in ("own", "best member by test labels") else "-",
            )
        axes.set(xscale="log", title=name, xlabel="anchors", ylabel="accuracy, mean over pairs and draws")
        axes.set_xticks(counts, map(str, counts))
        axes.minorticks_off()
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", nargs="?", help="folder of wordnet.safetensors and emoji.safetensors")
    parser.add_argument("--held-out", help="folder for latents of other pairs, made if missing")
    parser.add_argument("--anchors", nargs="+", type=int, default=[100, 200, 500, 1500])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", default="perf/output")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(exist_ok=True, parents=True)
    data = spaces.held_out(args.held_out) if args.held_out else spaces.development(args.latents)
    DATA.update({space.name: space for space in data})
    HEADS.update({(space.name, name): space.head(name) for space in data for name in space.latents})
    began, log = time.perf_counter(), out / "rows.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    done = {tuple(row[key] for key in KEYS) for row in rows}
    todo = [job for job in jobs(args.anchors, args.draws) if job not in done]
    with get_context("fork").Pool(args.jobs) as workers, log.open("a") as file:
        for row in workers.imap_unordered(one, todo):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    console = Console(width=250)
    report(rows, f"{len(by_pair(rows, 'own'))} pairs", console)
    for space in data:
        report([row for row in rows if row["data"] == space.name], space.name, console)
    picture(rows, out / "picture.png")
    console.print(f"{len(todo)} of {len(rows)} runs in {time.perf_counter() - began:.0f} s; {log}, {out}/picture.png")


if __name__ == "__main__":
    main()
