"""What translating, stitching, loading and fitting cost, against what one would run without this package.

python perf/speed.py translate | stitched ENCODER | loading ENCODER | fit 1000 768 [--prefer linear]

ENCODER is a folder of all-MiniLM-L6-v2. Both sides of a ratio take turns in one process; each ratio is the median of
the pairs', and its spread is from the lower to the upper quartile. All but loading run on the GPU where there is one;
each time is then of 50 calls in a row, over 50. `translate` and `stitched` take --dtype bfloat16.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch

from hf_relstitch import Encoder, RelativeStitcher
from hf_relstitch.core.decomposition import Frame
from hf_relstitch.core.distillation import fit_readout
from hf_relstitch.core.measures import mean_reciprocal_rank
from hf_relstitch.core.options import Prefer
from hf_relstitch.core.relative import directions
from hf_relstitch.core.selection import choose_settings
from hf_relstitch.core.translation import TranslationSettings, fit, fit_translation
from hf_relstitch.encoders.devices import accelerate_state
from hf_relstitch.model.anchors import AnchorSet

DEVICE = accelerate_state().device


def seconds(run, *, calls=1) -> float:
    """Of one of several calls in a row, with all that they leave to the GPU."""
    begun = time.perf_counter()
    for _ in range(calls):
        run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / calls


def compare(name, ours, theirs, *, pairs, faster=False):
    """The ratio of times, ours to theirs, or of speeds where `faster`."""
    calls = 50 if DEVICE.type == "cuda" else 1
    seconds(ours), seconds(theirs)
    ratios, times = [], []
    for number in range(pairs):
        both = (ours, theirs) if number % 2 else (theirs, ours)
        first, second = (seconds(run, calls=calls) for run in both)
        mine, others = (first, second) if number % 2 else (second, first)
        ratios.append(others / mine if faster else mine / others)
        times.append((mine, others))
    low, _, high = statistics.quantiles(ratios, n=4)
    mine, others = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(ratios)
    print(f"| {name} | {mine:.4g} s | {others:.4g} s | {ratio:.2f} ({low:.2f} to {high:.2f}) | {pairs} |", flush=True)


@torch.no_grad()
def translate(options):
    """Rows of 768 to 768 with 1,000 anchors.

    The two steps are the whole of the paper's inversion, `r = x̂ Xᵀ`, `ŷ = r (Yᵀ)⁺` and back to the target's scale and
    centre, and give what one product gives; `the two products alone` stops at ŷ. Copying the rows moves as many bytes
    as translating them.
    """
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    anchors = [torch.randn(1000, 768, device=DEVICE) for _ in range(2)]
    made = {
        norm: fit_translation(*anchors, settings=TranslationSettings(alpha=0.0, ridge=0.0, norm=norm)).to(dtype)
        for norm in ("keep", "mean")
    }
    matrix = made["keep"].weight
    exact_unit, target_unit = (directions(one, centre=one.mean(0)) for one in anchors)
    pseudo_inverse = torch.linalg.pinv(target_unit.T)
    product = exact_unit.T @ pseudo_inverse
    decoder = pseudo_inverse * ((product * matrix.float()).sum() / product.square().sum())  # and the mean norm
    unit, back, decoder = (one.to(dtype) for one in (exact_unit, pseudo_inverse, decoder))
    centre, target_centre = (one.mean(0).to(dtype) for one in anchors)
    std, target_std = (one.std(0).to(dtype) for one in anchors)

    def whole_steps(x):
        centred = x - centre
        norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        return ((centred / norms) @ unit.T) @ decoder * norms + target_centre

    for rows in options.rows:
        x = torch.randn(rows, 768, device=DEVICE).to(dtype)
        copied = torch.empty_like(x)
        ways = {
            "torch.mm": lambda x=x: torch.mm(x, matrix),
            "two steps": lambda x=x: whole_steps(x),
            "the two products alone": lambda x=x: (directions(x, centre=centre) @ unit.T) @ back,
            # latentis 0.0.8, Translator.transform with its StandardScaling on both sides, operation by operation
            "latentis": lambda x=x: (((x - centre) / std) @ matrix) * target_std + target_centre,
        }
        keep = lambda x=x: made["keep"](x)  # noqa: E731
        off = whole_steps(x[:1000]).float() - keep(x[:1000]).float()
        assert off.norm() < (1e-4 if dtype == torch.float32 else 2e-2) * keep(x[:1000]).float().norm()
        compare(f"{rows:,} rows, keep / torch.mm", keep, ways["torch.mm"], pairs=options.pairs)
        compare(f"{rows:,} rows, mean / torch.mm", lambda x=x: made["mean"](x), ways["torch.mm"], pairs=options.pairs)
        copying = lambda x=x, copied=copied: copied.copy_(x)  # noqa: E731
        compare(f"{rows:,} rows, keep / copying the rows", keep, copying, pairs=options.pairs)
        for peer in ("latentis", "two steps", "the two products alone"):
            name = f"{rows:,} rows, times as fast as {peer}"
            compare(name, keep, ways[peer], pairs=options.pairs, faster=True)


def tiny_stitch(folder, *, dtype="float32"):
    """An encoder stitched to a random head through random target anchors: time does not depend on their values."""
    encoder = Encoder.from_pretrained(folder, dtype=getattr(torch, dtype))
    texts = [f"storm number {number} hits the coast and the harbour is closed" for number in range(1000)]
    anchors = AnchorSet.encode(encoder, texts[:100], progress=False)
    head = torch.nn.Linear(anchors.dim, 26)
    return encoder, RelativeStitcher.from_anchor_sets(encoder, anchors, anchors, head, alpha=0.7, ridge=0.3), texts


@torch.no_grad()
def stitched(options):
    """A forward pass of a batch of texts against the encoder's own and its pooling."""
    encoder, model, texts = tiny_stitch(options.encoder, dtype=options.dtype)
    batch = dict(encoder.processor(texts[: options.batch], padding=True, return_tensors="pt").to(DEVICE))
    encoding = lambda: encoder.latents(batch)  # noqa: E731
    compare(
        f"{options.batch} texts, stitched / encoder and pooling", lambda: model(**batch), encoding, pairs=options.pairs
    )
    model.fuse()
    compare(
        f"{options.batch} texts, fused / encoder and pooling", lambda: model(**batch), encoding, pairs=options.pairs
    )
    anchors = AnchorSet.encode(encoder, texts, progress=False)
    bent = RelativeStitcher.from_anchor_sets(encoder, anchors, anchors, model.head, alpha=1.0, ridge=0.1, gamma=1.0)
    compare(
        f"{options.batch} texts, with a kernel to 1,000 anchors / encoder and pooling",
        lambda: bent(**batch),
        encoding,
        pairs=options.pairs,
    )


def loading(options):
    """`from_pretrained` of a stitched folder against `AutoModel.from_pretrained` of its encoder's."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    encoder, model, _ = tiny_stitch(options.encoder)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder, "stitched"))
        encoder.model.save_pretrained(Path(folder, "encoder"))
        compare(
            "loading stitched / encoder",
            lambda: RelativeStitcher.from_pretrained(Path(folder, "stitched")),
            lambda: AutoModel.from_pretrained(Path(folder, "encoder")),
            pairs=options.pairs,
        )


def fitting(options):
    """All that a stitch computes on anchors, step by step, with the peak memory so far, of the process or the GPU."""
    count, width = options.sizes
    torch.manual_seed(0)
    shared = torch.randn(count, 64)
    x, y = ((shared @ torch.randn(64, width) + torch.randn(count, width)).to(DEVICE) for _ in range(2))
    head, total = torch.nn.Linear(width, 20).to(DEVICE).requires_grad_(False), 0.0

    def step(name, run):
        nonlocal total
        result = []
        total += (spent := seconds(lambda: result.append(run())))
        if DEVICE.type == "cuda":
            peak = torch.cuda.max_memory_allocated() >> 20
        else:
            peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
        print(f"| {count:,} × {width:,}, {name} | {spent:.2f} s | {total:.2f} s | {peak:,} MB |", flush=True)
        return result[0]

    frames = step("one SVD a side", lambda: (Frame.from_anchors(x), Frame.from_anchors(y)))
    choice = step("choice", lambda: choose_settings(x, y, prefer=options.prefer, source_frame=frames[0]))
    step("fit", lambda: fit(x, y, settings=choice.settings, frames=(choice.source_frame, frames[1])))
    step("readout", lambda: fit_readout(x, head(y).softmax(-1)))
    step("retrieval", lambda: mean_reciprocal_rank(choice.translated, y.double(), centre=y.double().mean(0)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=21)
    commands = parser.add_subparsers(required=True)
    dtype = {"choices": ["float32", "bfloat16"], "default": "float32"}
    command = commands.add_parser("translate")
    command.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    command.add_argument("--dtype", **dtype)
    command.set_defaults(run=translate)
    command = commands.add_parser("stitched")
    command.add_argument("encoder")
    command.add_argument("--dtype", **dtype)
    command.add_argument("--batch", type=int, default=64, help="texts of a batch, up to 1,000")
    command.set_defaults(run=stitched)
    command = commands.add_parser("loading")
    command.add_argument("encoder")
    command.set_defaults(run=loading)
    command = commands.add_parser("fit")
    command.add_argument("sizes", type=int, nargs=2)
    command.add_argument("--prefer", choices=get_args(Prefer), default="auto")
    command.set_defaults(run=fitting)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
