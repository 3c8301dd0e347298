"""What a segmentation leaves for each image: mask, overlay, optional NIfTI and DICOM SEG, and a row of areas.

The overlay, a mask drawn over its image in colours, with a legend, is for eyes; programs read the mask itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from ..files import atomic_path, write_csv
from .contact_sheet import below_each_other
from .dicom_seg import write_dicom_seg
from .mask_files import as_uint8, write_mask_png, write_nifti_mask
from .read import detect_format
from .segmentation_classes import ClassTable
from .types import Radiograph

AREAS_NAME = "areas.csv"
AREA_DECIMALS = 4  # of mm²: a pixel of 0.01 mm
OPACITY = 0.35  # of areas; outlines are opaque
LEAST_TEXT_SIZE = 14  # px; larger images get larger text
_PAPER, _INK = (255, 255, 255), (0, 0, 0)


def area_row(
    name: str, mask: NDArray[np.integer], classes: ClassTable, spacing_mm: tuple[float, float] | None
) -> dict[str, str | int | float]:
    """Areas of one mask [H, W]: `<class>_px` and, where the spacing is known, `<class>_mm2`; else ""."""
    counts = np.bincount(as_uint8(mask).ravel(), minlength=classes.num_labels)
    row_mm, column_mm = spacing_mm or ("", "")
    row: dict[str, str | int | float] = {"image": name, "rows": mask.shape[0], "columns": mask.shape[1]}
    row |= {"row_spacing_mm": row_mm, "column_spacing_mm": column_mm}
    for label, entry in enumerate(classes.classes, start=1):
        pixels = int(counts[label])
        row[f"{entry.key}_px"] = pixels
        row[f"{entry.key}_mm2"] = round(pixels * math.prod(spacing_mm), AREA_DECIMALS) if spacing_mm else ""
    return row


def write_area_table(rows: Sequence[Mapping[str, str | int | float]], path: str | Path) -> Path:
    """Write rows of `area_row`, at least one, as CSV, atomically; returns the path."""
    columns = list(rows[0])
    write_csv(path, columns, [[row[column] for column in columns] for row in rows])
    return Path(path)


def write_segmentation(
    radiograph: Radiograph,
    mask: NDArray[np.integer],
    stem: Path,
    classes: ClassTable,
    model: str,
    overlay: bool,
    nifti: bool,
    dicom_seg: bool,
) -> dict[str, str | int | float]:
    """Write one image's files, each whole or absent: `<stem>_mask.png`, and those that are asked for.

    These are `<stem>_overlay.png`, a picture in colours with its legend; `<stem>_mask.nii.gz`, with the image's
    spacing, and its position if it is NIfTI itself; and `<stem>_seg.dcm`, drawn by `model` (name and version), of an
    image that is DICOM. The mask has labels [H, W], of the radiograph's rows and columns.

    Returns:
        Its row of areas, for `write_area_table`.

    Raises:
        ValueError: another size than the radiograph's, or labels that the table does not have.
        DatasetError: the radiograph's DICOM file cannot be referred to; the other files are there.
    """
    size = tuple(radiograph.pixels.shape[-2:])
    if mask.shape != size:
        raise ValueError(f"{radiograph.path}: found a mask {mask.shape}; expected {size}, the image's [H, W].")
    write_mask_png(mask, f"{stem}_mask.png", classes)
    if overlay:
        with atomic_path(f"{stem}_overlay.png") as temporary:
            overlay_image(radiograph.pixels, mask, classes).save(temporary, format="PNG")
    if nifti:
        write_nifti_mask(mask, f"{stem}_mask.nii.gz", radiograph.spacing_mm, radiograph.path, classes.name)
    if dicom_seg and detect_format(radiograph.path) == "dicom":
        write_dicom_seg(mask, f"{stem}_seg.dcm", classes, radiograph.path, model)
    return area_row(stem.name, mask, classes, radiograph.spacing_mm)


def overlay_image(pixels: Tensor, mask: NDArray[np.integer], classes: ClassTable) -> Image.Image:
    """Draw areas of a mask [H, W] with outlines over the image [1, H, W] in [0, 1], in RGB, and a legend below it.

    Pixel (row, column) of the image stays pixel (row, column) of the picture, which is wider than the image only where
    an entry of the legend needs it. Raises `ValueError` for sizes that differ, and labels that the table does not have.
    """
    picture = drawn_over(pixels, mask, classes)
    return below_each_other(picture, draw_legend(classes, picture.width))


def drawn_over(pixels: Tensor, mask: NDArray[np.integer], classes: ClassTable) -> Image.Image:
    """The picture of `overlay_image`, of exactly the image's size, without the legend."""
    labels = as_uint8(mask, classes)
    grey = pixels.detach().as_subclass(torch.Tensor).float().clamp(0, 1)[0].cpu().numpy() * 255
    colours = np.array(classes.palette(), np.float32).reshape(-1, 3)[labels]
    drawn = np.where(labels == 0, 0.0, np.where(_outlines(labels), 1.0, OPACITY)).astype(np.float32)[..., None]
    return Image.fromarray((grey[..., None] * (1 - drawn) + colours * drawn).round().astype(np.uint8))


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


def _outlines(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The rim of each area inside it; where an area meets the image's border it has none."""
    thickness = max(1, round(max(labels.shape) / 800))  # a single pixel would vanish in a large image
    outlines = np.zeros(labels.shape, bool)
    for label in np.unique(labels[labels > 0]):
        area = labels == label
        outlines |= area & ~ndimage.binary_erosion(area, iterations=thickness, border_value=1)
    return outlines


def draw_legend(classes: ClassTable, width: int, size: int | None = None) -> Image.Image:
    """A swatch and a name for each class, in as many lines as the width needs, in text of `size` px."""
    size = size or max(LEAST_TEXT_SIZE, round(width / 60))
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
