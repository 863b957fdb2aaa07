"""Python in two processes on the CPU, as `accelerate launch` starts them."""

import os
import subprocess
import sys
from pathlib import Path

PROCESSES = 2


def launch(script: Path, *arguments: object) -> str:
    """Run a script and give what it printed; it has to end well."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={PROCESSES}"]
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    environment = {"PYTHONPATH": str(Path(__file__).parent), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
