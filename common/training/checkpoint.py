"""Checkpoints that are whole or absent, and hold plain tensors and numbers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..distributed import is_rank_zero
from ..errors import UserError
from ..networks.weights import save_atomically


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> dict:
        """Return everything needed to continue."""
        ...

    def load_state_dict(self, state_dict: dict, /) -> Any:
        """Continue from `state_dict()`."""
        ...


class CheckpointMismatchError(UserError, ValueError):
    """A checkpoint belongs to another run than the one that wants to resume from it."""


def unwrapped(module: Any) -> Any:
    """Return the module inside a DistributedDataParallel wrapper, or the object itself."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


class TrainingCheckpoint:
    """Everything a run needs to continue as if it had never stopped, in one file.

    Args:
        path: of the file.
        objects: name to object with `state_dict`: networks, optimisers, schedulers, EMA.
        fingerprint: what must be equal for a resumed run to be the same run (seed, data, batch).
    """

    def __init__(self, path: str | Path, objects: dict[str, Stateful], fingerprint: dict[str, Any]) -> None:
        self.path = Path(path)
        self.objects = objects
        self.fingerprint = fingerprint

    def exists(self) -> bool:
        """Say whether there is something to resume from."""
        return self.path.is_file()

    def save(self, progress: dict[str, Any]) -> None:
        """Write all states and the engine's progress (plain numbers); only rank 0 writes."""
        if is_rank_zero():
            states = {name: unwrapped(item).state_dict() for name, item in self.objects.items()}
            save_atomically({"objects": states, "progress": progress, "fingerprint": self.fingerprint}, self.path)

    def load(self, device: torch.device) -> dict[str, Any]:
        """Restore all states and return the progress.

        Raises:
            CheckpointMismatchError: the file was written by a run with another fingerprint or other objects.
        """
        saved = torch.load(self.path, map_location=device, weights_only=True)
        different = {
            key: (saved["fingerprint"].get(key), value)
            for key, value in self.fingerprint.items()
            if saved["fingerprint"].get(key) != value
        }
        if different or saved["objects"].keys() != self.objects.keys():
            details = ", ".join(f"{key}: {old} there, {new} now" for key, (old, new) in different.items())
            raise CheckpointMismatchError(
                f"{self.path} was written by another run ({details or 'other objects'}). Resuming would not continue "
                "it: give another --output_dir, or the settings of that run"
            )
        for name, item in self.objects.items():
            unwrapped(item).load_state_dict(saved["objects"][name])
        return saved["progress"]
