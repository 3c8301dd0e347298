"""Radiographs and DICOM SEG of an archive as the files that MONAI Label's clients know, and back, without dcmqi.

dcmqi and pydicom-seg need a position in space, which projection radiographs do not have, and lose the label.
"""

from __future__ import annotations

import gzip
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_path
from ..io import read_radiograph
from ..io.dicom_seg import DicomSegError, write_dicom_seg
from ..io.segmentation_classes import ClassTable, UnknownClassError
from .http_errors import as_http_errors
from .label_checks import check_label
from .readable import readable_file
from .request_files import request_folder

SEG_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"


def read_dicom_seg(path: str | Path, classes: ClassTable) -> tuple[NDArray[np.uint8], str]:
    """Read a SEG file of one radiograph; result and errors as of `labels_of_seg`."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(path)
    except (InvalidDicomError, OSError) as error:
        raise DicomSegError(f"{path}: found no readable DICOM SEG ({error}); expected one of a radiograph.") from error
    return labels_of_seg(dataset, str(path), classes)


def labels_of_seg(dataset: Any, name: str, classes: ClassTable) -> tuple[NDArray[np.uint8], str]:
    """Labels of a SEG of one radiograph, by the names of its segments.

    Args:
        dataset: whoever made it.
        name: for messages.
        classes: the labels; a pixel in several segments gets the largest label.

    Returns:
        Labels [H, W], and the SOPInstanceUID of the image, "" if the SEG does not say.

    Raises:
        DicomSegError: no SEG, a volume, or a segment that is no class.
    """
    try:
        if dataset.SOPClassUID != SEG_SOP_CLASS:
            raise DicomSegError(f"{name}: found {dataset.SOPClassUID.name}; expected a DICOM SEG.")
        frames = dataset.pixel_array.reshape(-1, int(dataset.Rows), int(dataset.Columns))
        names = segment_names(dataset)
        groups = dataset.PerFrameFunctionalGroupsSequence
        numbers = [int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for group in groups]
        labels = [classes.label_of(names[number]) for number in numbers]
    except (DicomSegError, UnknownClassError):
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DicomSegError(f"{name}: found no readable DICOM SEG ({error}); expected one of a radiograph.") from error
    if len(set(numbers)) != len(numbers):
        raise DicomSegError(f"{name}: found several frames of one segment, a volume; expected one radiograph.")
    mask = np.zeros(frames.shape[1:], np.uint8)
    for place in np.argsort(labels, kind="stable"):
        mask[frames[place] > 0] = labels[place]
    return mask, _referenced(dataset)


def segment_names(dataset: Any) -> dict[int, str]:
    """Names of a SEG's segments by their numbers, in lower case as the class table has them."""
    segments = dataset.get("SegmentSequence") or []
    return {int(item.SegmentNumber): str(item.SegmentLabel).strip().lower() for item in segments}


def seg_file(source: str | Path, label: str | Path, classes: ClassTable, model: str) -> Path:
    """Turn a mask of the model into a SEG of its image, in the folder of the request.

    Args:
        source: DICOM file of the image, or the folder that holds it alone.
        label: PNG, NIfTI or NRRD; its values are labels.
        classes: the labels.
        model: what drew it.

    Raises:
        UnreadableRadiographError: the folder holds a series of several files.
        RefusedUploadError: the label does not fit the image.
        DicomSegError: no SEG can refer to the image.
    """
    with readable_file(source) as file:
        size = read_radiograph(file).pixels.shape[-2:]
        mask = check_label(label, "label", (size[0], size[1]), classes)
        target = request_folder() / f"seg_{uuid.uuid4().hex}.dcm"
        return write_dicom_seg(mask, target, classes, file, model)


def use_own_conversion(classes: ClassTable, model: str) -> None:
    """Put `seg_file` in the place of MONAI Label's conversion, for inference with `output=dicom_seg`.

    Args:
        classes: the labels.
        model: name and version, for the SEG.
    """
    import monailabel.endpoints.infer as infer

    def nifti_to_dicom_seg(series_dir: str, label: str, *_: Any, **__: Any) -> str:
        # The mask is our own: what `label_info` of the client says of its values does not matter.
        with as_http_errors():
            return str(seg_file(series_dir, label, classes, model))

    infer.nifti_to_dicom_seg = nifti_to_dicom_seg


def image_to_nifti(source: str | Path, path: Path) -> Path:
    """Write a radiograph as every other part of the project sees it: bone bright, windowed, with its spacing.

    As float32 in [0, 1], which the reader takes as it is; integers it would stretch a second time.

    Args:
        source: DICOM file, or the folder that holds it alone.
        path: ends in .nii.gz.

    Raises:
        UnreadableRadiographError: there is no radiograph in it.
    """
    from nibabel.nifti1 import Nifti1Image

    with readable_file(source) as file:
        radiograph = read_radiograph(file)
    values = radiograph.pixels[0].numpy().astype(np.float32)
    row, column = radiograph.spacing_mm or (1.0, 1.0)
    image = Nifti1Image(values.T[..., None], np.diag([-column, -row, 1.0, 1.0]))
    image.header["xyzt_units"] = 2 if radiograph.spacing_mm else 0
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    return path


def _referenced(dataset: Any) -> str:
    try:
        return str(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID)
    except (AttributeError, IndexError):
        return ""
