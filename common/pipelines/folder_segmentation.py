"""Folders of dental radiographs to masks, a table of areas and a contact sheet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.dataset import RadiographDataset
from ..data.mask_transforms import PadResized
from ..errors import DatasetError
from ..io import read_radiograph
from ..io.contact_sheet import TEXT_SIZE
from ..io.dicom_seg import require_highdicom
from ..io.mask_files import read_mask
from ..io.mask_writer import AREAS_NAME, area_row, draw_legend, drawn_over, write_area_table
from ..io.read import detect_format
from ..io.segmentation_classes import ClassTable
from .folder_job import FileJob
from .job_log import Item, Row
from .segmenter import DentalSegmenter, Segmentation

_logger = logging.getLogger(__name__)

TILE = 320  # px, longer side of a picture on the contact sheet


class FolderSegmentation(FileJob):
    """What `write_segmentation` writes for each image, areas.csv, and contact_sheet.png of the first images.

    Arguments as of `FileJob` and `write_segmentation`; with other `settings`, which masks depend on, all are drawn
    again. Images of one padded size run together.

    Raises:
        DatasetError: `dicom_seg` without highdicom.
    """

    verb = "segmented"
    sheet_titles = ("image", "segmentation")
    items_per_row = 3

    def __init__(
        self,
        pipeline: DentalSegmenter,
        dataset: RadiographDataset,
        dataset_dir: str,
        output_dir: str,
        settings: Mapping[str, Any],
        overlay: bool,
        nifti: bool,
        dicom_seg: bool,
        batch_size: int,
        sheet_rows: int,
    ) -> None:
        self.formats = {"overlay": overlay, "nifti": nifti, "dicom_seg": dicom_seg}
        made = {**settings, **self.formats, "model": pipeline.model}
        super().__init__(pipeline, dataset, dataset_dir, output_dir, made, batch_size, sheet_rows)
        self.sheet_footer = legend_below(pipeline.classes)
        if dicom_seg:
            require_highdicom()  # before hours of work, not after

    def result(self, item: Item) -> str:
        """The mask."""
        return f"{item.name}_mask.png"

    def compute(self, items: Sequence[Item]) -> list[Segmentation]:
        """Segment."""
        return self.pipeline.segment_all([item.source for item in items])

    def write(self, item: Item, output: Segmentation) -> Row:
        """Write the image's files. One that only lacks its DICOM SEG has its row."""
        problem = {}
        try:
            row = output.save(self.output_dir, item.name, **self.formats)
        except DatasetError as error:  # the other files are there
            problem = {"problem": str(error)}
            row = area_row(item.name, output.mask.numpy(), self.pipeline.classes, output.radiograph.spacing_mm)
        unlikeness = self.unlikeness(output.radiograph.pixels)
        return {"image": row.pop("image"), "source": item.source, "unlikeness": unlikeness, **row, **problem}

    def tabulate(self, rows: Sequence[Row]) -> None:
        """Write areas.csv."""
        if rows:
            write_area_table(rows, self.output_dir / AREAS_NAME)

    def pictures(self, item: Item, row: Row) -> tuple[list[Tensor], str]:
        """The image, and its mask over it."""
        mask = read_mask(self.output_dir / self.result(item))
        return mask_tiles(read_radiograph(item.source).pixels, [mask], self.pipeline.classes), item.name

    def finish(self, items: Sequence[Item], rows: Sequence[Row]) -> str:
        """Also tell of which images no DICOM SEG can be."""
        is_asked = self.formats["dicom_seg"]
        others = [item.name for item in items if is_asked and detect_format(Path(item.source)) != "dicom"]
        if others:
            _logger.warning(
                "no DICOM SEG of %d of %d images, such as %s: they are no DICOM files, and so of no study to which it "
                "could belong; scripts/png_to_dx.py makes DICOM of any format",
                *(len(others), len(items), others[0]),
            )
        return super().finish(items, rows)


def mask_tiles(
    pixels: Tensor, masks: list[NDArray[np.integer]], classes: ClassTable, longer_side: int = TILE
) -> list[Tensor]:
    """An image [1, H, W] in [0, 1], then each mask [H, W] over it; `legend_below` goes with the sheet.

    Returns:
        The image [1, h, w], the longer side of these px, and for each mask its overlay [3, h, w], float32 in [0, 1].

    Raises:
        ValueError: sizes that differ, or labels that the table does not have.
    """
    labels = {f"mask {number}": torch.from_numpy(mask.astype(np.int64))[None] for number, mask in enumerate(masks)}
    resize = PadResized(["image", *labels], longer_side, pad=False)
    item = resize({"image": pixels.as_subclass(torch.Tensor).float(), **labels})
    overlays = [np.array(drawn_over(item["image"], item[key][0].numpy(), classes)) for key in labels]
    return [item["image"], *(torch.from_numpy(overlay).permute(2, 0, 1) / 255 for overlay in overlays)]


def legend_below(classes: ClassTable) -> Callable[[int], Image.Image]:
    """The footer of a contact sheet of `mask_tiles`."""
    return partial(draw_legend, classes, size=TEXT_SIZE)
