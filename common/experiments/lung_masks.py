"""Radiographs with lung masks of reference, as a CSV lists them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..io.mask_files import read_mask

COLUMNS = ("image", "mask_file", "source", "split")


class LungMasksError(UserError, ValueError):
    """The list of lung masks cannot be used."""


@dataclass(frozen=True)
class LungCase:
    """One radiograph with its mask.

    Attributes:
        name: of its results.
        image, mask: files.
        source: data set that it comes from.
        definition: what the mask counts as lung, "" where the list does not say.
    """

    name: str
    image: Path
    mask: Path
    source: str
    definition: str

    def truth(self) -> NDArray[np.bool_]:
        """Lungs of reference at the mask's own size [H, W]."""
        return read_mask(self.mask) > 0


def lung_cases(data: str | Path, masks: str, split: str) -> list[LungCase]:
    """The cases of a split, in the order of the list.

    Args:
        data: folder that images and masks are relative to.
        masks: name of the CSV in it, with the columns image, mask_file, source, split, and optionally mask_definition.
        split: "train" or "val".

    Raises:
        LungMasksError: there is no such file, column or split.
    """
    path = Path(data) / masks
    if not path.is_file():
        raise LungMasksError(f"{path}: found no such file; expected a CSV with the columns {', '.join(COLUMNS)}")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise LungMasksError(f"{path}: found no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
        rows = [row for row in reader if row["split"] == split]
    if not rows:
        raise LungMasksError(f"{path}: found no row of split {split!r}; give a list that has one")
    return [
        LungCase(
            str(Path(row["image"]).with_suffix("")).replace("/", "__"),
            Path(data) / row["image"],
            Path(data) / row["mask_file"],
            row["source"],
            row.get("mask_definition") or "",
        )
        for row in rows
    ]
