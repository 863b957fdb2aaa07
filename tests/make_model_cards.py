"""Render the cards in model_cards/ anew, from the examples on the packaged models: python tests/make_model_cards.py"""

from pathlib import Path
from tempfile import TemporaryDirectory

from example_runs import EXAMPLES, run_in

MODEL_CARDS = Path(__file__).parents[1] / "model_cards"

if __name__ == "__main__":
    MODEL_CARDS.mkdir(exist_ok=True)
    for example in EXAMPLES:
        with TemporaryDirectory() as folder:
            _, made = run_in(Path(folder), example)
            (made / "README.md").replace(MODEL_CARDS / Path(example).with_suffix(".md"))
