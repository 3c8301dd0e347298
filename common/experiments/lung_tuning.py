"""Hyperparameters of zero-shot lungs, searched one after the other on training patients only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .attention_segmenter import DIFFSEG, KMEANS, Seen, SegmentSettings, evidence
from .lung_choice import ChoiceSettings, choose_lungs
from .position_prior import EllipsePrior, dice

_logger = logging.getLogger(__name__)

TIMESTEPS = (300.0, 500.0, 700.0)
SEGMENT_GRID: dict[str, dict[str, Sequence[float]]] = {
    DIFFSEG: {
        "timestep": TIMESTEPS,
        "threshold": (0.00625, 0.0125, 0.025, 0.05),
        "anchors": (8, 16, 32),
        "exponent": (1.0, 3.0, 9.0),
    },
    KMEANS: {"clusters": (4, 8, 16, 32, 64)},
}
CHOICE_GRID: dict[str, Sequence[float]] = {
    "pose_association": (0.0, 20.0, 40.0, 80.0, 160.0),
    "attention": (0.0, 0.5, 1.0, 1.5, 2.0),
    "bias": (-0.8, -0.4, 0.0, 0.4, 0.8),
    "position": (0.5, 1.0, 2.0),
    "softness": (0.05, 0.1, 0.2),
    "pose_deviation": (0.0, 0.1, 0.25),
    "pose_contrast": (0.0, 2.0, 5.0),
    "darkness": (-0.4, 0.0, 0.4, 0.8),
    "symmetry": (0.0, 1.0, 2.0),
    "border": (0.0, 1.0, 3.0),
    "min_area": (0.01, 0.02, 0.04),
}

Settings = TypeVar("Settings", SegmentSettings, ChoiceSettings)


@dataclass(frozen=True)
class Tuned:
    """What is fixed before anything is measured on held-out patients.

    Attributes:
        prior: the ellipses.
        segments: by method.
        choice: by method.
    """

    prior: EllipsePrior
    segments: dict[str, SegmentSettings]
    choice: dict[str, ChoiceSettings]

    def plain(self) -> dict[str, Any]:
        """As JSON has it; the inverse of `from_plain`."""
        return asdict(self)

    @staticmethod
    def from_plain(content: Mapping[str, Any]) -> Tuned:
        """From what `plain` gave."""
        return Tuned(
            EllipsePrior(**content["prior"]),
            {method: SegmentSettings(**values) for method, values in content["segments"].items()},
            {method: ChoiceSettings(**values) for method, values in content["choice"].items()},
        )


def tune_method(
    method: str,
    seen: Sequence[Seen],
    truths: Sequence[NDArray[np.bool_]],
    prior: EllipsePrior,
    start: tuple[SegmentSettings, ChoiceSettings],
    rounds: int,
) -> tuple[SegmentSettings, ChoiceSettings, float]:
    """Coordinate search for the best mean Dice on training images: segments first, then the choice.

    Args:
        method: one of `METHODS`.
        seen: training images.
        truths: their masks, each of the size of its image.
        prior: the ellipses.
        start: where the search begins.
        rounds: passes over the hyperparameters of the choice.

    Returns:
        Both settings and their mean Dice on these images.
    """
    segment_settings, choice = start

    def of_segments(candidate: SegmentSettings) -> float:
        found = (evidence(item, method, candidate, prior)[0] for item in seen)
        return float(np.mean([dice(choose_lungs(e, choice), t) for e, t in zip(found, truths, strict=True)]))

    segment_settings, _ = coordinate_search(
        segment_settings, SEGMENT_GRID.get(method, {}), of_segments, f"{method}: segments"
    )
    kept = [evidence(item, method, segment_settings, prior)[0] for item in seen]

    def of_choice(candidate: ChoiceSettings) -> float:
        return float(np.mean([dice(choose_lungs(e, candidate), t) for e, t in zip(kept, truths, strict=True)]))

    best = of_choice(choice)
    for number in range(rounds):
        choice, best = coordinate_search(choice, CHOICE_GRID, of_choice, f"{method}: choice, round {number + 1}")
    return segment_settings, choice, best


def coordinate_search(
    start: Settings, grid: Mapping[str, Sequence[float]], objective: Callable[[Settings], float], title: str
) -> tuple[Settings, float]:
    """Set one field after the other to its best candidate; ties keep what is there. Deterministic.

    Args:
        start: a dataclass.
        grid: candidates by field.
        objective: higher is better.
        title: of the progress bar.
    """
    best, score = start, objective(start)
    with tqdm(grid.items(), desc=title, unit="knob", dynamic_ncols=True) as bar:
        for name, candidates in bar:
            for value in candidates:
                candidate = replace(best, **{name: value})  # type: ignore[arg-type]
                if candidate == best:
                    continue
                found = objective(candidate)
                if found > score:
                    best, score = candidate, found
            bar.set_postfix_str(f"{name} {getattr(best, name)}: {score:.4f}")
    _logger.info("%s: %s, Dice %.4f", title, best, score)
    return best, score
