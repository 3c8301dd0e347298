"""Which segments are lungs: chosen without ground truth, by weights tuned on training masks, or by Dice with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize

from ..progress import ProgressBar
from .chest_atlas import Array, ChestAtlas, Size
from .lung_segments import KMEANS, EncodedChest, Evidence, Labels, Mask, SegmentSettings, gather, segments

INCLUDED, EXCLUDED = "included", "excluded"  # what lies behind the heart's shadow, among the lungs
SEGMENT_GRID: dict[str, dict[str, Sequence[float]]] = {KMEANS: {"clusters": (16, 40)}}
CHOICE_GRID: dict[str, Sequence[float]] = {
    "appearance": (0.0, 0.4, 0.7, 1.0),
    "attention": (0.0, 0.3, 0.6, 1.0),
    "segments": (0.25, 0.5, 1.0),
    "bias": (-0.4, 0.0, 0.4, 0.8),
}
FIT_STEPS = (0.06, -0.1, 0.06, -0.04)  # of the simplexes that fit ellipses, one after the other, in their units

Settings = TypeVar("Settings", SegmentSettings, "ChoiceSettings")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChoiceSettings:
    """Hyperparameters of the choice; the first four are weights, 0 switches a term off."""

    attention: float = 0.3  # of the atlas as the affinity spreads it, beside the log odds that it gives itself
    appearance: float = 0.7  # of the log-likelihood ratio of a pixel's grey value, lung against the rest of this chest
    bias: float = 0.0  # added to every score; what has a score above 0 is lung
    segments: float = 0.5  # how much the mean over its segment counts for a pixel, the rest is its own; in [0, 1]
    min_area: float = 0.01  # of a connected lung, share of the image


def choose_lungs(evidence: Evidence, settings: ChoiceSettings, heart: str) -> Mask:
    """Lungs [H, W]: where the score is above 0, holes filled, small parts left out; no ground truth is seen.

    With the heart excluded, what is nearer in grey to the mediastinum between the lungs than to the lungs' core does
    not count: the heart's shadow, which lies before the left lung, and the domes of the diaphragm.
    """
    score = np.log(np.clip(evidence.lung, 0.0025, 0.9975) / np.clip(1 - evidence.lung, 0.0025, 0.9975))
    score = score + settings.attention * evidence.spread + settings.appearance * evidence.appearance + settings.bias
    parts = evidence.components.ravel()
    part_mean = (np.bincount(parts, weights=score.ravel()) / np.bincount(parts))[evidence.components]
    score = settings.segments * part_mean + (1 - settings.segments) * score
    return _tidy_lungs(score > 0, evidence, settings, heart)


def laid_lungs(evidence: Evidence, settings: ChoiceSettings, heart: str) -> Mask:
    """The atlas alone, as it was laid over the image, [H, W]."""
    return _tidy_lungs(evidence.lung > 0.5, evidence, settings, heart)


def _tidy_lungs(lungs: Mask, evidence: Evidence, settings: ChoiceSettings, heart: str) -> Mask:
    return tidied(lungs & ((heart == INCLUDED) | (evidence.air > 0)), settings.min_area)


def pick_by_dice(labels: Labels, truth: Mask) -> Mask:
    """The optimistic protocol of DiNO-Diffusion (arXiv 2407.11594): segments picked by Dice **with the ground truth**.

    Segments join in the order of their own Dice while the union's Dice rises. The finer the segments, the nearer this
    comes to a copy of the truth; it says how well segments follow lungs, not how well lungs are found.
    """
    numbers, counts = np.unique(labels, return_counts=True)
    hits = ndimage.sum_labels(truth, labels, numbers)
    total, area, hit, best = int(truth.sum()), 0.0, 0.0, 0.0
    chosen = []
    for place in np.argsort(-hits / (counts + total), kind="stable"):
        joined = 2 * (hit + hits[place]) / (area + counts[place] + total)
        if joined > best:
            best, area, hit = joined, area + counts[place], hit + hits[place]
            chosen.append(numbers[place])
    return np.isin(labels, chosen)


def tidied(mask: Mask, min_area: float) -> Mask:
    """Holes filled, connected parts below `min_area` (share of the image) left out; the largest always stays."""
    numbered, count = ndimage.label(ndimage.binary_fill_holes(mask))
    if count == 0:
        return mask
    areas = np.bincount(numbered.ravel())
    areas[0] = 0
    keep = (areas >= min_area * mask.size) | (areas == areas.max())
    keep[0] = False
    return keep[numbered]


def dice(prediction: Mask, reference: Mask) -> float:
    """Dice coefficient; 1 where both are empty."""
    total = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / total if total else 1.0


# ---- what is tuned on training masks ---------------------------------------------------------------------------------


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

    def gathered(candidate: SegmentSettings) -> Iterator[Evidence]:
        return (gather(item, *segments(item, method, candidate), atlas) for item in encoded)

    def mean_dice(evidence: Iterable[Evidence], candidate: ChoiceSettings) -> float:
        pairs = zip(evidence, truths, strict=True)
        return float(np.mean([dice(choose_lungs(each, candidate, heart), truth) for each, (truth, heart) in pairs]))

    if grid := SEGMENT_GRID.get(method):
        segment_settings, _ = coordinate_search(
            segment_settings, grid, lambda candidate: mean_dice(gathered(candidate), choice), f"{method}: segments"
        )
    kept = list(gathered(segment_settings))
    best = mean_dice(kept, choice)
    for number in range(rounds):
        title = f"{method}: choice, round {number + 1}"
        choice, best = coordinate_search(choice, CHOICE_GRID, lambda candidate: mean_dice(kept, candidate), title)
    return segment_settings, choice, best


def coordinate_search(
    start: Settings, grid: Mapping[str, Sequence[float]], objective: Callable[[Settings], float], title: str
) -> tuple[Settings, float]:
    """Set one field of a dataclass after the other to its best candidate of the grid; higher is better, ties stay."""
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


# ---- two ellipses, fitted to the truth: what framing alone would give at its best ------------------------------------


@dataclass(frozen=True)
class EllipsePrior:
    """Two ellipses about the middle column; lengths in image heights (rows) and widths (columns)."""

    row: float = 0.48  # of both centres
    offset: float = 0.28  # of a centre from the middle column
    half_height: float = 0.36  # semi-axes
    half_width: float = 0.21
    tilt: float = 0.2  # radians; positive leans the upper ends towards the middle

    def mask(self, size: Size) -> Mask:
        """The inside of both, [H, W]."""
        rows, columns = ((np.arange(length) + 0.5) / length for length in size)
        down = rows[:, None] - self.row
        squares = []
        for side in (-1, 1):
            outward = side * (columns[None] - 0.5) - self.offset
            short = np.cos(self.tilt) * outward - np.sin(self.tilt) * down
            long = np.sin(self.tilt) * outward + np.cos(self.tilt) * down
            squares.append((short / self.half_width) ** 2 + (long / self.half_height) ** 2)
        return np.minimum(*squares) < 1


def fit_ellipses(masks: Sequence[Mask]) -> EllipsePrior:
    """The ellipses of the best mean Dice with lung masks, by Nelder-Mead.

    Dice over pixels has flat steps on which a simplex collapses, so the search starts anew from what it found.
    """
    best = np.array(astuple(EllipsePrior()))

    def loss(values: Array) -> float:
        prior = EllipsePrior(*values)
        return -float(np.mean([dice(prior.mask(mask.shape), mask) for mask in masks]))

    for step in FIT_STEPS:
        simplex = np.vstack([best, best + step * np.eye(len(best))])
        found = minimize(loss, best, method="Nelder-Mead", options={"initial_simplex": simplex, "maxiter": 150})
        best = found.x
    return EllipsePrior(*(float(value) for value in best))
