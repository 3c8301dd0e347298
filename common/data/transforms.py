"""Dict transforms from a path to a network's input: images are [1, H, W] float32 in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import SettingsError
from ..io import Radiograph, read_radiograph


class LoadRadiographd(MapTransform):
    """Replace the path under each key by its pixels [1, H, W] in [0, 1]; a radiograph that was read is taken as it is.

    Adds `<key>_path`, and `<key>_spacing_mm` [2]: mm (down the rows, along the columns), NaN where unknown.

    Raises:
        UnreadableRadiographError: names the file, what was found and what was expected.
    """

    def __call__(self, data: dict) -> dict:
        """Load every key of one item."""
        item = dict(data)
        for key in self.keys:
            radiograph = item[key] if isinstance(item[key], Radiograph) else read_radiograph(item[key])
            item[key] = radiograph.pixels
            item[f"{key}_path"] = str(radiograph.path)
            spacing = radiograph.spacing_mm or (float("nan"), float("nan"))
            item[f"{key}_spacing_mm"] = torch.tensor(spacing, dtype=torch.float64)
        return item


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize [C, H, W] to rows and columns, bilinear with antialiasing; one that fits is untouched."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return interpolate(image[None], size=list(size), mode="bilinear", antialias=True, align_corners=False)[0]


def resize_shorter_side(image: Tensor, size: int) -> Tensor:
    """Resize [1, H, W] so that its shorter side is `size`, keeping the aspect; one that fits is untouched."""
    factor = size / min(image.shape[-2:])
    return resized(image, [max(size, round(side * factor)) for side in image.shape[-2:]])


def center_square(image: Tensor, size: int) -> Tensor:
    """Shorter side to `size` px, then the central square: [1, H, W] -> [1, size, size]."""
    image = resize_shorter_side(image, size)
    top, left = (image.shape[-2] - size) // 2, (image.shape[-1] - size) // 2
    return image[:, top : top + size, left : left + size].contiguous()


def load_square(path: str | Path, size: int) -> Tensor:
    """Read a radiograph as the networks see it, [1, size, size] in [0, 1]; raises as `read_radiograph`."""
    return center_square(read_radiograph(path).pixels, size)


class LoadSquared(MapTransform):
    """Replace the path under each key by what `load_square` reads, and keep the path under `<key>_path`."""

    def __init__(self, keys: Sequence[str], size: int) -> None:
        super().__init__(keys)
        if size < 1:
            raise SettingsError(f"image_size: expected at least 1 px, found {size}")
        self.size = size

    def __call__(self, data: dict) -> dict:
        """Load every key of one item."""
        item = dict(data)
        for key in self.keys:
            item[f"{key}_path"] = str(item[key])
            item[key] = load_square(item[key], self.size)
        return item


def random_patches(image: Tensor, size: int, seeds: Sequence[int]) -> Tensor:
    """Cut a random square out of each image of a batch: [B, C, H, W] -> [B, C, size, size].

    Each has a seed of its own, so that its patch depends neither on the batch nor on the process. Images that are
    smaller than the patch raise `ValueError`.
    """
    height, width = image.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"expected images of at least {size} px per side, found {height} × {width}")
    patches = []
    for picture, seed in zip(image, seeds, strict=True):
        generator = np.random.default_rng(seed)
        top, left = generator.integers(height - size + 1), generator.integers(width - size + 1)
        patches.append(picture[:, top : top + size, left : left + size])
    return torch.stack(patches)
