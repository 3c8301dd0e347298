"""The one owner of intensity ranges: images are [0, 1] everywhere; networks and LPIPS see [-1, 1] inside."""

from __future__ import annotations

from torch import Tensor


def to_signed(image: Tensor) -> Tensor:
    """Map an image in [0, 1] to [-1, 1], what autoencoders, diffusion models and LPIPS work on."""
    return image * 2.0 - 1.0


def to_unit(signed: Tensor) -> Tensor:
    """Map [-1, 1] back to [0, 1]; the exact inverse of `to_signed`, without clipping."""
    return (signed + 1.0) * 0.5
