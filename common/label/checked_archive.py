"""The datastore of the app for a DICOMweb archive: images and final labels are the archive's, the rest is a cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.others.generic import md5_digest

from ..errors import UserError
from ..io import UnreadableRadiographError
from ..io.dicom_seg import DicomSegError, write_dicom_seg
from .checked_datastore import CheckedDatastore
from .dicom_archive import DicomArchive, StoredImage, StoredLabel
from .http_errors import NOT_ALLOWED, ArchiveError, as_http_errors
from .label_checks import check_image
from .locked_datastore import timestamp
from .seg_conversion import image_to_nifti

DEFAULT_CACHE = Path.home() / ".cache" / "monailabel"
FINAL = DefaultLabelTag.FINAL.value
NIFTI = ".nii.gz"


class CheckedArchive(CheckedDatastore):
    """Radiographs of an archive with their labels, under the radiograph's SeriesInstanceUID.

    What the archive does not have is not there, and what it got anew counts, whoever stored it. Clients get NIfTI. In
    the cache is also what the archive has no place for: scores, and masks with other tags than "final".

    Args:
        archive: to ask.
        cache_dir: folder of the caches of all archives; "" for MONAI Label's in the home folder.
        model: name and version of what draws the masks that are corrected, for the SEG.
    """

    def __init__(self, archive: DicomArchive, cache_dir: str | Path, model: str) -> None:
        self.archive = archive
        self.model = model
        self._unreadable: set[str] = set()
        cache = Path(cache_dir or DEFAULT_CACHE) / f"radiographs_{md5_digest(archive.url)}"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # images of patients
        super().__init__(str(cache), archive.classes, extensions=[f"*{NIFTI}"])

    def name(self) -> str:
        """Address of the archive."""
        return self.archive.url

    def status(self) -> dict[str, Any]:
        """Numbers of images and labels."""
        with as_http_errors():
            images, labels = self.archive.images(), self._labelled()
        self.reload()
        tags = {tag: len(self._datastore.filter_by_tag(tag)) for tag in self._datastore.tags() - {FINAL}}
        return {"total": len(images), "completed": len(labels), "label_tags": {**tags, FINAL: len(labels)}}

    def list_images(self) -> list[str]:
        """Ids of all radiographs."""
        with as_http_errors():
            return sorted(self.archive.images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the radiographs that have a final label."""
        with as_http_errors():
            return sorted(self._labelled())

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the radiographs that have none, without those that were found to be unreadable."""
        with as_http_errors():
            return sorted(self.archive.images().keys() - self.archive.labels().keys() - self._unreadable)

    def get_image_uri(self, image_id: str) -> str:
        """Path of a radiograph as NIfTI, or "" if the archive has none of this id.

        Raises:
            HTTPException: 400 if it cannot be read, 502 if the archive gives no usable answer.
        """
        with as_http_errors():
            image = self.archive.image(image_id)
            if image is None:
                self._forget(image_id)
                return ""
            return str(self._image_file(image))

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label as NIfTI, or "" if there is none; ids are those of the images.

        Raises:
            HTTPException: 400 if it cannot be read, 502 if the archive gives no usable answer.
        """
        if label_tag != FINAL:
            self.reload()  # batch inference is another process
            return super().get_label_uri(label_id, label_tag)
        with as_http_errors():
            found = self._labelled().get(label_id)
            return str(self._label_file(*found)) if found else ""

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is noted of a label."""
        self.reload()
        return super().get_label_info(label_id, label_tag)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Paths of all "image"s with final "label"s; `left_out` says of which images they cannot be read.

        Raises:
            HTTPException: 502 if the archive gives no usable answer.
        """
        items, self.left_out = [], {}
        with as_http_errors():
            for image_id, (image, label) in sorted(self._labelled().items()):
                try:
                    items.append({"image": str(self._image_file(image)), "label": str(self._label_file(image, label))})
                except ArchiveError:
                    raise
                except UserError as error:
                    self.left_out[image_id + NIFTI] = str(error)
        return items

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Images come into an archive by DICOM; refuses with 405."""
        raise HTTPException(NOT_ALLOWED, f"{self.archive.url}: images are added by storing DICOM in the archive.")

    def remove_image(self, image_id: str) -> None:
        """Refuses with 405."""
        raise HTTPException(NOT_ALLOWED, f"{self.archive.url}: images are removed in the archive itself.")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label that is in the cache; final ones are the archive's, for which it refuses with 405."""
        if label_tag == FINAL:
            raise HTTPException(NOT_ALLOWED, f"{self.archive.url}: final labels are removed in the archive itself.")
        super().remove_label(label_id, label_tag)

    def _labelled(self) -> dict[str, tuple[StoredImage, StoredLabel]]:
        images, labels = self.archive.images(), self.archive.labels()
        return {image_id: (images[image_id], label) for image_id, label in labels.items() if image_id in images}

    def _image_file(self, image: StoredImage) -> Path:
        """The image in the cache, fetched if need be, and listed in the index."""
        root, nifti = Path(self._datastore_path), Path(self._datastore_path) / (image.series + NIFTI)
        try:
            if not self._dicom_file(image.series):
                with tempfile.TemporaryDirectory(dir=root) as folder:  # so that a kill leaves no half of a file
                    self.archive.fetch_image(image, Path(folder) / "image.dcm")
                    (root / image.series).mkdir(exist_ok=True)
                    os.replace(Path(folder) / "image.dcm", root / image.series / "image.dcm")
            if not nifti.is_file():
                image_to_nifti(root / image.series, nifti)
        except UnreadableRadiographError:
            self._unreadable.add(image.series)
            raise
        self.reload()
        if "SeriesInstanceUID" not in self.get_image_info(image.series):
            with self.changing():
                info = {**image.info, "ts": timestamp(), "name": nifti.name}
                listed = self._datastore.objects.setdefault(
                    image.series, ImageLabelModel(image=DataModel(info={}, ext=NIFTI))
                )
                listed.image.info.update(info)
        return nifti

    def _dicom_file(self, image_id: str) -> Path | None:
        # MONAI Label's inference with DICOM SEG looks for it in a folder beside the NIfTI.
        path = Path(self._datastore_path) / image_id / "image.dcm"
        return path if path.is_file() else None

    def _label_file(self, image: StoredImage, label: StoredLabel) -> Path:
        """The label in the cache, fetched if that is another one."""
        image_id, source = image.series, self._image_file(image)
        known = self._datastore.label(image_id, FINAL)
        path = Path(self._datastore.label_path(FINAL)) / (image_id + NIFTI)
        if known is None or known.info.get("SOPInstanceUID") != label.instance or not path.is_file():
            size = check_image(source, source.name).pixels.shape[-2:]
            mask = self.archive.read_label(label)
            if mask.shape != size:
                raise DicomSegError(
                    f"label of {image_id}: found a SEG of {mask.shape[0]} × {mask.shape[1]} pixels; expected "
                    f"{size[0]} × {size[1]}, the rows × columns of its image. Submit the label anew."
                )
            super()._keep_label(image_id, FINAL, NIFTI, mask, source, _label_info(label))
        return path

    def _keep_label(
        self, image_id: str, tag: str, suffix: str, labels: Any, source: Path, info: dict[str, Any]
    ) -> None:
        # Always NIfTI, with the geometry of the NIfTI that clients get of the image.
        image = Path(self._datastore_path) / (image_id + NIFTI)
        if tag == FINAL:
            info = {**info, **_label_info(self._store(image_id, labels))}
        super()._keep_label(image_id, tag, NIFTI, labels, image, info)

    def _store(self, image_id: str, labels: Any) -> StoredLabel:
        """Have the archive keep a label, and be sure that it did before anybody is told so."""
        present = self.archive.labels().get(image_id)
        if present and self._is_stored(present, labels):
            return present
        source = self._dicom_file(image_id)
        assert source is not None  # `save_label` has asked for the image
        with tempfile.TemporaryDirectory() as folder:
            path = write_dicom_seg(
                labels, Path(folder) / "label.dcm", self.classes, source, self.model, is_annotation=True
            )
            stored = self.archive.store_label(path)
        newest = self.archive.labels().get(image_id)
        if newest is None or newest.instance != stored.instance or not self._is_stored(newest, labels):
            raise ArchiveError(
                f"{self.archive.url}: found {newest.instance if newest else 'no label'} as the newest label of "
                f"{image_id} after {stored.instance} was stored; expected that one, unchanged. Check the archive, and "
                "the clocks of whatever else stores labels there."
            )
        return newest

    def _is_stored(self, label: StoredLabel, labels: Any) -> bool:
        try:
            return bool(np.array_equal(self.archive.read_label(label), labels))
        except ArchiveError:
            raise
        except UserError:  # a SEG of somebody else that is no mask of one radiograph
            return False

    def _forget(self, image_id: str) -> None:
        """Remove what the cache has of an image that the archive has no more."""
        self.reload()
        listed = self._datastore.objects.get(image_id)
        if listed is None:
            return
        for tag, label in listed.labels.items():
            (Path(self._datastore.label_path(tag)) / self._filename(image_id, label.ext)).unlink(missing_ok=True)
        (Path(self._datastore_path) / (image_id + NIFTI)).unlink(missing_ok=True)
        shutil.rmtree(Path(self._datastore_path) / image_id, ignore_errors=True)
        with self.changing():
            self._datastore.objects.pop(image_id, None)


def _label_info(label: StoredLabel) -> dict[str, str]:
    return {
        "StudyInstanceUID": label.study,
        "SeriesInstanceUID": label.series,
        "SOPInstanceUID": label.instance,
        "Modality": "SEG",
    }


# MONAI Label gives DICOM SEG only for its own class, of which nothing else is of use here.
DICOMWebDatastore.register(CheckedArchive)
