"""DICOM SEG to and from the files of MONAI Label's DICOMweb datastore, by highdicom and pydicom in place of dcmqi.

dcmqi and pydicom-seg need a position in space, which projection radiographs do not have, and lose the label.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dicom_seg import DicomSegError, write_dicom_seg
from ..mask_files import write_nifti_mask
from ..reader import read_radiograph
from ..segmentation_classes import ClassTable
from .label_checks import check_label
from .readable import readable_file

SEG_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"


def read_dicom_seg(path: str | Path, classes: ClassTable) -> tuple[NDArray[np.uint8], str]:
    """Read a SEG of one radiograph, by the names of its segments.

    Args:
        path: of the file, whoever wrote it.
        classes: the labels; a pixel in several segments gets the largest label.

    Returns:
        Labels [H, W], and the SOPInstanceUID of the image, "" if the file does not say.

    Raises:
        DicomSegError: no SEG, a volume, or a segment that is no class.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(path)
        if dataset.SOPClassUID != SEG_SOP_CLASS:
            raise DicomSegError(f"{path}: found {dataset.SOPClassUID.name}; expected a DICOM SEG.")
        frames = dataset.pixel_array.reshape(-1, int(dataset.Rows), int(dataset.Columns))
        names = {int(item.SegmentNumber): str(item.SegmentLabel).strip().lower() for item in dataset.SegmentSequence}
        groups = dataset.PerFrameFunctionalGroupsSequence
        numbers = [int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for group in groups]
    except DicomSegError:
        raise
    except (InvalidDicomError, AttributeError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise DicomSegError(f"{path}: found no readable DICOM SEG ({error}); expected one of a radiograph.") from error
    if len(set(numbers)) != len(numbers):
        raise DicomSegError(f"{path}: found several frames of one segment, a volume; expected one radiograph.")
    mask = np.zeros(frames.shape[1:], np.uint8)
    labels = [classes.label_of(names[number]) for number in numbers]
    for place in np.argsort(labels, kind="stable"):
        mask[frames[place] > 0] = labels[place]
    return mask, _referenced(dataset)


def seg_file(
    source: str | Path,
    label: str | Path,
    classes: ClassTable,
    model: str,
    segments: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Turn a label as a client sends it into a SEG of its image, in the temporary folder; the caller removes it.

    Args:
        source: DICOM file of the image, or the folder that holds it alone.
        label: PNG, NIfTI or NRRD.
        classes: the labels.
        model: what drew it.
        segments: `label_info` of the client, see `label_checks.slicer_labels`.

    Raises:
        UnreadableRadiographError: the folder holds a series of several files.
        RefusedUploadError: the label does not fit the image.
        DicomSegError: no SEG can refer to the image.
    """
    with readable_file(source) as file:
        size = read_radiograph(file).pixels.shape[-2:]
        mask = check_label(label, "label", (size[0], size[1]), classes, segments)
        target = Path(tempfile.gettempdir()) / f"seg_{uuid.uuid4().hex}.dcm"
        return write_dicom_seg(mask, target, classes, file, model)


def use_own_conversions(classes: ClassTable, model: str) -> None:
    """Put these conversions in the place of MONAI Label's, for images and labels of a DICOMweb archive.

    Args:
        classes: the labels.
        model: name and version, for the SEG.
    """
    import monailabel.datastore.dicom as dicom
    import monailabel.datastore.utils.convert as convert
    import monailabel.endpoints.infer as infer

    def nifti_to_dicom_seg(series_dir: str, label: str, label_info: Any, *_: Any, **__: Any) -> str:
        segments = [entry for entry in label_info or [] if isinstance(entry, dict) and "name" in entry]
        return str(seg_file(series_dir, label, classes, model, segments or None))

    def dicom_to_nifti(series_dir: str, is_seg: bool = False) -> str:
        return str(_seg_to_nifti(series_dir, classes) if is_seg else _image_to_nifti(series_dir))

    replacements: dict[str, Callable] = {"nifti_to_dicom_seg": nifti_to_dicom_seg, "dicom_to_nifti": dicom_to_nifti}
    for module in (convert, dicom, infer):
        for name, function in replacements.items():
            if hasattr(module, name):
                setattr(module, name, function)


def _image_to_nifti(series: str | Path) -> Path:
    """The radiograph as every other part of the project sees it: bone bright, windowed, with its spacing."""
    from nibabel.nifti1 import Nifti1Image

    with readable_file(series) as file:
        radiograph = read_radiograph(file)
    values = (radiograph.pixels[0].numpy() * 65535).round().astype(np.uint16)
    row, column = radiograph.spacing_mm or (1.0, 1.0)
    image = Nifti1Image(values.T[..., None], np.diag([-column, -row, 1.0, 1.0]))
    image.header["xyzt_units"] = 2 if radiograph.spacing_mm else 0
    target = Path(tempfile.gettempdir()) / f"image_{uuid.uuid4().hex}.nii.gz"
    image.to_filename(target)
    return target


def _seg_to_nifti(series: str | Path, classes: ClassTable) -> Path:
    with readable_file(series) as file:
        mask, _ = read_dicom_seg(file, classes)
    return write_nifti_mask(mask, Path(tempfile.gettempdir()) / f"label_{uuid.uuid4().hex}.nii.gz", None)


def _referenced(dataset: Any) -> str:
    try:
        return str(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID)
    except (AttributeError, IndexError):
        return ""
