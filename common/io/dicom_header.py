"""What the DICOM header says about the pixels, read so that malformed elements count as absent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .scaling import check_size
from .types import RefusalError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SYNTAXES = "1.2.840.10008.1.2"
_BIG_ENDIAN = f"{_SYNTAXES}.2"
_LOSSY = {f"{_SYNTAXES}.4.{number}" for number in (50, 51, 81, 91, 203)}
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
_ONE_SAMPLE = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
# What enhanced objects say in their functional groups, the others at the top.
_FUNCTIONAL_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_GROUPED = (
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("PixelSpacing", "ImagerPixelSpacing", "PixelIntensityRelationship"),
)


@dataclass(frozen=True)
class PixelLayout:
    """How the stored pixel values are laid out; see the DICOM Image Pixel Module for the terms."""

    rows: int
    columns: int
    samples: int
    allocated: int  # bits per value
    stored: int  # bits that count
    low_bit: int  # position of the lowest bit that counts
    signed: bool
    planar: bool  # all red before all green, rather than pixel by pixel
    photometric: str
    syntax: str  # transfer syntax UID, "" if the file has none
    big_endian: bool
    lossy: bool  # compressed so that values may exceed the bits that count


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return an element's numbers; an empty list where it is absent or any of it is no finite number."""
    try:
        value = dataset.get(keyword)
        several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
        items = [float(item) for item in (value if several else [value])]
    except Exception:  # pydicom raises various types for malformed values
        return []
    return items if all(math.isfinite(item) for item in items) else []


def integer(dataset: Dataset, keyword: str) -> int | None:
    """Return an element's first number as an integer, or None."""
    found = numbers(dataset, keyword)
    return int(found[0]) if found else None


def text(dataset: Dataset | None, keyword: str) -> str:
    """Return an element as stripped text; "" where it is absent or cannot be read."""
    try:
        value = None if dataset is None else dataset.get(keyword)
    except Exception:
        return ""
    return "" if value is None else str(value).strip(" \0")


def first_item(dataset: Dataset, keyword: str) -> Any:
    """Return the first item of a sequence; None where it is absent, empty or malformed."""
    try:
        items = dataset.get(keyword)
        return items[0] if items else None
    except Exception:
        return None


def lift_functional_groups(header: Dataset) -> None:
    """Put what the functional groups of an enhanced object of one frame say where the others have it."""
    for groups in _FUNCTIONAL_GROUPS:
        for macro in first_item(header, groups) or ():
            item = first_item(first_item(header, groups), macro.keyword)
            for keyword in _GROUPED:
                if item is not None and keyword in item and not text(header, keyword):
                    setattr(header, keyword, item.get(keyword))


def read_layout(header: Dataset) -> PixelLayout:
    """Collect the pixel layout from a header without pixel data; it is consistent in itself.

    Raises `RefusalError` where this is no image, has several frames, or lacks what pixels cannot be read without.
    """
    rows, columns = integer(header, "Rows"), integer(header, "Columns")
    syntax = text(getattr(header, "file_meta", None), "TransferSyntaxUID")
    if rows is None or columns is None:
        from pydicom.uid import UID

        uid = text(header, "SOPClassUID") or text(getattr(header, "file_meta", None), "MediaStorageSOPClassUID")
        raise RefusalError(
            f"a DICOM file without an image ({UID(uid).name if uid else 'no SOP Class'})",
            "a DICOM image with Rows and Columns",
            "Reports, plans and directories hold no pixels; choose the image itself.",
        )
    check_size(columns, rows)
    frames = integer(header, "NumberOfFrames") or 1
    if frames > 1:
        raise RefusalError(f"{frames} frames", "one frame", "Export the frame you want as a single image.")
    photometric = _photometric(header)
    samples = 1 if photometric in _ONE_SAMPLE else 3
    declared = integer(header, "SamplesPerPixel")
    if declared not in (None, samples):
        raise RefusalError(f"{declared} samples per pixel with {photometric}", f"{samples}")
    allocated = integer(header, "BitsAllocated")
    if allocated not in (8, 16, 32):
        raise RefusalError(f"BitsAllocated {'missing' if allocated is None else allocated}", "8, 16 or 32")
    stored = integer(header, "BitsStored") or allocated
    stored = stored if 1 <= stored <= allocated else allocated
    high_bit = integer(header, "HighBit")
    if high_bit is None or not stored <= high_bit + 1 <= allocated:
        high_bit = stored - 1
    return PixelLayout(
        rows=rows,
        columns=columns,
        samples=samples,
        allocated=allocated,
        stored=stored,
        low_bit=high_bit + 1 - stored,
        signed=integer(header, "PixelRepresentation") == 1,
        planar=integer(header, "PlanarConfiguration") == 1,
        photometric=photometric,
        syntax=syntax,
        big_endian=syntax == _BIG_ENDIAN or (not syntax and getattr(header, "is_little_endian", True) is False),
        lossy=syntax in _LOSSY and text(header, "LossyImageCompression") != "00",
    )


def _photometric(header: Dataset) -> str:
    photometric = text(header, "PhotometricInterpretation").upper()
    if photometric in _ONE_SAMPLE or photometric in _COLOURS:
        return photometric
    # Without it only PresentationLUTShape tells the polarity, and a guess would be wrong half of the time.
    shape = text(header, "PresentationLUTShape").upper()
    if not photometric and shape in ("INVERSE", "IDENTITY"):
        return "MONOCHROME1" if shape == "INVERSE" else "MONOCHROME2"
    raise RefusalError(
        f"PhotometricInterpretation {photometric or 'missing'}",
        "MONOCHROME1, MONOCHROME2, PALETTE COLOR, RGB or YBR",
        "The header does not say how to display the pixels; export the image again.",
    )
