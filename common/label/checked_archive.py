"""The datastore of the app for a DICOMweb archive: images and final labels are the archive's, the rest is a cache."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.others.generic import md5_digest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ..errors import UserError
from ..files import atomic_path
from ..io import UnreadableRadiographError, read_radiograph
from ..io.dicom_seg import write_dicom_seg
from ..io.segmentation_classes import ClassTable
from .client_files import image_size, read_label, readable_file
from .client_requests import request_folder
from .datastore import CheckedDatastore
from .dicom_archive import DicomArchive
from .services import ServiceError

DEFAULT_CACHE = Path.home() / ".cache" / "monailabel"
FINAL = DefaultLabelTag.FINAL.value
NIFTI = ".nii.gz"
IMAGE_INFO = ("StudyDate", "StudyTime", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
LABEL_INFO = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality")


class CheckedArchive(CheckedDatastore):
    """Radiographs of an archive with their labels, under the radiograph's SeriesInstanceUID.

    What the archive does not have is not there, and what it got anew counts, whoever stored it. Clients get NIfTI. In
    the cache, "" for MONAI Label's in the home folder, is also what the archive has no place for: scores, and masks
    with other tags than "final". `model` is name and version of what draws the masks that are corrected, for the SEG.
    Whatever asks the archive may raise ServiceError.
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
        images, labels = self.archive.images(), self._labelled()
        self.reload()
        tags = {tag: len(self._datastore.filter_by_tag(tag)) for tag in self._datastore.tags() - {FINAL}}
        return {"total": len(images), "completed": len(labels), "label_tags": {**tags, FINAL: len(labels)}}

    def list_images(self) -> list[str]:
        """Ids of all radiographs."""
        return sorted(self.archive.images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the radiographs that have a final label."""
        return sorted(self._labelled())

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the radiographs that have none, without those that were found to be unreadable."""
        return sorted(self.archive.images().keys() - self.archive.labels().keys() - self._unreadable)

    def get_image_uri(self, image_id: str) -> str:
        """Path of a radiograph as NIfTI, or "" if the archive has none of this id.

        Raises:
            UnreadableRadiographError: it cannot be read.
        """
        image = self.archive.image(image_id)
        if image is None:
            self._forget(image_id)
        return str(self._image_file(image_id, image)) if image else ""

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label as NIfTI, or "" if there is none; ids are those of the images.

        Raises:
            DatasetError: it cannot be read.
        """
        if label_tag != FINAL:
            self.reload()  # batch inference is another process
            return super().get_label_uri(label_id, label_tag)
        found = self._labelled().get(label_id)
        return str(self._label_file(label_id, *found)) if found else ""

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is noted of a label."""
        self.reload()
        return super().get_label_info(label_id, label_tag)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Paths of all "image"s with final "label"s; `left_out` says of which images they cannot be read."""
        items, self.left_out = [], {}
        for image_id, (image, label) in sorted(self._labelled().items()):
            try:
                paths = self._image_file(image_id, image), self._label_file(image_id, image, label)
                items.append(dict(zip(("image", "label"), map(str, paths), strict=True)))
            except ServiceError:
                raise
            except UserError as error:
                self.left_out[image_id + NIFTI] = str(error)
        return items

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Images come into an archive by DICOM; refuses with 405."""
        raise HTTPException(405, f"{self.archive.url}: images are added by storing DICOM in the archive.")

    def remove_image(self, image_id: str) -> None:
        """Refuses with 405."""
        raise HTTPException(405, f"{self.archive.url}: images are removed in the archive itself.")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label that is in the cache; final ones are the archive's, for which it refuses with 405."""
        if label_tag == FINAL:
            raise HTTPException(405, f"{self.archive.url}: final labels are removed in the archive itself.")
        super().remove_label(label_id, label_tag)

    def _labelled(self) -> dict[str, tuple[Dataset, Dataset]]:
        images, labels = self.archive.images(), self.archive.labels()
        return {image_id: (images[image_id], label) for image_id, label in labels.items() if image_id in images}

    def _image_file(self, image_id: str, image: Dataset) -> Path:
        """The image in the cache, fetched if need be, and listed in the index."""
        dicom, nifti = self._dicom_file(image_id), self._nifti_file(image_id)
        try:
            if not dicom.is_file():
                with tempfile.TemporaryDirectory(dir=self._datastore_path) as folder:  # a kill leaves no half of a file
                    self.archive.fetch_image(image, Path(folder) / "image.dcm")
                    dicom.parent.mkdir(exist_ok=True)
                    os.replace(Path(folder) / "image.dcm", dicom)
            if not nifti.is_file():
                image_to_nifti(dicom, nifti)
        except UnreadableRadiographError:
            self._unreadable.add(image_id)
            raise
        self.reload()
        if "SeriesInstanceUID" not in self.get_image_info(image_id):
            self.refresh()
            self.update_image_info(image_id, _info(image, IMAGE_INFO))
        return nifti

    def _nifti_file(self, image_id: str) -> Path:
        return Path(self._datastore_path) / (image_id + NIFTI)

    def _dicom_file(self, image_id: str) -> Path:
        # MONAI Label's inference with DICOM SEG looks for it in a folder beside the NIfTI.
        return Path(self._datastore_path) / image_id / "image.dcm"

    def _label_file(self, image_id: str, image: Dataset, label: Dataset) -> Path:
        """The label in the cache, fetched if that is another one."""
        source = self._image_file(image_id, image)
        path = Path(super().get_label_uri(image_id, FINAL))
        if super().get_label_info(image_id, FINAL).get("SOPInstanceUID") != label.SOPInstanceUID or not path.is_file():
            rows, columns = image_size(source, source.name)
            mask = self.archive.read_label(label)
            if mask.shape != (rows, columns):
                raise UserError(
                    f"label of {image_id}: found a SEG of {mask.shape[0]} × {mask.shape[1]} pixels; expected {rows} × "
                    f"{columns}, the rows × columns of its image. Submit the label anew."
                )
            super()._keep_label(image_id, FINAL, mask, source, _info(label, LABEL_INFO))
        return Path(super().get_label_uri(image_id, FINAL))

    def _keep_label(self, image_id: str, tag: str, labels: NDArray, source: Path, info: dict[str, Any]) -> None:
        # Always NIfTI, with the geometry of the NIfTI that clients get of the image.
        if tag == FINAL:
            info = {**info, **_info(self._store(image_id, labels), LABEL_INFO)}
        super()._keep_label(image_id, tag, labels, self._nifti_file(image_id), info)

    def _store(self, image_id: str, labels: NDArray) -> Dataset:
        """Have the archive keep a label, and be sure that it did before anybody is told so."""
        present = self.archive.labels().get(image_id)
        if present and self._is_stored(present, labels):
            return present
        source = self._dicom_file(image_id)  # there, as `save_label` has asked for the image
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "label.dcm"
            stored = self.archive.store_label(
                write_dicom_seg(labels, target, self.classes, source, self.model, is_annotation=True)
            )
        newest = self.archive.labels().get(image_id)
        if newest is None or newest.SOPInstanceUID != stored or not self._is_stored(newest, labels):
            raise ServiceError(
                f"{self.archive.url}: found {newest.SOPInstanceUID if newest else 'no label'} as the newest label of "
                f"{image_id} after {stored} was stored; expected that one, unchanged. Check the archive, and the "
                "clocks of whatever else stores labels there."
            )
        return newest

    def _is_stored(self, label: Dataset, labels: NDArray) -> bool:
        try:
            return bool(np.array_equal(self.archive.read_label(label), labels))
        except ServiceError:
            raise
        except UserError:  # a SEG of somebody else that is no mask of one radiograph
            return False

    def _forget(self, image_id: str) -> None:
        """Remove what the cache has of an image that the archive has no more."""
        self.reload()
        if image_id in self._datastore.objects:
            for file in Path(self._datastore_path).rglob(image_id + NIFTI):
                file.unlink(missing_ok=True)
            shutil.rmtree(self._dicom_file(image_id).parent, ignore_errors=True)
            self.refresh()


def image_to_nifti(source: Path, path: Path) -> Path:
    """Write a DICOM radiograph as every other part of the project sees it: bone bright, windowed, with its spacing.

    As float32 in [0, 1], which the reader takes as it is; integers it would stretch a second time.

    Raises:
        UnreadableRadiographError: there is no radiograph in it.
    """
    from nibabel.nifti1 import Nifti1Image

    radiograph = read_radiograph(source)
    row, column = radiograph.spacing_mm or (1.0, 1.0)
    values = radiograph.pixels[0].numpy().astype(np.float32)
    image = Nifti1Image(values.T[..., None], np.diag([-column, -row, 1.0, 1.0]))
    image.header["xyzt_units"] = 2 if radiograph.spacing_mm else 0
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    return path


def use_own_conversion(classes: ClassTable, model: str) -> None:
    """Have inference with `output=dicom_seg` write a model's masks as `write_dicom_seg` does.

    dcmqi and pydicom-seg, MONAI Label's own, need a position in space, which projection radiographs do not have.
    """
    import monailabel.endpoints.infer as infer

    def nifti_to_dicom_seg(series_dir: str, label: str, *_: Any, **__: Any) -> str:
        # The mask is our own: what `label_info` of the client says of its values does not matter.
        with readable_file(series_dir) as source:
            mask = read_label(label, "label", image_size(source, "image"), classes)
            target = request_folder() / f"seg_{uuid.uuid4().hex}.dcm"
            return str(write_dicom_seg(mask, target, classes, source, model))

    infer.nifti_to_dicom_seg = nifti_to_dicom_seg


def _info(dataset: Dataset, keys: tuple[str, ...]) -> dict[str, str]:
    return {key: str(dataset.get(key) or "UNK") for key in keys}


# MONAI Label gives DICOM SEG only for its own class, of which nothing else is of use here.
DICOMWebDatastore.register(CheckedArchive)
