"""Render the cards in model_cards/ anew, from the examples on the packaged models: python tests/make_model_cards.py"""

from pathlib import Path
from tempfile import TemporaryDirectory

from loopback_hub import server  # isort: skip  (before huggingface_hub)
from example_runs import EXAMPLES, pushed_card, run

MODEL_CARDS = Path(__file__).parents[1] / "model_cards"

if __name__ == "__main__":
    with server:
        for example in EXAMPLES:
            server.repos.clear()
            with TemporaryDirectory() as folder:
                _, arguments = run(example, Path(folder), server)
                (MODEL_CARDS / example).with_suffix(".md").write_text(pushed_card(arguments))
