"""Peak memory of stitching a large encoder, saving the model and loading it, against the encoder's size.

    python perf/memory.py --megabytes 1200

What is measured is a process's peak resident memory (`ru_maxrss`: its own, and pages of files that it has mapped) less
what it was after importing everything and stitching a tiny encoder to the same target. Each step runs in a fresh
process; `save` and `stitch` count all that came before them.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

TESTS = Path(__file__).parents[1] / "tests" / "helpers"
WIDE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
LAYER = 12.6e6 * 4 / 1e6
"""Megabytes of one such layer, in float32."""
STEPS = ("load", "stitch", "save", "load again")


def peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def write(folder: Path, megabytes: float) -> float:
    """A large BERT in shards, a tiny one and a tiny target in a folder; gives the large one's megabytes."""
    import pico

    wide = pico.classifier("Bert", num_hidden_layers=round(megabytes / LAYER), **WIDE).bert
    wide.save_pretrained(folder / "wide", max_shard_size="200MB")
    pico.tokenizer().save_pretrained(folder / "wide")
    pico.saved("Bert", folder / "tiny")
    pico.saved("Roberta", folder / "target", seed=2)
    return sum(one.numel() * one.element_size() for one in wide.parameters()) / 1e6


def measure(step: str, folder: Path) -> float:
    """Megabytes that one step takes at most, over the baseline; in this process."""
    import pico

    from hf_relstitch import Encoder, RelativeStitcher

    texts = pico.texts(64)
    warm = RelativeStitcher.from_parts(str(folder / "tiny"), str(folder / "target"), texts, progress=False)
    warm.save_pretrained(folder / "warm")
    RelativeStitcher.from_pretrained(folder / "warm")
    baseline = peak()
    if step == "load":
        kept = Encoder.from_pretrained(str(folder / "wide"))
        kept.encode(texts, progress=False)
    elif step == "load again":
        kept = RelativeStitcher.from_pretrained(folder / "stitched")
        kept.check(texts)
    else:
        kept = RelativeStitcher.from_parts(str(folder / "wide"), str(folder / "target"), texts, progress=False)
        if step == "save":
            kept.save_pretrained(folder / "stitched")
    return peak() - baseline


def main() -> None:
    """Measure each step in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=1200.0, help="size of the encoder")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    if options.step:
        print(
            write(options.folder, options.megabytes)
            if options.step == "write"
            else measure(options.step, options.folder)
        )
        return
    with TemporaryDirectory() as folder:

        def run(step: str) -> float:
            command = [
                sys.executable,
                __file__,
                "--megabytes",
                str(options.megabytes),
                "--step",
                step,
                "--folder",
                folder,
            ]
            return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])

        encoder = run("write")
        steps = {step: run(step) for step in STEPS}
    if options.json:
        print(json.dumps({"encoder": encoder, "steps": steps}))
        return
    print(f"| encoder of {encoder:.0f} MB, float32 | peak | over the encoder |\n| --- | --- | --- |")
    for step, taken in steps.items():
        print(f"| {step} | {taken:.0f} MB | {taken - encoder:+.0f} MB |")


if __name__ == "__main__":
    main()
