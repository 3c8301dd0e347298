"""Draw the sample radiographs a bundle ships: chest phantoms drawn by code, of no patient."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import __version__ as pydicom_version
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from common.command_line import run_command
from common.data.phantom import draw_chest_phantom

_DICOM_SHAPE = (480, 400)
_PIXEL_SPACING_MM = 0.8

_SOURCE = """# Where these images come from

Drawn by code (`common/data/phantom.py`); they show no patient and carry the repository's licence. Draw them again with

    python scripts/draw_samples.py --output_dir {output_dir} --count {count} --size {size} --seed {seed}

- `phantom_00.png` and so on: 8-bit grey PNG, {size}×{size}.
- `phantom_{sixteen:02d}_16bit.png`: 16-bit grey PNG, {size}×{size}.
- `phantom_{dicom:02d}_cr.dcm`: DICOM, computed radiography, 12 bits stored, MONOCHROME1 (its values are inverted),
  {rows}×{columns}, {spacing} mm pixels.
"""


def _uid(text: str) -> UID:
    """A UID made from a name, the same each time; the 2.25 arc needs no registration."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, 'radiograph phantom/' + text).int}")


def _as_integers(height: int, width: int, seed: int, bits: int) -> NDArray[np.uint16]:
    """A phantom [height, width] with the full range of so many bits."""
    image = draw_chest_phantom(height, width, seed)[0].double().numpy()
    return np.round(image * (2**bits - 1)).astype(np.uint16)


def _write_dicom(path: Path, seed: int) -> None:
    """Write a phantom as a CR file with inverted grey values; the same bytes for the same seed."""
    rows, columns = _DICOM_SHAPE
    pixels = 4095 - _as_integers(rows, columns, seed, bits=12)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(f"{seed}/image")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("writer")
    meta.ImplementationVersionName = "DRAW_SAMPLES"  # else pydicom's version decides about the bytes
    image = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID = ComputedRadiographyImageStorage
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = _uid(f"{seed}/study"), _uid(f"{seed}/series")
    image.StudyDate = image.ContentDate = image.StudyTime = image.ContentTime = ""
    image.AccessionNumber = image.ReferringPhysicianName = image.StudyID = ""
    image.PatientName, image.PatientID = "Synthetic^Phantom", f"PHANTOM-{seed:04d}"
    image.PatientBirthDate = image.PatientSex = image.Laterality = ""
    image.Modality, image.Manufacturer = "CR", "draw_samples.py"
    image.BodyPartExamined, image.ViewPosition, image.PatientOrientation = "CHEST", "PA", ["L", "F"]
    image.SeriesNumber = image.InstanceNumber = 1
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.ImageComments = "Synthetic: drawn by code, shows no patient"
    image.Rows, image.Columns = rows, columns
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME1"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelSpacing = image.ImagerPixelSpacing = [_PIXEL_SPACING_MM, _PIXEL_SPACING_MM]
    image.WindowCenter, image.WindowWidth = 2048, 4096
    image.PixelData = pixels.astype("<u2").tobytes()
    image.save_as(path, enforce_file_format=True)


def draw_samples(output_dir: str, count: int = 6, size: int = 256, seed: int = 0) -> None:
    """Write `count` PNG phantoms, then one as 16-bit PNG and one as DICOM, and SOURCE.md.

    Args:
        output_dir: folder, made when missing; files of the same names are replaced.
        count: number of 8-bit PNG images.
        size: height and width of the PNG images.
        seed: of the first phantom; each following one takes the next.
    """
    if int(pydicom_version.split(".")[0]) < 3:  # reading works with 2.4, this way of writing does not
        sys.exit(f"found pydicom {pydicom_version}; expected 3 or newer to write the DICOM sample")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = _as_integers(size, size, seed + index, bits=8)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"phantom_{index:02d}.png", optimize=True)
    sixteen = _as_integers(size, size, seed + count, bits=16)
    Image.fromarray(sixteen).save(folder / f"phantom_{count:02d}_16bit.png", optimize=True)
    _write_dicom(folder / f"phantom_{count + 1:02d}_cr.dcm", seed + count + 1)
    source = _SOURCE.format(
        output_dir=output_dir, count=count, size=size, seed=seed, sixteen=count, dicom=count + 1,
        rows=_DICOM_SHAPE[0], columns=_DICOM_SHAPE[1], spacing=_PIXEL_SPACING_MM,
    )  # fmt: skip
    (folder / "SOURCE.md").write_text(source, encoding="utf-8")


if __name__ == "__main__":
    run_command(draw_samples)
