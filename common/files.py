"""Files that are whole or absent (written beside their place, then renamed into it); folders of results and names."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import socket
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import DatasetError, RunError

JOB_RECORD = "job.json"
TUNED = "tuned.json"  # what a study chose on training images, beside its figures
PRODUCT_MARKS = (
    *(JOB_RECORD, "run_record.json", "readable.csv", "generation.json"),
    *("inspection.json", "png_to_dx.csv", "quality.json", ".trials.lock"),  # of scripts
)
LABEL_INDEX, LABELS = "datastore_v2.json", "labels"  # of MONAI Label, in a folder of images
NAME_BYTES = 150  # of a result without its suffixes; file systems take 255


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; rename it over `path` at the end, remove it on an error.

    A kill at any moment, or a failing disk, leaves the old file or the new one, never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_stamp(path: str | Path) -> list[int]:
    """Size and modification time of a file, to tell one content from the next; nothing where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else []


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left of `atomic_path`; for who holds the folder."""
    for path in folder.rglob(".*.partial"):
        if path.is_file():
            path.unlink(missing_ok=True)


# ---- folders of results ----------------------------------------------------------------------------------------------


def is_of_the_product(folder: Path) -> bool:
    """Whether the product wrote a folder, so that what lies in it is no data of the folder above."""
    if folder.name == LABELS and (folder.parent / LABEL_INDEX).is_file():
        return True
    return any((folder / mark).is_file() for mark in PRODUCT_MARKS)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder, hold it against other processes, and clear away what killed ones have half written.

    The system drops the lock of a process that dies.

    Raises:
        RunError: another process holds the folder (says which), or it cannot be made or written to.
    """
    lock, holder = FileLock(folder / ".lock"), folder / ".lock.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        remove_partial_files(folder)
        write_json(holder, {"process": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv)})
    except Timeout:
        found = read_json(holder) if holder.is_file() else {}
        who = "".join(f", {name} {value}" for name, value in found.items())
        raise RunError(
            f"{folder} is in use by another process{who}; wait for its end, or give another folder"
        ) from None
    except OSError as error:
        raise RunError(f"{folder} cannot be written to ({error.strerror}); give another folder") from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def result_names(paths: Sequence[str], dataset_dir: str | Path) -> list[str]:
    """A name for the results of each image, its folders part of it: `deep/a.png` gives `deep__a_png`.

    Names are those of links, not of what these lead to. They hold nothing that a file system, a table or a spreadsheet
    would stumble over, and at most `NAME_BYTES`; where two images would have the same, or a part had to go, a digest
    of the path stands in it.

    Args:
        paths: of the images.
        dataset_dir: an image outside of it is named by its file alone.
    """
    root, names = Path(os.path.abspath(dataset_dir)), []
    for file in (Path(os.path.abspath(path)) for path in paths):
        inside = file.relative_to(root) if file.is_relative_to(root) else file
        parts = inside.parts if inside != file else (file.name,)
        name = "__".join(parts).replace(".", "_").encode("utf-8", "replace").decode()
        name = re.sub(r'[\x00-\x1f\x7f<>:"|?*\\]|^(?=[=+@-])', "_", name)  # no formula either
        digest = hashlib.sha256(inside.as_posix().encode("utf-8", "surrogateescape")).hexdigest()[:8]
        if len(name.encode()) > NAME_BYTES:
            head, tail = (name.encode()[part].decode(errors="ignore") for part in (slice(0, 60), slice(-60, None)))
            name = f"{head}_{digest}_{tail}"
        names.append((name, digest))
    counts = Counter(name.casefold() for name, _ in names)
    return [name if counts[name.casefold()] == 1 else f"{name}_{digest}" for name, digest in names]


# ---- JSON, CSV, parts ------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write atomically; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + os.linesep, encoding="utf-8")


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a comma-separated file atomically, UTF-8; paths that are no UTF-8 keep their bytes; folders are made.

    What a spreadsheet would take for a formula among the paths in a column `source` begins with `./` instead.
    """
    at = columns.index("source") if "source" in columns else None
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_no_formula(cell) if number == at else cell for number, cell in enumerate(row)])


def _no_formula(path: object) -> object:
    return f"./{path}" if isinstance(path, str) and path[:1] in ("=", "+", "-", "@", "\t") else path


def write_parts(content: bytes, path: Path, part_bytes: int) -> dict[str, str]:
    """Write `path`.part00, .part01, ... of at most so many bytes; return their names and SHA-256, in order."""
    digests = {}
    for number, start in enumerate(range(0, len(content), part_bytes)):
        part = path.with_name(f"{path.name}.part{number:02d}")
        with atomic_path(part) as temporary:
            temporary.write_bytes(content[start : start + part_bytes])
        digests[part.name] = hashlib.sha256(content[start : start + part_bytes]).hexdigest()
    return digests


def join_parts(folder: Path, digests: Mapping[str, str], path: Path) -> None:
    """Write what `write_parts` cut, atomically.

    Raises:
        DatasetError: a part is missing, or not what was written; nothing is then.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for name, expected in digests.items():
            if not (folder / name).is_file():
                raise DatasetError(f"{folder / name}: no such part; fetch all of {', '.join(digests)}")
            content = (folder / name).read_bytes()
            found = hashlib.sha256(content).hexdigest()
            if found != expected:
                raise DatasetError(
                    f"{folder / name}: found SHA-256 {found}, expected {expected}; fetch this part again"
                )
            stream.write(content)
