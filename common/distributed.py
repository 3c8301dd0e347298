"""What a process of a `torchrun` job needs to know about itself; a single process is rank 0 of 1."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def rank() -> int:
    """Return this process's number; before torch.distributed is set up, what torchrun announced."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_rank_zero() -> bool:
    """Say whether this process writes files and shows progress."""
    return rank() == 0


def wait_for_all() -> None:
    """Let every process get here before any goes on, for instance until rank 0 has written a file."""
    if world_size() > 1:
        dist.barrier()


def of_all(value: Any) -> list[Any]:
    """What each process has, by its number; plain, as it is pickled."""
    found = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value)
    return found


def share(items: Sequence[T]) -> Sequence[T]:
    """What this process is to do of items that all processes know: every so many-th of them."""
    return items[rank() % world_size() :: world_size()]


def gathered(mine: Sequence[T]) -> list[T]:
    """What all processes made of their `share`s, in the order of the items; each has to have made one of each item."""
    parts = of_all(list(mine))
    return [part[place] for place in range(len(parts[0])) for part in parts if place < len(part)]


def leave() -> None:
    """Leave the process group as the last act of a distributed run; its distributed networks cannot be used afterwards.

    gloo's threads release finished work a moment after they have reported it, and need Python's lock for that. One that
    asks for the lock when the interpreter is already shutting down aborts the process ("terminate called without an
    active exception"), now and then and with all work done. Only the group's destructor waits for these threads, and
    `destroy_process_group` alone does not get that far: every distributed network holds the group too. (So do the
    default arguments of torch.distributed.nn if that is first imported with the group in place; MONAI imports it.)
    """
    dist.barrier()  # nobody leaves while another still needs the group
    # All that are in memory, so that no caller can forget one, nor one wait unseen for garbage collection.
    for network in [found for found in gc.get_objects() if issubclass(type(found), DistributedDataParallel)]:
        for holder in ("process_group", "reducer", "logger"):
            vars(network).pop(holder, None)
    dist.destroy_process_group()


def local_device() -> torch.device:
    """Return this process's own GPU (by LOCAL_RANK, which torchrun sets), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
