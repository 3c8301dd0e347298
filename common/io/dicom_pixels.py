"""Stored DICOM pixel values, native or compressed.

The decoders are called here rather than through pydicom, whose choice of plug-in and whose treatment of colour and
of unused bits differ between 2.4 and 3: the same file must give the same pixels with either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .codestream import codestream_size
from .dicom_header import PixelLayout
from .dicom_lut import palette_colours
from .rle import decode_rle
from .types import RefusalError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_UIDS = "1.2.840.10008.1.2"
_NATIVE = {"", _UIDS, f"{_UIDS}.1", f"{_UIDS}.2", f"{_UIDS}.1.99"}
_RLE = f"{_UIDS}.5"
_JPEG = {f"{_UIDS}.4.{n}" for n in (50, 51, 57, 70, 80, 81)}
_JPEG2000 = {f"{_UIDS}.4.{n}" for n in (90, 91, 201, 202, 203)}
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_PIXEL_DATA = 0x7FE00010


def stored_values(dataset: Dataset, layout: PixelLayout) -> NDArray:
    """Return the stored values, unused bits cleared and the sign extended.

    Args:
        dataset: the whole data set.
        layout: what its header says.

    Returns:
        Integers [rows, columns, samples] in the smallest type that the file allots.

    Raises:
        RefusalError: no pixel data, too few or too many of them, or no decoder.
        Exception: what a decoder raises for a damaged stream.
    """
    data, vr = _pixel_data(dataset)
    if layout.syntax in _NATIVE:
        return _native_values(data, vr, layout)
    if layout.syntax == _RLE:
        planes = decode_rle(_single_frame(data), layout.rows * layout.columns, layout.samples, layout.allocated // 8)
        raw = planes.reshape(layout.samples, layout.rows, layout.columns).transpose(1, 2, 0)
        return _used_bits(raw, layout.low_bit, layout.stored, layout.signed)
    return _codestream_values(_single_frame(data), layout)


def grey_values(dataset: Dataset, layout: PixelLayout) -> NDArray:
    """Return a colour image as luma [rows, columns], uint8 or, for 16-bit RGB, uint16.

    Raises:
        RefusalError: as `stored_values`, and signed or 32-bit colour or a palette that cannot be read.
    """
    values = stored_values(dataset, layout)
    if layout.photometric == "PALETTE COLOR":
        values = palette_colours(dataset, layout, values[..., 0])
    if values.dtype not in (np.uint8, np.uint16):
        raise RefusalError(f"colour of type {values.dtype}", "8 or 16 bits unsigned", "Export the image as greyscale.")
    if layout.photometric.startswith("YBR") and layout.syntax not in _JPEG2000:
        return values[..., 0]  # Y is the luma; the JPEG 2000 decoder has made RGB of it already
    red, green, blue = (values[..., channel].astype(np.uint32) for channel in range(3))
    # Pillow's weights, so that a DICOM and a PNG of one colour image agree; they sum to 2**16.
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(values.dtype)


def _pixel_data(dataset: Dataset) -> tuple[bytes, str]:
    """Return the bytes of the pixel data and their VR, "" if implicit."""
    # get_item leaves the element raw: resolving its VR would need a header that is complete.
    element = dataset.get_item(_PIXEL_DATA) if _PIXEL_DATA in dataset else None
    value = getattr(element, "value", None)
    if not value:
        floats = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
        raise RefusalError(
            "a DICOM image with float pixel data" if floats else "a DICOM header without pixel data",
            "integer pixel data",
            "Export it as integers." if floats else "The pixels were left out or the file was cut; export it again.",
        )
    return bytes(value), str(getattr(element, "VR", None) or "")


def _native_values(data: bytes, vr: str, layout: PixelLayout) -> NDArray:
    size = layout.allocated // 8
    # In uncompressed 4:2:2 two pixels share their colour: Y Y Cb Cr.
    shared = layout.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422")
    count = layout.rows * layout.columns * (2 if shared else layout.samples)
    if len(data) < count * size:
        raise RefusalError(
            f"{len(data)} bytes of pixel data",
            f"{count * size} bytes for {layout.rows} × {layout.columns} pixels",
            "The file is cut short or its header is wrong; copy or export it again.",
        )
    if len(data) >= 2 * count * size + 2:
        raise RefusalError(
            f"{len(data)} bytes of pixel data",
            f"{count * size} bytes for one frame of {layout.rows} × {layout.columns} pixels",
            "It holds more than one frame or its header is wrong; export a single frame.",
        )
    if layout.big_endian and size == 1 and vr == "OW":
        padded = data[: len(data) // 2 * 2]  # 8-bit values were written as big-endian words
        data = np.frombuffer(padded, "<u2").byteswap().tobytes()
    if shared:
        quads = np.frombuffer(data, np.uint8, count).reshape(-1, 4)
        luma = quads[:, :2].reshape(layout.rows, layout.columns, 1)
        return np.repeat(luma, 3, axis=2)
    raw = _shaped(data[: count * size], f"{'>' if layout.big_endian else '<'}u{size}", layout, layout.planar)
    return _used_bits(raw, layout.low_bit, layout.stored, layout.signed)


def _codestream_values(frame: bytes, layout: PixelLayout) -> NDArray:
    """Decode JPEG, JPEG-LS and JPEG 2000."""
    decode = _decoder(layout.syntax)
    size = codestream_size(frame)
    if (size.rows, size.columns, size.samples) != (layout.rows, layout.columns, layout.samples):
        raise RefusalError(
            f"a compressed image of {size.rows} × {size.columns} pixels × {size.samples}",
            f"{layout.rows} × {layout.columns} × {layout.samples} as the header says",
            "Header and pixels belong to different images; export it again.",
        )
    # Both decoders fill up what is missing with grey and report success.
    if b"\xff\xd9" not in frame[-64:]:
        raise RefusalError("a compressed image without its end", "a complete one", "Copy or export the file again.")
    decoded = decode(frame, version=2)
    width = len(decoded) // (size.rows * size.columns * size.samples)
    raw = _shaped(decoded, f"<u{width}", layout, planar=False)
    if not (layout.signed or size.signed):
        return raw
    return _used_bits(raw, 0, size.precision, signed=True)


def _decoder(syntax: str) -> Any:
    if syntax in _JPEG2000:
        name = "openjpeg"
    elif syntax in _JPEG:
        name = "libjpeg"
    else:
        from pydicom.uid import UID

        raise RefusalError(
            f"transfer syntax {UID(syntax).name}",
            "uncompressed, deflated, RLE, JPEG, JPEG-LS or JPEG 2000",
            "Convert the file to an uncompressed transfer syntax.",
        )
    import importlib

    try:
        return importlib.import_module(name).decode_pixel_data
    except ImportError as error:
        raise RefusalError(
            "a compressed image", f"its decoder pylibjpeg-{name}", f"Run: pip install pylibjpeg-{name}"
        ) from error


def _single_frame(data: bytes) -> bytes:
    """Join the fragments of encapsulated pixel data, leaving out the offset table."""
    fragments, at = [], 0
    while data[at : at + 4] == _ITEM:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        fragments.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    if len(fragments) < 2 or at > len(data) or (at < len(data) and data[at : at + 4] != _SEQUENCE_END):
        raise RefusalError(
            "compressed pixel data that are not in fragments, or cut",
            "an offset table and at least one fragment",
            "The file is damaged or its transfer syntax is wrong; export it again.",
        )
    return b"".join(fragments[1:])


def _shaped(data: bytes | bytearray, dtype: str, layout: PixelLayout, planar: bool) -> NDArray:
    """Return native-endian integers [rows, columns, samples]."""
    values = np.frombuffer(data, dtype)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if planar and layout.samples > 1:
        return values.reshape(layout.samples, layout.rows, layout.columns).transpose(1, 2, 0)
    return values.reshape(layout.rows, layout.columns, layout.samples)


def _used_bits(raw: NDArray, low_bit: int, bits: int, signed: bool) -> NDArray:
    """Keep `bits` bits from `low_bit` of unsigned integers; the others may hold overlays. Extend the sign."""
    width = raw.dtype.itemsize * 8
    if bits < width:
        raw = np.left_shift(raw, width - low_bit - bits)  # drops what is above
    if signed:
        raw = raw.view(raw.dtype.str.replace("u", "i"))
    return np.right_shift(raw, width - bits) if bits < width else raw
