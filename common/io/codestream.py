"""JPEG, JPEG-LS and JPEG 2000: what a compressed image says of itself, whether it is whole, and its samples.

imagecodecs decodes (libjpeg-turbo, CharLS, OpenJPEG; BSD), every precision of JPEG included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .scaling import check_size
from .types import RefusalError

_J2K_START, _JP2_START, _END = b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ", b"\xff\xd9"
_SOS, _EOI, _APP0, _APP14 = 0xDA, 0xD9, 0xE0, 0xEE
_COD, _SOT = b"\xff\x52", b"\xff\x90"  # of JPEG 2000: coding style, start of a tile's part
_JPEG_LS, _FRAMES = 0xF7, {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # Huffman tables, reserved, arithmetic coding
_RESTARTS = range(0xD0, 0xD8)
# Entropy-coded data end at a marker; FF 00 is data, and FF with less than 80 in JPEG-LS.
_AFTER_SCAN = re.compile(rb"\xff+[\x80-\xfe]")
_FILLER = bytes(1 + n * 37 % 254 for n in range(96))  # no FF among them
_NEEDED = 32  # bytes at the end of a scan, which some pixels must depend on
_MOST_PIXELS_PER_BYTE = 1000  # radiographs have noise; even at a ratio of 100 there are some 50


class Codestream(NamedTuple):
    """What a compressed image says about itself."""

    rows: int  # of pixels
    columns: int  # of pixels
    samples: int  # per pixel
    precision: int  # bits per sample
    signed: bool  # only JPEG 2000 knows a sign
    kind: str  # "jpeg", "jpeg-ls" or "jpeg2000"
    # "YBR" or "RGB" as decoded, where markers, component ids or the transform of JPEG 2000 tell, else ""
    colour: str = ""


def read_codestream(frame: bytes) -> Codestream:
    """Read the header of one compressed image, without decoding anything.

    Raises `RefusalError` for what is neither JPEG nor JPEG 2000, without its end, or of a size that no radiograph has.
    """
    stream = _read_jpeg2000(frame) if frame.startswith((_J2K_START, _JP2_START)) else _read_jpeg(frame)
    if stream is None:
        raise RefusalError(
            f"compressed pixels that are no JPEG image (first bytes {frame[:4].hex(' ')})",
            "a complete JPEG, JPEG-LS or JPEG 2000 image",
            "The file is damaged or, in DICOM, its transfer syntax is wrong; export it again.",
        )
    check_size(stream.columns, stream.rows)
    if stream.rows * stream.columns > 2**20 + _MOST_PIXELS_PER_BYTE * len(frame):
        raise RefusalError(f"{stream.rows} × {stream.columns} pixels in {len(frame)} bytes", "a radiograph")
    return stream


def decode(frame: bytes, stream: Codestream) -> NDArray:
    """Decode an image to integers [rows, columns, samples] of 8, 16 or 32 bits; what is incomplete or damaged raises.

    Colours are left as they are stored, but for the transform inside of JPEG 2000.
    """
    import imagecodecs

    if stream.kind == "jpeg":
        space = "YCBCR" if stream.samples == 3 else None  # one for both: no conversion
        values = decode_whole_jpeg(frame, partial(imagecodecs.jpeg8_decode, colorspace=space, outcolorspace=space))
    elif stream.kind == "jpeg-ls":
        values = imagecodecs.jpegls_decode(frame)
    else:
        values = imagecodecs.jpeg2k_decode(frame)
    if values.shape == (stream.samples, stream.rows, stream.columns):  # JPEG-LS plane by plane
        values = values.transpose(1, 2, 0)
    return values.reshape(stream.rows, stream.columns, stream.samples)


def decode_whole_jpeg(frame: bytes, decode_jpeg: Callable[[bytes], NDArray]) -> NDArray:
    """Decode a JPEG image, three times: decoders say nothing of what is missing or too much in its scans.

    The second time there is filler behind each scan, as one more restart interval if it has them, which who has all
    pixels skips, and who lacks some takes for pixels. The third time there is filler in place of the last bytes, which
    change nothing where the pixels were complete before, as zeros in place of a lost part easily make them.

    Raises:
        RefusalError: part of the image is missing.
    """
    values = decode_jpeg(frame)
    intervals = list(_intervals(frame))
    filled, at, restarts = bytearray(), 0, 0
    for marker, _, end in intervals:
        if marker in _RESTARTS and marker != _RESTARTS[restarts % 8]:
            raise _incomplete("a JPEG image of which a part is missing")
        more = bytes([0xFF, _RESTARTS[restarts % 8]]) + _FILLER if restarts and marker not in _RESTARTS else b""
        filled += frame[at:end] + _FILLER + more
        restarts = restarts + 1 if marker in _RESTARTS else 0
        at = end
    if not np.array_equal(values, decode_jpeg(bytes(filled + frame[at:]))):
        raise _incomplete("a JPEG image of which a part is missing")
    is_long = bool(intervals) and at - intervals[-1][1] > 2 * _NEEDED
    if is_long and np.array_equal(values, decode_jpeg(frame[: at - _NEEDED] + _FILLER + frame[at:])):
        raise _incomplete("a JPEG image of which a part is missing")
    return values


def _read_jpeg2000(frame: bytes) -> Codestream | None:
    def number(at: int, length: int = 4) -> int:
        return int.from_bytes(frame[at : at + length], "big")

    start = max(frame.find(_J2K_START), 0)
    if len(frame) < start + 45:  # up to the first component
        return None
    transformed, at = False, start + 2
    while frame[at : at + 2] not in (_SOT, _END) and at < len(frame):
        transformed = transformed or (frame[at : at + 2] == _COD and frame[at + 8] == 1)
        at += 2 + number(at + 2, 2)
    while frame[at : at + 2] == _SOT and (length := number(at + 6)):
        at += length
    # Where the lengths of its parts do not lead to the end, it is near that of the bytes, but for zeros or boxes.
    if frame[at : at + 2] != _END and _END not in frame.rstrip(b"\0")[-64:]:
        raise _incomplete("a compressed image without its end")
    x1, y1, x0, y0 = (number(start + 8 + 4 * place) for place in range(4))
    samples, depth = number(start + 40, 2), frame[start + 42]
    colour = "RGB" if transformed and samples == 3 else ""  # the decoder undoes the transform
    return Codestream(y1 - y0, x1 - x0, samples, (depth & 0x7F) + 1, bool(depth & 0x80), "jpeg2000", colour)


def _read_jpeg(frame: bytes) -> Codestream | None:
    found, kind, colour = b"", "", ""
    for marker, body, _ in _segments(frame):
        if marker == _APP0 and body.startswith(b"JFIF\0"):
            colour = "YBR"
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) > 11:
            colour = colour or ("YBR" if body[11] else "RGB")
        elif (marker in _FRAMES or marker == _JPEG_LS) and len(body) > 5 and not found:
            found, kind = body, "jpeg-ls" if marker == _JPEG_LS else "jpeg"
        elif marker == _EOI and found:
            rows, columns = int.from_bytes(found[1:3], "big"), int.from_bytes(found[3:5], "big")
            colour = colour or ("RGB" if found[6::3] == b"RGB" else "")
            return Codestream(rows, columns, found[5], found[0], False, kind, colour)
    if found:
        raise _incomplete("a compressed image without its end")
    return None


def _intervals(frame: bytes) -> Iterator[tuple[int, int, int]]:
    """Of each stretch of entropy-coded data, up to a restart or the scan's end: the marker behind it, start and end."""
    for marker, _, start in _segments(frame):
        if marker == _SOS:
            for match in _AFTER_SCAN.finditer(frame, start):
                yield frame[match.end() - 1], start, match.start()
                if frame[match.end() - 1] not in _RESTARTS:
                    break
                start = match.end()


def _segments(frame: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Walk the markers of the first image: the marker, its content and where that ends, up to the image's end."""
    at = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while at + 1 < len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == _EOI:
            yield marker, b"", at
            return
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        end = at + 2 + max(length, 2)
        yield marker, frame[at + 4 : end], end
        if marker == _SOS:
            scan = next((m for m in _AFTER_SCAN.finditer(frame, end) if frame[m.end() - 1] not in _RESTARTS), None)
            end = len(frame) if scan is None else scan.end() - 2
        at = end


def _incomplete(found: str) -> RefusalError:
    return RefusalError(found, "a complete one", "Copy or export the file again.")
