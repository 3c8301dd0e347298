"""Files that are whole or absent (written beside their place, then renamed into it), and names for results."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError


class PartsError(UserError, ValueError):
    """A file cannot be joined from its parts: one is missing or damaged."""


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


def result_name(path: str | Path, dataset_dir: Path) -> str:
    """Name for the results of one image of a data set, its folders part of it: `deep/a.png` gives `deep__a_png`.

    So two files of one name in two folders do not overwrite each other.

    Args:
        path: of the image.
        dataset_dir: resolved; an image outside of it is named by its file alone.
    """
    file = Path(path).resolve()
    inside = file.relative_to(dataset_dir) if file.is_relative_to(dataset_dir) else Path(file.name)
    return "__".join(inside.parts).replace(".", "_")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write atomically; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + os.linesep, encoding="utf-8")


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a comma-separated file atomically, UTF-8; paths that are no UTF-8 keep their bytes; folders are made."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


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
        PartsError: a part is missing, or not what was written; nothing is then.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for name, expected in digests.items():
            if not (folder / name).is_file():
                raise PartsError(f"{folder / name}: no such part; fetch all of {', '.join(digests)}")
            content = (folder / name).read_bytes()
            found = hashlib.sha256(content).hexdigest()
            if found != expected:
                raise PartsError(f"{folder / name}: found SHA-256 {found}, expected {expected}; fetch this part again")
            stream.write(content)
