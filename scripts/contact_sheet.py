"""One contact sheet of several generated folders: a row or two for each.

python scripts/contact_sheet.py SHEET.png FOLDER [FOLDER ...] [--columns 8]
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from common.command_line import run_command
from common.data.transforms import load_square
from common.errors import DatasetError
from common.io.contact_sheet import save_contact_sheet
from common.pipelines.inputs import read_generated
from common.pipelines.manifest import several


def contact_sheet(sheet: str, *folders: str, columns: int = 8, scale: float = 0.5) -> None:
    """Draw it.

    Args:
        sheet: PNG to write.
        *folders: as inference.yaml writes them; a folder of one source begins with that source.
        columns: images per row.
        scale: of the images.
    """
    rows: list[list[torch.Tensor]] = []
    captions: list[str] = []
    for folder in map(Path, folders):
        if not (folder / "manifest.csv").is_file():
            raise DatasetError(f"{folder}: found no manifest.csv; expected a folder that inference.yaml has written")
        with open(folder / "manifest.csv", newline="", encoding="utf-8") as stream:
            records = list(csv.DictReader(stream))
        images = [read_generated(folder / record["image"]) for record in records]
        sources = {several(record["sources"]) for record in records}
        strategy = records[0]["strategy"] if records else "nothing"
        if len(sources) == 1 and len(source := sources.pop()) == 1:
            images.insert(0, load_square(source[0], images[0].shape[-1]))
            strategy += f": {Path(source[0]).name} first"
        for start in range(0, len(images), columns):
            rows.append(images[start : start + columns])
            captions.append(strategy)
    if not rows:
        raise DatasetError("found no folders with images; expected those that inference.yaml has written")
    print(save_contact_sheet(rows, sheet, None, row_captions=captions, scale=scale))


if __name__ == "__main__":
    run_command(contact_sheet)
