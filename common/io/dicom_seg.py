"""Masks as DICOM Segmentation objects that belong to the study of the image they were drawn on.

highdicom (optional) writes them: unlike dcmqi and pydicom-seg it also takes projection radiographs, which have no frame
of reference and no position in space.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import DatasetError
from ..files import atomic_path
from .dicom_header import text
from .mask_files import as_uint8
from .segmentation_classes import ClassTable, Colour
from .synthetic_dicom import MANUFACTURER

SERIES_NUMBER = 9001  # far from those of acquisitions; the standard asks only for some number
# Types have no SNOMED code that fits each class, so they are codes of a private scheme; categories are CID 7150's.
PRIVATE_SCHEME = "99RADIOGRAPHS"
_CATEGORIES = {
    "anatomical structure": ("123037004", "Anatomical Structure"),
    "abnormality": ("49755003", "Morphologically Abnormal Structure"),
    "material": ("260787004", "Physical object"),
}
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_NAMES = ("PatientName", "ReferringPhysicianName")
_MAY_BE_EMPTY = ("PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber")


def require_highdicom() -> Any:
    """Import highdicom; raises `DatasetError` where it is not installed."""
    try:
        import highdicom.seg
    except ImportError as error:
        raise DatasetError(
            f"DICOM SEG: found no usable highdicom ({error}); expected the package. "
            'Install it ("pip install highdicom"), or leave DICOM SEG off.'
        ) from error
    return highdicom


def write_dicom_seg(
    mask: NDArray[np.integer],
    path: str | Path,
    classes: ClassTable,
    source: str | os.PathLike[str],
    model: str,
    *,
    is_annotation: bool = False,
) -> Path:
    """Write a mask, labels [H, W], as a binary DICOM SEG with one segment for each class, atomically; returns the path.

    Patient and study are those of the `source`, the single-frame DICOM file of the image; series and instance are new,
    the same for the same mask, `model` (what drew it, at most 64 characters) and source, unless it is an annotation:
    that somebody has corrected or confirmed, of algorithm type SEMIAUTOMATIC. Classes without pixels are segments, too,
    each with its empty frame: without one OHIF shows no segment at all.

    Raises:
        DatasetError: highdicom is missing, the source is no such DICOM file, or the mask is of another size.
        ValueError: labels that the table does not have.
    """
    highdicom = require_highdicom()
    import pydicom

    labels = as_uint8(mask, classes)
    dataset = _read_source(Path(source), labels.shape)
    identity = [str(dataset.SOPInstanceUID), model, classes.name, hashlib.sha256(labels.tobytes()).hexdigest()]
    identity += [uuid.uuid4().hex] if is_annotation else []
    series, instance = (pydicom.uid.generate_uid(entropy_srcs=[level, *identity]) for level in ("series", "instance"))
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=[dataset],
            pixel_array=labels[None],
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_descriptions(highdicom, classes, model, is_annotation),
            series_instance_uid=series,
            series_number=SERIES_NUMBER,
            sop_instance_uid=instance,
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=model,
            software_versions=__version__,
            device_serial_number="none",
            omit_empty_frames=False,
            content_label="SEGMENTATION",
            series_description=f"{'Annotation' if is_annotation else 'Segmentation'} ({classes.name}), research only",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{source}: found a DICOM file that no SEG can refer to ({type(error).__name__}: {error}); expected a "
            "single-frame image with patient, study and series. Export it again, or leave DICOM SEG off."
        ) from error
    segmentation.SpecificCharacterSet = dataset.SpecificCharacterSet
    for item, entry in zip(segmentation.SegmentSequence, classes.classes, strict=True):
        item.RecommendedDisplayCIELabValue = dicom_cielab(entry.colour)
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)
    return Path(path)


def dicom_cielab(colour: Colour) -> list[int]:
    """A colour of sRGB as DICOM has it: CIELab at D50, its ranges as 0 to 65535 each (PS3.3 C.10.7.1.1)."""
    unit = np.array(colour) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    # sRGB to XYZ, adapted from D65 to D50 by Bradford's method (as ICC profiles of sRGB have it).
    to_xyz = [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
    ratio = np.array(to_xyz) @ linear / [0.96422, 1.0, 0.82521]
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    lightness, a, b = 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])
    scaled = np.array([lightness / 100, (a + 128) / 255, (b + 128) / 255])
    return [int(number) for number in np.clip(scaled * 65535, 0, 65535).round()]


def _read_source(path: Path, shape: tuple[int, ...]) -> Any:
    """Read the image's header, completed: only the UIDs have to have a value, in whatever script the names are."""
    import pydicom

    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        found = (int(dataset.Rows), int(dataset.Columns))
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: found no DICOM image ({error}); expected the DICOM file that the mask was drawn on. "
            "Write NIfTI or PNG for images of other formats."
        ) from error
    if found != shape:
        raise DatasetError(
            f"{path}: found {found[0]} × {found[1]} pixels; expected {shape[0]} × {shape[1]}, the mask's rows × "
            "columns. Give the image that the mask was drawn on."
        )
    without = [keyword for keyword in _UIDS if not text(dataset, keyword)]
    if without:
        raise DatasetError(f"{path}: found no {', '.join(without)}; expected an image of a study. Export it again.")
    dataset.decode()
    for keyword in _NAMES:
        setattr(dataset, keyword, str(dataset.get(keyword) or ""))
    for keyword in _MAY_BE_EMPTY:
        value = dataset.get(keyword)
        setattr(dataset, keyword, value if _is_well_formed(keyword, str(value or "")) else "")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def _is_well_formed(keyword: str, value: str) -> bool:
    """Whether highdicom will take an element that may be empty: of a malformed one nothing is known either."""
    from pydicom.valuerep import DA, TM

    if keyword == "PatientSex":
        return value in ("", "M", "F", "O")
    read = DA if keyword.endswith("Date") else TM if keyword.endswith("Time") else str
    with suppress(ValueError, OverflowError):
        read(value)
        return True
    return False


def _descriptions(highdicom: Any, classes: ClassTable, model: str, is_annotation: bool) -> list[Any]:
    from pydicom.sr.coding import Code

    kinds = highdicom.seg.SegmentAlgorithmTypeValues
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model, family=Code("123109", "DCM", "Artificial Intelligence"), version=__version__
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=label,
            segment_label=entry.name,
            segmented_property_category=Code(_CATEGORIES[entry.category][0], "SCT", _CATEGORIES[entry.category][1]),
            segmented_property_type=Code(entry.key[:16], PRIVATE_SCHEME, entry.name),
            algorithm_type=kinds.SEMIAUTOMATIC if is_annotation else kinds.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for label, entry in enumerate(classes.classes, start=1)
    ]
