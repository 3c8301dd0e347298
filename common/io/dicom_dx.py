r"""Radiographs of any format as DICOM DX (or intra-oral IO), For Presentation, that viewers can draw masks over.

Projection images have no place in space, and OHIF cannot lay a DICOM SEG over an image without one. So each file gets a
nominal plane: Image Position (Patient) 0\0\0, Image Orientation (Patient) 1\0\0\0\1\0, Pixel Spacing, 1 mm of
thickness and a frame of reference of its own, a Standard Extended SOP Class (PS3.4 B.4.1). Patient Orientation repeats
it. It says where a pixel of the mask lies on the picture and nothing about the patient; Image Comments say so.

Filled are the modules of the Digital X-Ray Image IOD (PS3.3 A.26) that it demands: Patient, General Study, General
Series, DX Series, General Equipment, General Image, Image Pixel, DX Anatomy Imaged, DX Image, DX Detector, VOI LUT,
Acquisition Context and SOP Common; for IO (A.28) also Intra-Oral Series and Intra-Oral Image. Beyond it: Frame of
Reference and Image Plane. General Acquisition has nothing that is mandatory. What nobody knows and the standard wants
to have a value is stated as weakly as it allows: laterality U (unpaired; B for IO), pixel intensity LOG with sign -1
(bone bright), imager pixel spacing as the pixel spacing.

Nothing comes from the source but pixels, spacing and, because it may not be dropped, a lossy compression. Patient,
study and frame of reference are hashes of the picture, so that the same picture converted again is the same study and
no archive holds it twice; series and instance also are of the settings. Who has a picture can tell which file was made
of it; who does not, learns nothing from the hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import __version__
from ..errors import UserError
from ..files import atomic_path
from ..intensity import stored_values
from ..io import read_radiograph
from .source_history import LossyCompression
from .spacing import plausible_spacing
from .synthetic_dicom import MANUFACTURER, PATIENT_NAME, PREFIX

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

UNKNOWN_SPACING_MM = (1.0, 1.0)
UNKNOWN_SPACING_COMMENT = "Pixel spacing unknown: 1.0 mm is a placeholder, lengths and areas are in pixels."
GEOMETRY_COMMENT = "Position, orientation and thickness are nominal, for overlays; they say nothing about the patient."
LEVELS_BITS = (12, 16)

_SYNTHETIC_DATA = 0x0008001C  # pydicom 2.4 does not know its keyword
_REGIONS = {  # Body Part Examined and code (SNOMED CT), PS3.16 table L-1
    "ABDOMEN": ("818981001", "Abdomen"),
    "CHEST": ("816094009", "Chest"),
    "FOOT": ("56459004", "Foot"),
    "HAND": ("85562004", "Hand"),
    "HEAD": ("69536005", "Head"),
    "HIP": ("24136001", "Hip joint"),
    "JAW": ("661005", "Jaw region"),
    "KNEE": ("72696002", "Knee"),
    "MANDIBLE": ("91609006", "Mandible"),
    "MAXILLA": ("70925003", "Maxilla"),
    "PELVIS": ("816092008", "Pelvis"),
    "SKULL": ("89546000", "Skull"),
    "SPINE": ("421060004", "Spine"),
}
_INTRA_ORAL_REGIONS = ("JAW", "MANDIBLE", "MAXILLA")  # CID 4016
_LATERALITIES = {"DX": ("U", "R", "L", "B"), "IO": ("B", "R", "L")}


class DxError(UserError, ValueError):
    """A radiograph cannot become a DX file; the message says why."""


@dataclass(frozen=True)
class DxSettings:
    """What the pictures do not say of themselves.

    Attributes:
        modality: DX, or IO for the intra-oral class. MONAI Label is told one modality to look for, DX by default.
        bits: stored, 12 or 16. 8-bit grey values come back exactly from 16 and to half a level from 12.
        body_part: Body Part Examined such as CHEST or JAW; "" leaves it open, and is JAW for IO.
        laterality: R, L, B (both) or, for DX, U (unpaired); "" for the weakest that the class allows.
        patient_prefix: PatientID and PatientName begin with it.
        uid_seed: another text makes other UIDs and patients of the same pictures.
        model: of synthetic pictures, what generated them; "" for pictures of patients.

    Raises:
        DxError: values that the class does not have.
    """

    modality: str = "DX"
    bits: int = 16
    body_part: str = ""
    laterality: str = ""
    patient_prefix: str = "ANON"
    uid_seed: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if self.modality not in _LATERALITIES:
            raise DxError(f"modality: found {self.modality!r}; expected DX, or IO for intra-oral radiographs.")
        if self.bits not in LEVELS_BITS:
            raise DxError(f"bits: found {self.bits!r}; expected 12 or 16.")
        if not re.fullmatch(r"[A-Z0-9 _]{0,16}", self.body_part):
            raise DxError(
                f"body_part: found {self.body_part!r}; expected up to 16 capitals and digits, such as CHEST or JAW."
            )
        if self.modality == "IO" and self.body_part not in ("", *_INTRA_ORAL_REGIONS):
            raise DxError(f"body_part: found {self.body_part!r}; expected {', '.join(_INTRA_ORAL_REGIONS)} with IO.")
        if self.laterality not in ("", *_LATERALITIES[self.modality]):
            options = ", ".join(_LATERALITIES[self.modality])
            raise DxError(f"laterality: found {self.laterality!r}; expected one of {options} with {self.modality}.")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", self.patient_prefix):
            raise DxError(f"patient_prefix: found {self.patient_prefix!r}; expected 1 to 32 letters, digits, - and _.")
        if len(self.model) > 64 or re.search(r"[\\\x00-\x1f\x7f]", self.model):
            raise DxError(f"model: found {self.model!r}; expected at most 64 characters on one line, no backslash.")


def dx_dataset(
    pixels: Tensor,
    settings: DxSettings,
    spacing_mm: tuple[float, float] | None = None,
    lossy: LossyCompression | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Dataset:
    """Make the data set; the same arguments give the same one.

    Args:
        pixels: [1, H, W] in [0, 1], bone bright.
        settings: what the picture does not say.
        spacing_mm: between pixel centres, (down the rows, along the columns); None if unknown.
        lossy: the source's compression with loss, or None.
        provenance: how the image was made, for Image Comments; nothing that names a patient.

    Raises:
        DxError: a spacing that no radiograph has.
        ValueError: pixels as in `stored_values`.
    """
    from pydicom.dataset import Dataset

    if spacing_mm is not None and plausible_spacing(spacing_mm) is None:
        raise DxError(f"pixel spacing: found {spacing_mm}; expected mm as radiographs have them, (row, column).")
    levels = stored_values(pixels, 16)  # also for 12 bits: the number of bits must not change the patient
    picture = hashlib.sha256(f"{settings.uid_seed}\0{levels.shape}\0".encode() + levels.tobytes()).hexdigest()
    details = [asdict(settings), spacing_mm, None if lossy is None else asdict(lossy), dict(provenance or {})]
    dataset = Dataset()
    _add_patient_study_series(dataset, settings, picture, json.dumps(details, sort_keys=True))
    _add_geometry(dataset, spacing_mm, picture)
    _add_anatomy(dataset, settings)
    _add_derivation(dataset, settings, spacing_mm, lossy, provenance or {})
    _add_pixels(dataset, _levels(pixels, settings.bits), settings.bits)
    return dataset


def write_dx(dataset: Dataset, path: str | Path, pixels: Tensor) -> Path:
    """Write a data set of `dx_dataset`, atomically, after reading it back as the project's reader does.

    Args:
        dataset: of these pixels.
        path: of the file; its folder is made if need be.
        pixels: [1, H, W] in [0, 1], to compare with.

    Returns:
        The path.

    Raises:
        DxError: the reader gives another image than `pixels` to half a level: it distrusts a window on a picture that
            is nearly of one grey or black and white alone, and stretches it.
    """
    import pydicom

    is_old = int(pydicom.__version__.split(".")[0]) < 3
    options = {"write_like_original": False} if is_old else {"enforce_file_format": True}
    with atomic_path(path) as temporary:
        _with_meta(dataset, path).save_as(temporary, **options)
        error = float((read_radiograph(temporary).pixels - pixels).abs().max())
        if error > 0.5 / (2 ** int(dataset.BitsStored) - 1) + 1e-6:
            raise DxError(
                f"{path}: found a picture that comes back changed (by up to {error:.3g} of the range); expected a "
                "radiograph with many grey levels. It is nearly of one grey, or black and white alone."
            )
    return Path(path)


def _levels(pixels: Tensor, bits: int) -> NDArray[np.uint16]:
    """Stored values uint16 [H, W] of checked pixels."""
    return (
        (pixels.detach().as_subclass(torch.Tensor).cpu().double()[0] * (2**bits - 1)).round().numpy().astype(np.uint16)
    )


def _with_meta(dataset: Dataset, path: str | Path) -> FileDataset:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    encoding = {"is_implicit_VR": False, "is_little_endian": True}
    return FileDataset(str(path), dataset, preamble=b"\0" * 128, file_meta=meta, **encoding)


def _uid(level: str, *sources: str) -> str:
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=[MANUFACTURER, "\0DX\0", level, *("\0" + source for source in sources)])


def _add_patient_study_series(dataset: Dataset, settings: DxSettings, picture: str, details: str) -> None:
    """Modules Patient, General Study, General, DX and Intra-Oral Series, General Equipment, SOP Common."""
    from pydicom.uid import DigitalIntraOralXRayImageStorageForPresentation as IntraOral
    from pydicom.uid import DigitalXRayImageStorageForPresentation as Digital

    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = IntraOral if settings.modality == "IO" else Digital
    dataset.SOPInstanceUID = _uid("instance", picture, details)
    dataset.SeriesInstanceUID = _uid("series", picture, details)
    dataset.StudyInstanceUID = _uid("study", picture)
    prefix = PREFIX if settings.model else settings.patient_prefix
    dataset.PatientID = f"{prefix}-{picture[:16]}"
    dataset.PatientName = PATIENT_NAME if settings.model else f"{prefix}^{picture[:16]}"
    for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"):
        setattr(dataset, keyword, "")
    dataset.ReferringPhysicianName, dataset.StudyID = "", prefix[:16]
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = (
        "Generated by a model; the header never held patient data"
        if settings.model
        else "Only pixels and pixel spacing were taken from the source"
    )
    dataset.Modality, dataset.PresentationIntentType = settings.modality, "FOR PRESENTATION"
    kind = f"{PREFIX}: generated radiograph" if settings.model else "Radiograph, converted for annotation"
    dataset.StudyDescription = dataset.SeriesDescription = kind
    dataset.SeriesNumber, dataset.InstanceNumber = "1", "1"
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, settings.model or "png_to_dx"
    dataset.SoftwareVersions = __version__


def _add_geometry(dataset: Dataset, spacing_mm: tuple[float, float] | None, picture: str) -> None:
    """Modules Frame of Reference and Image Plane, and DX Detector."""
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = _uid("frame of reference", picture), ""
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.SliceThickness = "1"  # highdicom and dcmqi ask for it where there is a frame of reference
    dataset.PatientOrientation = ["L", "P"]  # of this plane; another would contradict it
    spacing = [f"{millimetres:.10g}" for millimetres in spacing_mm or UNKNOWN_SPACING_MM]
    dataset.PixelSpacing = dataset.ImagerPixelSpacing = spacing
    dataset.DetectorType = ""


def _add_anatomy(dataset: Dataset, settings: DxSettings) -> None:
    """Modules DX Anatomy Imaged, Intra-Oral Image and Acquisition Context."""
    from pydicom.sequence import Sequence

    part = settings.body_part or ("JAW" if settings.modality == "IO" else "")
    if part:
        dataset.BodyPartExamined = part
    dataset.AnatomicRegionSequence = Sequence([_code(*_REGIONS[part])] if part in _REGIONS else [])
    dataset.ImageLaterality = settings.laterality or _LATERALITIES[settings.modality][0]
    dataset.AcquisitionContextSequence = Sequence([])
    if settings.modality == "IO":
        dataset.PositionerType = "NONE"
        # Some structure is demanded; which tooth it is, nobody has said.
        dataset.PrimaryAnatomicStructureSequence = Sequence([_code("38199008", "Tooth structure")])


def _code(value: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _add_derivation(
    dataset: Dataset,
    settings: DxSettings,
    spacing_mm: tuple[float, float] | None,
    lossy: LossyCompression | None,
    provenance: Mapping[str, str],
) -> None:
    """Say what was done: Image Type, descriptions, lossy compression."""
    dataset.ImageType = ["DERIVED", "SECONDARY", ""]  # the empty third value is the class's own (C.8.11.3.1.1)
    dataset.ContentQualification = "RESEARCH"
    statement = "Converted to grey levels for display from an image file. Research only, not for diagnosis."
    if settings.model:
        statement = (
            f"SYNTHETIC IMAGE, not an acquisition of any patient. AI-generated by {settings.model}. Not for diagnosis."
        )
        dataset.add_new(_SYNTHETIC_DATA, "CS", "YES")
    unknown = [] if spacing_mm else [UNKNOWN_SPACING_COMMENT]
    dataset.DerivationDescription = " ".join([statement, *unknown])
    notes = [statement, GEOMETRY_COMMENT, *unknown, *(f"{key}: {value}" for key, value in provenance.items())]
    dataset.ImageComments = "\r\n".join(notes)[:10240]
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "01" if lossy else "00"
    if lossy and lossy.ratio:
        dataset.LossyImageCompressionRatio = f"{lossy.ratio:.10g}"
    if lossy and lossy.method:
        dataset.LossyImageCompressionMethod = lossy.method[:16]


def _add_pixels(dataset: Dataset, levels: NDArray[np.uint16], bits: int) -> None:
    """Modules Image Pixel, DX Image and VOI LUT."""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = levels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, bits, bits - 1, 0
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    dataset.PresentationLUTShape = "IDENTITY"
    # PS3.3 C.11.2.1.2 maps centre 2^(bits-1), width 2^bits onto 0 to 2^bits - 1 without loss.
    dataset.WindowCenter, dataset.WindowWidth = str(2 ** (bits - 1)), str(2**bits)
    dataset.PixelData = levels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
