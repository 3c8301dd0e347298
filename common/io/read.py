"""`read_radiograph`: one function for every format, which the content tells; one error for every failure.

`source_history`: what a file says of its past.
"""

from __future__ import annotations

import gzip
import math
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from .dicom import read_dicom
from .dicom_header import numbers, text
from .nifti import read_nifti
from .raster import RASTER_FORMATS, read_raster
from .scaling import MAX_BYTES, Float32Array
from .types import EXPECTED_IMAGE, IN_MEMORY, Radiograph, RefusalError, with_path

# What an image is called as a rule; files of other names, and of none, are looked into.
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".nii", ".nii.gz"),
    *(".dcm", ".dicom", ".dic", ".ima"),
)

MIN_SIDE, MAX_ASPECT = 3, 10  # px; longer over shorter side, which is at most 4 where legs or spines are stitched

Format = Literal["dicom", "raster", "nifti", "nifti.gz"]

_HEAD_BYTES = 560  # a NIfTI-2 header, the longest that is looked at
_RASTER_MAGIC = tuple(magic for magics in RASTER_FORMATS.values() for magic in magics)
_OTHER_MAGIC = {
    b"BM": "a BMP image",
    b"GIF8": "a GIF image",
    b"RIFF": "a RIFF file (WebP, AVI)",
    b"\x00\x00\x00\x0cjP  ": "a bare JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a bare JPEG 2000 stream",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
}


def read_radiograph(path: str | os.PathLike[str]) -> Radiograph:
    """Read one radiograph, a DICOM file (with or without preamble), PNG, JPEG, TIFF of one page or NIfTI of one slice.

    Returns:
        The image, float32 [1, H, W] in [0, 1], with its spacing in mm and modality where known.

    Raises:
        UnreadableRadiographError: the file is missing, damaged, unsupported, no single 2-D image, constant, or of a
            size that no radiograph has.
    """
    path = Path(path)
    try:
        # The libraries warn about every oddity of a header; what matters is either handled here or raised.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = detect_format(path)
            spacing, modality = None, ""
            if kind == "dicom":
                unit, spacing, modality = read_dicom(path)
            elif kind == "raster":
                unit = read_raster(path)
            else:
                unit, spacing = read_nifti(path)
            return Radiograph(_to_tensor(unit), spacing, path, modality)
    except Exception as error:
        raise with_path(error, path) from error


def _to_tensor(unit: Float32Array) -> torch.Tensor:
    """Check the image [H, W] and give it a channel."""
    height, width = unit.shape
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        raise RefusalError(
            f"an image of {height} × {width} pixels",
            f"sides of at least {MIN_SIDE} pixels, none more than {MAX_ASPECT} times the other",
            "It may be a thumbnail, a strip or a broken export.",
        )
    low, high = float(unit.min()), float(unit.max())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise RefusalError("pixels that are no numbers", "finite values")
    if low == high:
        raise RefusalError(
            "an image whose pixels are all the same", "a radiograph", "Check the export; the image is blank."
        )
    return torch.from_numpy(np.ascontiguousarray(unit, dtype=np.float32)).unsqueeze(0)


def is_radiograph_file(path: str | os.PathLike[str]) -> bool:
    """Tell cheaply whether a folder search should take this file; nothing is decoded.

    A known suffix is enough; of any other file (DICOM files are often named by their UID, or have no suffix) the first
    bytes decide. Hidden files (macOS writes ``._image.png``), DICOMDIR indexes, folders and what is missing are left
    out.
    """
    path = Path(path)
    name = path.name.lower()
    if name.startswith(".") or name == "dicomdir" or not path.is_file():
        return False
    if name.endswith(IMAGE_SUFFIXES):
        return True
    try:
        return bool(detect_format(path))
    except (RefusalError, OSError):
        return False


def detect_format(path: Path, expected: str = EXPECTED_IMAGE) -> Format:
    """Say which of the supported formats the content is; the first bytes are read. A refusal says what was `expected`.

    Raises:
        RefusalError: the file is missing, a directory, empty, too large, or of another format.
        OSError: the file cannot be opened.
    """
    if path == IN_MEMORY:
        return "raster"  # pixels alone
    if path.is_dir():
        raise RefusalError("a directory", "a file", "Give the path of one image, or search the folder for its images.")
    if not path.exists():
        raise RefusalError("no such file", "an existing file", "Check the path and the current directory.")
    if not path.is_file():
        raise RefusalError("a device or pipe", "a regular file", "Save the image to a file first.")
    if path.stat().st_size > MAX_BYTES:
        raise RefusalError(f"a file of {path.stat().st_size >> 20} MiB", f"at most {MAX_BYTES >> 20} MiB")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise RefusalError("an empty file (0 bytes)", expected, "Copy or export the image again.")
    # DICM first: the 128 bytes before it may hold the start of a TIFF (a dual-personality file).
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(_RASTER_MAGIC):
        return "raster"
    if _is_nifti_header(head):
        return "nifti"
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path, "rb") as file:
                unpacked = file.read(_HEAD_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            found = f"a gzip file that does not unpack ({error})"
            raise RefusalError(found, "a complete .nii.gz", "Copy or export the file again.") from error
        if _is_nifti_header(unpacked):
            return "nifti.gz"
    if _starts_like_bare_dicom(head):
        return "dicom"
    raise RefusalError(_describe(head), expected, "Export the image in one of these formats.")


def _is_nifti_header(head: bytes) -> bool:
    return head[344:348] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00")


def _starts_like_bare_dicom(head: bytes) -> bool:
    """Recognise a data set without preamble by its first element: group 0002 or 0008, a length that is plausible."""
    if len(head) < 8:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    if head[:2] == b"\x00\x08":
        return explicit  # big endian
    if head[:2] not in (b"\x02\x00", b"\x08\x00") or head[3] != 0:
        return False
    return explicit or int.from_bytes(head[4:8], "little") < 256


def _describe(head: bytes) -> str:
    for magic, name in _OTHER_MAGIC.items():
        if head.startswith(magic):
            return name
    if head.startswith(b"\x1f\x8b"):
        return "a gzip file that holds no NIfTI image"
    # A cut multi-byte character at the end must not make text look binary.
    words = head.decode("utf-8", errors="ignore")
    if len(words.encode()) >= len(head) - 3 and all(c.isprintable() or c.isspace() for c in words):
        return f"text ({words.split(chr(10))[0].strip()[:40]!r})"
    return f"an unknown format (first bytes {head[:8].hex(' ')})"


# ---- what happened to a file before it came here ---------------------------------------------------------------------


_JPEG, _JPEG_LS, _JPEG_2000 = "ISO_10918_1", "ISO_14495_1", "ISO_15444_1"  # terms of PS3.3 C.7.6.1.1.5.1
_LOSSY_RASTER = {"jpeg": _JPEG, "mpo": _JPEG, "tiff_jpeg": _JPEG, "webp": ""}  # formats, and compressions of TIFF
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
        with Image.open(path, formats=tuple(RASTER_FORMATS)) as image:
            coding = image.info.get("compression") if image.format == "TIFF" else str(image.format).lower()
            method = _LOSSY_RASTER.get(str(coding))
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
