"""Keep a text classifier's head and change its encoder: from all-mpnet-base-v2 to the five times smaller MiniLM.

The head is a logistic regression trained on the old encoder here, in place of the one you have. The new encoder
never sees a label. Needs scikit-learn: pip install 'hf-relstitch[quickstart]'.

    python examples/text.py
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import pipeline

from hf_relstitch import Encoder, RelativeStitcher

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--source", default="sentence-transformers/all-MiniLM-L6-v2", help="the new encoder")
parser.add_argument("--target", default="sentence-transformers/all-mpnet-base-v2", help="the head's encoder")
parser.add_argument("--data", default="fancyzhx/ag_news", help="columns text and label, 3 classes or more")
parser.add_argument("--rows", type=int, default=1000, help="rows for the head, and as many anchors")
parser.add_argument("--out", default="stitched-text")
parser.add_argument("--push", help="a Hub repo to push to, such as me/stitched")
options = parser.parse_args()

rows = load_dataset(options.data, split="train").shuffle(seed=0)
labeled, unlabeled, test = (rows.select(range(n * options.rows, (n + 1) * options.rows)) for n in range(3))

target = Encoder.from_pretrained(options.target)
fitted = LogisticRegression(max_iter=1000).fit(target.encode(labeled["text"]).numpy(), labeled["label"])
head = nn.Linear(fitted.coef_.shape[1], len(fitted.classes_))
head.load_state_dict({"weight": torch.tensor(fitted.coef_), "bias": torch.tensor(fitted.intercept_)})

labels = [str(name) for name in fitted.classes_]
model = RelativeStitcher.from_parts(
    options.source, target, unlabeled["text"], head=head, labels=labels, data=options.data
)
print("expected agreement with the head's own answers:", round(model.report["agreement"], 3))
model.save_pretrained(options.out)

answers = pipeline("text-classification", model=options.out)(list(test["text"]), truncation=True, batch_size=32)
own = fitted.score(target.encode(test["text"]).numpy(), test["label"])
stitched = np.mean([answer["label"] == str(label) for answer, label in zip(answers, test["label"], strict=True)])
print(f"accuracy of the head: {own:.3f} on its own encoder, {stitched:.3f} on {options.source}")

name = Path(options.data).name
result = {"task_type": "text-classification", "dataset_name": name, "dataset_id": options.data, "split": "train"}
model.config.results = [result | {"metric": "accuracy", "value": float(stitched)}]
model.save_pretrained(options.out)  # and so the card says it
if options.push:
    print("pushed:", model.push_to_hub(options.push))
