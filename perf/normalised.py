"""Whether latents of norm 1 stitch as well as those of any norm: python perf/normalised.py LATENTS

LATENTS is a safetensors file with a tensor for each encoder, row for row, and `labels`.
"""

import sys
from itertools import permutations

import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch.nn import Linear
from torch.nn.functional import normalize

from hf_relstitch.core.selection import choose_settings
from hf_relstitch.core.translation import fit

HEAD, ANCHORS, TEST = slice(0, 4000), slice(4000, 4500), slice(5000, 7000)

if __name__ == "__main__":
    tensors = load_file(sys.argv[1])
    order = torch.randperm(len(tensors["labels"]), generator=torch.Generator().manual_seed(1))
    labels = tensors.pop("labels")[order]
    plain = {name: latents[order].float() for name, latents in tensors.items()}
    spaces = {"plain": plain, "norm 1": {name: normalize(latents, dim=-1) for name, latents in plain.items()}}
    print("| source → target | latents | own | plain source | source of norm 1 |\n| --- | --- | --- | --- | --- |")
    for source, target in permutations(plain, 2):
        for kind, space in spaces.items():
            y = space[target]
            fitted = LogisticRegression(max_iter=2000, C=10).fit(y[HEAD].numpy(), labels[HEAD].numpy())
            head = Linear(y.shape[1], len(fitted.classes_)).double().requires_grad_(False)
            head.load_state_dict({"weight": torch.tensor(fitted.coef_), "bias": torch.tensor(fitted.intercept_)})
            shares = [float((head(y[TEST].double()).argmax(1) == labels[TEST]).double().mean())]
            for x in (plain[source], spaces["norm 1"][source]):
                translation = fit(x[ANCHORS], y[ANCHORS], settings=choose_settings(x[ANCHORS], y[ANCHORS]).settings)
                answers = head(translation(x[TEST]).double()).argmax(1)
                shares.append(float((answers == labels[TEST]).double().mean()))
            print(f"| {source} → {target} | {kind} | {' | '.join(f'{share:.3f}' for share in shares)} |", flush=True)
