"""PNG, JPEG and TIFF through Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .scaling import Float32Array, check_size, to_unit_range
from .types import RefusalError

_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC, _EXIF_ORIENTATION = 258, 262, 0x0112


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
    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
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
        values = _grey(_upright(image))
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) not in (None, 1)
    except Exception:  # broken EXIF is common and says nothing about the pixels
        return image
    return ImageOps.exif_transpose(image) if turned else image


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
