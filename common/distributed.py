"""What a process of a `torchrun` job needs to know about itself; a single process is rank 0 of 1."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


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


def local_device() -> torch.device:
    """Return this process's own GPU (by LOCAL_RANK, which torchrun sets), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
