"""Copies that a privacy check has to find: training images, changed as a generator might change them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

MAX_CONTROL_SHIFT = 0.03  # of the side
CONTROL_BLUR = 0.004  # of the side, sd of a Gaussian
CONTROL_NOISE = 0.02  # sd, white is 1
CONTROL_CONTRAST = (0.9, 1.1)


def altered_copy(image: Tensor, seed: int) -> Tensor:
    """Move an image [1, H, W] in [0, 1] a little, blur it, change its contrast, add noise, as a generator might."""
    generator = np.random.default_rng(seed)
    height, width = image.shape[1:]
    margin = round(MAX_CONTROL_SHIFT * min(height, width))
    top, left = generator.integers(2 * margin + 1, size=2)
    pixels = np.pad(image[0].numpy(), margin, mode="edge")[top : top + height, left : left + width]
    pixels = gaussian_filter(pixels, CONTROL_BLUR * min(height, width), mode="nearest")
    pixels = (pixels - 0.5) * generator.uniform(*CONTROL_CONTRAST) + 0.5
    pixels = pixels + CONTROL_NOISE * generator.standard_normal(pixels.shape)
    return torch.from_numpy(pixels.clip(0, 1).astype(np.float32))[None]
