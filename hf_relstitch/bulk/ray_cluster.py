"""Tasks on the nodes of a Ray cluster: a task for each file, which starts again on another node if its node is lost."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hf_relstitch.core.errors import StitchError

Item = TypeVar("Item")
Made = TypeVar("Made")
USAGE = "RAY_USAGE_STATS_ENABLED"


def each_on_cluster(
    make: Callable[..., Made], items: Iterable[Item], *shared: Any, retries: int = 10
) -> Iterator[tuple[Item, Made]]:
    """Yield each item with `make(item, *shared)`, in the order of completion, from a Ray cluster or this machine.

    The cluster is the cluster of `RAY_ADDRESS`, or a cluster that runs here; a call of `ray.init` can choose another.
    A task has a single core. It starts again if its node or its process is lost.

    Raises:
        StitchError: Ray is not installed, or a task was lost too often. Errors of `make` are raised too. Any error
            cancels the other tasks.
    """
    try:
        import ray  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise StitchError("a cluster needs Ray: pip install 'hf-relstitch[ray]'") from error
    if not ray.is_initialized():
        with _no_usage_statistics():
            ray.init(log_to_driver=False)
    task = ray.remote(num_cpus=1, max_retries=retries)(make)
    places = [ray.put(one) for one in shared]
    waiting = {task.remote(item, *places): item for item in items}
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            yield waiting[done], ray.get(done)
            del waiting[done]
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        lost = getattr(waiting[done], "path", waiting[done])
        raise StitchError(f"the task of {lost} was lost {retries + 1} times ({error}): run again") from error
    finally:
        for unfinished in waiting:
            ray.cancel(unfinished)


@contextmanager
def _no_usage_statistics() -> Iterator[None]:
    """Stop a cluster that starts in the block from reporting to Ray's makers, unless the environment says otherwise."""
    if USAGE in os.environ:
        yield
        return
    os.environ[USAGE] = "0"
    try:
        yield
    finally:
        del os.environ[USAGE]
