"""Power of images by spatial frequency: what blur takes away and grids or grain add."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

OCTAVES = (0.03125, 0.0625, 0.125, 0.25, 0.5)  # cycles per pixel: edges of four bands, the last up to Nyquist


def power_spectrum(image: Tensor) -> Tensor:
    """Periodogram |DFT|² under a Hann window, scaled so that white noise of variance s² has the value s² everywhere.

    Args:
        image: [..., H, W]; its mean is taken off first, so that it does not leak into the lowest bands.

    Returns:
        [..., H, W // 2 + 1], frequencies as of `torch.fft.rfft2`.
    """
    height, width = image.shape[-2:]
    rows, columns = (torch.hann_window(side, periodic=False, device=image.device) for side in (height, width))
    window = rows[:, None] * columns
    centred = image.float() - image.float().mean((-2, -1), keepdim=True)
    return torch.fft.rfft2(centred * window).abs().square() / window.square().sum()


def radial_bands(height: int, width: int, edges: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """Weights [bands, H, W // 2 + 1] that average a power spectrum over rings between `edges`, in cycles per pixel."""
    rows = torch.fft.fftfreq(height, device=device)[:, None]
    radius = (rows.square() + torch.fft.rfftfreq(width, device=device).square()).sqrt()
    inside = torch.stack([(radius >= low) & (radius < high) for low, high in pairwise(edges)])
    return inside / inside.sum((1, 2), keepdim=True).clamp_min(1)


def band_power(image: Tensor, edges: Sequence[float] = OCTAVES) -> Tensor:
    """Mean power of images [B, 1, H, W] in each ring between `edges`: [B, bands]."""
    bands = radial_bands(image.shape[-2], image.shape[-1], edges, image.device)
    return torch.einsum("bhw,khw->bk", power_spectrum(image[:, 0]), bands)


def line_power(image: Tensor, period: int) -> Tensor:
    """How far images [B, 1, H, W] show a grid of `period` px: power on its lines over that two lines beside them.

    1 where there is no grid. The lines are the frequencies 1 / period along one axis, averaged over the other's lower
    half, and over the images.
    """
    power = power_spectrum(image[:, 0]).mean(0)
    height, width = image.shape[-2:]
    ratios = []
    for spectrum, side in ((power[:, : width // 4].mean(1), height), (power[: height // 4].mean(0), width)):
        line = round(side / period)
        beside = torch.cat([spectrum[line - 4 : line - 2], spectrum[line + 3 : line + 5]])
        ratios.append(spectrum[line - 1 : line + 2].max() / beside.mean())
    return torch.stack(ratios).mean()
