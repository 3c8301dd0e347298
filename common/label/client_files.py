"""Files as MONAI Label's clients send and want them, among them NRRD of 3D Slicer and a folder of one DICOM file."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError, UserError
from ..io import Radiograph, UnreadableRadiographError, read_radiograph
from ..io.dicom_seg import write_dicom_seg
from ..io.mask_files import as_uint8, read_mask, write_nifti_mask
from ..io.read import detect_format
from ..io.segmentation_classes import BACKGROUND, ClassTable

PNG, NRRD = b"\x89PNG", b"NRRD"  # as their files begin
NIFTI = (".nii", ".nii.gz")
RESULT_SUFFIXES = (".png", *NIFTI, ".nrrd", ".mha", ".dcm")


def begins_with(path: str | Path, magic: bytes) -> bool:
    """Whether a file's content begins so; False of a folder and where there is none."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


@contextmanager
def readable_file(path: str | Path, name: str = "") -> Iterator[Path]:
    """Give a file that the readers of radiographs and masks know, for as long as the block lasts.

    NRRD becomes NIfTI with the same geometry, a folder of one file that file; anything else stays what it is. Errors in
    the block call it `name`, in place of a path that says nothing to a client.

    Raises:
        UnreadableRadiographError: a damaged NRRD, or a folder of several files (a volume); UserError under a name.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(path)
            files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
            if len(files) != 1:
                found, why = f"a folder of {len(files)} files", "CT and MR volumes are no radiographs."
                raise UnreadableRadiographError(path, found, "one radiograph", why)
            is_nrrd = begins_with(files[0], NRRD)
            yield _nrrd_as_nifti(files[0], Path(folder) / "converted.nii") if is_nrrd else files[0]
    except UnreadableRadiographError as error:
        if not name:
            raise
        _, separator, rest = str(error).partition(": ")
        raise UserError(f"{name}: {rest if separator else error}") from error


def _nrrd_as_nifti(source: Path, target: Path) -> Path:
    try:
        image = SimpleITK.ReadImage(str(source), imageIO="NrrdImageIO")
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise UnreadableRadiographError(source, "an NRRD image in colour", "one grey channel", "Save it in grey.")
        SimpleITK.WriteImage(image, str(target))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise UnreadableRadiographError(
            source, f"a damaged NRRD file ({reason})", "one radiograph or mask as NRRD", "Export it again."
        ) from error
    return target


def image_size(path: str | Path, name: str) -> tuple[int, int]:
    """Rows and columns of an image that is read as it will be read later.

    Raises:
        UserError: it is no single readable radiograph; the message calls it `name`.
    """
    with readable_file(path, name) as file:
        _, rows, columns = read_radiograph(file).pixels.shape
        return rows, columns


def read_label(
    path: str | Path,
    name: str,
    size: tuple[int, int],
    classes: ClassTable,
    segments: Sequence[Mapping[str, Any]] | None = None,
) -> NDArray[np.uint8]:
    """Read a label, PNG, NIfTI or NRRD, as it will be read in training: labels [H, W] of the class table.

    Args:
        path: of the file.
        name: for messages.
        size: rows, columns that it has to have.
        classes: the labels it may hold.
        segments: `label_info` of 3D Slicer, see `slicer_labels`; None where the values are the labels.

    Raises:
        UserError: no mask, a volume, another size, or a value without a class.
    """
    with readable_file(path, name) as file:
        values = read_mask(file)
    if values.shape != size:
        raise UserError(
            f"{name}: found a mask of {values.shape[0]} × {values.shape[1]} pixels; expected {size[0]} × {size[1]}, "
            "the rows × columns of its image. Check that mask and image belong together and are not turned."
        )
    try:
        labels = slicer_labels(values, segments, classes) if segments else classes.map_mask(values, None)
    except DatasetError as error:
        raise UserError(f"{name}: {error}") from error
    return labels.astype(np.uint8)


def slicer_labels(
    values: NDArray[np.int64], segments: Sequence[Mapping[str, Any]], classes: ClassTable
) -> NDArray[np.int64]:
    """Labels from a mask [H, W] whose values number segments, as 3D Slicer exports them: names decide, not numbers.

    Slicer numbers the segments that it saves from 1 in their order, so once one is deleted, 4 may be the decay; `idx`
    is the segment's place before. A client that sends labels with their own values is told by values beyond that.
    Segments are in order, each with its class as "name" and maybe "idx".

    Raises:
        DatasetError: a value in use has no segment, or its segment's name is no class.
    """
    found = [value for value in np.unique(values).tolist() if value]
    names = {place: str(entry.get("name", "")) for place, entry in enumerate(segments, start=1)}
    if not set(found) <= names.keys():
        numbered = [entry for entry in segments if str(entry.get("idx", "")).isdigit()]
        names = {int(entry["idx"]): str(entry.get("name", "")) for entry in numbered}
    lookup = np.zeros(max(found, default=0) + 1, np.int64)
    for value in found:
        name = names.get(value, "").strip().lower()
        if name == BACKGROUND or name not in classes.names:
            raise DatasetError(
                f"found mask value {value} of segment {names.get(value, 'none')!r}; expected a segment named "
                f"{', '.join(classes.names[1:])}. Rename or remove it."
            )
        lookup[value] = classes.label_of(name)
    return lookup[values]


def default_suffix(path: str | Path, radiograph: Radiograph) -> str:
    """What a client gets that asks for nothing: PNG for pictures, otherwise NIfTI or NRRD as the image is."""
    if begins_with(path, NRRD):
        return ".nrrd"
    return ".png" if detect_format(radiograph.path) == "raster" else ".nii.gz"


def write_result(
    mask: NDArray[np.integer], folder: Path, suffix: str, radiograph: Radiograph, classes: ClassTable, model: str
) -> Path:
    """Write a mask [H, W] into a folder of this request, under a new name with one of `RESULT_SUFFIXES`.

    PNG is grey of 8 bits, its numbers the labels (a palette would be turned into colours by ITK). NIfTI and NRRD have
    rank and geometry of an image that is NIfTI, of DICOM the position that ITK and 3D Slicer give it. The radiograph's
    own file has to be there still; `model` is name and version, for DICOM SEG.

    Raises:
        DatasetError: DICOM SEG of an image that is no DICOM.
    """
    path = folder / f"mask_{uuid.uuid4().hex}{suffix}"
    labels = as_uint8(mask)
    if suffix == ".dcm":
        return write_dicom_seg(labels, path, classes, radiograph.path, model)
    if suffix == ".png":
        Image.fromarray(labels).save(path)
        return path
    if detect_format(radiograph.path) == "dicom":
        image = _as_itk_reads(labels, radiograph)
    else:
        nifti = path if suffix in NIFTI else path.with_suffix(".nii")
        write_nifti_mask(labels, nifti, radiograph.spacing_mm, radiograph.path)
        if nifti == path:
            return path
        image = SimpleITK.ReadImage(str(nifti))
        nifti.unlink()
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


def _as_itk_reads(labels: NDArray[np.uint8], radiograph: Radiograph) -> Any:
    """The mask with the position, spacing and directions that ITK reads from the DICOM file, as a viewer does.

    Of a DX, ITK takes ImagerPixelSpacing alone; where it knows no spacing, the reader's own counts.
    """
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
    return image
