"""The device and the processes that accelerate gives, and where it keeps a model's weights."""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import torch
import xxhash
from accelerate.utils import align_module_device, gather_object
from torch import Tensor, nn

from hf_relstitch.core.errors import StitchError
from hf_relstitch.hub.processes import accelerate_state

Item = TypeVar("Item")
Made = TypeVar("Made")


def gather(make: Callable[[], list[Item]]) -> list[Item]:
    """Gather the items that every process makes, in every process; if one process fails, all fail, so that none waits.

    Raises:
        StitchError: another process failed.
    """
    state = accelerate_state()
    if state.num_processes == 1:
        return make()
    made: list[Item] = []
    error: Exception | None = None
    try:
        made = make()
    except Exception as raised:
        error = raised
    told = gather_object([f"process {state.process_index} failed: {error}" if error else ""])
    if error is not None:
        raise error
    if failures := [one for one in told if one]:
        raise StitchError("; ".join(failures))
    return gather_object(made)


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device that a model takes its inputs on, and its dtype, even if it is offloaded or quantised.

    A model without weights and buffers, like a callable, takes float32 on the CPU.
    """
    dtype = next(
        (one.dtype for one in chain(model.parameters(), model.buffers()) if one.is_floating_point()), torch.float32
    )
    here = (one.device for one in model.parameters() if one.is_floating_point() and not one.is_meta)
    hooks = (module._hf_hook for module in model.modules() if hasattr(module, "_hf_hook"))
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    hooked = (torch.device(place) for place in places if place is not None)  # 0 is the first GPU
    buffers = (one.device for one in model.buffers() if one.is_floating_point())
    return next(chain(here, hooked, buffers), torch.device("cpu")), dtype


def on_device(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Move a tensor to a device, numbers in this dtype; to a GPU it goes from pinned memory, so that nobody waits."""
    cuda = device.type == "cuda"
    tensor = tensor.pin_memory() if cuda and tensor.device.type == "cpu" else tensor
    return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=cuda)


def prefetched(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[tuple[Item, Made]]:
    """Yield each item with its result, computed on a thread while the item before it is in use; at most one ahead."""
    with ThreadPoolExecutor(1) as thread:
        last = None
        for item in items:
            coming = item, thread.submit(make, item)
            if last is not None:
                yield last[0], last[1].result()
            last = coming
        if last is not None:
            yield last[0], last[1].result()


def _stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's tensors by name, one at a time from where they are offloaded; quantised ones as their parts."""
    for name, tensor in sorted(model.state_dict().items()):
        owner, _, own_name = name.rpartition(".")
        if not tensor.is_meta:
            yield from ((name, part) for part in _parts_of(tensor))
        else:
            module = model.get_submodule(owner)
            with align_module_device(module, torch.device("cpu")):
                yield name, getattr(module, own_name).detach()


def _parts_of(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a quantised one is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor.detach()
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts_of(getattr(tensor, name))


def fingerprint(*models: nn.Module, without: Collection[str] = ()) -> str:
    """Hash the weights of models that no commit hash names."""
    digest = xxhash.xxh3_128()
    for name, tensor in (item for model in models for item in _stored_tensors(model)):
        if name not in without:
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"weights:{digest.hexdigest()}"
