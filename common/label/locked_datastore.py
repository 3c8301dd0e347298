"""MONAI Label's local datastore without its ways to lose labels: one lock, whole files, changes on top of the newest.

The stock one rewrites its index in place (a kill leaves half of it, and the server does not start again), copies labels
over the old ones byte by byte, and lets a scoring or training process, which loads the index when it starts, write its
old copy over labels that were saved since.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from ..files import atomic_path

LOCK_NAME = ".lock"

_logger = logging.getLogger(__name__)


class LockedDatastore(LocalDatastore):
    """A LocalDatastore whose index is read, changed and written as one step, whatever process does it.

    Args:
        datastore_path: the folder.
        **kwargs: of LocalDatastore.
    """

    def __init__(self, datastore_path: str, **kwargs: Any) -> None:
        Path(datastore_path).mkdir(parents=True, exist_ok=True)
        self._store_lock = FileLock(Path(datastore_path) / LOCK_NAME)  # one object, so that a thread may nest it
        self._index_stamp: tuple[int, int, int] | None = None
        super().__init__(datastore_path, **kwargs)
        if hasattr(self, "_handler"):
            # Our index comes by a rename, which the stock watcher does not look at.
            self._handler.on_moved = lambda event: self._init_from_datastore_file()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock, on top of the newest index; it is written at the end unless an error comes first."""
        with self._store_lock:
            self._init_from_datastore_file()
            yield
            self._update_datastore_file(lock=False)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to an image's info.

        Raises:
            ImageNotFoundException: there is no such image.
        """
        with self.changing():
            obj = self._datastore.objects.get(image_id)
            if not obj:
                raise ImageNotFoundException(f"Image {image_id} not found")
            obj.image.info.update(info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to a label's info.

        Raises:
            LabelNotFoundException: there is no such label.
        """
        with self.changing():
            label = self._datastore.label(label_id, label_tag)
            if not label:
                raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
            label.info.update(info)

    def reload(self) -> None:
        """Take in what other processes wrote, such as scores."""
        self._init_from_datastore_file()

    def _reconcile_datastore(self) -> None:
        with self._store_lock:
            super()._reconcile_datastore()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self._store_lock:
            path = Path(self._datastore_config_path)
            stamp = _stamp(path)
            if stamp is None or stamp == self._index_stamp:
                return
            try:
                self._datastore = LocalDatastoreModel.model_validate_json(path.read_text(encoding="utf-8"))
            except ValueError:  # half an index, of a stock server that was killed; images and labels are files
                damaged = path.with_name(f"{path.name}.damaged")
                path.replace(damaged)
                _logger.warning("%s was damaged: kept as %s, and made again from the files", path, damaged)
                return
            self._datastore.base_path = self._datastore_path
            self._index_stamp = stamp

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._store_lock:
            path = Path(self._datastore_config_path)
            content = self._datastore.model_dump(exclude={"base_path"})
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
            self._index_stamp = _stamp(path)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Tells one index from the next: a rename brings a new inode even within one tick of the clock."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def timestamp() -> int:
    """Now, as MONAI Label notes it: seconds."""
    return int(time.time())
