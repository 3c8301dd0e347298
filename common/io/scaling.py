"""The one place that decides how stored numbers become [0, 1].

- 8-bit unsigned data are divided by 255, so grey x is x/255 in every format: PNG, JPEG, TIFF, NIfTI, and DICOM
  of 8 bits without a window.
- Float data that lie within [0, 1] already are taken as they are (what generators write).
- Everything else, 16-bit above all, is stretched between its own 0.5 and 99.5 percentiles: the stored range of
  such radiographs is arbitrary (12 bits in a 16-bit PNG are common). For values that are those of a display already
  RADIOGRAPH_STRETCH=0 in the environment switches the stretch off: integers, but those of a DICOM file, then are shares
  of what 16 bits, or their own type, can hold.

A DICOM window or VOI LUT comes before these rules; see `dicom`.
"""

from __future__ import annotations

import math
import os

import numpy as np
from numpy.typing import NDArray

from .types import RefusalError

# What one image may be, checked before memory is taken for it: the largest detectors have about 80 million pixels with
# stitching. Bytes are those of a file, and of what it unpacks to.
MAX_PIXELS, MAX_BYTES = 100_000_000, 2**29

STRETCH_VARIABLE = "RADIOGRAPH_STRETCH"
_LOW_PERCENT, _HIGH_PERCENT = 0.5, 99.5
_SAMPLE_PIXELS = 4_000_000

Float32Array = NDArray[np.float32]


def check_size(width: int, height: int, num_bytes: int = 0) -> None:
    """Refuse sizes that no radiograph has by a `RefusalError`, before any memory is taken for them."""
    if not 0 < width * height <= MAX_PIXELS or width < 1 or num_bytes > MAX_BYTES:
        raise RefusalError(
            f"a size of {width} × {height} pixels",
            f"between 1 and {MAX_PIXELS} pixels in at most {MAX_BYTES >> 20} MiB",
            "Check the file; scale the image down if it really is that large.",
        )


def to_unit_range(values: NDArray) -> Float32Array:
    """Scale real numbers [H, W] of any type to float32 in [0, 1] by the rules of this module; non-finite ones become 0.

    Raises `RefusalError` where all of them are.
    """
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255)
    if values.dtype.kind != "f":
        if not reading_settings():
            return percentile_range(values)
        fits_16_bits = values.min() >= 0 and values.max() <= np.iinfo(np.uint16).max  # Pillow may give them as 32
        limits = np.iinfo(np.uint16 if fits_16_bits else values.dtype)
        return ((values.astype(np.float64) - limits.min) / (limits.max - limits.min)).astype(np.float32)
    finite = np.isfinite(values)
    low = values.min(where=finite, initial=np.inf)
    high = values.max(where=finite, initial=-np.inf)
    if 0 <= low <= high <= 1:
        return np.where(finite, values, 0).astype(np.float32)
    return percentile_range(values, finite)


def reading_settings() -> dict[str, bool]:
    """What differs from the usual way of reading, for records of runs: nothing, or that nothing is stretched."""
    return {"stretch": False} if os.environ.get(STRETCH_VARIABLE, "1").lower() in ("0", "false") else {}


def percentile_range(values: NDArray, valid: NDArray[np.bool_] | None = None) -> Float32Array:
    """Stretch [H, W] so that the 0.5 and 99.5 percentiles become 0 and 1, and clip: float32 in [0, 1].

    Where these two coincide (nearly everything is one background value) minimum and maximum take their place. Only
    values where `valid` is count; elsewhere the result is 0. It is constant if the valid values are. Raises
    `RefusalError` where nothing is valid.
    """
    inside = sample(values) if valid is None else sample(values)[sample(valid)]
    if inside.size == 0 and valid is not None:
        inside = values[valid]
    if inside.size == 0:
        raise RefusalError("only NaN or infinite pixels", "numbers")
    low, high = (float(x) for x in np.percentile(inside.astype(np.float64), (_LOW_PERCENT, _HIGH_PERCENT)))
    if not low < high:
        kept = values if valid is None else values[valid]
        low, high = float(kept.min()), float(kept.max())
    if not low < high:
        return np.zeros(values.shape, np.float32)
    # uint16 and float32 stay float32; only 32-bit integers and float64 need the wide difference.
    scaled = np.subtract(values, low, dtype=np.result_type(values.dtype, np.float32)) / (high - low)
    unit = np.clip(scaled, 0, 1, out=scaled).astype(np.float32, copy=False)
    if valid is not None:
        unit[~valid] = 0
    return unit


def sample(values: NDArray) -> NDArray:
    """Return a regular subset [H', W'] of at most about four million values, for robust statistics."""
    step = max(1, math.ceil(math.sqrt(values.size / _SAMPLE_PIXELS)))
    return values[::step, ::step]
