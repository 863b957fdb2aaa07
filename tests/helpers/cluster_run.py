"""One run on a real Ray cluster of two nodes, which this process begins and ends: what came of it, as JSON.

python tests/helpers/cluster_run.py INPUTS OUT [--lose-a-node]

A process of its own, since Ray ends the process that drives a cluster, without a word, when the node it is on is lost.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pico
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hf_relstitch import StitchError
from hf_relstitch.bulk import translate_files

DIM = 64


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """A node that this process is on, and one other, with a core each; both have imported the package."""
    one_core: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=one_core | {"include_dashboard": False})
    try:
        cluster.add_node(**one_core)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes()]
        imported = [ray.remote(ready).options(num_cpus=1, scheduling_strategy=place).remote() for place in places]
        assert ray.get(imported, timeout=240) == ["hf_relstitch"] * 2
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def ready() -> str:
    import hf_relstitch

    return hf_relstitch.__name__


def alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def until(met: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def translate(inputs: Path, out: Path) -> Any:
    return translate_files(pico.translation(DIM), inputs, out, ray=True, batch_size=64, progress=False)


def translate_and_lose_a_node(cluster: Cluster, inputs: Path, out: Path) -> Any:
    """With one core a node, both nodes are at a file whenever two are unfinished."""
    lost = cluster.worker_nodes.copy().pop()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(translate, inputs, out)
        until(lambda: run.done() or (any(out.glob("*.npy")) and len(list(out.glob(".partial-*"))) == 2))
        cluster.remove_node(lost, allow_graceful=False)
        assert not run.done(), "the node was to be lost in the middle of the run"
        done = run.result()
    until(lambda: alive() == 1)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lose-a-node", action="store_true")
    options = parser.parse_args()
    with two_nodes() as cluster:
        nodes = alive()
        try:
            if options.lose_a_node:
                done = translate_and_lose_a_node(cluster, options.inputs, options.out)
            else:
                done = translate(options.inputs, options.out)
        except StitchError as error:
            print(json.dumps({"error": str(error)}))
            return
        kept = translate(options.inputs, options.out).kept
        found = {"nodes": nodes, "left": alive(), "files": done.files, "rows": done.rows, "kept": kept}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
