"""DICOM RLE Lossless (PS3.5 annex G).

pylibjpeg-rle is fast, but a damaged stream makes its Rust code panic, which is no `Exception` and ends a worker.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .types import RefusalError

_HEADER_BYTES = 64


def decode_rle(frame: bytes, pixels: int, samples: int, sample_bytes: int) -> NDArray:
    """Decode one frame.

    Args:
        frame: header and segments.
        pixels: rows × columns.
        samples: samples per pixel.
        sample_bytes: bytes per sample, 1, 2 or 4.

    Returns:
        Unsigned native-endian integers [samples, pixels].

    Raises:
        RefusalError: the segments are not those of such an image.
    """
    count = samples * sample_bytes
    offsets = np.frombuffer(frame[:_HEADER_BYTES].ljust(_HEADER_BYTES, b"\0"), "<u4").tolist()
    if offsets[0] != count:
        raise RefusalError(
            f"{offsets[0]} RLE segments", f"{count} as the header says", "The file is damaged; export it again."
        )
    bounds = [*offsets[1 : count + 1], len(frame)]
    planes = np.empty((samples, pixels, sample_bytes), np.uint8)
    for index in range(count):
        plane = _unpack(frame[bounds[index] : bounds[index + 1]], pixels)
        # The most significant byte comes first; little endian has it last.
        planes[index // sample_bytes, :, sample_bytes - 1 - index % sample_bytes] = np.frombuffer(plane, np.uint8)
    values = planes.view(f"<u{sample_bytes}")[..., 0]
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _unpack(segment: bytes, length: int) -> bytes:
    """Undo PackBits, the same for every segment; what little comes after `length` bytes is padding."""
    out, at, end = bytearray(), 0, len(segment)
    while at < end and len(out) < 2 * length:
        control = segment[at]
        if control < 128:
            out += segment[at + 1 : at + 2 + control]
            at += 2 + control
        elif control > 128:
            out += segment[at + 1 : at + 2] * (257 - control)
            at += 2
        else:
            at += 1
    if not length <= len(out) < 2 * length:
        raise RefusalError(
            f"an RLE segment of {'at least ' * (len(out) > length)}{len(out)} bytes",
            f"{length} bytes",
            "The file is damaged, holds several frames or its header is wrong; export it again.",
        )
    return bytes(out[:length])
