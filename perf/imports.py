"""Time of importing the package over importing transformers, and what short commands cost.

    python perf/imports.py

Each value is the median of nine fresh processes, after one that warms the disk's cache: seconds on the clock, and
seconds of CPU (the process's own and the system's for it), which other programs on the machine change less.
"""

import os
import subprocess
import sys
import time
from statistics import median

RUNS = 9
CODE = {
    "python": "pass",
    "import transformers": "import transformers",
    "import transformers, hf_relstitch": "import transformers, hf_relstitch",
    "import hf_relstitch": "import hf_relstitch",
    "from hf_relstitch import RelativeStitcher": "from hf_relstitch import RelativeStitcher",
}
COMMANDS = {"hf-relstitch --help": ["--help"], "hf-relstitch --version": ["--version"], "a typo": ["stich", "a", "b"]}
MAIN = "from hf_relstitch.cli import main; main()"


def once(arguments: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of CPU of a fresh process."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


def main() -> None:
    """Measure all and print a table."""
    print("| | seconds | seconds of CPU |\n| --- | --- | --- |")
    runs = {name: [code] for name, code in CODE.items()}
    runs |= {name: [MAIN, *arguments] for name, arguments in COMMANDS.items()}
    for name, arguments in runs.items():
        once(arguments)
        clock, cpu = map(median, zip(*(once(arguments) for _ in range(RUNS)), strict=True))
        print(f"| `{name}` | {clock:.2f} | {cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
