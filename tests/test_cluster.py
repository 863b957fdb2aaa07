"""Translating files on a Ray cluster: the same files as on one machine, whatever becomes of a node."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import cluster_run
import numpy as np
import pico
import pytest

from hf_relstitch.bulk import translate_files
from hf_relstitch.bulk.manifest import MANIFEST_NAME

pytestmark = pytest.mark.slow
FILES, ROWS = 6, 60_000


def on_a_cluster(*arguments: Any) -> dict[str, Any]:
    """What `cluster_run.py` tells; whatever it began is ended with it."""
    command = [sys.executable, cluster_run.__file__, *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        try:
            told, errors = run.communicate(timeout=600)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, errors
    return json.loads(told.splitlines()[-1])


def test_a_node_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    inputs, out, local = tmp_path / "in", tmp_path / "out", tmp_path / "local"
    inputs.mkdir()
    for seed in range(FILES):
        rows = np.random.default_rng(seed).standard_normal((ROWS, cluster_run.DIM), dtype="f4")
        np.save(inputs / f"{seed}.npy", rows)
    told = on_a_cluster(inputs, out, "--lose-a-node")
    assert told == {"nodes": 2, "left": 1, "files": FILES, "rows": FILES * ROWS, "kept": FILES}
    assert not list(out.glob(".partial-*"))
    translate_files(pico.translation(cluster_run.DIM), inputs, local, batch_size=64, progress=False)
    for name in (*(f"{seed}.npy" for seed in range(FILES)), MANIFEST_NAME):
        assert (out / name).read_bytes() == (local / name).read_bytes()


def test_a_file_that_cannot_be_translated_is_told_of(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3), "f4"))
    told = on_a_cluster(tmp_path / "x.npy", tmp_path / "out")
    assert "x.npy: the matrix is 3 wide and the model translates latents of width 64" in told["error"]
    assert not list((tmp_path / "out").glob("*.npy"))


def test_without_ray_the_error_says_what_to_install(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3), "f4"))
    script = (
        "import sys; sys.modules['ray'] = None\n"
        "from hf_relstitch.bulk.ray_cluster import each_on_cluster\n"
        "list(each_on_cluster(print, [1]))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=120, capture_output=True, text=True)
    assert "StitchError: a cluster needs Ray: pip install 'hf-relstitch[ray]'" in done.stderr


def test_a_cluster_that_is_begun_here_reports_no_usage() -> None:
    script = (
        "import os\n"
        "from pathlib import Path\n"
        "from hf_relstitch.bulk.ray_cluster import each_on_cluster\n"
        "def same(item): return item\n"
        "assert list(each_on_cluster(same, [1])) == [(1, 1)]\n"
        "for process in Path('/proc').glob('[0-9]*'):\n"
        "    parent = int((process / 'stat').read_text().rsplit(')', 1)[1].split()[1])\n"
        "    if parent == os.getpid() and b'gcs_server' in (process / 'cmdline').read_bytes():\n"
        "        settings = (process / 'environ').read_bytes().split(bytes(1))\n"
        "        print('REPORTS', b'RAY_USAGE_STATS_ENABLED=0' not in settings)\n"
        "print('KEPT', 'RAY_USAGE_STATS_ENABLED' in os.environ)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_ADDRESS"] = "local"  # and not that of a cluster that runs here already
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=False, timeout=300, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["REPORTS False", "KEPT False"], done.stderr
