"""auto and accuracy against peers on stored latents, without labels: one table, one picture.

python perf_selection.py LATENTS_FOLDER [--anchors 100 200 500 1500] [--draws 3] [--jobs 2] [--out FOLDER]
"""

import argparse
import csv
import itertools
import json
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import LogisticRegression

from hf_relstitch.core.confidence import expected_calibration_error, matching_temperature
from hf_relstitch.core.fidelity import held_out_translations
from hf_relstitch.core.foretelling import foretell
from hf_relstitch.core.inversion import TranslationSettings, fit_translation, fold, mean_norm
from hf_relstitch.core.relative import directions
from hf_relstitch.core.selection import ALPHAS, RIDGES, apply_head, choose_settings, quick_frame
from hf_relstitch.core.sharpening import fit

SPLITS = {"wordnet": (5000, 3000), "emoji": (549, 750)}  # rows for heads, rows for tests; the rest is for anchors
TWENTY_EMOJI = [
    ("image_lite0", "image_lite2"), ("image_lite2", "image_lite0"),
    ("image_lite2", "text_en_mpnet"), ("text_en_mpnet", "image_lite2"),
    ("text_de_e5", "text_en_mpnet"), ("text_en_mpnet", "text_de_e5"),
    ("text_de_e5", "image_lite0"), ("text_en_minilm", "image_lite0"),
]  # fmt: skip
THRESHOLDS = (0.15, 0.2, 0.3)
PEERS = ["absolute", "inversion (picked)", "least squares", "procrustes", "parseval"]
METHODS = [*PEERS, "default", "auto", "best member (picked)", "accuracy"]


def data(folder, name):
    tensors = load_file(Path(folder) / f"{name}.safetensors")
    labels = tensors.pop("labels").long()
    heads, tests = SPLITS[name]
    return {k: v.float() for k, v in tensors.items()}, labels, heads, tests


def train_head(latents, labels):
    model = LogisticRegression(max_iter=500).fit(latents.double().numpy(), labels.numpy())
    head = torch.nn.Linear(latents.shape[1], len(model.classes_), dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(model.coef_))
        head.bias.copy_(torch.tensor(model.intercept_))
    return head.requires_grad_(False)


def padded(x, width):
    return torch.nn.functional.pad(x, (0, max(0, width - x.shape[1])))


def procrustes(x, y, q):
    width = max(x.shape[1], y.shape[1])
    cx, cy = x.mean(0), y.mean(0)
    rotation, _ = orthogonal_procrustes(
        padded(directions(x, centre=cx), width).numpy(), padded(directions(y, centre=cy), width).numpy()
    )
    rotation = torch.tensor(rotation)[:, : y.shape[1]]
    scale = mean_norm(y - cy) / mean_norm(padded(x - cx, width) @ rotation)
    return scale * padded(q - cx, width) @ rotation + cy


def least_squares(x, y, q):
    solution, *_ = np.linalg.lstsq((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy(), rcond=None)
    return (q - x.mean(0)) @ torch.tensor(solution) + y.mean(0)


def family(x, y, q):
    """Latents by every member of W(α, λ) on the grid, at the mean norm that fitted anchors and that new ones give."""
    cx, cy = x.mean(0), y.mean(0)
    frames = [quick_frame(directions(z, centre=c), precision=1.2e-7) for z, c in ((x, cx), (y, cy))]
    for alpha, ridge in itertools.product(ALPHAS, RIDGES):
        weight = fold(*frames, alpha=alpha, ridge=ridge)
        made = (q - cx) @ weight
        for anchors in ((x - cx) @ weight, made):
            yield made * (mean_norm(y - cy) / mean_norm(anchors)) + cy


def one(job):
    """All numbers of one pair, one draw, one number of anchors."""
    torch.set_num_threads(1)
    name, source, target, k, draw, x, y, q, truth, labels, head, slow = job
    accuracy = lambda latents: float((apply_head(head, latents).argmax(-1) == labels).double().mean())  # noqa: E731
    row = {"data": name, "source": source, "target": target, "anchors": k, "draw": draw, "own": accuracy(truth)}
    width = y.shape[1]
    row["absolute"] = accuracy(padded(q, width)[:, :width])
    row["least squares"], row["procrustes"] = accuracy(least_squares(x, y, q)), accuracy(procrustes(x, y, q))
    by = lambda **s: accuracy(fit_translation(x, y, settings=TranslationSettings(**s))(q))  # noqa: E731
    row["parseval"], row["default"] = by(alpha=0.5, ridge=0), by()
    row["inversion, all anchors"] = by(alpha=0, ridge=0)
    picked = [row["inversion, all anchors"]]
    for threshold in THRESHOLDS if slow else ():
        picked.append(by(alpha=0, ridge=0, pruning=threshold, subspaces=8))
    row["inversion (picked)"] = max(picked)
    row["best member (picked)"] = max(map(accuracy, family(x, y, q))) if slow else float("nan")
    own = apply_head(head, truth)
    for method, prefer in (("auto", "linear"), ("accuracy", "accuracy")):
        began = time.perf_counter()
        choice = choose_settings(x.float(), y.float(), head=head, prefer=prefer)
        row[f"{method} seconds"] = time.perf_counter() - began
        s = choice.settings
        row[f"{method} settings"] = f"a={s.alpha} r={s.ridge} g={s.sharpness} stretch={s.stretch:.3f}"
        logits = apply_head(head, fit(x.float(), y.float(), settings=s)(q))
        row[method] = float((logits.argmax(-1) == labels).double().mean())
        row[f"{method} measured"] = float((logits.argmax(-1) == own.argmax(-1)).double().mean())
        held = apply_head(head, held_out_translations(x.float(), y.float(), settings=s))
        told = foretell(held, apply_head(head, y))
        row |= {
            f"{method} foretold": told.agreement,
            f"{method} low": told.low,
            f"{method} high": told.high,
            f"{method} kappa": told.kappa,
        }
        temperature = matching_temperature(held, apply_head(head, y))
        row[f"{method} ece before"] = expected_calibration_error(logits.softmax(-1), labels)
        row[f"{method} ece after"] = expected_calibration_error((logits / temperature).softmax(-1), labels)
        row[f"{method} temperature"] = temperature
    row["own ece"] = expected_calibration_error(own.softmax(-1), labels)
    return row


def jobs(args):
    for name in args.data:
        latents, labels, heads, tests = data(args.latents, name)
        trained = {k: train_head(v[:heads], labels[:heads]) for k, v in latents.items()}
        pool = len(labels) - heads - tests
        test = slice(heads, heads + tests)
        for k, draw in itertools.product(args.anchors, range(args.draws)):
            if k > pool:
                continue
            rows = heads + tests + torch.randperm(pool, generator=torch.Generator().manual_seed(draw))[:k]
            for source, target in itertools.permutations(latents, 2):
                s, t = latents[source].double(), latents[target].double()
                yield (
                    name,
                    source,
                    target,
                    k,
                    draw,
                    s[rows],
                    t[rows],
                    s[test],
                    t[test],
                    labels[test],
                    trained[target],
                    not args.quick,
                )


def in_twenty(row):
    return row["data"] == "wordnet" or (row["source"], row["target"]) in TWENTY_EMOJI


def mean(rows, key):
    return float(np.mean([row[key] for row in rows]))


def by_pair(rows, key):
    groups = defaultdict(list)
    for row in rows:
        groups[row["data"], row["source"], row["target"]].append(row[key])
    return {pair: float(np.mean(values)) for pair, values in groups.items()}


def table(rows, title):
    counts = sorted({row["anchors"] for row in rows})
    print(f"\n{title}\n{'accuracy, mean':28}" + "".join(f"{k:>9}" for k in counts))
    for method in ["own", "inversion, all anchors", *METHODS]:
        print(f"{method:28}" + "".join(f"{mean([r for r in rows if r['anchors'] == k], method):9.3f}" for k in counts))
    print(f"{'pairs':28}" + "".join(f"{len(by_pair([r for r in rows if r['anchors'] == k], 'own')):9}" for k in counts))


def must_show(rows, title):
    print(f"\n{title}: must show")
    for k in sorted({row["anchors"] for row in rows}):
        some = [row for row in rows if row["anchors"] == k]
        auto, best = mean(some, "auto"), mean(some, "best member (picked)")
        pairs = {m: by_pair(some, m) for m in METHODS}
        peer = max(PEERS, key=lambda m: mean(some, m))
        gaps = {p: pairs["auto"][p] - max(pairs[m][p] for m in PEERS) for p in pairs["auto"]}
        worst = min(gaps, key=gaps.get)
        print(
            f"{k:>5} anchors: auto {auto:.3f}, best member {best - auto:+.3f}; best single peer {peer} auto {auto - mean(some, peer):+.3f}; "
            f"worst pair {worst} {gaps[worst]:+.3f}, {sum(g < -0.02 for g in gaps.values())} of {len(gaps)} below -0.02; "
            f"accuracy {mean(some, 'accuracy') - auto:+.4f}"
        )
        for method in ("auto", "accuracy"):
            single = [abs(r[f"{method} foretold"] - r[f"{method} measured"]) <= 0.05 for r in some]
            told, measured = by_pair(some, f"{method} foretold"), by_pair(some, f"{method} measured")
            paired = [abs(told[p] - measured[p]) <= 0.05 for p in told]
            cover = np.mean([r[f"{method} low"] <= r[f"{method} measured"] <= r[f"{method} high"] for r in some])
            bias = np.mean([r[f"{method} foretold"] - r[f"{method} measured"] for r in some])
            print(
                f"      {method:8} foretold within .05: {np.mean(single):.3f} of runs, {np.mean(paired):.3f} of pairs; bias {bias:+.3f}; interval covers {cover:.3f}; "
                f"ECE {mean(some, f'{method} ece before'):.3f} -> {mean(some, f'{method} ece after'):.3f} (own {mean(some, 'own ece'):.3f}); {mean(some, f'{method} seconds'):.2f} s"
            )


def picture(rows, file):
    from matplotlib.figure import Figure

    colours = ["#BBBBBB", "#EE6677", "#CCBB44", "#228833", "#66CCEE", "#AA3377", "#4477AA", "#000000", "#EE7733"]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("wordnet", "emoji"), strict=True):
        some = [r for r in rows if r["data"] == name]
        counts = sorted({r["anchors"] for r in some})
        for method, colour, marker in zip(METHODS, colours, "vsD^<>oxP", strict=True):
            axes.plot(
                counts,
                [mean([r for r in some if r["anchors"] == k], method) for k in counts],
                marker=marker,
                color=colour,
                label=method,
                linewidth=2.5 if method in ("auto", "accuracy") else 1.2,
                linestyle="--" if "picked" in method else "-",
            )
        if some:
            axes.axhline(mean(some, "own"), color="#888888", linestyle=":", label="head on its own encoder")
            axes.set(xscale="log", xticks=counts, xticklabels=counts)
        axes.set(title=name, xlabel="anchors", ylabel="accuracy, mean over pairs and draws")
        axes.minorticks_off()
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents")
    parser.add_argument("--data", nargs="+", default=["wordnet", "emoji"])
    parser.add_argument("--anchors", nargs="+", type=int, default=[100, 200, 500, 1500])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="leave out what is picked on test labels")
    parser.add_argument("--out", default="perf_selection")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(exist_ok=True, parents=True)
    rows, began = [], time.perf_counter()
    with ProcessPoolExecutor(args.jobs) as workers, (out / "rows.jsonl").open("w") as log:
        for row in workers.map(one, jobs(args), chunksize=1):
            rows.append(row)
            log.write(json.dumps(row) + "\n")
            log.flush()
    twenty = [row for row in rows if in_twenty(row)]
    table(twenty, "20 pairs (12 wordnet, 8 emoji)")
    must_show(twenty, "20 pairs")
    for name in args.data:
        some = [row for row in rows if row["data"] == name]
        table(some, f"{name}, all pairs")
        must_show(some, name)
    with (out / "table.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    picture(rows, out / "picture.png")
    print(f"\n{len(rows)} runs in {time.perf_counter() - began:.0f} s; {out}/table.csv, {out}/picture.png")


if __name__ == "__main__":
    main()
