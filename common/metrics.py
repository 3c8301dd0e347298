"""Per-image metrics: each takes [B, 1, H, W] in [0, 1] and its reference, and gives [B] float32, never a batch mean.

All run in float32 outside autocast: in bfloat16 SSIM's variances (E[x²] − E[x]²) cancel to noise. ValueError where
shapes differ or are others, or a side is too small: below 11 px for SSIM, 176 px for MS-SSIM.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics.regression import MultiScaleSSIMMetric, SSIMMetric
from torch import Tensor

MIN_MSE = 1e-10  # keeps PSNR finite: identical images score 100 dB
SSIM_WINDOW = 11  # pixels; Gaussian, sigma 1.5 (Wang et al. 2004)
MS_SSIM_MIN_SIZE = 176  # pixels: MONAI wants side // 16 > 10, although its message says "larger than 160"


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for data range 1: −10 log10(max(MSE, 1e-10)), so at most 100 dB."""
    image, reference = _check("psnr", image, reference, 1)
    mse = (image - reference).square().mean(dim=(1, 2, 3))
    return -10.0 * torch.log10(mse.clamp(min=MIN_MSE))


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity, −1 to 1 (Wang et al. 2004): Gaussian window 11, sigma 1.5, no padding, data range 1."""
    image, reference = _check("ssim", image, reference, SSIM_WINDOW)
    metric: Any = SSIMMetric(spatial_dims=2, data_range=1.0, win_size=SSIM_WINDOW, kernel_sigma=1.5)
    with torch.autocast(image.device.type, enabled=False):
        return metric(image, reference)[:, 0]


def ms_ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Multi-scale structural similarity, 0 to 1 (Wang et al. 2003): 5 scales, window 11, sigma 1.5, data range 1.

    Negative terms count as 0 (MONAI's choice), so an anticorrelated image scores exactly 0.
    """
    image, reference = _check("ms_ssim", image, reference, MS_SSIM_MIN_SIZE)
    metric: Any = MultiScaleSSIMMetric(spatial_dims=2, data_range=1.0, kernel_size=SSIM_WINDOW, kernel_sigma=1.5)
    with torch.autocast(image.device.type, enabled=False):
        return metric(image, reference)[:, 0]


def _check(name: str, image: Tensor, reference: Tensor, min_size: int) -> tuple[Tensor, Tensor]:
    """Both as float32 plain tensors, after a check of shape and least side."""
    if image.shape != reference.shape or image.ndim != 4 or image.shape[1] != 1:
        raise ValueError(
            f"{name}: found image {tuple(image.shape)} and reference {tuple(reference.shape)}; "
            "expected two tensors of the same shape [B, 1, H, W]."
        )
    if min(image.shape[2:]) < min_size:
        raise ValueError(
            f"{name}: found images of {image.shape[2]}×{image.shape[3]} pixels; expected sides of at least {min_size}. "
            "Use larger images or leave this metric out."
        )
    return plain(image), plain(reference)


def plain(image: Tensor) -> Tensor:
    """The image as a plain float32 `torch.Tensor`: MONAI's MetaTensor is slow and drags its metadata along."""
    return image.as_subclass(torch.Tensor).float()
