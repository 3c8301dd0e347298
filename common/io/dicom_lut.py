"""Modality LUT, VOI LUT, window and palette of a DICOM image.

pydicom's functions for them raise where a header is malformed, take the sign of a table's first value from the wrong
element, and know neither nonsensical windows nor tables of another depth than they declare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .dicom_header import PixelLayout, first_item, numbers, text
from .scaling import Float32Array, sample
from .types import RefusalError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# A window is nonsense if it leaves less than this of the range, or if it makes all but this share black or white.
_LEAST_RANGE, _LEAST_INSIDE = 0.05, 0.01
_XA_AND_XRF = "1.2.840.10008.5.1.4.1.1.12."  # SOP classes, the enhanced ones too

Table = tuple[int, NDArray]


def modality_values(dataset: Dataset, layout: PixelLayout, stored: NDArray) -> tuple[NDArray, bool]:
    """Apply the Modality LUT Sequence or, without one, rescale slope and intercept.

    Returns:
        The very array `stored` [rows, columns] if there is nothing to apply, else uint16 or float32; and whether such
        values may be negative.
    """
    # Of XA and XRF it leads back to beam intensity and is not for display (PS3.3 C.8.7.1.1.2).
    for_display = not text(dataset, "SOPClassUID").startswith(_XA_AND_XRF) or (
        text(dataset, "PixelIntensityRelationship").upper() not in ("LOG", "DISP")
    )
    table = _first_table(dataset, "ModalityLUTSequence", layout, layout.signed) if for_display else None
    if table is not None:
        return _look_up(stored, table), False
    slope, intercept = numbers(dataset, "RescaleSlope")[:1], numbers(dataset, "RescaleIntercept")[:1]
    scale, offset = (slope or [1.0])[0], (intercept or [0.0])[0]
    if scale == 0 or (scale == 1 and offset == 0):  # a slope of 0 would wipe the image out: a mistake
        return stored, layout.signed
    values = stored.astype(np.float32)
    values *= scale
    values += offset
    least = -(1 << layout.stored - 1) if layout.signed else 0
    return values, min(end * scale + offset for end in (least, least + (1 << layout.stored) - 1)) < 0


def voi_range(dataset: Dataset, layout: PixelLayout, values: NDArray, signed: bool) -> Float32Array | None:
    """Map modality values [rows, columns] to [0, 1] with the first VOI LUT or else the first window.

    Returns:
        float32 [rows, columns] in [0, 1], or None where neither is there, well-formed and fit for these data.
    """
    table = _first_table(dataset, "VOILUTSequence", layout, signed)
    if table is not None:
        unit = _look_up(values, table).astype(np.float32)
        unit /= _full_scale(dataset, table[1])
        if _is_fit(unit, bounded=False):
            return unit
    centre, width = numbers(dataset, "WindowCenter")[:1], numbers(dataset, "WindowWidth")[:1]
    if not centre or not width or width[0] <= 0:
        return None
    function = text(dataset, "VOILUTFunction").upper()
    unit = _window(values, centre[0], width[0], function)
    return unit if _is_fit(unit, bounded=function != "SIGMOID") else None


def palette_colours(dataset: Dataset, layout: PixelLayout, indices: NDArray) -> NDArray[np.uint8]:
    """Look palette indices [rows, columns] up: uint8 [rows, columns, 3], red, green, blue.

    Raises `RefusalError` where a table is missing, segmented or malformed.
    """
    channels = []
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        table = _table(dataset, f"{name}Descriptor", f"{name}Data", layout, layout.signed)
        if table is None:
            found = f"PALETTE COLOR without a readable {name}Data"
            raise RefusalError(found, "three lookup tables", "Export the image as greyscale.")
        channels.append(table)
    # 16-bit tables are the rule even where the colours have 8 bits; their high byte is the colour.
    shift = 8 if max(int(entries.max()) for _, entries in channels) > 255 else 0
    return np.stack([(_look_up(indices, table) >> shift).astype(np.uint8) for table in channels], axis=-1)


def _window(values: NDArray, centre: float, width: float, function: str) -> Float32Array:
    """Apply one window (PS3.3 C.11.2.1.2 and C.11.2.1.3) with an output range of [0, 1]."""
    if function == "SIGMOID":
        unit = np.subtract(values, centre, dtype=np.result_type(values.dtype, np.float32))
        unit *= -4.0 / width
        np.exp(np.clip(unit, -80, 80, out=unit), out=unit)
        unit += 1
        return np.reciprocal(unit, out=unit).astype(np.float32, copy=False)
    # LINEAR is the default. Its width counts grey levels, so a width of 1 or less only makes sense as exact.
    span = width if function == "LINEAR_EXACT" or width <= 1 else width - 1
    unit = np.subtract(values, centre - width / 2, dtype=np.result_type(values.dtype, np.float32))
    unit /= span
    return np.clip(unit, 0, 1, out=unit).astype(np.float32, copy=False)


def _is_fit(unit: Float32Array, bounded: bool) -> bool:
    """Tell whether an image survived its window: neither flat nor, for a `bounded` one, cut to black and white."""
    part = sample(unit)
    low, high = np.percentile(part, (1, 99))
    inside = float(((part > 0) & (part < 1)).mean())
    return high - low >= _LEAST_RANGE and (not bounded or inside >= _LEAST_INSIDE)


def _full_scale(dataset: Dataset, entries: NDArray) -> float:
    """Return the value of a VOI LUT that means white.

    That is the maximum of the declared depth, unless the entries exceed it or use less than a quarter of it: the
    declared depth is often 16 whatever the table holds.
    """
    highest = max(int(entries.max()), 1)
    declared = 2.0 ** numbers(first_item(dataset, "VOILUTSequence"), "LUTDescriptor")[2] - 1
    return declared if highest <= declared < 4 * highest else 2.0 ** highest.bit_length() - 1


def _first_table(dataset: Dataset, sequence: str, layout: PixelLayout, signed: bool) -> Table | None:
    item = first_item(dataset, sequence)
    return None if item is None else _table(item, "LUTDescriptor", "LUTData", layout, signed)


def _table(item: Any, descriptor: str, data: str, layout: PixelLayout, signed: bool) -> Table | None:
    """Read one lookup table: the first input value it maps and its entries, uint16; None if malformed."""
    shape = [int(number) for number in numbers(item, descriptor)]
    if len(shape) != 3:
        return None
    count, first = (shape[0] % 65536) or 65536, shape[1] % 65536  # 0 stands for 65536, which 16 bits cannot hold
    # What the values to look up may be decides on the sign (C.11.2.1.1), not the VR that was written.
    first -= 65536 if signed and first > 32767 else 0
    try:
        value = item.get(data)
        order = ">" if layout.big_endian else "<"
        raw = value if isinstance(value, bytes) else np.atleast_1d(value).astype(f"{order}u2").tobytes()
        # 8-bit entries may be packed, two in a word.
        entries = np.frombuffer(raw, f"{order}u2" if len(raw) >= 2 * count else "u1")[:count].astype(np.uint16)
    except Exception:  # wrong VR, text, numbers out of range
        return None
    return (first, entries) if len(entries) == count and entries.min() < entries.max() else None


def _look_up(values: NDArray, table: Table) -> NDArray:
    """Map values, rounded; those outside the table take its first or last entry, as the standard has it."""
    first, entries = table
    if values.dtype.kind == "f":
        values = np.rint(np.clip(values, first, first + len(entries) - 1))
    index = values.astype(np.int64 if values.dtype.itemsize > 2 else np.int32)
    return entries[np.clip(index - first, 0, len(entries) - 1)]
