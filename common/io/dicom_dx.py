r"""Radiographs of any format as DICOM DX (or intra-oral IO), For Presentation, that viewers can draw masks over.

Projection images have no place in space, and OHIF cannot lay a DICOM SEG over an image without one. So each file gets a
nominal plane: Image Position (Patient) 0\0\0, Image Orientation (Patient) 1\0\0\0\1\0, Pixel Spacing, 1 mm of
thickness and a frame of reference of its own, a Standard Extended SOP Class (PS3.4 B.4.1). It says where a pixel of the
mask lies on the picture and nothing about the patient; Image Comments say so.

Filled are the modules that the Digital X-Ray Image IOD (PS3.3 A.26) and the Intra-Oral one (A.28) demand, Frame of
Reference and Image Plane. What nobody knows and the standard wants to have a value is stated as weakly as it allows:
laterality U (unpaired; B for IO), pixel intensity LOG with sign -1 (bone bright), imager pixel spacing as the pixel
spacing.

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
from torch import Tensor

from ..errors import SettingsError
from ..files import atomic_path
from ..intensity import stored_values
from .read import LossyCompression, read_radiograph
from .synthetic_dicom import (
    GENERATED,
    PATIENT_NAME,
    PREFIX,
    SYNTHETIC_DATA,
    add_pixels,
    coded,
    decimal_strings,
    new_dataset,
    save_dataset,
    synthetic_statement,
    uid_of,
)
from .types import plausible_spacing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

UNKNOWN_SPACING_MM = (1.0, 1.0)
UNKNOWN_SPACING_COMMENT = "Pixel spacing unknown: 1.0 mm is a placeholder, lengths and areas are in pixels."
GEOMETRY_COMMENT = "Position, orientation and thickness are nominal, for overlays; they say nothing about the patient."

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


@dataclass(frozen=True)
class DxSettings:
    """What the pictures do not say of themselves; values that the class does not have raise SettingsError."""

    modality: str = "DX"  # or IO, the intra-oral class; MONAI Label is told one modality to look for, DX by default
    bits: int = 16  # stored, or 12: 8-bit grey values come back exactly from 16 and to half a level from 12
    body_part: str = ""  # Body Part Examined such as CHEST or JAW; "" leaves it open, and is JAW for IO
    laterality: str = ""  # R, L, B (both) or, for DX, U (unpaired); "" for the weakest that the class allows
    patient_prefix: str = "ANON"  # of PatientID and PatientName
    uid_seed: str = ""  # another text makes other UIDs and patients of the same pictures
    model: str = ""  # of synthetic pictures, what generated them; "" for pictures of patients

    def __post_init__(self) -> None:
        sides, intra_oral = _LATERALITIES.get(str(self.modality), ()), self.modality == "IO"
        parts = f"one of {', '.join(_INTRA_ORAL_REGIONS)} with IO" if intra_oral else "up to 16 capitals and digits"
        part = "|".join(_INTRA_ORAL_REGIONS) if intra_oral else "[A-Z0-9 _]{1,16}"
        for name, pattern, expected in (
            ("modality", "DX|IO", "DX, or IO for intra-oral radiographs"),
            ("bits", "12|16", "12 or 16"),
            ("body_part", f"({part})?", f"{parts}, such as JAW"),
            ("laterality", f"[{''.join(sides)}]?", f"one of {', '.join(sides)} with {self.modality}"),
            ("patient_prefix", "[A-Za-z0-9_-]{1,32}", "1 to 32 letters and digits"),
            ("uid_seed", "(?s:.*)", "text"),
            ("model", r"[^\\\x00-\x1f\x7f]{0,64}", "up to 64 characters, no backslash"),
        ):
            found = getattr(self, name)
            if not (isinstance(found, int if name == "bits" else str) and re.fullmatch(pattern, str(found))):
                raise SettingsError(f"{name}: found {found!r}; expected {expected}.")


def dx_dataset(
    pixels: Tensor,
    settings: DxSettings,
    spacing_mm: tuple[float, float] | None = None,
    lossy: LossyCompression | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Dataset:
    """Make the data set of pixels [1, H, W] in [0, 1], bone bright; the same arguments give the same one.

    `spacing_mm` is between pixel centres, (down the rows, along the columns), or None; `lossy` the source's compression
    with loss; `provenance` tells in Image Comments how the image was made, without naming a patient.

    Raises:
        SettingsError: a spacing that no radiograph has.
        ValueError: pixels as in `stored_values`.
    """
    if spacing_mm is not None and plausible_spacing(spacing_mm) is None:
        raise SettingsError(f"pixel spacing: found {spacing_mm}; expected mm as radiographs have them, (row, column).")
    levels = stored_values(pixels, 16)  # also for 12 bits: the number of bits must not change the patient
    picture = hashlib.sha256(f"{settings.uid_seed}\0{levels.shape}\0".encode() + levels.tobytes()).hexdigest()
    details = [asdict(settings), spacing_mm, None if lossy is None else asdict(lossy), dict(provenance or {})]
    dataset = _begin(settings, picture, json.dumps(details, sort_keys=True), spacing_mm)
    _add_anatomy(dataset, settings)
    _add_derivation(dataset, settings, spacing_mm, lossy, provenance or {})
    exact = pixels.detach().as_subclass(torch.Tensor).cpu().double()[0] * (2**settings.bits - 1)
    add_pixels(dataset, exact.round().numpy().astype(np.uint16), settings.bits)
    return dataset


def write_dx(dataset: Dataset, path: str | Path, pixels: Tensor) -> Path:
    """Write a data set of `dx_dataset`, atomically, after reading it back as the reader does; returns the path.

    Raises:
        SettingsError: the reader gives another image than `pixels` [1, H, W] to half a level: it distrusts a window on
            a picture that is nearly of one grey or black and white alone, and stretches it.
    """
    with atomic_path(path) as temporary:
        save_dataset(dataset, temporary)
        error = float((read_radiograph(temporary).pixels - pixels).abs().max())
        if error > 0.5 / (2 ** int(dataset.BitsStored) - 1) + 1e-6:
            raise SettingsError(
                f"{path}: found a picture that comes back changed (by up to {error:.3g} of the range); expected a "
                "radiograph with many grey levels. It is nearly of one grey, or black and white alone."
            )
    return Path(path)


def _begin(settings: DxSettings, picture: str, details: str, spacing_mm: tuple[float, float] | None) -> Dataset:
    """What `new_dataset` fills, DX and Intra-Oral Series, Frame of Reference, Image Plane and DX Detector."""
    from pydicom.uid import DigitalIntraOralXRayImageStorageForPresentation as IntraOral
    from pydicom.uid import DigitalXRayImageStorageForPresentation as Digital

    prefix, is_synthetic = PREFIX if settings.model else settings.patient_prefix, bool(settings.model)
    dataset = new_dataset(
        IntraOral if settings.modality == "IO" else Digital,
        [uid_of("DX", "study", picture), *(uid_of("DX", level, picture, details) for level in ("series", "instance"))],
        (f"{prefix}-{picture[:16]}", PATIENT_NAME if is_synthetic else f"{prefix}^{picture[:16]}"),
        GENERATED if is_synthetic else "Only pixels and pixel spacing were taken from the source",
        settings.modality,
        f"{PREFIX}: generated radiograph" if is_synthetic else "Radiograph, converted for annotation",
        settings.model or "png_to_dx",
    )
    dataset.StudyID, dataset.PresentationIntentType = prefix[:16], "FOR PRESENTATION"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = uid_of("DX", "frame of reference", picture), ""
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.SliceThickness = "1"  # highdicom and dcmqi ask for it where there is a frame of reference
    dataset.PatientOrientation = ["L", "P"]  # of this plane; another would contradict it
    dataset.PixelSpacing = dataset.ImagerPixelSpacing = decimal_strings(spacing_mm or UNKNOWN_SPACING_MM)
    dataset.DetectorType = ""
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    return dataset


def _add_anatomy(dataset: Dataset, settings: DxSettings) -> None:
    """Modules DX Anatomy Imaged, Intra-Oral Image and Acquisition Context."""
    part = settings.body_part or ("JAW" if settings.modality == "IO" else "")
    if part:
        dataset.BodyPartExamined = part
    dataset.AnatomicRegionSequence = [coded(*_REGIONS[part])] if part in _REGIONS else []
    dataset.ImageLaterality = settings.laterality or _LATERALITIES[settings.modality][0]
    dataset.AcquisitionContextSequence = []
    if settings.modality == "IO":
        dataset.PositionerType = "NONE"
        # Some structure is demanded; which tooth it is, nobody has said.
        dataset.PrimaryAnatomicStructureSequence = [coded("38199008", "Tooth structure")]


def _add_derivation(
    dataset: Dataset,
    settings: DxSettings,
    spacing_mm: tuple[float, float] | None,
    lossy: LossyCompression | None,
    provenance: Mapping[str, str],
) -> None:
    """Say what was done: Image Type, descriptions, lossy compression."""
    dataset.ImageType = ["DERIVED", "SECONDARY", ""]  # the empty third value is the class's own (C.8.11.3.1.1)
    statement = "Converted to grey levels for display from an image file. Research only, not for diagnosis."
    if settings.model:
        statement = synthetic_statement(settings.model)
        dataset.add_new(SYNTHETIC_DATA, "CS", "YES")
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
