"""`manifest.csv` of a generated folder: how every image was made, in a form that training takes as `dataset_dir`.

Beside it lies `generation.json`, the settings of the run; a folder is continued with the same ones only.

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

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.datalist_sources import MANIFEST_NAME, SPLITS, first_few
from ..errors import UserError
from ..files import atomic_path
from .manifest_row import ROW_COLUMNS, ManifestRow
from .patient_groups import PatientGroups

SETTINGS_NAME = "generation.json"
DROPPED_NAME = "dropped.csv"


class GenerationMismatchError(UserError, ValueError):
    """A folder holds something else than the run that wants to continue it would have written."""


class GenerationManifest:
    """The manifest of one generated folder, for the one process that writes it; resumes what is there.

    A kill at any moment leaves whole rows only. An image that is in `manifest.csv` was written before its row.

    Args:
        folder: of the generated images; made if need be.
        settings: what must be the same for a run to continue this folder (weights' hash, strategy, steps, guidance,
            seed, size, ...), in plain JSON types. Leave out what may grow, such as the number of images.
        split: train, val or test, the one that all sources were taken from, or, without sources, that the weights were
            trained on; becomes a column. None where there are no splits.

    Raises:
        GenerationMismatchError: the folder was made with other settings, holds a manifest that no generation run wrote,
            or one that was changed by hand.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], split: str | None = None) -> None:
        if split not in (None, *SPLITS):
            raise ValueError(f"generation: found split {split!r}; expected one of {', '.join(SPLITS)} or None.")
        self.folder, self.split = Path(folder), split
        self._path, self._dropped_path = self.folder / MANIFEST_NAME, self.folder / DROPPED_NAME
        split_column = () if split is None else ("split",)
        self._columns = ("image", "synthetic", "patient_id", *split_column, *ROW_COLUMNS[1:])
        self._settle_settings({**settings, "split": split})
        self._dropped = {row.image: row for row in _read(self._dropped_path, ROW_COLUMNS)}
        self._rows = {row.image: row for row in _read(self._path, self._columns)}
        self._groups = PatientGroups(())
        self._tidy()

    def rows(self) -> list[ManifestRow]:
        """The rows in the order of the manifest."""
        return list(self._rows.values())

    def is_done(self, image: str) -> bool:
        """Say whether an image needs no work any more: listed and there, or dropped."""
        return image in self._dropped or (image in self._rows and (self.folder / image).is_file())

    def append(self, rows: Sequence[ManifestRow]) -> None:
        """Add rows, whose images lie there already; a row for the same image is replaced. On return they are on disk.

        Raises:
            ValueError: an image that is listed twice, was dropped, or is not there yet.
        """
        new = {row.image: row for row in rows}
        absent = [name for name in new if not (self.folder / name).is_file()]
        if absent:
            raise ValueError(f"{self._path}: found no file {first_few(absent)}; expected an image before its row.")
        if len(new) < len(rows) or new.keys() & self._dropped.keys():
            names = first_few(row.image for row in rows)
            raise ValueError(
                f"{self._path}: found rows for {names}; expected each image once, and none dropped before."
            )
        try:
            changed = [row.image for row in rows if self._groups.join(row.source_patient_ids)]
            if changed or new.keys() & self._rows.keys():
                self._write_all({**self._rows, **new})
            else:
                _append_durably(self._path, _csv_text(self._records(new.values()), self._columns))
        except BaseException:
            self._groups = self._patient_groups()
            raise
        self._rows.update(new)

    def drop(self, rows: Sequence[ManifestRow]) -> None:
        """List images in `dropped.csv` instead, take them out of the manifest and delete their files if there are any.

        A dropped image counts as done, so that a resumed run does not make it again.
        """
        self._dropped.update({row.image: row for row in rows})
        self._tidy()

    def _settle_settings(self, settings: Mapping[str, Any]) -> None:
        """Store the settings of a new folder; compare those of an old one."""
        path = self.folder / SETTINGS_NAME
        text = json.dumps({"settings": settings}, indent=2, sort_keys=True, allow_nan=False) + "\n"
        if not path.exists():
            if self._path.exists():
                raise GenerationMismatchError(
                    f"{self._path} was written by no generation run: {SETTINGS_NAME} is missing beside it; "
                    "give another --output_dir"
                )
            _write_atomically(path, text)
            return
        try:
            there, now = (json.loads(source)["settings"] for source in (path.read_text(encoding="utf-8"), text))
            pairs = [(key, there.get(key), now.get(key)) for key in sorted({*there, *now})]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GenerationMismatchError(
                f"{path} holds no settings ({error}); give another --output_dir, or delete this folder to start over"
            ) from error
        different = [f"{key}: {old} there, {new} now" for key, old, new in pairs if old != new]
        if different:
            raise GenerationMismatchError(
                f"{self.folder} was generated with other settings ({'; '.join(different)}). Continuing would mix two "
                "sets: give another --output_dir, or the settings of that run; delete the folder to start over"
            )

    def _tidy(self) -> None:
        """Write what is dropped, then act on it; on a start, finish what a kill interrupted."""
        if self._dropped:
            dropped = (row.cells() for row in self._dropped.values())
            _write_atomically(self._dropped_path, _csv_text(dropped, ROW_COLUMNS, header=True))
        for name in self._dropped:
            (self.folder / name).unlink(missing_ok=True)
        self._rows = {name: row for name, row in self._rows.items() if name not in self._dropped}
        self._groups = self._patient_groups()
        if not self._path.exists() or self._path.read_bytes() != self._text(self._rows).encode():
            self._write_all(self._rows)

    def _patient_groups(self) -> PatientGroups:
        return PatientGroups(row.source_patient_ids for row in self._rows.values())

    def _write_all(self, rows: Mapping[str, ManifestRow]) -> None:
        _write_atomically(self._path, self._text(rows))

    def _text(self, rows: Mapping[str, ManifestRow]) -> str:
        return _csv_text(self._records(rows.values()), self._columns, header=True)

    def _records(self, rows: Iterable[ManifestRow]) -> Iterable[dict[str, str]]:
        """The rows with what the data lists need beside."""
        for row in rows:
            patients = row.source_patient_ids
            patient = self._groups.name(patients[0]) if patients else f"synthetic:{row.image}"
            yield {**row.cells(), "synthetic": "true", "patient_id": patient, "split": self.split or ""}


def _csv_text(records: Iterable[Mapping[str, str]], columns: Sequence[str], header: bool = False) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _read(path: Path, columns: Sequence[str]) -> list[ManifestRow]:
    """The whole rows of a file; none where there is no file."""
    if not path.exists():
        return []
    try:
        reader = csv.DictReader(io.StringIO(_whole_records(path.read_bytes()).decode("utf-8"), newline=""))
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise ValueError(f"its columns are {reader.fieldnames}")
        records = list(reader)
        if any(None in record for record in records):
            raise ValueError("a row has more cells than the header")
        return [ManifestRow.from_cells(record) for record in records]
    except (ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise GenerationMismatchError(
            f"{path} is not as a generation run wrote it ({error}); restore it, or give another --output_dir"
        ) from error


def _whole_records(data: bytes) -> bytes:
    """Cut off a last record that a kill left without its end; line breaks inside quotes end no record."""
    end = data.rfind(b"\n") + 1
    while data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return data[:end]


def _write_atomically(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _append_durably(path: Path, text: str) -> None:
    """Append and sync; a failure (a full disk, Ctrl-C) leaves the file as it was."""
    data = text.encode()
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(f"{path}: only a part could be written; free some space and run again")
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise
