"""Translating files on a Ray cluster: the same files as on one machine, whatever becomes of a node."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hf_relstitch import StitchError
from hf_relstitch.bulk import translate_files
from hf_relstitch.bulk.manifest import MANIFEST_NAME
from hf_relstitch.core.inversion import Translation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default:::ray"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
FILES, ROWS, DIM = 6, 60_000, 64


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node that this process is on, and one other, with a core each."""
    one_core: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=one_core | {"include_dashboard": False})
    cluster.add_node(**one_core)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)

    def ready() -> str:
        import hf_relstitch

        return hf_relstitch.__name__

    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes()]
    imported = [ray.remote(ready).options(num_cpus=1, scheduling_strategy=place).remote() for place in places]
    assert ray.get(imported, timeout=120) == ["hf_relstitch"] * 2
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def translation() -> Translation:
    return pico.translation(DIM)


def matrices(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(FILES):
        np.save(folder / f"{seed}.npy", np.random.default_rng(seed).standard_normal((ROWS, DIM), dtype="f4"))
    return folder


def until(met: Any, *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def test_a_node_that_is_killed_changes_nothing(cluster: Cluster, translation: Translation, tmp_path: Path) -> None:
    """With one core a node, both nodes are at a file whenever two are unfinished."""
    inputs, out, local = matrices(tmp_path / "in"), tmp_path / "out", tmp_path / "local"
    options: dict[str, Any] = {"batch_size": 64, "progress": False}
    translate_files(translation, inputs, local, **options)
    assert alive() == 2
    lost = cluster.worker_nodes.copy().pop()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(translate_files, translation, inputs, out, ray=True, **options)
        until(lambda: run.done() or (list(out.glob("*.npy")) and len(list(out.glob(".partial-*"))) == 2))
        cluster.remove_node(lost, allow_graceful=False)
        assert not run.done(), "the node was to be lost in the middle of the run"
        done = run.result(timeout=200)
    until(lambda: alive() == 1)
    assert (done.files, done.rows) == (FILES, FILES * ROWS)
    assert not list(out.glob(".partial-*"))
    for name in (*(f"{seed}.npy" for seed in range(FILES)), MANIFEST_NAME):
        assert (out / name).read_bytes() == (local / name).read_bytes()
    assert translate_files(translation, inputs, out, ray=True, **options).kept == FILES


def test_a_file_that_cannot_be_translated_is_told_of(
    cluster: Cluster, translation: Translation, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3), "f4"))
    with pytest.raises(StitchError, match=r"x\.npy: the matrix is 3 wide and the model translates latents of width 64"):
        translate_files(translation, tmp_path / "x.npy", tmp_path / "out", ray=True, progress=False)
    assert not list((tmp_path / "out").glob("*.npy"))


def test_without_ray_the_error_says_what_to_install(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3), "f4"))
    script = (
        "import sys; sys.modules['ray'] = None\n"
        "from hf_relstitch.bulk.cluster import each_on_cluster\n"
        "list(each_on_cluster(print, [1]))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert "StitchError: a cluster needs Ray: pip install 'hf-relstitch[ray]'" in done.stderr


def test_a_cluster_that_is_begun_here_reports_no_usage() -> None:
    script = (
        "import os\n"
        "from pathlib import Path\n"
        "from hf_relstitch.bulk.cluster import each_on_cluster\n"
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
    done = subprocess.run([sys.executable, "-c", script], check=False, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["REPORTS False", "KEPT False"], done.stderr
