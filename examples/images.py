"""Keep an image classifier's head and change its encoder, with a folder of unlabeled images as anchors.

python examples/images.py --anchors my-images/ --classify photo.jpg
"""

import argparse

from transformers import pipeline

from hf_relstitch import RelativeStitcher
from hf_relstitch.data.reading import read_inputs

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--source", default="facebook/dinov2-small", help="the new encoder")
parser.add_argument("--target", default="google/vit-base-patch16-224", help="the classifier whose head is kept")
parser.add_argument("--anchors", required=True, help="a folder of images of the kind to classify, some hundreds")
parser.add_argument("--classify", required=True, help="an image to classify")
parser.add_argument("--out", default="stitched-images")
parser.add_argument("--push", help="a Hub repo to push to, such as me/stitched")
options = parser.parse_args()

anchors = read_inputs(options.anchors)
model = RelativeStitcher.from_parts(options.source, options.target, anchors, data=options.anchors)
print("expected agreement with the head's own answers:", round(model.report["agreement"], 3))
model.save_pretrained(options.out)

for answer in pipeline("image-classification", model=options.out)(options.classify, top_k=3):
    print(f"{answer['score']:.3f}  {answer['label']}")
if options.push:
    print("pushed:", model.push_to_hub(options.push))
