"""Count the files and functions of the package that each way through a stitched model runs: python scripts/trace.py.

With --list it also prints the names of the functions, by file. The source is a tiny BERT, the target a tiny RoBERTa
classifier; both are made here.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import pico

from hf_relstitch import RelativeStitcher

PACKAGE = str(Path(__file__).parents[1] / "hf_relstitch")


def traced(run: Callable[[], Any]) -> tuple[Any, set[tuple[str, str]]]:
    seen: set[tuple[str, str]] = set()

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            seen.add((code.co_filename, code.co_qualname))

    sys.setprofile(note)
    try:
        return run(), seen
    finally:
        sys.setprofile(None)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = pico.saved("Bert", Path(folder, "s"), seed=1), pico.saved("Roberta", Path(folder, "t"))
        model, calls = traced(lambda: RelativeStitcher.from_parts(source, target, pico.texts(100), progress=False))
        ways = {"from_parts": calls}
        batch = dict(model.processor(pico.texts(3), padding=True, return_tensors="pt"))
        for name, run in {
            "forward": lambda: model(**batch),
            "predict": lambda: model.predict(pico.texts(3)),
            "save_pretrained": lambda: model.save_pretrained(Path(folder, "saved")),
            "from_pretrained": lambda: RelativeStitcher.from_pretrained(Path(folder, "saved")),
        }.items():
            ways[name] = traced(run)[1]
    for name, calls in ways.items():
        print(f"{name:16s} {len({file for file, _ in calls}):3d} files {len(calls):4d} functions")
        if "--list" in sys.argv:
            for file in sorted({file for file, _ in calls}):
                print(f"  {file.removeprefix(PACKAGE)[1:]}: {', '.join(sorted(n for f, n in calls if f == file))}")


if __name__ == "__main__":
    main()
