"""The size of a JPEG, JPEG-LS or JPEG 2000 image, from its own header."""

from __future__ import annotations

from dataclasses import dataclass

from .types import RefusalError

_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_J2K_START = b"\xff\x4f\xff\x51"
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # huffman tables, reserved, arithmetic conditioning


@dataclass(frozen=True)
class CodestreamSize:
    """What a compressed image says about itself."""

    rows: int
    columns: int
    samples: int
    precision: int  # bits per sample
    signed: bool


def codestream_size(frame: bytes) -> CodestreamSize:
    """Read the size, without decoding anything.

    Args:
        frame: one complete compressed image.

    Returns:
        Its size; `signed` is always False for the JPEG family, which knows no sign.

    Raises:
        RefusalError: this is neither JPEG nor JPEG 2000, or it ends before the size.
    """
    if frame.startswith(_J2K_START) or frame.startswith(_JP2_SIGNATURE):
        start = frame.find(_J2K_START)
        siz = frame[start + 6 : start + 6 + 39]  # from Rsiz to the first component
        if start >= 0 and len(siz) == 39:
            x1, y1, x0, y0 = (int.from_bytes(siz[at : at + 4], "big") for at in (2, 6, 10, 14))
            samples, depth = int.from_bytes(siz[34:36], "big"), siz[36]
            return CodestreamSize(y1 - y0, x1 - x0, samples, (depth & 0x7F) + 1, bool(depth & 0x80))
    elif frame.startswith(b"\xff\xd8"):
        size = _jpeg_size(frame)
        if size is not None:
            return size
    raise RefusalError(
        f"compressed pixel data that are no JPEG image (first bytes {frame[:4].hex(' ')})",
        "JPEG, JPEG-LS or JPEG 2000 as the transfer syntax says",
        "The file is damaged or its transfer syntax is wrong; export it again.",
    )


def _jpeg_size(frame: bytes) -> CodestreamSize | None:
    """Walk the marker segments to the frame header; JPEG-LS has its own, F7."""
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES):
            rows, columns = int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
            return CodestreamSize(rows, columns, frame[at + 9], frame[at + 4], False)
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None
