"""Generated radiographs as DICOM files that no system can take for an acquisition of a patient.

Why Secondary Capture and not Digital X-Ray (DX) For Presentation:

- DX must say what nobody knows of a generated image: detector pixel spacing at the housing, patient orientation, image
  laterality, relationship of pixel values to X-ray intensity (all type 1). Synthetic Data (0008,001C) does permit
  values that simulate an acquisition, but this generator simulates pixels only; the rest would be made up.
- Secondary Capture asks for none of these and has the term for it: Conversion Type SYN, "Synthetic Image" (PS3.3
  C.8.6.1).
- Routing rules, CAD, dose registries and hanging protocols of a PACS go by SOP class and Modality. A synthetic image
  that says DX would be triaged, counted and read; with Modality OT it is stored and shown, and that is all.
- Viewers lose nothing: Secondary Capture is one of the image classes that OHIF and the like show in their usual
  viewport, with window and spacing.

Every sample is a patient, a study and a series of its own: nothing may group it with a real patient's images. Which
samples share a source patient is in `manifest.csv` (see `generation_manifest`); keep it with files to be trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .. import __version__
from ..files import atomic_path
from ..intensity import stored_values
from .spacing import plausible_spacing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MANUFACTURER = "radiograph-diffusion-bundles"
PATIENT_NAME = "SYNTHETIC^NOT A PATIENT"
PREFIX = "SYNTHETIC"

_SYNTHETIC_DATA = 0x0008001C  # pydicom 2.4 does not know its keyword
_LO_CHARACTERS, _LT_CHARACTERS = 64, 10240  # PS3.5 table 6.2-1


def write_synthetic_dicom(
    pixels: Tensor,
    path: str | Path,
    *,
    identity: str,
    model: str,
    description: str,
    bits: int = 16,
    pixel_spacing: tuple[float, float] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write a generated image as DICOM, atomically; the same arguments give the same bytes and UIDs.

    The file holds no patient data and no dates. Its window is the full range, so `read_radiograph` gives the pixels
    back to half a grey level, bone bright (MONOCHROME2); only a 16-bit image of nearly one grey, or of black and white
    alone, would be stretched.

    Args:
        pixels: [1, H, W] in [0, 1].
        path: of the file; its folder is made if need be.
        identity: what makes this sample this one, such as the run's fingerprint and the sample's name. UIDs and
            PatientID are hashes of it: the same identity gives the same ones. A patient's id or file name does not
            belong in it, because a guess could be confirmed by its hash.
        model: what generated it, such as "cxr_dino_latent_diffusion 0.1.0, weights 3fa94c01"; at most 64 characters.
        description: what it shows, such as "chest radiograph, variation"; at most 53 characters.
        bits: 8 or 16.
        pixel_spacing: mm between pixel centres, (down the rows, along the columns), or None if unknown.
        provenance: how the image was made, for ImageComments; nothing that names a patient.

    Returns:
        The path.

    Raises:
        ValueError: pixels or bits as in `stored_values`; no identity, a text that DICOM cannot hold or that is too
            long, a spacing that no radiograph has.
    """
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    if not identity:
        raise ValueError("synthetic DICOM: found no identity; expected a text that no other sample has.")
    dataset = pydicom.Dataset()
    _add_patient_and_study(dataset, identity, _line("description", f"{PREFIX}: {description}"))
    _add_origin(dataset, _line("model", model), provenance or {})
    _add_image(dataset, pixels, bits, pixel_spacing)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    encoding = {"is_implicit_VR": False, "is_little_endian": True}
    file = FileDataset(str(path), dataset, preamble=b"\0" * 128, file_meta=meta, **encoding)
    is_old = int(pydicom.__version__.split(".")[0]) < 3
    options = {"write_like_original": False} if is_old else {"enforce_file_format": True}
    with atomic_path(path) as temporary:
        file.save_as(temporary, **options)
    return Path(path)


def _line(name: str, text: str) -> str:
    """Check one line of text, a value of type LO, where a backslash would begin another value."""
    if not text.strip() or len(text) > _LO_CHARACTERS or re.search(r"[\\\x00-\x1f\x7f]", text):
        raise ValueError(
            f"synthetic DICOM: found {name} {text!r} of {len(text)} characters; expected 1 to {_LO_CHARACTERS} on one "
            "line, without backslash. Shorten it."
        )
    return text


def _add_patient_and_study(dataset: Dataset, identity: str, description: str) -> None:
    """Modules Patient, General Study, General Series and the UIDs; type 2 attributes without a truth stay empty."""
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = (
        generate_uid(entropy_srcs=[MANUFACTURER, "\0", level, "\0", identity])
        for level in ("instance", "series", "study")
    )
    dataset.PatientName = PATIENT_NAME
    dataset.PatientID = f"{PREFIX}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "Laterality"):
        setattr(dataset, keyword, "")
    dataset.ReferringPhysicianName, dataset.StudyID = "", PREFIX
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Generated by a model; the header never held patient data"
    dataset.Modality = "OT"
    dataset.StudyDescription = dataset.SeriesDescription = description
    dataset.SeriesNumber, dataset.InstanceNumber = "1", "1"


def _add_origin(dataset: Dataset, model: str, provenance: Mapping[str, str]) -> None:
    """Say everywhere a system may look that a model made this: equipment, derivation, comments, SOP Common."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    statement = f"SYNTHETIC IMAGE, not an acquisition of any patient. AI-generated by {model}. Not for diagnosis."
    dataset.add_new(_SYNTHETIC_DATA, "CS", "YES")
    dataset.ContentQualification = "RESEARCH"
    dataset.ConversionType = "SYN"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = statement
    comments = "\r\n".join([statement, *(f"{key}: {value}" for key, value in provenance.items())])
    if len(comments) > _LT_CHARACTERS:
        raise ValueError(
            f"synthetic DICOM: found {len(comments)} characters of provenance; expected at most {_LT_CHARACTERS}. "
            "Leave some out."
        )
    dataset.ImageComments = comments
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109100", "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = Sequence([purpose])
    equipment.ContributionDescription = statement
    for item in (dataset, equipment):
        item.Manufacturer, item.ManufacturerModelName, item.SoftwareVersions = MANUFACTURER, model, __version__
    dataset.ContributingEquipmentSequence = Sequence([equipment])


def _add_image(dataset: Dataset, pixels: Tensor, bits: int, pixel_spacing: tuple[float, float] | None) -> None:
    """Modules General Image, Image Pixel, SC Image and VOI LUT."""
    values = stored_values(pixels, bits)
    dataset.PatientOrientation = ""  # which way the anatomy lies is not known
    dataset.BurnedInAnnotation = dataset.RecognizableVisualFeatures = "NO"
    dataset.LossyImageCompression = "00"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
    # PS3.3 C.11.2.1.2 maps centre 2^(bits-1), width 2^bits onto 0 to 2^bits - 1 without loss.
    dataset.WindowCenter, dataset.WindowWidth = str(2 ** (bits - 1)), str(2**bits)
    if pixel_spacing is not None:
        if plausible_spacing(pixel_spacing) is None:
            raise ValueError(
                f"synthetic DICOM: found pixel_spacing {pixel_spacing}; expected two numbers of mm as radiographs have "
                "them, (down the rows, along the columns), or None."
            )
        dataset.PixelSpacing = [f"{millimetres:.10g}" for millimetres in pixel_spacing]
    dataset.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()  # pydicom pads an odd length
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
