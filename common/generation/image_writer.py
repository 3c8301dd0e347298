"""Generated images as PNG files that say of themselves that they are synthetic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..files import atomic_path


def stored_values(pixels: Tensor, bits: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Round an image to the integers that a file holds: 0 is black, 2^bits - 1 is white.

    Args:
        pixels: [1, H, W] in [0, 1].
        bits: 8 or 16.

    Returns:
        uint8 or uint16 [H, W].

    Raises:
        ValueError: another shape, other values (NaN included) or other bits.
    """
    if bits not in (8, 16):
        raise ValueError(f"image file: found bits {bits}; expected 8 or 16.")
    if pixels.ndim != 3 or pixels.shape[0] != 1 or not pixels.numel():
        raise ValueError(f"image file: found pixels {tuple(pixels.shape)}; expected [1, H, W].")
    # In float32 a value next to a rounding threshold of 16 bits may fall on the wrong side of it.
    values = pixels.detach().as_subclass(torch.Tensor).cpu().double()[0]
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"image file: found pixels from {low:.4g} to {high:.4g}; expected [0, 1]. Clamp them first.")
    levels = (values * (2**bits - 1)).round().numpy()
    return levels.astype(np.uint8) if bits == 8 else levels.astype(np.uint16)


def write_png(pixels: Tensor, path: str | Path, bits: int = 8, provenance: Mapping[str, str] | None = None) -> Path:
    """Write a generated image as a grey PNG, atomically; the same arguments give the same bytes.

    The file carries the text `Synthetic: true` and the provenance, so that a picture that leaves its folder still
    says what it is; `PIL.Image.open(path).text` shows it.

    `read_radiograph` gives an 8-bit file back exactly (to the rounding). A 16-bit one it stretches between its 0.5 and
    99.5 percentiles, as it does every 16-bit image whose header has no window; for 16 bits that come back as they
    were, use `synthetic_dicom`.

    Args:
        pixels: [1, H, W] in [0, 1].
        path: of the file; its folder is made if need be.
        bits: 8 or 16.
        provenance: how the image was made, a text each; nothing that names a patient.

    Returns:
        The path.

    Raises:
        ValueError: as `stored_values`.
    """
    image = Image.fromarray(stored_values(pixels, bits))
    text = PngInfo()
    for key, value in {**(provenance or {}), "Synthetic": "true"}.items():
        text.add_text(key, value)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text)
    return Path(path)
