"""Augmented views of a radiograph, as DiNO-Diffusion trains on (arXiv 2407.11594, section 2.5)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MAX_SHEAR = 0.05  # of the side
MAX_TRANSLATION = 0.05  # of the side
SCALE_RANGE = (0.9, 1.4)
MAX_SHARPENING = 1.0  # weight of image - blurred


def augmented_view(image: Tensor, seed: int) -> Tensor:
    """Random shear, translation, scale and sharpening of [1, H, W] in [0, 1]; never a mirror image.

    A mirrored chest has its heart on the wrong side. What lies outside the image repeats its border.

    Args:
        image: the radiograph.
        seed: the same seed gives the same view.
    """
    generator = np.random.default_rng(seed)
    shear = generator.uniform(-MAX_SHEAR, MAX_SHEAR, 2)
    translation = generator.uniform(-MAX_TRANSLATION, MAX_TRANSLATION, 2) * 2  # grid coordinates span 2
    scale = math.exp(generator.uniform(*np.log(SCALE_RANGE)))
    matrix = torch.tensor([[1.0, shear[0], translation[0]], [shear[1], 1.0, translation[1]]], dtype=torch.float32)
    matrix[:, :2] /= scale
    grid = F.affine_grid(matrix[None], [1, *image.shape], align_corners=False)
    moved = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    sharpened = moved + generator.uniform(0.0, MAX_SHARPENING) * (moved - blurred)
    return sharpened[0].clamp(0.0, 1.0)
