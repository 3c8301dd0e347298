"""The one owner of intensity ranges: [0, 1] everywhere, [-1, 1] in networks and LPIPS, integers in files."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_signed(image: Tensor) -> Tensor:
    """Map an image in [0, 1] to [-1, 1], what autoencoders, diffusion models and LPIPS work on."""
    return image * 2.0 - 1.0


def to_unit(signed: Tensor) -> Tensor:
    """Map [-1, 1] back to [0, 1]; the exact inverse of `to_signed`, without clipping."""
    return (signed + 1.0) * 0.5


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
