"""A mask drawn over its image in colours, with a legend, for eyes; programs read the mask itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from ..files import atomic_path
from .mask_files import as_uint8
from .segmentation_classes import ClassTable

OPACITY = 0.35  # of areas; outlines are opaque
LEAST_TEXT_SIZE = 14  # px; larger images get larger text
_PAPER, _INK = (255, 255, 255), (0, 0, 0)


def overlay_image(pixels: Tensor, mask: NDArray[np.integer], classes: ClassTable) -> Image.Image:
    """Draw areas of a mask [H, W] with outlines over the image [1, H, W] in [0, 1], in RGB, and a legend below it.

    Pixel (row, column) of the image stays pixel (row, column) of the picture, which is wider than the image only where
    an entry of the legend needs it.

    Raises:
        ValueError: sizes that differ, or labels that the table does not have.
    """
    labels = as_uint8(mask)
    classes.map_mask(labels, None)
    grey = pixels.detach().as_subclass(torch.Tensor).float().clamp(0, 1)[0].cpu().numpy() * 255
    colours = np.array(classes.palette(), np.float32).reshape(-1, 3)[labels]
    drawn = np.where(labels == 0, 0.0, np.where(_outlines(labels), 1.0, OPACITY)).astype(np.float32)[..., None]
    picture = Image.fromarray((grey[..., None] * (1 - drawn) + colours * drawn).round().astype(np.uint8))
    legend = _legend(classes, picture.width)
    sheet = Image.new("RGB", (max(picture.width, legend.width), picture.height + legend.height), _PAPER)
    sheet.paste(picture, (0, 0))
    sheet.paste(legend, (0, picture.height))
    return sheet


def class_layers(mask: NDArray[np.integer], classes: ClassTable) -> list[Image.Image]:
    """Each class of a mask [H, W] alone, drawn as in `overlay_image`, as a transparent RGBA picture to lay over it."""
    labels = as_uint8(mask)
    opacity = np.where(_outlines(labels), 255, round(255 * OPACITY))
    layers = []
    for label, entry in enumerate(classes.classes, start=1):
        layer = Image.new("RGB", labels.shape[::-1], entry.colour)
        layer.putalpha(Image.fromarray(np.where(labels == label, opacity, 0).astype(np.uint8)))
        layers.append(layer)
    return layers


def write_overlay_png(pixels: Tensor, mask: NDArray[np.integer], path: str | Path, classes: ClassTable) -> Path:
    """Write `overlay_image` as PNG, atomically; returns the path."""
    sheet = overlay_image(pixels, mask, classes)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return Path(path)


def _outlines(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The rim of each area inside it; where an area meets the image's border it has none."""
    thickness = max(1, round(max(labels.shape) / 800))  # a single pixel would vanish in a large image
    outlines = np.zeros(labels.shape, bool)
    for label in np.unique(labels[labels > 0]):
        area = labels == label
        outlines |= area & ~ndimage.binary_erosion(area, iterations=thickness, border_value=1)
    return outlines


def _legend(classes: ClassTable, width: int) -> Image.Image:
    """A swatch and a name for each class, in as many lines as the width needs."""
    size = max(LEAST_TEXT_SIZE, round(width / 60))
    font = ImageFont.load_default(size=size)
    gap, line = size // 2, size + size // 2
    places, x, y = [], gap, gap
    for entry in classes.classes:
        length = size + gap + int(font.getlength(entry.name)) + gap
        if x > gap and x + length > width:
            x, y = gap, y + line
        places.append((x, y, x + length))
        x += length + gap
    legend = Image.new("RGB", (max(width, max(right for _, _, right in places)), y + line), _PAPER)
    draw = ImageDraw.Draw(legend)
    for (left, top, _), entry in zip(places, classes.classes, strict=True):
        draw.rectangle((left, top, left + size - 1, top + size - 1), fill=entry.colour, outline=_INK)
        draw.text((left + size + gap, top + size // 2), entry.name, fill=_INK, font=font, anchor="lm")
    return legend
