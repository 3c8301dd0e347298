"""What a process of a `torchrun` job needs to know about itself."""

from __future__ import annotations

import os

import torch


def local_device() -> torch.device:
    """Return this process's own GPU (by LOCAL_RANK, which torchrun sets), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
