"""The datastore of the app: what comes in is read first, and either kept whole or refused with its reason."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from PIL import Image

from ..files import atomic_path
from ..io.mask_files import write_nifti_mask
from ..io.segmentation_classes import ClassTable
from .http_errors import CONFLICT, as_http_errors
from .label_checks import RefusedUploadError, check_id, check_image, check_label, check_tag
from .locked_datastore import LockedDatastore, timestamp
from .readable import readable_file


class CheckedDatastore(LockedDatastore):
    """A folder of radiographs with their labels.

    Labels are kept as PNG, or as NIfTI with the geometry they came with; their numbers are those of the class table.

    Args:
        datastore_path: the folder.
        classes: the labels.
        **kwargs: of LocalDatastore.
    """

    def __init__(self, datastore_path: str, classes: ClassTable, **kwargs: Any) -> None:
        self.classes = classes
        self.left_out: dict[str, str] = {}  # images whose label `datalist` last could not give, with the reason
        super().__init__(datastore_path, **kwargs)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image; the same one again changes nothing.

        Raises:
            HTTPException: 400 with the reason why it is no radiograph, 409 if the id belongs to another image.
        """
        with as_http_errors():
            own_id, suffix = self._to_id(Path(image_filename).name)
            image_id = image_id or own_id
            check_id(image_id)
            self._check_suffix(image_id, suffix)
            check_image(image_filename, image_id + suffix)
        with self._store_lock:
            present = self.get_image_uri(image_id)
            if present:
                if Path(present).read_bytes() == Path(image_filename).read_bytes():
                    return image_id
                raise HTTPException(
                    CONFLICT, f"{image_id}: found another image with this id; expected a new one. Choose another id."
                )
            target = Path(self._datastore.image_path()) / self._filename(image_id, suffix)
            info = {**(image_info or {}), "ts": timestamp(), "name": target.name}
            with self.changing():
                with atomic_path(target) as temporary:
                    shutil.copyfile(image_filename, temporary)
                self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=suffix))
        return image_id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save the label of an image in place of the one before, which stays until the new one is whole.

        Args:
            image_id: of the image.
            label_filename: PNG, NIfTI or NRRD.
            label_tag: such as "final".
            label_info: kept; its "label_info" names the segments as 3D Slicer sends them.

        Raises:
            HTTPException: 400 with what is wrong with the label, 404 without such an image.
        """
        info = dict(label_info or {})
        with as_http_errors():
            check_tag(label_tag)
            self.reload()
            image = self.get_image_uri(image_id)
            if not image:
                raise ImageNotFoundException(f"Image {image_id} not found")
            size = check_image(image, Path(image).name).pixels.shape[-2:]
            name = f"label of {image_id}"
            labels = check_label(label_filename, name, (size[0], size[1]), self.classes, _segments(info))
            with readable_file(label_filename) as file, self._store_lock:
                suffix = ".png" if _is_png(file) else ".nii.gz"
                self._keep_label(image_id, label_tag, suffix, labels, file, info)
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels; 404 without one."""
        with as_http_errors():
            super().remove_image(image_id)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; 404 without one."""
        with as_http_errors():
            if not self.get_label_uri(label_id, label_tag):
                raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
            super().remove_label(label_id, label_tag)

    def _check_suffix(self, image_id: str, suffix: str) -> None:
        known = [extension.replace("*", "") for extension in self._extensions]
        if suffix not in known:
            raise RefusedUploadError(
                f"{image_id}: found the suffix {suffix!r}; expected one of {', '.join(sorted(known))}, which the "
                "datastore lists. Rename the file."
            )

    def _keep_label(
        self, image_id: str, tag: str, suffix: str, labels: Any, source: Path, info: dict[str, Any]
    ) -> None:
        folder = Path(self._datastore.label_path(tag))
        target = folder / self._filename(image_id, suffix)
        with self.changing():
            obj = self._datastore.objects[image_id]
            before = obj.labels.get(tag)
            if suffix == ".png":
                with atomic_path(target) as temporary:
                    Image.fromarray(labels).save(temporary, format="PNG")
            else:
                write_nifti_mask(labels, target, None, source)
            obj.labels[tag] = DataModel(info={**info, "ts": timestamp(), "name": target.name}, ext=suffix)
        if before and before.ext != suffix:  # only once the index names the new one
            (folder / self._filename(image_id, before.ext)).unlink(missing_ok=True)


def _is_png(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x89PNG"


def _segments(info: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The segments that a client names: a list of dicts with names, or None."""
    segments = info.get("label_info")
    is_list = isinstance(segments, list) and all(isinstance(entry, dict) and "name" in entry for entry in segments)
    return segments if is_list and segments else None
