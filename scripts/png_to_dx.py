"""Radiographs of every format that is read here as DICOM DX files, so that OHIF can show masks over them.

python scripts/png_to_dx.py INPUT --output_dir DIR --body_part JAW --pixel_spacing "[0.1, 0.1]"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.checks import check_apart
from common.command_line import run_command
from common.data.datalist_sources import listed_images
from common.errors import DatasetError, SettingsError, UserError
from common.files import result_names, write_csv
from common.io import read_radiograph
from common.io.dicom_dx import DxSettings, dx_dataset, write_dx
from common.io.read import source_history
from common.io.types import plausible_spacing
from common.progress import ProgressBar

TABLE_NAME = "png_to_dx.csv"
WRITTEN, THERE, FAILED = "written", "there already", "failed"
COLUMNS = ("source", "result", "file", "patient_id", "study_instance_uid", "sop_instance_uid", "spacing_known", "note")
Row = dict[str, str]  # what became of one file, by column


def png_to_dx(
    source: str,
    *,
    output_dir: str,
    modality: str = "DX",
    pixel_spacing: Sequence[float] | float | None = None,
    body_part: str = "",
    laterality: str = "",
    bits: int = 16,
    patient_prefix: str = "ANON",
    uid_seed: str = "",
    overwrite: bool = False,
) -> None:
    """Write a .dcm for each radiograph, and png_to_dx.csv, which says which file was made of which.

    The same picture always gets the same patient and study, so that converting again duplicates nothing in an archive.
    Headers are not copied, but file names are kept in the names of the results and in the table, and text that is
    burned into the pixels stays there: look at the pictures and at their names before you give them away.

    Args:
        source: a radiograph, a folder (all radiographs below it), or a folder with manifest.csv (its images).
        output_dir: folder for the results.
        modality: DX, or IO for the intra-oral class (MONAI Label then needs its search filter set to IO).
        pixel_spacing: mm, "[row, column]" or one number for both, of the files that do not say; without it they get
            1.0 mm and a comment that it is unknown.
        body_part: Body Part Examined, such as JAW or CHEST.
        laterality: R, L, B or, for DX, U.
        bits: stored, 12 or 16.
        patient_prefix: of PatientID.
        uid_seed: another text makes other UIDs and patients.
        overwrite: replace files that hold something else.
    """
    settings = DxSettings(
        modality=str(modality),
        bits=bits,
        body_part=str(body_part).upper(),
        laterality=str(laterality).upper(),
        patient_prefix=str(patient_prefix),
        uid_seed=str(uid_seed),
    )
    spacing = parse_spacing(pixel_spacing)
    folder = Path(str(output_dir)).expanduser()
    root, files = list_files(Path(str(source)).expanduser(), folder)
    names = result_names([str(file) for file in files], root)
    named = ProgressBar(zip(files, names, strict=True), "converting", len(files), unit="image")
    rows = [convert(file, folder / f"{name}.dcm", settings, spacing, overwrite) for file, name in named]
    note_same_pictures(rows)
    write_csv(folder / TABLE_NAME, COLUMNS, [[row.get(column, "") for column in COLUMNS] for row in rows])
    report(rows, folder)


def parse_spacing(value: Any) -> tuple[float, float] | None:
    """Spacing in mm from the command line: two numbers, one for both, or None; a SettingsError for anything else."""
    if value is None:
        return None
    try:
        values = [float(number) for number in ([value, value] if isinstance(value, int | float) else value)]
        spacing = plausible_spacing(values)
    except (TypeError, ValueError):
        spacing = None
    if spacing is None:
        raise SettingsError(
            f'--pixel_spacing: found {value!r}; expected mm as "[0.1, 0.1]", rows first, or one number.'
        )
    return spacing


def list_files(source: Path, output_dir: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the radiographs, without results that lie in it.

    Raises:
        DatasetError: there is nothing to convert.
    """
    if source.is_file():
        return source.parent, [source]
    check_apart("output_dir", output_dir, source)
    if not source.is_dir():
        raise DatasetError(f"{source}: found nothing there; expected a radiograph or a folder of them")
    files = (Path(item["image"]) for item in listed_images(source))
    return source, [file for file in files if not file.resolve().is_relative_to(output_dir.resolve())]


def convert(
    file: Path, target: Path, settings: DxSettings, spacing: tuple[float, float] | None, overwrite: bool
) -> Row:
    """Convert one file; what goes wrong becomes the row's note."""
    import pydicom

    row = {"source": str(file), "result": WRITTEN}
    try:
        radiograph = read_radiograph(file)
        history = source_history(file)
        if history.burned_in:
            raise SettingsError("its header says that text in the pixels names the patient; blank that text first")
        known = radiograph.spacing_mm or spacing
        dataset = dx_dataset(radiograph.pixels, settings, known, history.lossy)
        uids = {"study_instance_uid": str(dataset.StudyInstanceUID), "sop_instance_uid": str(dataset.SOPInstanceUID)}
        found = {**row, "file": target.name, "patient_id": dataset.PatientID, **uids}
        found["spacing_known"] = "yes" if known else "no"
        if target.exists() and not overwrite:
            there = str(pydicom.dcmread(target, force=True, stop_before_pixels=True).get("SOPInstanceUID", ""))
            if there == uids["sop_instance_uid"]:
                return {**found, "result": THERE}
            raise SettingsError(f"{target} holds something else; give --overwrite, or another --output_dir")
        write_dx(dataset, target, radiograph.pixels)
        return found
    except (UserError, OSError, ValueError) as error:
        return {**row, "result": FAILED, "note": " ".join(str(error).removeprefix(f"{file}: ").split())}
    except Exception as error:  # a header that pydicom cannot make sense of
        return {**row, "result": FAILED, "note": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def note_same_pictures(rows: Sequence[Row]) -> None:
    """Say of a picture that was there under another name that an archive keeps one of the two."""
    first: dict[str, str] = {}
    for row in rows:
        uid = row.get("sop_instance_uid")
        if uid and first.setdefault(uid, row["source"]) != row["source"]:
            row["note"] = f"same picture as {first[uid]}, same UIDs"


def report(rows: Sequence[Row], folder: Path) -> None:
    """Print what needs a look, then the count; end with 1 if something failed."""
    for row in rows:
        if "note" in row:
            print(f"{row['result']:<13}  {row['source']}  {row['note']}")
    counts = [f"{sum(row['result'] == result for row in rows)} {result}" for result in (WRITTEN, THERE, FAILED)]
    unknown = sum(row.get("spacing_known") == "no" for row in rows)
    print(f"{folder}: {', '.join(counts)}; {TABLE_NAME} lists them")
    if unknown:
        print(f"{unknown} without a known pixel spacing: 1.0 mm is a placeholder there; --pixel_spacing sets it")
    if any(row["result"] == FAILED for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    run_command(png_to_dx)
