"""The codecs a KL autoencoder is compared with on the same images: bicubic at its factor, JPEG at its bytes."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

MAX_QUALITY = 100


def bicubic_down_up(image: Tensor, factor: int = 8) -> Tensor:
    """Shrink by `factor` and enlarge again, both bicubic, in float32: [B, 1, H, W] in [0, 1] -> the same.

    Clamped to [0, 1], since bicubic overshoots at edges. H or W that the factor does not divide is a ValueError.
    """
    if image.ndim != 4 or image.shape[1] != 1 or image.shape[2] % factor or image.shape[3] % factor:
        raise ValueError(
            f"bicubic_down_up: found images {tuple(image.shape)}; expected [B, 1, H, W] with multiples of the factor "
            f"{factor}, as an autoencoder with that factor needs. Crop or resize the images first."
        )
    size = image.shape[2] // factor, image.shape[3] // factor
    small = F.interpolate(image.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    return F.interpolate(small, size=image.shape[2:], mode="bicubic", align_corners=False).clamp(0, 1)


def jpeg_at_bytes(image: Tensor, max_bytes: int) -> tuple[Tensor, Tensor]:
    """Each image through a grey 8-bit JPEG of the highest quality (1 to 100) whose whole file is ≤ max_bytes.

    Binary search, which takes file size to grow with quality (it dips now and then, by too little to change the
    choice on 160 real trials); Huffman tables optimised; header bytes count. If even quality 1 is larger, that is what
    is returned: compare the byte counts with max_bytes.

    Images are [B, 1, H, W] in [0, 1], on any device; they are rounded to 8 bits before encoding.

    Returns:
        The decoded images [B, 1, H, W] float32 on image's device, and the file sizes [B] int64 on the CPU.

    Raises:
        ValueError: not [B, 1, H, W], not finite, or max_bytes below 1.
    """
    if image.ndim != 4 or image.shape[1] != 1 or not bool(torch.isfinite(image).all()) or max_bytes < 1:
        raise ValueError(
            f"jpeg_at_bytes: found images {tuple(image.shape)}, max_bytes {max_bytes}; expected finite values "
            "[B, 1, H, W] in [0, 1], and at least 1 byte for each image."
        )
    grey = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()[:, 0]
    files = [_best_jpeg(pixels, max_bytes) for pixels in grey]
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    sizes = torch.tensor([len(file) for file in files], dtype=torch.int64)
    return (torch.from_numpy(decoded)[:, None].float() / 255).to(image.device), sizes


def _best_jpeg(pixels: np.ndarray, max_bytes: int) -> bytes:
    """The largest-quality file within max_bytes, or the one of quality 1."""

    def encoded(quality: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, optimize=True)
        return buffer.getvalue()

    best = encoded(1)
    low, high = 2, MAX_QUALITY  # everything below low is known to fit, everything above high known not to
    while low <= high and len(best) <= max_bytes:
        quality = (low + high) // 2
        file = encoded(quality)
        if len(file) <= max_bytes:
            best, low = file, quality + 1
        else:
            high = quality - 1
    return best
