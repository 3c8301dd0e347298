"""`manifest.csv` of a generated folder: how every image was made, in a form that training takes as `dataset_dir`.

No split by patient may put a source patient's generated images on two sides. So the column `patient_id` follows the
sources, not the images:

- images of one source patient carry that patient's id, which also keeps them with the real images where both are
  listed together;
- an interpolation joins its patients, and all their images, into one group with one id, across any number of steps;
- an image without source is a patient of its own.

Many interpolations join everybody, and then there is nothing left to split. For these, and wherever generated images
meet real ones, take the sources from one split and name it: the column `split` then keeps all of the folder in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.datalist_sources import MANIFEST_NAME
from ..data.duplicates import linked_groups
from ..errors import DatasetError
from ..files import JOB_RECORD, locked_folder, read_json, write_csv
from .job_log import JobLog, Row

DROPPED_NAME = "dropped.csv"
ROW_COLUMNS = (
    *("image", "strategy", "seed", "num_inference_steps", "guidance_scale", "method", "weights_sha256"),
    *("sources", "source_patient_ids", "source_unlikeness", "mix", "label", "flagged"),
)
HIDDEN = ("image", "sources", "source_patient_ids", "source_unlikeness", "flagged")  # names may be those of patients


def several(cell: str) -> tuple[str, ...]:
    """The values that a cell of the manifest joins by semicolons."""
    return tuple(part.replace("%3B", ";").replace("%25", "%") for part in cell.split(";") if part)


def joined(values: Iterable[str]) -> str:
    """Values as one cell; the inverse of `several`."""
    return ";".join(value.replace("%", "%25").replace(";", "%3B") for value in values)


def provenance_texts(row: Row) -> dict[str, str]:
    """What may go into the picture itself: all but the sources."""
    return {name: str(row[name]) for name in ROW_COLUMNS if name not in HIDDEN and row[name] not in ("", None)}


def write_generation_manifest(folder: Path, rows: Sequence[Row], split: str | None) -> None:
    """Write manifest.csv of all rows (`ROW_COLUMNS`) but those `dropped`, which dropped.csv lists.

    The split is the one that all sources were taken from, or that the weights were trained on; None where there is
    none.
    """
    dropped = [row for row in rows if row.get("dropped")]
    if dropped:
        write_csv(folder / DROPPED_NAME, ROW_COLUMNS, [_cells(row, ROW_COLUMNS) for row in dropped])
    kept = [row for row in rows if not row.get("dropped")]
    names = patient_groups([several(row["source_patient_ids"]) for row in kept])
    about = {"synthetic": "true", **({} if split is None else {"split": split})}
    columns = ("image", "synthetic", "patient_id", *([] if split is None else ["split"]), *ROW_COLUMNS[1:])
    ids = [{"patient_id": name or f"synthetic:{row['image']}"} for row, name in zip(kept, names, strict=True)]
    cells = [_cells({**row, **about, **patient}, columns) for row, patient in zip(kept, ids, strict=True)]
    write_csv(folder / MANIFEST_NAME, columns, cells)


def patient_groups(images: Sequence[Sequence[str]]) -> list[str]:
    """For each image the name of its patients' group, all whom shared images join: the first's; "" without one."""
    patients = list(dict.fromkeys(patient for shown in images for patient in shown))
    number = {patient: place for place, patient in enumerate(patients)}
    links = [(number[shown[0]], number[other]) for shown in images for other in shown]
    first = {patients[one]: patients[group[0]] for group in linked_groups(len(patients), links) for one in group}
    return [first.get(shown[0], shown[0]) if shown else "" for shown in images]


def generation_settings(folder: Path) -> dict[str, Any]:
    """What all images of a generated folder share.

    Raises:
        DatasetError: no folder that a generation wrote.
    """
    settings = read_json(folder / JOB_RECORD)["settings"] if (folder / JOB_RECORD).is_file() else {}
    if "strategy" not in settings:
        raise DatasetError(
            f"{folder}: found no {JOB_RECORD} of images; expected a folder that a generation of this version wrote"
        )
    return settings


def revise_generation(folder: Path, flagged: Mapping[str, bool], dropped: Collection[str] = ()) -> None:
    """Note in a generated folder what a privacy check found, by image, and take images out: their files are deleted.

    A dropped image counts as done, so that a resumed generation does not make it again.

    Raises:
        DatasetError: no folder that a generation wrote.
        RunError: the folder is in use.
    """
    settings = generation_settings(folder)
    with locked_folder(folder):
        log = JobLog(folder, settings, keeps_folder=True)
        changed = []
        for entry in log.entries.values():
            image = entry.row["image"]
            verdict = {True: "yes", False: "no", None: entry.row["flagged"]}[flagged.get(image)]
            is_dropped = bool(entry.row.get("dropped")) or image in dropped
            row = {**entry.row, "flagged": verdict, **({"dropped": True} if is_dropped else {})}
            changed += [replace(entry, row=row)] if row != entry.row else []
        log.append(changed)
        rows = [entry.row for entry in log.entries.values()]
        for row in rows:
            if row.get("dropped"):
                (folder / row["image"]).unlink(missing_ok=True)
        write_generation_manifest(folder, rows, settings["split"])


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    return ["" if row.get(name) is None else str(row[name]) for name in columns]
