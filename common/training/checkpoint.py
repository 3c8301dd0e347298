"""Checkpoints that are whole or absent, hold plain tensors and numbers only, and resume no other run than their own."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..distributed import is_rank_zero
from ..errors import CheckpointMismatchError
from ..files import atomic_path

DIGEST_BYTES = 32  # of SHA-256, at the end of the file
REPORTED = ("learning_rate", "discriminator_learning_rate")  # may change on resuming, and that is said
NAMED_DIFFERENCES = 5  # in a message

_logger = logging.getLogger(__name__)


class TrainingCheckpoint:
    """Everything a run needs to continue as if it had never stopped, in one file that ends with its own SHA-256.

    Args:
        path: of the file.
        objects: name to object with `state_dict`: networks, optimizers, schedulers, averages.
        settings: what must be equal for a resumed run to be the same run, see `run_settings`.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
        self.path, self.settings = Path(path), dict(settings or {})
        distributed = nn.parallel.DistributedDataParallel
        self.objects = {name: it.module if isinstance(it, distributed) else it for name, it in objects.items()}

    def exists(self) -> bool:
        """Say whether there is something to resume from."""
        return self.path.is_file()

    def save(self, progress: Mapping[str, Any]) -> None:
        """Write all states and the engine's progress (plain numbers); only rank 0 writes."""
        if not is_rank_zero():
            return
        states = {name: item.state_dict() for name, item in self.objects.items()}
        content = io.BytesIO()
        torch.save({"objects": states, "progress": dict(progress), "settings": self.settings}, content)
        with atomic_path(self.path) as temporary, temporary.open("wb") as stream:
            stream.write(content.getbuffer())
            stream.write(hashlib.sha256(content.getbuffer()).digest())

    def load(self, device: torch.device) -> dict[str, Any]:
        """Restore all states and return the progress.

        Raises:
            CheckpointMismatchError: damaged, or written by a run with other settings or objects; says which.
        """
        saved = self._read(device)
        self._refuse_others(saved["settings"])
        if saved["objects"].keys() != self.objects.keys():
            raise CheckpointMismatchError(
                f"{self.path} holds {', '.join(saved['objects'])}, expected {', '.join(self.objects)}: it was written "
                "by another training; give another --output_dir"
            )
        for name, item in self.objects.items():
            try:
                item.load_state_dict(saved["objects"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())[:200]
                raise CheckpointMismatchError(
                    f"{self.path} does not fit this run's {name} ({reason}); give another --output_dir"
                ) from None
        return saved["progress"]

    def _read(self, device: torch.device) -> dict[str, Any]:
        content = self.path.read_bytes()
        body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise CheckpointMismatchError(
                f"{self.path} is damaged, or of a version before 1.0; delete it, and start again from the weights "
                "beside it with --init_weights"
            )
        return torch.load(io.BytesIO(body), map_location=device, weights_only=True)

    def _refuse_others(self, there: Mapping[str, Any]) -> None:
        pairs = {key: (there.get(key), self.settings.get(key)) for key in sorted(there.keys() | self.settings.keys())}
        changed = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
        for key in REPORTED:
            if key in changed:
                _logger.warning("%s was %s and is %s from here on", key, *changed.pop(key))
        if changed:
            named = [f"{key}: {old} there, {new} now" for key, (old, new) in changed.items()]
            more = f" and {len(named) - NAMED_DIFFERENCES} more" if len(named) > NAMED_DIFFERENCES else ""
            raise CheckpointMismatchError(
                f"{self.path} was written by another run ({'; '.join(named[:NAMED_DIFFERENCES])}{more}). Resuming "
                "would not continue it: give another --output_dir, or the settings of that run"
            )
