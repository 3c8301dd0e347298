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

pydicom's functions for lookup tables raise where a header is malformed, take the sign of a table's first value from the
wrong element, and know neither nonsensical windows nor tables of another depth than they declare.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .dicom_header import PixelLayout, first_item, integer, lift_functional_groups, numbers, read_layout, text
from .dicom_pixels import stored_values
from .scaling import MAX_BYTES, Float32Array, percentile_range, sample, to_unit_range
from .types import RefusalError, plausible_spacing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_SPACING_KEYWORDS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")  # by preference
# A window is nonsense if it leaves less than this of the range, or if it makes all but this share black or white.
_LEAST_RANGE, _LEAST_INSIDE = 0.05, 0.01
_XA_AND_XRF = "1.2.840.10008.5.1.4.1.1.12."  # SOP classes, the enhanced ones too

Table = tuple[int, NDArray]


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
    unit = _grey_pipeline(dataset, header, layout) if is_grey else to_unit_range(_luma(dataset, layout))
    spacings = (plausible_spacing(numbers(header, keyword)) for keyword in _SPACING_KEYWORDS)
    return unit, next((spacing for spacing in spacings if spacing), None), text(header, "Modality")


def _grey_pipeline(dataset: Dataset, header: Dataset, layout: PixelLayout) -> Float32Array:
    """Return float32 [rows, columns] in [0, 1] of a MONOCHROME image, bone bright."""
    words, stored = (array[..., 0] for array in stored_values(dataset, layout)[:2])
    padding = _padding(header, layout, words, stored)
    values, signed = _modality_values(header, layout, stored)
    unit = _voi_range(header, layout, values, signed)
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


def _luma(dataset: Dataset, layout: PixelLayout) -> NDArray:
    """Return a colour image as luma [rows, columns], uint8 or, for 16-bit RGB, uint16."""
    _, values, photometric = stored_values(dataset, layout)
    if photometric == "PALETTE COLOR":
        values = _palette_colours(dataset, layout, values[..., 0])
    if values.dtype not in (np.uint8, np.uint16):
        raise RefusalError(f"colour of type {values.dtype}", "8 or 16 bits unsigned", "Export the image as greyscale.")
    if photometric.startswith("YBR"):
        return values[..., 0]  # Y is the luma
    red, green, blue = (values[..., channel].astype(np.uint32) for channel in range(3))
    # Pillow's weights, so that a DICOM and a PNG of one colour image agree; they sum to 2**16.
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(values.dtype)


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


# ---- tables and windows ----------------------------------------------------------------------------------------------


def _modality_values(dataset: Dataset, layout: PixelLayout, stored: NDArray) -> tuple[NDArray, bool]:
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


def _voi_range(dataset: Dataset, layout: PixelLayout, values: NDArray, signed: bool) -> Float32Array | None:
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


def _palette_colours(dataset: Dataset, layout: PixelLayout, indices: NDArray) -> NDArray[np.uint8]:
    """Look palette indices [rows, columns] up: uint8 [rows, columns, 3], red, green, blue."""
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
