"""Handler of the segmenter's inference: every image's files, one table of areas, one contact sheet."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DatasetError, UserError
from ..files import result_name
from ..io import read_radiograph
from ..io.contact_sheet import save_contact_sheet
from ..io.mask_writer import AREAS_NAME, MaskWriter, area_row, write_area_table
from ..io.segmentation_classes import ClassTable
from ..pipelines.mask_sheet import mask_tiles

SHEET_NAME = "contact_sheet.png"
SHEET_TITLES = ["image", "segmentation"]
NAMED_FAILURES = 5  # in the message at the end; all are logged

_logger = logging.getLogger(__name__)


class UnwrittenMaskError(UserError, RuntimeError):
    """Some images' files could not be written; those of all others are there."""


class MaskSaver:
    """Writes what `MaskWriter` writes for each image, areas.csv, and contact_sheet.png of the first images.

    What cannot be written for one image is logged and does not stop the others; the run fails at its end. An image
    that only lacks its DICOM SEG has its row of areas.

    Args:
        output_dir: of all files.
        dataset_dir: names of the files keep the path relative to it.
        classes: the labels.
        overlay: draw the overlay of each image.
        nifti: also write NIfTI.
        dicom_seg: also write DICOM SEG for images that are DICOM.
        model: what drew the masks; name and version, for DICOM SEG.
        sheet_images: on the contact sheet at most; 0 leaves it out.
        mask_key: of the labels in what postprocessing gives.

    Raises:
        DatasetError: `dicom_seg` without highdicom.
    """

    def __init__(
        self,
        output_dir: str,
        dataset_dir: str,
        classes: ClassTable,
        overlay: bool,
        nifti: bool,
        dicom_seg: bool,
        model: str,
        sheet_images: int,
        mask_key: str = "pred",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.dataset_dir = Path(dataset_dir).resolve()
        self.classes = classes
        self.writer = MaskWriter(output_dir, classes, overlay, nifti, dicom_seg, model)
        self.sheet_images = sheet_images
        self.mask_key = mask_key
        self.rows: list[dict[str, str | int | float]] = []
        self.failures: list[str] = []
        self.sheet: list[tuple[str, list[Tensor]]] = []
        self.names: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Write masks as they come, sheet and table at the end.

        The engine's output must be decollated: for each image labels [H, W] or [1, H, W], at the image's own size,
        under `mask_key` of the output or, as MONAI puts keys that postprocessing adds, of the batch; the batch also
        has "image_path".
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_batch)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _write_batch(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        for item, result in zip(batch, output, strict=True):
            labels = {**item, **result}[self.mask_key].as_subclass(torch.Tensor).cpu().numpy()
            self._write(str(item["image_path"]), labels.reshape(labels.shape[-2:]))

    def _write(self, path: str, mask: NDArray[np.integer]) -> None:
        name = self._name(path)
        try:
            radiograph = read_radiograph(path)
            try:
                row = self.writer.write(radiograph, mask, name)
            except DatasetError as error:  # the other files are there
                self._fail(path, error)
                row = area_row(name, mask, self.classes, radiograph.spacing_mm)
            self.rows.append(row)
            if len(self.sheet) < self.sheet_images:
                self.sheet.append((name, mask_tiles(radiograph.pixels, [mask], self.classes)))
        except (UserError, OSError, ValueError) as error:
            self._fail(path, error)

    def _fail(self, path: str, error: Exception) -> None:
        text = str(error)
        self.failures.append(text if path in text else f"{path}: {text}")
        _logger.error("not written: %s", self.failures[-1])

    def _name(self, path: str) -> str:
        stem = name = result_name(path, self.dataset_dir)
        number = 1
        while name in self.names:
            number += 1
            name = f"{stem}_{number}"
        self.names.add(name)
        return name

    def _finish(self, engine: Engine) -> None:
        """Write table and sheet of what there is.

        Raises:
            UnwrittenMaskError: something could not be written.
        """
        if self.rows:
            write_area_table(self.rows, self.output_dir / AREAS_NAME)
            _logger.info("%d masks, %s: %s", len(self.rows), AREAS_NAME, os.path.relpath(self.output_dir))
        if self.sheet:
            captions = [name for name, _ in self.sheet]
            rows = [tiles for _, tiles in self.sheet]
            save_contact_sheet(rows, self.output_dir / SHEET_NAME, SHEET_TITLES, captions)
        if self.failures:
            count = len(self.failures)
            raise UnwrittenMaskError(
                f"the files of {count} of {len(self.names)} images could not all be written, those of all others are "
                f"in {self.output_dir}: {'; '.join(self.failures[:NAMED_FAILURES])}"
                + (f"; and {count - NAMED_FAILURES} more, see the log" if count > NAMED_FAILURES else "")
            )
