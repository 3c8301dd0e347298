"""What happened to a radiograph before it came here: was it compressed with loss, is text burned into its pixels."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from .dicom_header import numbers, text
from .read import detect_format

_JPEG, _JPEG_LS, _JPEG_2000 = "ISO_10918_1", "ISO_14495_1", "ISO_15444_1"  # terms of PS3.3 C.7.6.1.1.5.1
_LOSSY_TIFF = {"jpeg": _JPEG, "tiff_jpeg": _JPEG, "webp": ""}
_SYNTAX_ARC = "1.2.840.10008.1.2.4."
_LOSSY_SYNTAX = {"50": _JPEG, "51": _JPEG, "81": _JPEG_LS, "91": _JPEG_2000, "203": _JPEG_2000}


@dataclass(frozen=True)
class LossyCompression:
    """A lossy compression; once lossy, an image stays so, whatever it is converted to."""

    ratio: float | None = None  # approximate, uncompressed to compressed size; None if unknown
    method: str = ""  # DICOM's term such as "ISO_10918_1" (JPEG); "" if unknown


class SourceHistory(NamedTuple):
    """What a file says of its past; a PNG made of a JPEG does not tell."""

    lossy: LossyCompression | None = None  # the compression with loss, or None
    burned_in: bool = False  # a DICOM header says that the pixels hold text that identifies the patient


def source_history(path: str | os.PathLike[str]) -> SourceHistory:
    """Look into a file that `read_radiograph` has read, others raise anything; its pixels are not decoded."""
    path = Path(path)
    kind = detect_format(path)
    if kind == "raster":
        with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
            is_jpeg = image.format in ("JPEG", "MPO")
            method = _JPEG if is_jpeg else _LOSSY_TIFF.get(str(image.info.get("compression")))
            ratio = _ratio(math.prod(image.size) * len(image.getbands()), path)
        return SourceHistory(None if method is None else LossyCompression(ratio, method))
    if kind != "dicom":
        return SourceHistory()
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        return SourceHistory(_of_dicom(header, path), text(header, "BurnedInAnnotation").upper() == "YES")


def _of_dicom(header: Any, path: Path) -> LossyCompression | None:
    """The header's own statement, else that of the transfer syntax."""
    statement = text(header, "LossyImageCompression")
    syntax = text(getattr(header, "file_meta", None), "TransferSyntaxUID")
    method = _LOSSY_SYNTAX.get(syntax.removeprefix(_SYNTAX_ARC)) if syntax.startswith(_SYNTAX_ARC) else None
    # JPEG 2000's syntax 91 may also be lossless; the rest of the table never is.
    if (statement == "00" and method in (None, _JPEG_2000)) or (statement != "01" and method is None):
        return None
    ratios = [ratio for ratio in numbers(header, "LossyImageCompressionRatio") if ratio > 0]
    value = header.get("LossyImageCompressionMethod") or ""
    stated = value if isinstance(value, str) else str(list(value)[-1])  # of several, the last that was applied
    ratio = math.prod(ratios) if ratios else None
    if ratio is None and method is not None:  # only of a compressed file does its size say anything about it
        num_bits = math.prod(int((numbers(header, name) or [0])[0]) for name in ("Rows", "Columns", "BitsAllocated"))
        ratio = _ratio(num_bits // 8, path)
    return LossyCompression(ratio, stated or method or "")


def _ratio(uncompressed: int, path: Path) -> float:
    """To two digits, at least 1: headers count in the file's size, so that it is approximate."""
    return max(1.0, round(uncompressed / path.stat().st_size, 2))
