"""Which radiographs belong to training, validation and test: data lists from a folder or its `manifest.csv`."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DatasetError, counted
from ..io import IMAGE_SUFFIXES
from .datalist_sources import MANIFEST_NAME, PATH_COLUMNS, SPLITS, first_few, listed_images, name_in

logger = logging.getLogger(__name__)

Items = list[dict[str, str]]

_NOT_A_PATIENT = {"", "0", "anon", "anonymous", "anonymized", "anonymised", "deidentified", "none", "na", "unknown"}


def radiograph_items(
    dataset_dir: str | os.PathLike[str],
    split: str,
    val_fraction: float,
    seed: int,
    patient_id_pattern: str | None = None,
    where: Mapping[str, Any] | None = None,
    limit: int | None = None,
    keep: Callable[[Items], Items] | None = None,
) -> Items:
    """List the radiographs of one split; no patient is ever in two splits.

    A `split` column is used as it is. Without one, a hash of seed and patient id decides where a patient goes, so
    added files move nobody else; in sets so small that a split would stay empty, the nearest patient fills it.

    Whose image it is says the manifest's `patient_id`, else `patient_id_pattern`, else the DICOM header's PatientID
    (unless anonymised away), else each file counts as a patient of its own.

    Args:
        dataset_dir: holds a `manifest.csv` (column `image`; optionally `label`, `patient_id`, `split`, `mask`; further
            ones are passed on as text) or just images at any depth, without hidden files and `outputs`.
        split: "train", "val", "test" or "all".
        val_fraction: share of the patients for validation, in [0, 1); unused with a `split` column.
        seed: of the split.
        patient_id_pattern: regular expression with one group, the patient; searched in the file's name, or, where it
            contains a slash, in the path relative to `dataset_dir`.
        where: keep only manifest rows whose column equals this value; applied after splitting, so that runs with
            different filters still share one split.
        limit: keep only the first so many images.
        keep: returns those of the given items that are usable. Without a `split` column it sees all images, so that a
            split whose files are all unusable gets another patient instead of being empty.

    Returns:
        Dicts with `image` (absolute path) and `patient_id`, and what else the manifest says: `mask` (absolute path,
        left out where its cell is empty) and all other columns as text. In the manifest's order, else sorted by path.

    Raises:
        DatasetError: the folder, the manifest or the request cannot be used; the message says why.
    """
    for is_right, problem in (
        (split in (*SPLITS, "all"), f"split is {split!r}; choose one of train, val, test, all"),
        (0 <= val_fraction < 1, f"val_fraction is {val_fraction}; it is 0 or more and, to train on something, below 1"),
        (limit is None or limit >= 1, f"limit is {limit}; give at least 1, or null for no limit"),
        (str(dataset_dir), "dataset_dir is empty; point it to the folder that holds the images"),
    ):
        if not is_right:
            raise DatasetError(problem)
    root = Path(os.path.abspath(Path(dataset_dir).expanduser()))
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "does not exist"
        raise DatasetError(f"dataset_dir {root} {kind}; point dataset_dir to the folder that holds the images")
    items = with_patients(listed_images(root), root, patient_id_pattern)
    by_split = _split_up(items, val_fraction, seed)
    if by_split[split] and (where or limit):
        _check_where(by_split[split], where)
        by_split = {name: _matching(members, where)[:limit] for name, members in by_split.items()}
    if by_split[split] and keep is not None:
        is_fixed = "split" in items[0] or split == "all"
        candidates = by_split[split] if is_fixed else [item for name in SPLITS for item in by_split[name]]
        images = {item["image"] for item in keep([dict(item) for item in candidates])}
        kept = [item for item in candidates if item["image"] in images]
        by_split = {**by_split, split: kept} if is_fixed else _split_up(kept, val_fraction, seed)
    chosen = by_split[split]
    if not chosen:
        raise DatasetError(_explain_empty_split(root, split, by_split, val_fraction))
    found = counted(len(chosen), "image"), counted(len(_patients(chosen)), "patient")
    logger.info("%s of %s: %s of %s", split, root, *found)
    return [dict(item) for item in chosen]


def _split_up(items: Items, val_fraction: float, seed: int) -> dict[str, Items]:
    """The items by split, in their order, and under "all"."""
    split_of = split_by_hash(_patients(item for item in items if "split" not in item), val_fraction, seed)
    by_split: dict[str, Items] = {name: [] for name in SPLITS}
    for item in items:
        by_split[item["split"] if "split" in item else split_of[item["patient_id"]]].append(item)
    assert_disjoint_patients(**by_split)
    return {"all": items, **by_split}


def _patients(items: Iterable[Mapping[str, str]]) -> set[str]:
    return {item["patient_id"] for item in items}


def assert_disjoint_patients(**splits: Sequence[Mapping[str, Any]]) -> None:
    """Raise `DatasetError` if a `patient_id` occurs in two of the data lists, given as in `(train=..., val=...)`."""
    seen: dict[str, set[str]] = {}
    for name, items in splits.items():
        for item in items:
            seen.setdefault(item["patient_id"], set()).add(name)
    shared = [f"{patient} ({' and '.join(sorted(names))})" for patient, names in seen.items() if len(names) > 1]
    if shared:
        raise DatasetError(
            f"{len(shared)} patients are in more than one split: {first_few(shared)}; give all images of a patient one"
        )


def split_by_hash(patients: Iterable[str], val_fraction: float, seed: int) -> dict[str, str]:
    """The split of each patient, by a hash of seed and name; one at least in both where it is wanted and can be."""

    def draw(patient: str) -> float:
        digest = hashlib.blake2b(f"{seed}\0{patient}".encode("utf-8", "surrogateescape"), digest_size=7).digest()
        return int.from_bytes(digest, "big") / 2.0**56

    ranked = sorted((draw(patient), patient) for patient in set(patients))
    held_out = max(sum(value < val_fraction for value, _ in ranked), int(val_fraction > 0))
    held_out = min(held_out, len(ranked) - 1)
    return {patient: "val" if place < held_out else "train" for place, (_, patient) in enumerate(ranked)}


# ---- whose image it is ---------------------------------------------------------------------------------------------


def with_patients(items: Items, root: Path, pattern: str | None) -> Items:
    """Give every item a `patient_id`, right after `image`."""
    if "patient_id" in items[0]:
        return items
    names = [name_in(root, item["image"]) for item in items]
    if pattern is not None:
        patients = _patients_by_pattern(names, pattern)
    else:
        suffixes = [next((end for end in IMAGE_SUFFIXES if name.lower().endswith(end)), "") for name in names]
        patients = [
            _patient_in_header(item["image"], suffix) or name[: len(name) - len(suffix)]
            for item, name, suffix in zip(items, names, suffixes, strict=True)
        ]
    return [
        {"image": item["image"], "patient_id": patient, **item} for item, patient in zip(items, patients, strict=True)
    ]


def _patients_by_pattern(names: list[str], pattern: str) -> list[str]:
    try:
        expression = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise DatasetError(f"patient_id_pattern {pattern!r} is no regular expression: {error}") from error
    if expression.groups != 1:
        raise DatasetError(f"patient_id_pattern {pattern!r} has {expression.groups} groups; mark the patient id by one")
    found = [expression.search(name if "/" in pattern else name.rpartition("/")[2]) for name in names]
    missing = [name for name, match in zip(names, found, strict=True) if match is None or not match[1]]
    if missing:
        raise DatasetError(
            f"patient_id_pattern {pattern!r} finds no patient in {len(missing)} of {len(names)} files: "
            f"{first_few(missing)}"
        )
    return [match[1] for match in found if match is not None]


def _patient_in_header(image: str, suffix: str) -> str | None:
    """The PatientID of a DICOM file; None for other files, unreadable headers and anonymised ones."""
    if suffix not in ("", ".dcm", ".dicom"):
        return None
    import pydicom  # only where a data set has DICOM files

    try:
        header = pydicom.dcmread(image, stop_before_pixels=True, specific_tags=["PatientID"], force=True)
        patient = str(header.get("PatientID") or "").strip()
    except Exception:  # a damaged file raises anything; the readability scan reports it, here it just has no patient
        return None
    return None if re.sub(r"[\W_]", "", patient.lower()) in _NOT_A_PATIENT else patient


# ---- requests that leave nothing -------------------------------------------------------------------------------------


def _explain_empty_split(root: Path, split: str, by_split: Mapping[str, Items], val_fraction: float) -> str:
    items = by_split["all"]
    if "split" in items[0]:
        present = ", ".join(f"{name} ({len(by_split[name])})" for name in SPLITS if by_split[name])
        return (
            f"{root / MANIFEST_NAME} has no rows with split {split}; it has {present}. Mark some patients as {split}, "
            "or remove the split column to have patients split by val_fraction"
        )
    if split == "test":
        return f"{root} has no split test: it takes a {MANIFEST_NAME} with a split column"
    if split == "val" and val_fraction == 0:
        return f"split val of {root} is empty because val_fraction is 0; raise it"
    patients = sorted(_patients(items))
    return (
        f"split {split} of {root} is empty: its {len(items)} images belong to {len(patients)} patient(s), "
        f"{first_few(patients)}; add patients, or name them by a patient_id column or patient_id_pattern"
    )


def _check_where(items: Items, where: Mapping[str, Any] | None) -> None:
    """Refuse a filter by a column that is not there, or that leaves nothing."""
    for column, value in (where or {}).items():
        known = list(dict.fromkeys(key for item in items for key in item if key not in PATH_COLUMNS))
        if column not in known:
            raise DatasetError(f"where asks for column {column!r}; there are {first_few(known, 12)}")
        values = Counter(item.get(column) for item in items)
        items = _matching(items, {column: value})
        if not items:
            raise DatasetError(f"where leaves nothing: no {column} is {str(value)!r}; found {first_few(values, 8)}")


def _matching(items: Items, where: Mapping[str, Any] | None) -> Items:
    """The items whose columns equal the wanted values, compared as text."""
    wanted = {column: str(value) for column, value in (where or {}).items()}
    return [item for item in items if all(item.get(column) == value for column, value in wanted.items())]
