"""DICOM pixel data, native or compressed, as stored words and as the values in their bits.

The decoders are called here rather than through pydicom, whose choice of plug-in and whose treatment of colour and of
unused bits differ between 2.4 and 3: the same file must give the same pixels with either.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .codestream import decode, read_codestream
from .dicom_header import PixelLayout
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


def stored_values(dataset: Dataset, layout: PixelLayout) -> tuple[NDArray, NDArray, str]:
    """Read the pixels of a data set whose header says this layout.

    Returns:
        Words as they are stored [rows, columns, samples], unsigned; the values in them, unused bits cleared and the
        sign extended; and the photometric interpretation, which the pixels sometimes know better than the header.

    Raises:
        RefusalError: no pixel data, too few or too many of them, or no decoder.
    """
    data, vr = _pixel_data(dataset)
    if layout.syntax in _NATIVE:
        words = _native_words(data, vr, layout)
    elif layout.syntax == _RLE:
        words = _rle_words(_single_frame(data), layout)
    elif layout.syntax in _JPEG | _JPEG2000:
        return _codestream_values(_single_frame(data), layout)
    else:
        from pydicom.uid import UID

        raise RefusalError(
            f"transfer syntax {UID(layout.syntax).name}",
            "uncompressed, deflated, RLE, JPEG, JPEG-LS or JPEG 2000",
            "Convert the file to an uncompressed transfer syntax.",
        )
    return words, _used_bits(words, layout.low_bit, layout.stored, layout.signed), layout.photometric


def _pixel_data(dataset: Dataset) -> tuple[bytes, str]:
    """Return the bytes of the pixel data and their VR, "" if implicit."""
    # get_item leaves the element raw: resolving its VR would need a header that is complete.
    element = dataset.get_item(_PIXEL_DATA) if _PIXEL_DATA in dataset else None
    if value := getattr(element, "value", None):
        return bytes(value), str(getattr(element, "VR", None) or "")
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise RefusalError("a DICOM image with float pixel data", "integer pixel data", "Export it as integers.")
    hint = "The pixels were left out or the file was cut; export it again."
    raise RefusalError("a DICOM header without pixel data", "integer pixel data", hint)


def _native_words(data: bytes, vr: str, layout: PixelLayout) -> NDArray:
    size, pixels = layout.allocated // 8, layout.rows * layout.columns
    # In uncompressed 4:2:2 two pixels share their colour, Y Y Cb Cr; some say so of three values a pixel.
    shared = layout.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422") and len(data) < 3 * pixels * size
    count = pixels * (2 if shared else layout.samples)
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
    words = np.frombuffer(data, f"{'>' if layout.big_endian else '<'}u{size}", count)
    words = words.astype(words.dtype.newbyteorder("="), copy=False)
    if shared:
        return words.reshape(-1, 4)[:, :2].reshape(layout.rows, layout.columns, 1)
    if layout.planar:
        return words.reshape(layout.samples, layout.rows, layout.columns).transpose(1, 2, 0)
    return words.reshape(layout.rows, layout.columns, layout.samples)


def _rle_words(frame: bytes, layout: PixelLayout) -> NDArray:
    import imagecodecs

    size, pixels = layout.allocated // 8, layout.rows * layout.columns
    offsets = np.frombuffer(frame[:64].ljust(64, b"\0"), "<u4").tolist()
    if offsets[0] != layout.samples * size:
        raise RefusalError(f"{offsets[0]} RLE segments", f"{layout.samples * size} as the header says")
    bounds, planes = [*offsets[1 : offsets[0] + 1], len(frame)], []
    for start, end in pairwise(bounds):
        # What little comes after the pixels is padding; as much again would be another frame, and raises.
        plane = imagecodecs.packbits_decode(frame[start:end], out=max(2 * pixels - 1, pixels + 1))
        if len(plane) < pixels:
            raise RefusalError(f"an RLE segment of {len(plane)} bytes", f"{pixels} bytes")
        planes.append(np.frombuffer(plane, np.uint8, pixels))
    # The most significant byte comes first; little endian has it last.
    in_bytes = np.stack(planes).reshape(layout.samples, size, layout.rows, layout.columns)[:, ::-1]
    words = np.ascontiguousarray(in_bytes.transpose(2, 3, 0, 1)).view(f"<u{size}")[..., 0]
    return words.astype(words.dtype.newbyteorder("="), copy=False)


def _codestream_values(frame: bytes, layout: PixelLayout) -> tuple[NDArray, NDArray, str]:
    """Decode JPEG, JPEG-LS and JPEG 2000."""
    stream = read_codestream(frame)
    if (stream.rows, stream.columns, stream.samples) != (layout.rows, layout.columns, layout.samples):
        raise RefusalError(
            f"a compressed image of {stream.rows} × {stream.columns} pixels × {stream.samples}",
            f"{layout.rows} × {layout.columns} × {layout.samples} as the header says",
            "Header and pixels belong to different images; export it again.",
        )
    decoded = decode(frame, stream)
    words, signed = decoded.view(f"u{decoded.dtype.itemsize}"), layout.signed or stream.signed
    # Whole words are compressed with their unused bits, or values of as many bits as count.
    whole = stream.precision >= layout.low_bit + layout.stored
    low_bit, bits = layout.low_bit if whole else 0, min(stream.precision, layout.stored)
    if layout.lossy and stream.signed == signed:
        # Coding errors may carry a value beyond the bits that count: to cut them would make white of black.
        low, high = (-1 << bits - 1, (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        values = np.clip(decoded >> low_bit, low, high)
    else:
        values = _used_bits(words, low_bit, bits, signed)
    photometric = layout.photometric
    if layout.samples == 3:
        undone = "RGB" if photometric in ("YBR_ICT", "YBR_RCT") else photometric  # by the decoder
        photometric = {"YBR": "YBR_FULL", "RGB": "RGB"}.get(stream.colour, undone)
    return words, values, photometric


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


def _used_bits(words: NDArray, low_bit: int, bits: int, signed: bool) -> NDArray:
    """Keep `bits` bits from `low_bit` of unsigned integers; the others may hold overlays. Extend the sign."""
    width = words.dtype.itemsize * 8
    if bits < width:
        words = np.left_shift(words, width - low_bit - bits)  # drops what is above
    if signed:
        words = words.view(words.dtype.str.replace("u", "i"))
    return np.right_shift(words, width - bits) if bits < width else words
