"""Pictures: TIFF through tifffile, the others through Pillow."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .codestream import decode_whole_jpeg, read_codestream
from .scaling import Float32Array, check_size, to_unit_range
from .types import RefusalError

# tifffile logs every oddity of a header; without a handler Python would print it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# Of each format the first bytes; of TIFF and BigTIFF, both byte orders.
RASTER_FORMATS = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "TIFF": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
}

_ORIENTATION = 274
_ONE_PAGE = "Save the page you want as a file of its own."


def read_raster(path: Path) -> Float32Array:
    """Read a PNG, JPEG or one-page TIFF as grey values, float32 [H, W] in [0, 1] by the rules of `scaling`.

    The EXIF orientation is applied, alpha is ignored, colour becomes luma (ITU-R 601; equal channels stay exactly
    equal). The resolution in the metadata is that of a print or a screen, so it is not read.

    Raises:
        RefusalError: several pages, 16 bits per colour channel, or part of a JPEG image is missing.
    """
    content = path.read_bytes()
    if content[:2] in (b"II", b"MM"):
        return _read_tiff(content)
    if content.startswith(b"\xff\xd8"):
        read_codestream(content)
        return to_unit_range(decode_whole_jpeg(content, _read_with_pillow))
    return to_unit_range(_read_with_pillow(content))


def turned(values: NDArray, orientation: int) -> NDArray:
    """Turn and flip [H, W] as EXIF's orientation, 1 to 8, has it."""
    rows, columns = [(1, 1), (1, -1), (-1, -1), (-1, 1)][(orientation - 1) % 4]
    return (values.T if 5 <= orientation <= 8 else values)[::rows, ::columns]


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation; 1, as it is stored, where there is none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF is common and says nothing about the pixels
        return 1


def _read_with_pillow(content: bytes) -> NDArray:
    """Grey values [H, W] of all but a TIFF: uint8, or the stored numbers of a wider PNG."""
    with Image.open(io.BytesIO(content), formats=tuple(RASTER_FORMATS)) as image:
        check_size(*image.size)
        # An MPO (a JPEG with a preview or a second lens behind it) has its picture first; only that one is read.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise RefusalError(f"a {image.format} of {getattr(image, 'n_frames', 0)} pages", "one page", _ONE_PAGE)
        # Pillow keeps the high byte only of wide colour, which is next to nothing of a 12-bit radiograph.
        if image.format == "PNG" and content[24] > 8 and content[25] != 0:
            raise _wide_colour("PNG", content[24])
        image.load()
        return turned(_grey(image), orientation_of(image))


def _grey(image: Image.Image) -> NDArray:
    if image.mode in ("I", "I;16", "I;16B"):
        values = np.asarray(image)
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if image.mode == "LA":
        return np.asarray(image.getchannel("L"))
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")  # drops alpha; resolves palettes, CMYK and YCbCr
    return np.asarray(image.convert("L"))


def _read_tiff(content: bytes) -> Float32Array:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        if len(tiff.pages) != 1:
            raise RefusalError(f"a TIFF of {len(tiff.pages)} pages", "one page", _ONE_PAGE)
        page = tiff.pages.first
        check_size(page.imagewidth, page.imagelength, page.nbytes)
        if not all(page.databytecounts):  # tifffile would leave zeros there
            raise RefusalError("a TIFF of which a part is missing", "a complete one", "Copy or export the file again.")
        values = _tiff_grey(page, page.asarray())
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:  # which tifffile leaves as it is stored
            unit = to_unit_range(255 - values) if values.dtype == np.uint8 else 1 - to_unit_range(values)
        else:
            unit = to_unit_range(values)
        return turned(unit, page.tags.valueof(_ORIENTATION, 1))


def _tiff_grey(page: Any, values: NDArray) -> NDArray:
    """Grey values [H, W] of a page as decoded: the stored numbers, or the luma of 8-bit colour."""
    kind, bits = page.photometric.name, page.bitspersample
    if kind in ("MINISBLACK", "MINISWHITE"):
        if values.ndim == 3:  # alpha beside the grey values
            values = values[..., 0] if page.planarconfig == 1 else values[0]
        # Fewer than 8 bits become 8, as in a PNG; signed ones and wide ones stay the numbers that they are.
        return values if bits >= 8 else (values.astype(np.uint8) * (255 // (2**bits - 1)))
    if kind == "PALETTE":
        values = np.moveaxis(page.colormap[:, values] >> 8, 0, -1)
    elif bits > 8:
        raise _wide_colour("TIFF", bits)
    elif page.planarconfig != 1:
        values = np.moveaxis(values, 0, -1)
    mode = "CMYK" if kind == "SEPARATED" else "RGB"  # tifffile makes RGB of JPEG's YCbCr
    if kind not in ("RGB", "PALETTE", "YCBCR", "SEPARATED") or values.shape[-1] < len(mode):
        raise RefusalError(f"a TIFF of photometric interpretation {kind}", "grey, palette, RGB or CMYK")
    channels = np.ascontiguousarray(values[..., : len(mode)], dtype=np.uint8)
    return _grey(Image.frombytes(mode, (page.imagewidth, page.imagelength), channels.tobytes()))


def _wide_colour(name: str, bits: int) -> RefusalError:
    return RefusalError(
        f"a {name} with colour or alpha at {bits} bits per channel",
        "16-bit grey without alpha, or 8 bits per channel",
        "Save it as 16-bit greyscale.",
    )
