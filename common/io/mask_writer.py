"""What a segmentation leaves for each image: mask, overlay, optional NIfTI and DICOM SEG, and a row of areas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import write_csv
from .dicom_seg import require_highdicom, write_dicom_seg
from .formats import detect_format
from .mask_files import as_uint8, write_mask_png, write_nifti_mask
from .mask_overlay import write_overlay_png
from .segmentation_classes import ClassTable
from .types import Radiograph

AREAS_NAME = "areas.csv"
AREA_DECIMALS = 4  # of mm²: a pixel of 0.01 mm


def area_row(
    name: str, mask: NDArray[np.integer], classes: ClassTable, spacing_mm: tuple[float, float] | None
) -> dict[str, str | int | float]:
    """Areas of one image: `<class>_px` and, where the spacing is known, `<class>_mm2`; else "".

    Args:
        name: of the image.
        mask: labels [H, W].
        classes: the labels.
        spacing_mm: (down the rows, along the columns), or None.
    """
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
    """Write rows of `area_row` as CSV, atomically; returns the path.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("area table: found no rows; expected one for each image.")
    columns = list(rows[0])
    write_csv(path, columns, [[row[column] for column in columns] for row in rows])
    return Path(path)


@dataclass(frozen=True)
class MaskWriter:
    """Writes one image's files: `<name>_mask.png`, `<name>_overlay.png`, `<name>_mask.nii.gz`, `<name>_seg.dcm`.

    Each file is whole or absent.

    Attributes:
        output_dir: made if need be.
        classes: the labels.
        overlay: draw the overlay.
        nifti: also write NIfTI, with the image's spacing, and its position if it is NIfTI itself.
        dicom_seg: also write DICOM SEG for the images that are DICOM; the others have no study to belong to.
        model: what drew the masks, for DICOM SEG; name and version.

    Raises:
        DatasetError: `dicom_seg` without highdicom.
    """

    output_dir: str | Path
    classes: ClassTable
    overlay: bool
    nifti: bool
    dicom_seg: bool
    model: str

    def __post_init__(self) -> None:
        if self.dicom_seg:
            require_highdicom()  # before hours of work, not after

    def write(self, radiograph: Radiograph, mask: NDArray[np.integer], name: str) -> dict[str, str | int | float]:
        """Write all files of one image.

        Args:
            radiograph: as read.
            mask: labels [H, W], of the radiograph's rows and columns.
            name: of the files, without suffix; another for each image.

        Returns:
            Its row of areas; collect them for `write_area_table`.

        Raises:
            ValueError: another size than the radiograph's, or labels that the table does not have.
            DatasetError: the radiograph's DICOM file cannot be referred to; the other files are there.
        """
        size = tuple(radiograph.pixels.shape[-2:])
        if mask.shape != size:
            raise ValueError(f"{radiograph.path}: found a mask {mask.shape}; expected {size}, the image's [H, W].")
        stem = Path(self.output_dir) / name
        write_mask_png(mask, f"{stem}_mask.png", self.classes)
        if self.overlay:
            write_overlay_png(radiograph.pixels, mask, f"{stem}_overlay.png", self.classes)
        if self.nifti:
            write_nifti_mask(mask, f"{stem}_mask.nii.gz", radiograph.spacing_mm, radiograph.path, self.classes.name)
        if self.dicom_seg and detect_format(radiograph.path) == "dicom":
            write_dicom_seg(mask, f"{stem}_seg.dcm", self.classes, radiograph.path, self.model)
        return area_row(name, mask, self.classes, radiograph.spacing_mm)
