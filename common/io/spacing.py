"""Which pixel spacings to believe."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Detectors and film scanners have 0.01 to 0.5 mm; reduced images a few millimetres. Beyond, it is a mistake.
_LEAST_MM, _MOST_MM = 0.001, 10.0


def plausible_spacing(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the spacing in mm, (row, column), if both values are finite and those of a radiograph, else None."""
    if len(values) != 2 or not all(math.isfinite(v) and _LEAST_MM <= v <= _MOST_MM for v in values):
        return None
    return float(values[0]), float(values[1])
