"""A bundle to look at, whether it is a folder or a zip."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import UserError


class NoBundleError(UserError, ValueError):
    """A path that is neither a folder nor a zip of a bundle."""


@contextmanager
def opened_bundle(path: str | Path) -> Iterator[Path]:
    """Give the folder of a bundle; a zip is extracted for as long as that takes.

    Raises:
        NoBundleError: nothing there, no zip, more than one folder at the zip's top, or entries that leave it.
    """
    path = Path(path)
    if path.is_dir():
        yield path.resolve()
        return
    if not zipfile.is_zipfile(path):
        raise NoBundleError(f"{path}: found no folder and no zip; expected a bundle")
    with tempfile.TemporaryDirectory(prefix="bundle_") as temporary, zipfile.ZipFile(path) as archive:
        yield Path(temporary).resolve() / _extract(archive, path, temporary)


def _extract(archive: zipfile.ZipFile, path: Path, folder: str) -> str:
    """Extract and return the name of the one folder at the top."""
    entries = [PurePosixPath(name) for name in archive.namelist()]
    if outside := [str(entry) for entry in entries if entry.is_absolute() or ".." in entry.parts]:
        raise NoBundleError(f"{path}: {outside[0]} leads out of the zip")
    tops = {entry.parts[0] for entry in entries if entry.parts}
    if len(tops) != 1 or any(len(entry.parts) == 1 and not name.endswith("/") for entry, name in _named(archive)):
        raise NoBundleError(f"{path}: found {len(tops)} entries at its top; expected one folder, named as the bundle")
    archive.extractall(folder)
    return tops.pop()


def _named(archive: zipfile.ZipFile) -> list[tuple[PurePosixPath, str]]:
    return [(PurePosixPath(name), name) for name in archive.namelist()]
