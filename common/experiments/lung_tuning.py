"""What zero-shot lungs learn from training masks: the mean chest, and a few weights, searched one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..progress import ProgressBar
from .chest_atlas import ChestAtlas
from .lung_choice import ChoiceSettings, choose_lungs
from .lung_segments import KMEANS, EncodedChest, SegmentSettings, evidence
from .position_prior import dice

SEGMENT_GRID: dict[str, dict[str, Sequence[float]]] = {KMEANS: {"clusters": (16, 40)}}
CHOICE_GRID: dict[str, Sequence[float]] = {
    "appearance": (0.0, 0.4, 0.7, 1.0),
    "attention": (0.0, 0.3, 0.6, 1.0),
    "segments": (0.25, 0.5, 1.0),
    "bias": (-0.4, 0.0, 0.4, 0.8),
}

Settings = TypeVar("Settings", SegmentSettings, ChoiceSettings)
Mask = NDArray[np.bool_]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """What is fixed before anything is measured on held-out patients."""

    atlas: ChestAtlas  # the mean chest
    segments: dict[str, SegmentSettings]  # by method
    choice: dict[str, ChoiceSettings]  # by method

    @staticmethod
    def from_plain(content: Mapping[str, Any]) -> Tuned:
        """From what `asdict` gave."""
        return Tuned(
            ChestAtlas(**{part: tuple(rows) for part, rows in content["atlas"].items()}),
            {method: SegmentSettings(**values) for method, values in content["segments"].items()},
            {method: ChoiceSettings(**values) for method, values in content["choice"].items()},
        )


def tune_method(
    method: str,
    encoded: Sequence[EncodedChest],
    truths: Sequence[tuple[Mask, str]],
    atlas: ChestAtlas,
    start: tuple[SegmentSettings, ChoiceSettings],
    rounds: int,
) -> tuple[SegmentSettings, ChoiceSettings, float]:
    """Coordinate search for the best mean Dice on training images: segments first, then rounds over the choice.

    Truths have the size of their encoded images, and say whether the heart is in them. Returns both settings and their
    mean Dice on these images.
    """
    segment_settings, choice = start

    def of_segments(candidate: SegmentSettings) -> float:
        found = (evidence(item, method, candidate, atlas)[0] for item in encoded)
        return float(np.mean([dice(choose_lungs(e, choice, h), t) for e, (t, h) in zip(found, truths, strict=True)]))

    if grid := SEGMENT_GRID.get(method):
        segment_settings, _ = coordinate_search(segment_settings, grid, of_segments, f"{method}: segments")
    kept = [evidence(item, method, segment_settings, atlas)[0] for item in encoded]

    def of_choice(candidate: ChoiceSettings) -> float:
        return float(np.mean([dice(choose_lungs(e, candidate, h), t) for e, (t, h) in zip(kept, truths, strict=True)]))

    best = of_choice(choice)
    for number in range(rounds):
        choice, best = coordinate_search(choice, CHOICE_GRID, of_choice, f"{method}: choice, round {number + 1}")
    return segment_settings, choice, best


def coordinate_search(
    start: Settings, grid: Mapping[str, Sequence[float]], objective: Callable[[Settings], float], title: str
) -> tuple[Settings, float]:
    """Set one field of a dataclass after the other to its best candidate of the grid; ties keep what is there.

    Higher is better; the title is that of the progress bar.
    """
    best, score = start, objective(start)
    with ProgressBar(grid.items(), desc=title, unit="setting") as bar:
        for name, candidates in bar:
            for value in candidates:
                candidate = replace(best, **{name: value})
                found = score if candidate == best else objective(candidate)
                if found > score:
                    best, score = candidate, found
            bar.set_postfix_str(f"{name} {getattr(best, name)}: {score:.4f}")
    _logger.info("%s: %s, Dice %.4f", title, best, score)
    return best, score
