"""Masks as files for a client: the right type, rows × columns and geometry."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from ..files import atomic_path
from ..io import Radiograph
from ..io.dicom_seg import write_dicom_seg
from ..io.formats import detect_format
from ..io.mask_files import as_uint8, write_nifti_mask
from ..io.segmentation_classes import ClassTable
from .readable import is_nrrd, readable_file

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha")
RESULT_SUFFIXES = (".png", *NIFTI_SUFFIXES, *ITK_SUFFIXES, ".dcm")


class ResultFormatError(UserError, ValueError):
    """A client asks for masks in a format that cannot hold them."""


def default_suffix(path: str | Path) -> str:
    """What a client gets that asks for nothing: PNG for pictures, otherwise NIfTI or NRRD as the image is.

    Args:
        path: of the image, a file or a folder with one DICOM file.
    """
    if is_nrrd(path):
        return ".nrrd"
    with readable_file(path) as file:
        return ".png" if detect_format(file) == "raster" else ".nii.gz"


def write_result(
    mask: NDArray[np.integer], path: str | Path, radiograph: Radiograph, classes: ClassTable, model: str
) -> Path:
    """Write a mask in the format that the name's suffix says, atomically.

    PNG is grey of 8 bits, its numbers the labels (a palette would be turned into colours by ITK). NIfTI and NRRD have
    rank and geometry of an image that is NIfTI, of DICOM the position that ITK and 3D Slicer give it.

    Args:
        mask: labels [H, W].
        path: of the file.
        radiograph: that the mask was drawn on, its own file still there.
        classes: the labels.
        model: name and version, for DICOM SEG.

    Raises:
        ResultFormatError: a suffix that is not among `RESULT_SUFFIXES`.
        DicomSegError: DICOM SEG of an image that is no DICOM.
    """
    path = Path(path)
    suffix = result_suffix(path.name)
    labels = as_uint8(mask)
    if suffix == ".dcm":
        return write_dicom_seg(labels, path, classes, radiograph.path, model)
    if suffix == ".png":
        with atomic_path(path) as temporary:
            Image.fromarray(labels).save(temporary, format="PNG")
        return path
    if detect_format(radiograph.path) == "dicom":
        _write_as_itk_reads(labels, path, radiograph)
    elif suffix in NIFTI_SUFFIXES:
        write_nifti_mask(labels, path, radiograph.spacing_mm, radiograph.path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            nifti = write_nifti_mask(labels, Path(folder) / "mask.nii", radiograph.spacing_mm, radiograph.path)
            _write_itk(_read_itk(nifti), path)
    return path


def result_suffix(name: str) -> str:
    """The suffix of a result's name.

    Raises:
        ResultFormatError: one that no mask can be written to; JPEG would change the labels.
    """
    lowered = name.lower()
    for suffix in sorted(RESULT_SUFFIXES, key=len, reverse=True):
        if lowered.endswith(suffix):
            return suffix
    raise ResultFormatError(
        f"result_extension: found {name!r}; expected one of {', '.join(RESULT_SUFFIXES)}. Other formats cannot hold "
        "labels."
    )


def _write_as_itk_reads(labels: NDArray[np.uint8], path: Path, radiograph: Radiograph) -> None:
    """Give the mask the position, spacing and directions that ITK reads from the DICOM file, as a viewer does.

    Of a DX, ITK takes ImagerPixelSpacing alone; where it knows no spacing, the reader's own counts.
    """
    import SimpleITK

    reader: Any = SimpleITK.ImageFileReader()
    reader.SetFileName(str(radiograph.path))
    reader.SetImageIO("GDCMImageIO")
    image = SimpleITK.GetImageFromArray(labels[None])
    spacing = list(image.GetSpacing())
    with suppress(RuntimeError):  # GDCM knows fewer files than our reader, such as those without preamble
        reader.ReadImageInformation()
        image.SetOrigin(reader.GetOrigin())
        image.SetDirection(reader.GetDirection())
        spacing = list(reader.GetSpacing())
    if spacing[:2] == [1.0, 1.0] and radiograph.spacing_mm:
        spacing[:2] = radiograph.spacing_mm[::-1]
    image.SetSpacing(spacing)
    _write_itk(image, path)


def _read_itk(path: Path) -> Any:
    import SimpleITK

    return SimpleITK.ReadImage(str(path))


def _write_itk(image: Any, path: Path) -> None:
    import SimpleITK

    suffix = result_suffix(path.name)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / f"mask{suffix}"  # ITK tells the format by the name
        SimpleITK.WriteImage(image, str(written), useCompression=True)
        written.replace(path)
