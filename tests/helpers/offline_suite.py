"""Run the offline suite on the packaged encoders and data, from raw inputs: python tests/helpers/offline_suite.py

It needs what the tests need (tests/assets.txt, wordnet-base, unicode-cldr-core, npm) and is here because the encoders
are. `--latents FILE` adds a cross-lingual pair out of a safetensors file that has text_de_e5, text_en_mpnet and labels.
"""

import argparse
from pathlib import Path

import assets
import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from efficientnet_lite import lite_model, lite_processor, register

from hf_relstitch import Encoder
from hf_relstitch.benchmarks import run_suite, write_report

SUITE = Path(__file__).with_suffix(".yaml")


def glosses() -> Dataset:
    """WordNet's noun glosses and their classes."""
    texts, classes = assets.wordnet_glosses()
    return Dataset.from_dict({"text": texts, "label": classes})


def emoji() -> Dataset:
    """Names and pictures of emoji, and their groups."""
    images, texts, groups = assets.emoji()
    features = Features({"text": Value("string"), "image": Image(), "label": Value("int64")})
    return Dataset.from_dict({"text": texts, "image": images, "label": groups}, features=features)


def encoders() -> dict[str, Encoder]:
    """Two of text and two of images."""
    register()
    lites = {
        size: Encoder(lite_model(size), lite_processor(size), model_id=f"efficientnet-lite{size}") for size in (0, 2)
    }
    return {
        "minilm": Encoder.from_pretrained(str(assets.minilm())),
        "mpnet": Encoder.from_pretrained(str(assets.mpnet())),
        "lite0": lites[0],
        "lite2": lites[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmark-output")
    parser.add_argument("--latents")
    arguments = parser.parse_args()
    suite = yaml.safe_load(SUITE.read_text(encoding="utf-8"))
    if arguments.latents:
        suite["data"]["german"]["path"] = arguments.latents
    else:
        del suite["data"]["german"]
    try:
        given = {"encoders": encoders(), "data": {"glosses": glosses(), "emoji": emoji()}}
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from missing
    run_suite(suite, arguments.out, **given)
    print(write_report(arguments.out))


if __name__ == "__main__":
    main()
