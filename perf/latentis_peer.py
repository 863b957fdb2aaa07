"""latentis's own Procrustes on the anchors, heads and tests of `selection.py`: one line for each number of anchors.

pip install latentis
python perf/latentis_peer.py LATENTS [--anchors 100 200 500] [--draws 3]

latentis 0.0.8 has no inverse relative projection; its `Procrustes` standardises both sides and zero-pads the narrower.
"""

import argparse
import itertools

import numpy as np
import spaces
import torch
from latentis.transform.translate.aligner import Procrustes

from hf_relstitch.core.head_outputs import apply_head


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents")
    parser.add_argument("--anchors", nargs="+", type=int, default=[100, 200, 500])
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    data = spaces.development(args.latents)
    heads = {(space.name, name): space.head(name) for space in data for name in space.latents}
    for count in args.anchors:
        scores = []
        for space, draw in itertools.product(data, range(args.draws)):
            rows = space.anchors(count, draw)
            for source, target in space.pairs if rows is not None else ():
                x, y = space.latents[source], space.latents[target]
                with torch.no_grad():
                    translated, _ = Procrustes().fit(x[rows], y[rows]).transform(x[space.test])
                answers = apply_head(heads[space.name, target], translated.double()).argmax(-1)
                scores.append(float((answers == space.labels[space.test]).double().mean()))
        print(f"{count} anchors: latentis Procrustes {np.mean(scores):.3f} over {len(scores)} runs", flush=True)


if __name__ == "__main__":
    main()
