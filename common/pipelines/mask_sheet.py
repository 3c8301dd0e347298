"""Small pictures of images and of masks drawn over them, for contact sheets."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.mask_transforms import PadResized
from ..io.mask_overlay import overlay_image
from ..io.segmentation_classes import ClassTable

CELL = 320  # px


def mask_tiles(
    pixels: Tensor, masks: list[NDArray[np.integer]], classes: ClassTable, longer_side: int = CELL
) -> list[Tensor]:
    """The image, then each mask over it with its legend, which is drawn after resizing and so can be read.

    Args:
        pixels: [1, H, W] in [0, 1].
        masks: labels [H, W].
        classes: the labels.
        longer_side: px, of each picture without its legend.

    Returns:
        The image [1, h, w], and for each mask its overlay [3, h + legend, w or more], float32 in [0, 1].

    Raises:
        ValueError: sizes that differ, or labels that the table does not have.
    """
    labels = {f"mask {number}": torch.from_numpy(mask.astype(np.int64))[None] for number, mask in enumerate(masks)}
    resize = PadResized(["image", *labels], longer_side, multiple=1)
    item = resize({"image": pixels.as_subclass(torch.Tensor).float(), **labels})
    overlays = [np.array(overlay_image(item["image"], item[key][0].numpy(), classes)) for key in labels]
    return [item["image"], *(torch.from_numpy(overlay).permute(2, 0, 1) / 255 for overlay in overlays)]
