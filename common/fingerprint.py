"""What a network or a file is, as a short text that changes when it does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn


def network_sha256(network: nn.Module, leave_out: tuple[str, ...] = ()) -> str:
    """SHA-256 over names, shapes and float32 values of a network's weights and buffers, whatever file they came from.

    Half precision files and their float32 copies in memory agree. What begins with a prefix in `leave_out` does not
    count.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if name.startswith(leave_out):
            continue
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        plain = value.detach().cpu()
        plain = plain.float() if plain.is_floating_point() else plain
        digest.update(plain.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):  # Python 3.10 has no file_digest
            digest.update(block)
    return digest.hexdigest()


def json_sha256(content: Any) -> str:
    """SHA-256 of plain settings, whatever the order of their keys; what JSON cannot hold counts as its text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
