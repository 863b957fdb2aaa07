"""Does the choice depend on the draw of anchors? Two halves choose settings, and each is fitted to all anchors.

python perf/halves.py FOLDER [--anchors 400 1000] [--draw 0]

FOLDER is one that selection.py takes. Printed are accuracies with the settings of either half, and how far they differ.
"""

import argparse

import numpy as np
import spaces
from rich import box
from rich.console import Console
from rich.table import Table

from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.core.selection import choose_settings
from hf_relstitch.core.translation import fit


def accuracies(space, source, target, rows, head):
    """The accuracy with the settings that each half chooses, both fitted to all anchors."""
    x, y, q = (space.latents[name][some] for name, some in ((source, rows), (target, rows), (source, space.test)))
    middle = len(rows) // 2
    for half in (slice(middle), slice(middle, None)):
        settings = choose_settings(x[half], y[half]).settings
        logits = apply_head(head, fit(x, y, settings=settings)(q).double())
        yield float((logits.argmax(-1) == space.labels[space.test]).double().mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--anchors", nargs="+", type=int, default=[400, 1000])
    parser.add_argument("--draw", type=int, default=0)
    args = parser.parse_args()
    data = [space for space in spaces.found(args.folder) if not space.labels.is_floating_point()]
    heads = {(space.name, name): space.head(name) for space in data for name in space.latents}
    table = Table("anchors", "pairs", "one half", "the other", "mean |difference|", "largest", box=box.MARKDOWN)
    for count in args.anchors:
        found = [
            [*accuracies(space, source, target, space.anchors(count, args.draw), heads[space.name, target])]
            for space in data
            if space.anchors(count, args.draw) is not None
            for source, target in space.pairs
        ]
        one, other = np.array(found).T
        apart = np.abs(one - other)
        cells = [one.mean(), other.mean(), apart.mean(), apart.max()]
        table.add_row(str(count), str(len(found)), *(f"{cell:.4f}" for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
