"""Where data lists come from: the images below a folder, or the rows of its `manifest.csv`."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DatasetError, counted
from ..files import is_of_the_product, write_csv
from ..fingerprint import file_sha256, json_sha256
from ..io import IMAGE_SUFFIXES, is_radiograph_file

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MANIFEST_NAME = "manifest.csv"
PATH_COLUMNS = ("image", "mask")
IMAGE_COLUMN_ALIASES = ("file", "filename", "path", "image_path")
"""What other data sets call the `image` column; taken where it is missing and just one of these is there."""

TEXT_SUFFIXES = {".md", ".txt", ".csv", ".json"}
"""Of files that belong beside images, so that leaving them out is no news."""

_KNOWN_COLUMNS = ("image", "label", "patient_id", "split", "mask")


def first_few(names: Iterable[object], count: int = 3) -> str:
    """The first few names for an error message."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:count]) + (f", … ({len(texts)} in all)" if len(texts) > count else "")


def name_in(root: Path, image: str) -> str:
    """An image's path, relative to the data set where it lies inside, so that moving the folder changes no split."""
    path = Path(image)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def listed_images(root: Path) -> list[dict[str, str]]:
    """What the manifest of a folder says, or else all radiographs below it, as dicts with `image`, an absolute path.

    Raises:
        DatasetError: there are none, or the manifest cannot be used.
    """
    return manifest_items(root) if (root / MANIFEST_NAME).is_file() else folder_items(root)


def folder_items(root: Path) -> list[dict[str, str]]:
    """All radiographs below a folder without manifest, sorted by relative path."""
    names: list[str] = []
    others: Counter[str] = Counter()
    visited: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here, real = Path(folder), os.path.realpath(folder)
        if real in visited:  # a link back into the tree
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
        for name in list(subfolders):
            if (here == root and name == "outputs") or is_of_the_product(here / name):
                logger.warning("%s holds results and is left out of the data set", here / name)
                subfolders.remove(name)
        for name in files:
            if is_radiograph_file(here / name):
                names.append((here / name).relative_to(root).as_posix())
            elif not name.startswith("."):
                others[kind_of_other(here / name)] += 1
    counts = f"{counted(others.total(), 'other file')} ({count_by_kind(others)})" if others else "no files"
    if names and others:
        level = logging.INFO if others.keys() <= TEXT_SUFFIXES else logging.WARNING
        logger.log(level, "%s: left out %s", root, counts)
    if not names:
        raise DatasetError(
            f"no radiographs in {root}: found {counts}; put images there "
            f"({', '.join(IMAGE_SUFFIXES)}, at any depth) or a {MANIFEST_NAME} with an image column"
        )
    return [{"image": str(root / name)} for name in sorted(names)]


def kind_of_other(path: Path) -> str:
    """What to call a file that is no radiograph: its suffix as a rule."""
    return "dangling link" if not path.exists() else path.suffix.lower() or "no suffix"


def count_by_kind(kinds: Counter[str]) -> str:
    """How many there are of each kind, most first: `3 .bmp, 1 .txt`."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda each: (-each[1], each[0])))


def manifest_items(root: Path) -> list[dict[str, str]]:
    """The manifest's rows in its order, checked."""
    path = root / MANIFEST_NAME
    columns, records = _read_csv(path)
    if "image" not in columns:
        raise DatasetError(
            f"{path} has no column named image (nor one of {', '.join(IMAGE_COLUMN_ALIASES)}); "
            f"found {first_few(columns, 12) or 'no header'}; columns are separated by commas"
        )
    items: list[dict[str, str]] = []
    first_line: dict[str, int] = {}
    for line, record in records:
        for column in ("image", "patient_id", "split"):
            if record.get(column) == "":
                raise DatasetError(
                    f"{path} line {line}: {column} is empty; fill it in, or remove the row or the column"
                )
        item = {key: value for key, value in record.items() if not (key == "mask" and value == "")}
        for column in PATH_COLUMNS:
            if column in item:
                item[column] = os.path.abspath(root / item[column])
        if "split" in item:
            item["split"] = item["split"].lower()
            if item["split"] not in SPLITS:
                raise DatasetError(f"{path} line {line}: split is {record['split']!r}; it must be train, val or test")
        if (other := first_line.setdefault(item["image"], line)) != line:
            name = name_in(root, item["image"])
            raise DatasetError(f"{path} line {line}: {name} is already on line {other}; remove one")
        items.append(item)
    if not items:
        raise DatasetError(f"{path} has a header but no rows; list one image per row")
    return items


def data_list_sha256(dataset_dir: str | Path) -> str | None:
    """What tells one data list from another, wherever it is: its manifest, or the names of its images; else None."""
    root = Path(os.path.abspath(dataset_dir))
    if (root / MANIFEST_NAME).is_file():
        return file_sha256(root / MANIFEST_NAME)
    try:
        return json_sha256([name_in(root, item["image"]) for item in folder_items(root)])
    except DatasetError:
        return None


def write_manifest(items: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write items as a manifest that `listed_images` reads back, atomically; images and masks by absolute paths.

    So a folder that holds this one file, named `MANIFEST_NAME`, can be the `dataset_dir` of originals that stay where
    they are. The items have `image`; all have `patient_id` and `split`, or none. Other columns may be absent here and
    there.

    Raises:
        DatasetError: no items, or some without `image`, `patient_id` or `split`.
    """
    columns = list(dict.fromkeys(column for item in items for column in item))
    for column in ("image", "patient_id", "split"):
        count = sum(not item.get(column) for item in items)
        if count and (column in columns or column == "image"):
            raise DatasetError(f"{path} not written: {column} is missing in {count} of {len(items)} items; fill it in")
    if not items:
        raise DatasetError(f"{path} not written: there are no items to list")
    rows = []
    for item in items:
        paths = {column: os.path.abspath(item[column]) for column in PATH_COLUMNS if item.get(column)}
        rows.append([{**item, **paths}.get(column, "") for column in columns])
    write_csv(path, columns, rows)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and (line, cells by column) of a comma-separated file; empty lines and nameless columns are skipped."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text ({error}); save it as CSV UTF-8") from error
    except (csv.Error, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    columns = [name.lower() if name.lower() in _KNOWN_COLUMNS else name for name in header]
    other_names = [name for name in columns if name.lower() in IMAGE_COLUMN_ALIASES]
    if "image" not in columns and len(other_names) == 1:
        columns[columns.index(other_names[0])] = "image"
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise DatasetError(f"{path} has the column {first_few(repr(name) for name in twice)} more than once")
    records = []
    for line, cells in lines:
        if not any(cells):
            continue
        if len(cells) != len(columns):
            found = f"{path} line {line} has {len(cells)} cells, the header has {len(columns)}"
            raise DatasetError(f"{found}; quote text with commas")
        records.append((line, {name: cell for name, cell in zip(columns, cells, strict=True) if name}))
    return columns, records
