"""PNG, JPEG and TIFF through Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from .scaling import Float32Array, check_size, to_unit_range
from .types import RefusalError

_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC, _ORIENTATION = 258, 262, 274

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_raster(path: Path) -> Float32Array:
    """Read a PNG, JPEG or one-page TIFF as grey values.

    The EXIF orientation is applied, alpha is ignored, colour becomes luma (ITU-R 601; equal channels stay exactly
    equal). 8 bits are divided by 255, 16 and 32 bits follow `scaling`. The resolution in the metadata is that of
    a print or a screen, so it is not read.

    Args:
        path: the file.

    Returns:
        float32 [height, width] in [0, 1].

    Raises:
        RefusalError: several pages, or 16 bits per colour channel.
        Exception: whatever Pillow raises for a damaged file, decompression bombs included.
    """
    with path.open("rb") as file:
        is_tiff = file.read(2) in (b"II", b"MM")
    source, orientation = _without_orientation(path) if is_tiff else (path, 1)
    with Image.open(source, formats=("PNG", "JPEG", "TIFF")) as image:
        check_size(*image.size)
        # An MPO (a JPEG with a preview or a second lens behind it) has its picture first; only that one is read.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise RefusalError(
                f"a {image.format} of {getattr(image, 'n_frames', 0)} pages",
                "one page",
                "Save the page you want as a file of its own.",
            )
        _refuse_wide_colour(image, path)
        white_is_zero = _wide_white_is_zero(image)
        image.load()
        turn = _TURNS.get(orientation if is_tiff else _exif_orientation(image))
        values = _grey(image if turn is None else image.transpose(turn))
    unit = to_unit_range(values)
    return np.subtract(1, unit, out=unit) if white_is_zero else unit


def _refuse_wide_colour(image: Image.Image, path: Path) -> None:
    """Pillow keeps the high byte only of such channels, which is next to nothing of a 12-bit radiograph."""
    bits = 8
    if image.format == "PNG":
        with path.open("rb") as file:
            depth, colour_type = file.read(26)[24:26]
        bits = depth if colour_type != 0 else 8  # colour type 0 is plain grey, which Pillow reads in full
    elif image.format == "TIFF" and image.mode not in _WIDE_MODES:
        bits = max(getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, (8,)))
    if bits > 8:
        raise RefusalError(
            f"a {image.format} with colour or alpha at {bits} bits per channel",
            "16-bit grey without alpha, or 8 bits per channel",
            "Save it as 16-bit greyscale.",
        )


def _wide_white_is_zero(image: Image.Image) -> bool:
    """Tell a TIFF whose 0 is white and that Pillow does not invert: it does so up to 8 bits only."""
    if image.format != "TIFF" or image.mode not in _WIDE_MODES:
        return False
    return getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0


def _without_orientation(path: Path) -> tuple[io.BytesIO, int]:
    """Take the orientation out of a TIFF and return it beside the file's content.

    Pillow turns a TIFF while loading it, 13.0 does so twice for an uncompressed one, and other versions differ; so
    the tag of the first page is set to 1 before Pillow sees it.
    """
    content = bytearray(path.read_bytes())
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], order)

    big = number(2, 2) == 43  # BigTIFF, whose counts and offsets have 8 bytes
    page = number(8, 8) if big else number(4, 4)
    count_bytes, entry_bytes, value_at = (8, 20, 12) if big else (2, 12, 8)
    for index in range(min(number(page, count_bytes), 4096)):
        entry = page + count_bytes + index * entry_bytes
        if number(entry, 2) == _ORIENTATION:
            orientation = number(entry + value_at, 2)
            content[entry + value_at : entry + value_at + 2] = (1).to_bytes(2, order)
            return io.BytesIO(content), orientation
    return io.BytesIO(content), 1


def _exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF is common and says nothing about the pixels
        return 1


def _grey(image: Image.Image) -> np.ndarray:
    """Return [height, width]: uint8 for images of up to 8 bits per channel, the stored numbers for wider ones."""
    if image.mode in _WIDE_MODES:
        values = np.asarray(image)
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if image.mode == "LA":
        return np.asarray(image.getchannel("L"))
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")  # drops alpha; resolves palettes, CMYK and YCbCr
    return np.asarray(image.convert("L"))
