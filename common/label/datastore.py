"""The datastore of the app: what comes in is read first, and kept whole or refused; what is kept is not lost.

MONAI Label's own rewrites its index in place (a kill leaves half of it, and the server does not start again), copies
labels over the old ones byte by byte, and lets a scoring or training process, which loads the index when it starts,
write its old copy over labels that were saved since.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException
from filelock import FileLock
from monailabel.datastore import local
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from numpy.typing import NDArray
from PIL import Image

from ..data.datalist_sources import count_by_kind, kind_of_other
from ..errors import UserError
from ..files import LABEL_INDEX, atomic_path
from ..io.mask_files import write_nifti_mask
from ..io.segmentation_classes import ClassTable
from .client_files import PNG, begins_with, image_size, read_label, readable_file

_ID = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
_logger = logging.getLogger(__name__)


def _copy(source: str, target: str) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


local.shutil = SimpleNamespace(copy=_copy)
local.FileLock = partial(FileLock, is_singleton=True)  # so that a thread may hold it around what takes it again


def _on_newest_index(change: Callable[..., None]) -> Callable[..., None]:
    """The method, of the index as other processes left it, which do not change it meanwhile."""

    def changed(self: CheckedDatastore, *args: Any) -> None:
        with self._lock():
            self.reload()
            change(self, *args)

    return changed


class CheckedDatastore(local.LocalDatastore):
    """A folder of radiographs with their labels; its index is read, changed and written as one step by all processes.

    Labels are kept as PNG, or as NIfTI with the geometry they came with; their numbers are those of the class table.
    """

    def __init__(self, datastore_path: str, classes: ClassTable, **kwargs: Any) -> None:
        self.classes = classes
        self.left_out: dict[str, str] = {}  # images whose label `datalist` last could not give, with the reason
        self._index_stamp: tuple[int, int, int] | None = None
        super().__init__(datastore_path, **kwargs)
        self._tell_left_out()
        if hasattr(self, "_handler"):
            # Our index comes by a rename, which the stock watcher does not look at.
            self._handler.on_moved = lambda event: self.reload()

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image; the same one again changes nothing.

        Raises:
            UserError: it is no radiograph, or its id or suffix cannot be listed.
            HTTPException: 409 if the id belongs to another image.
        """
        own_id, suffix = self._to_id(Path(image_filename).name)
        image_id = image_id or own_id
        if not _ID.fullmatch(image_id):
            raise UserError(f"image id: found {image_id[:80]!r}; expected a file name without folders or leading dot.")
        known = sorted(extension.replace("*", "") for extension in self._extensions)
        if suffix not in known:
            raise UserError(f"{image_id}: found the suffix {suffix!r}; expected one of {', '.join(known)}. Rename it.")
        image_size(image_filename, image_id + suffix)
        with self._lock():
            self.reload()
            present = self.get_image_uri(image_id)
            if not present:
                return super().add_image(image_id, image_filename, image_info)
            if Path(present).read_bytes() != Path(image_filename).read_bytes():
                raise HTTPException(409, f"{image_id}: found another image with this id; expected a new one.")
            return image_id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save a label, PNG, NIfTI or NRRD, in place of the one before, which stays until the new one is whole.

        Of its info, which is kept, "label_info" names the segments as 3D Slicer sends them.

        Raises:
            UserError: what is wrong with the label.
            ImageNotFoundException: there is no such image.
        """
        info = dict(label_info or {})
        if not _TAG.fullmatch(label_tag):  # it becomes a folder
            raise UserError(f"label tag: found {label_tag[:80]!r}; expected letters, digits, _ and -, such as final.")
        self.reload()
        image = self.get_image_uri(image_id)
        if not image:
            raise ImageNotFoundException(f"Image {image_id} not found")
        size = image_size(image, Path(image).name)
        segments = info.get("label_info")
        named = isinstance(segments, list) and all(isinstance(entry, dict) and "name" in entry for entry in segments)
        labels = read_label(label_filename, f"label of {image_id}", size, self.classes, segments if named else None)
        with readable_file(label_filename) as file:
            self._keep_label(image_id, label_tag, labels, file, info)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; LabelNotFoundException if there is none."""
        if not self.get_label_uri(label_id, label_tag):
            raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
        super().remove_label(label_id, label_tag)

    update_image_info = _on_newest_index(local.LocalDatastore.update_image_info)
    update_label_info = _on_newest_index(local.LocalDatastore.update_label_info)

    def reload(self) -> None:
        """Take in what other processes wrote, such as scores."""
        self._init_from_datastore_file()

    def _tell_left_out(self) -> None:
        """Say in one line how many files the folder has that are not offered, by their suffixes."""
        root, kinds = Path(self._datastore.image_path()), Counter[str]()
        for path in root.rglob("*"):
            names = path.relative_to(root).parts
            if names[0] == self._datastore.labels_dir or any(name.startswith(".") for name in names) or path.is_dir():
                continue
            if len(names) > 1:
                kinds["in subfolders"] += 1
            elif path.name != LABEL_INDEX and not (path.exists() and any(map(path.match, self._extensions))):
                kinds[kind_of_other(path)] += 1
        if kinds:
            expected = f"files directly in it whose names match {', '.join(self._extensions)}"
            _logger.warning(
                "%s: left out %d files (%s); MONAI Label takes %s", root, kinds.total(), count_by_kind(kinds), expected
            )

    def _keep_label(self, image_id: str, tag: str, labels: NDArray, source: Path, info: dict[str, Any]) -> None:
        """Keep checked labels, as PNG or with the geometry of a source that is NIfTI."""
        with tempfile.TemporaryDirectory() as folder, self._lock():
            self.reload()
            before = super().get_label_uri(image_id, tag)
            path = Path(folder) / ("label.png" if begins_with(source, PNG) else "label.nii.gz")
            if path.suffix == ".png":
                Image.fromarray(labels).save(path)
            else:
                write_nifti_mask(labels, path, None, source)
            super().save_label(image_id, str(path), tag, info)
            if before and before != super().get_label_uri(image_id, tag):  # only once the index names the new one
                Path(before).unlink(missing_ok=True)

    def _lock(self) -> FileLock:
        return local.FileLock(self._lock_file)

    def _reconcile_datastore(self) -> None:
        with self._lock():
            super()._reconcile_datastore()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        path = Path(self._datastore_config_path)
        with self._lock():
            if not path.exists() or _stamp(path) == self._index_stamp:
                return
            try:
                self._datastore = local.LocalDatastoreModel.model_validate_json(path.read_text(encoding="utf-8"))
            except ValueError:  # half an index, of a stock server that was killed; images and labels are files
                damaged = path.with_name(f"{path.name}.damaged")
                path.replace(damaged)
                _logger.warning("%s was damaged: kept as %s, and made again from the files", path, damaged)
                return
            self._datastore.base_path = self._datastore_path
            self._index_stamp = _stamp(path)

    def _update_datastore_file(self, lock: bool = True) -> None:
        path = Path(self._datastore_config_path)
        content = self._datastore.model_dump(exclude={"base_path"})
        with self._lock():
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
            self._index_stamp = _stamp(path)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Tells one index from the next: a rename brings a new inode even within one tick of the clock."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
