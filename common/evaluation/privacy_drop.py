"""Take the images that a privacy check flagged out of a generated folder."""

from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path

from ..data.datalist_sources import manifest_items
from ..errors import DatasetError
from ..pipelines.manifest import generation_settings, revise_generation
from .privacy_report import REPORT_NAME, TABLE_NAME

logger = logging.getLogger(__name__)

FLAGGED_FOLDER = "flagged"  # in the generated folder


def drop_flagged(generated_dir: str | Path, report_dir: str | Path) -> list[str]:
    """Take the flagged images out of a generated folder, as the report of a check says.

    Their files, and DICOM files of them, move to `flagged/` in it, to be looked at. Their rows go from manifest.csv to
    dropped.csv, with `flagged` yes, so that neither a training reads them nor a resumed generation makes them again;
    the rows of the other checked images say no. A run that was killed is completed by the next. The contact sheet of
    the generation stays as it is, and so does the report, which is in the output_dir of `PrivacyCheck`.

    Returns:
        The images dropped now, as the manifest named them.

    Raises:
        DatasetError: no report there, one of another folder, or no folder that a generation wrote.
    """
    folder, report_dir = Path(generated_dir), Path(report_dir)
    try:
        report = json.loads((report_dir / REPORT_NAME).read_text("utf-8"))
        with (report_dir / TABLE_NAME).open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{report_dir}: no report of a privacy check there ({error}); run it first") from error
    if (found := report["settings"]["generated_dir"]) != str(folder.resolve()):
        raise DatasetError(
            f"{report_dir}: found the report of {found}; expected that of {folder}. Check that folder first, with an "
            "output_dir of its own, and name that one"
        )
    generation_settings(folder)  # refuses before anything is moved
    is_bad = {line["image"]: line["flagged"] == "yes" for line in table}
    there = [item["image"] for item in manifest_items(folder)]
    listed = {os.path.relpath(image, folder): Path(image) for image in there}
    bad = [image for image in listed if is_bad.get(image)]
    for image in bad:
        for name in (image, f"dicom/{Path(image).stem}.dcm"):
            if (folder / name).is_file():
                (folder / FLAGGED_FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / name, folder / FLAGGED_FOLDER / name)
    revise_generation(folder, is_bad, bad)
    if bad:
        logger.info("%d images moved to %s; do not share them", len(bad), folder / FLAGGED_FOLDER)
    return bad
