"""DICOM: from the file to grey values as they are meant to be displayed.

The pipeline is the standard's: stored values → Modality LUT → VOI LUT or window → polarity. Decisions beyond it:

- The header is believed. A file whose header contradicts its pixels (MONOCHROME1 over an image that is not)
  comes out wrong; no reader can know.
- Polarity is PhotometricInterpretation's alone: MONOCHROME1 is inverted, once, at the end. PresentationLUTShape
  INVERSE repeats it (the standard ties the two), so it counts only where PhotometricInterpretation is missing.
- A window or LUT that is absent, malformed or leaves nearly nothing of the image is replaced: 8-bit data without
  rescale by x/255, as in a PNG, everything else by percentiles (see `scaling`).
- Pixels of PixelPaddingValue take no part in the percentiles and end up 0, black, in either polarity.
- Implausible values of a spacing count as absent.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .dicom_header import PixelLayout, integer, lift_functional_groups, numbers, read_layout, text
from .dicom_lut import modality_values, voi_range
from .dicom_pixels import grey_values, stored_values
from .scaling import MAX_BYTES, Float32Array, percentile_range, to_unit_range
from .types import RefusalError, plausible_spacing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_SPACING_KEYWORDS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")  # by preference


def read_dicom(path: Path) -> tuple[Float32Array, tuple[float, float] | None, str]:
    """Read a single-frame DICOM image, with or without preamble; whatever else it is raises.

    Returns:
        float32 [rows, columns] in [0, 1], the spacing in mm, (row, column), or None, and the Modality.
    """
    import pydicom

    _refuse_deflate_bomb(path)
    # The header alone first, so that a large multi-frame file is refused before its pixels are in memory.
    header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    lift_functional_groups(header)
    layout = read_layout(header)
    dataset = pydicom.dcmread(path, force=True)
    is_grey = layout.photometric in ("MONOCHROME1", "MONOCHROME2")
    unit = _grey_pipeline(dataset, header, layout) if is_grey else to_unit_range(grey_values(dataset, layout))
    spacings = (plausible_spacing(numbers(header, keyword)) for keyword in _SPACING_KEYWORDS)
    return unit, next((spacing for spacing in spacings if spacing), None), text(header, "Modality")


def _grey_pipeline(dataset: Dataset, header: Dataset, layout: PixelLayout) -> Float32Array:
    """Return float32 [rows, columns] in [0, 1] of a MONOCHROME image, bone bright."""
    words, stored = (array[..., 0] for array in stored_values(dataset, layout)[:2])
    padding = _padding(header, layout, words, stored)
    values, signed = modality_values(header, layout, stored)
    unit = voi_range(header, layout, values, signed)
    if unit is None:
        if values is stored and layout.stored == 8 and not layout.signed and stored.max() <= 255:
            unit = to_unit_range(stored.astype(np.uint8))
        else:
            unit = percentile_range(values, None if padding is None else ~padding)
    if layout.photometric == "MONOCHROME1":
        np.subtract(1, unit, out=unit)
    if padding is not None:
        unit[padding] = 0
    return unit


def _padding(header: Dataset, layout: PixelLayout, words: NDArray, stored: NDArray) -> NDArray[np.bool_] | None:
    """Return where [rows, columns] is padding, or None if nowhere, or if next to nothing would be left."""
    bounds = [integer(header, k) for k in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if bounds[0] is None:
        return None
    if layout.signed:
        words = words.view(words.dtype.str.replace("u", "i"))
    # The value's VR often disagrees with the pixels about the sign, so both are read as the pixels' type. It may use
    # bits beyond those that count, which `stored` has lost.
    ends = [_as_stored(bound, layout) for bound in bounds if bound is not None]
    mask = (words >= min(ends)) & (words <= max(ends)) | (stored >= min(ends)) & (stored <= max(ends))
    return mask if 0 < float(mask.mean()) < 0.99 else None


def _as_stored(value: int, layout: PixelLayout) -> int:
    value %= 1 << layout.allocated
    return value - (1 << layout.allocated) if layout.signed and value >> (layout.allocated - 1) else value


def _refuse_deflate_bomb(path: Path) -> None:
    """Inflate the data set piece by piece and refuse it when it grows beyond what a radiograph can be."""
    with path.open("rb") as file:
        head = file.read(4096)
        if _DEFLATED not in head:
            return
        # After any preamble comes (0002,0000) in 12 bytes, whose value is the length of the rest of the meta group.
        meta = 132 if head[128:132] == b"DICM" else 0
        file.seek(meta + 12 + int.from_bytes(head[meta + 8 : meta + 12], "little"))
        inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while total <= MAX_BYTES:
            piece = inflater.unconsumed_tail or file.read(1 << 20)
            if not piece or inflater.eof:
                return
            total += len(inflater.decompress(piece, 1 << 24))
    raise RefusalError(f"a deflated data set of more than {MAX_BYTES >> 20} MiB", "one radiograph")
