"""Which labelled images a model is measured on: once held out, held out for ever."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ..files import atomic_path

SPLIT_NAME = "held_out.json"
FEWEST_TO_HOLD_OUT = 3  # labels; with fewer all are trained on


def hold_out(names: Sequence[str], share: float, seed: int, folder: str | Path) -> tuple[list[str], list[str]]:
    """Split images into those to train on and those held out, as earlier trainings did, and remember it.

    An image that was trained on is never held out later, nor the other way round: versions of the weights would not
    be comparable. New images are taken in the order of a seeded hash, until the share is held out.

    Args:
        names: of the labelled images, each one once.
        share: to hold out, in [0, 1); at least one image once there are three.
        seed: of the order.
        folder: where held_out.json is kept.

    Returns:
        Names to train on and names held out, both sorted; nothing is held out of fewer than three.
    """
    path = Path(folder) / SPLIT_NAME
    known: dict[str, bool] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    new = sorted((name for name in names if name not in known), key=lambda name: _hash(name, seed))
    wanted = max(1, round(share * len(names))) if len(names) >= FEWEST_TO_HOLD_OUT else 0
    missing = wanted - sum(known.get(name, False) for name in names)
    if len(new) == len(names):
        missing = min(missing, len(names) - 1)
    known.update({name: place < missing for place, name in enumerate(new)})
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return sorted(n for n in names if not known[n]), sorted(n for n in names if known[n])


def _hash(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
