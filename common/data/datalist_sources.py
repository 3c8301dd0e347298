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
IMAGE_COLUMN_ALIASES = ("file", "filename", "path", "image_path")  # taken where just one of them is there, and no image
TEXT_SUFFIXES = {".md", ".txt", ".csv", ".json"}  # of files that belong beside images: leaving them out is no news
_NEEDED = ("image", "patient_id", "split")  # where there is such a column, no cell of it is empty
_KNOWN_COLUMNS = (*_NEEDED, "label", "mask")


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

    Raises `DatasetError` where there are none, or the manifest cannot be used.
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
        for path in [here / name for name in subfolders]:
            if path == root / "outputs" or is_of_the_product(path):
                logger.warning("%s holds results and is left out of the data set", path)
                subfolders.remove(path.name)
        for path in (here / name for name in files):
            if is_radiograph_file(path):
                names.append(path.relative_to(root).as_posix())
            elif not path.name.startswith("."):
                others[kind_of_other(path)] += 1
    counts = f"{counted(others.total(), 'other file')} ({count_by_kind(others)})" if others else "no files"
    if not names:
        raise DatasetError(
            f"no radiographs in {root}: found {counts}; put images there "
            f"({', '.join(IMAGE_SUFFIXES)}, at any depth) or a {MANIFEST_NAME} with an image column"
        )
    if others:
        logger.log(logging.INFO if others.keys() <= TEXT_SUFFIXES else logging.WARNING, "%s: left out %s", root, counts)
    return [{"image": str(root / name)} for name in sorted(names)]


def kind_of_other(path: Path) -> str:
    """What to call a file that is no radiograph: its suffix as a rule."""
    return "dangling link" if not path.exists() else path.suffix.lower() or "no suffix"


def count_by_kind(kinds: Counter[str]) -> str:
    """How many there are of each kind, most first: `3 .bmp, 1 .txt`."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda each: (-each[1], each[0])))


def manifest_items(root: Path) -> list[dict[str, str]]:
    """The manifest's rows in its order, checked; raises `DatasetError`."""
    path = root / MANIFEST_NAME
    columns, lines = _read_csv(path)
    first_line: dict[str, int] = {}
    items = []
    for number, cells in lines:
        line = f"{path} line {number}"
        if len(cells) != len(columns):
            found = f"{len(cells)} cells, the header has {len(columns)}"
            raise DatasetError(f"{line} has {found}; quote text with commas")
        item = {name: cell for name, cell in zip(columns, cells, strict=True) if name and (cell or name != "mask")}
        for column in _NEEDED:
            if item.get(column) == "":
                raise DatasetError(f"{line}: {column} is empty; fill it in, or remove the row or the column")
        item |= {column: os.path.abspath(root / item[column]) for column in PATH_COLUMNS if column in item}
        if "split" in item:
            if item["split"].lower() not in SPLITS:
                raise DatasetError(f"{line}: split is {item['split']!r}; it must be train, val or test")
            item["split"] = item["split"].lower()
        if (other := first_line.setdefault(item["image"], number)) != number:
            raise DatasetError(f"{line}: {name_in(root, item['image'])} is already on line {other}; remove one")
        items.append(item)
    if not items:
        raise DatasetError(f"{path} has a header but no rows; list one image per row")
    return items


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Columns and (line, cells) of a comma-separated file with a column `image`; without empty lines."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header, *lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader] or [(0, [])]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text ({error}); save it as CSV UTF-8") from error
    except (csv.Error, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    columns = [name.lower() if name.lower() in _KNOWN_COLUMNS else name for name in header[1]]
    aliases = [name for name in columns if name.lower() in IMAGE_COLUMN_ALIASES]
    if "image" not in columns and len(aliases) == 1:
        columns[columns.index(aliases[0])] = "image"
    twice = [repr(name) for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise DatasetError(f"{path} has the column {first_few(twice)} more than once")
    if "image" not in columns:
        raise DatasetError(
            f"{path} has no column named image (nor one of {', '.join(IMAGE_COLUMN_ALIASES)}); "
            f"found {first_few(columns, 12) or 'no header'}; columns are separated by commas"
        )
    return columns, [(number, cells) for number, cells in lines if any(cells)]


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

    So a folder that holds this one file can be the `dataset_dir` of originals that stay where they are.

    Raises:
        DatasetError: no items, or some without `image`, or without a `patient_id` or `split` that others have.
    """
    if not items:
        raise DatasetError(f"{path} not written: there are no items to list")
    columns = list(dict.fromkeys(column for item in items for column in item))
    for column in _NEEDED:
        count = sum(not item.get(column) for item in items)
        if count and (column in columns or column == "image"):
            raise DatasetError(f"{path} not written: {column} is missing in {count} of {len(items)} items; fill it in")
    rows = []
    for item in items:
        paths = {column: os.path.abspath(item[column]) for column in PATH_COLUMNS if item.get(column)}
        rows.append([{**item, **paths}.get(column, "") for column in columns])
    write_csv(path, columns, rows)
