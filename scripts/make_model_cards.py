"""Render the cards in model_cards/ anew, from examples on packaged models: python scripts/make_model_cards.py"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from loopback_hub import server  # isort: skip  (before huggingface_hub)
from example_runs import EXAMPLES, MODEL_CARDS, pushed_card, run

if __name__ == "__main__":
    with server:
        for example in EXAMPLES:
            server.repos.clear()
            with TemporaryDirectory() as folder:
                _, arguments = run(example, Path(folder), server)
                (MODEL_CARDS / example).with_suffix(".md").write_text(pushed_card(arguments))
