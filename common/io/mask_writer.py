"""What a segmentation leaves for each image: mask, overlay, optional NIfTI and DICOM SEG, and a row of areas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import write_csv
from .dicom_seg import write_dicom_seg
from .mask_files import as_uint8, write_mask_png, write_nifti_mask
from .mask_overlay import write_overlay_png
from .read import detect_format
from .segmentation_classes import ClassTable
from .types import Radiograph

AREAS_NAME = "areas.csv"
AREA_DECIMALS = 4  # of mm²: a pixel of 0.01 mm


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
    image that is DICOM: others have no study to belong to. The mask has labels [H, W], of the radiograph's rows and
    columns.

    Returns:
        Its row of areas; collect them for `write_area_table`.

    Raises:
        ValueError: another size than the radiograph's, or labels that the table does not have.
        DatasetError: the radiograph's DICOM file cannot be referred to; the other files are there.
    """
    size = tuple(radiograph.pixels.shape[-2:])
    if mask.shape != size:
        raise ValueError(f"{radiograph.path}: found a mask {mask.shape}; expected {size}, the image's [H, W].")
    write_mask_png(mask, f"{stem}_mask.png", classes)
    if overlay:
        write_overlay_png(radiograph.pixels, mask, f"{stem}_overlay.png", classes)
    if nifti:
        write_nifti_mask(mask, f"{stem}_mask.nii.gz", radiograph.spacing_mm, radiograph.path, classes.name)
    if dicom_seg and detect_format(radiograph.path) == "dicom":
        write_dicom_seg(mask, f"{stem}_seg.dcm", classes, radiograph.path, model)
    return area_row(stem.name, mask, classes, radiograph.spacing_mm)
