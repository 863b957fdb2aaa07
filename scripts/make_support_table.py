"""Write docs/support.md anew: `python scripts/make_support_table.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import support
from transformers.utils import logging

if __name__ == "__main__":
    logging.set_verbosity_error()
    place = Path(__file__).parent.parent / "docs" / "support.md"
    place.parent.mkdir(exist_ok=True)
    tables = {task: support.rows(task) for task in support.HEADINGS}
    place.write_text(support.render(tables), encoding="utf-8")
    print(place)
