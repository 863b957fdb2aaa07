"""Make the anchor set of one model, for people who have another model and the same inputs.

python examples/anchors.py
"""

import argparse

from hf_relstitch import AnchorSet, Encoder
from hf_relstitch.data.reading import read_inputs

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="the encoder")
parser.add_argument("--data", default="fancyzhx/ag_news", help="a text file, a folder of images, or a data set's name")
parser.add_argument("--column", default="text", help="the data set's column")
parser.add_argument("--rows", type=int, default=1000, help="use at most this many inputs")
parser.add_argument("--out", default="anchors")
parser.add_argument("--push", help="a Hub repo to push to, such as me/stitched")
options = parser.parse_args()

inputs = read_inputs(options.data, column=options.column)[: options.rows]
anchors = AnchorSet.encode(Encoder.from_pretrained(options.model), inputs, data=options.data)
anchors.save_pretrained(options.out)
print(f"{len(anchors)} anchors, each {anchors.dim} wide, are in {options.out}")
if options.push:
    print("pushed:", anchors.push_to_hub(options.push))
