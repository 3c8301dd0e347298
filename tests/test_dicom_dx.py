"""DX files: what they say, what they must not say, and that viewers, SEG and the reader can use them."""

import functools
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from dicom_files import assert_of_nobody_and_well_formed
from pydicom.uid import DigitalIntraOralXRayImageStorageForPresentation, DigitalXRayImageStorageForPresentation

from common.data.phantom import draw_chest_phantom
from common.errors import SettingsError
from common.io import read_radiograph
from common.io.dicom_dx import UNKNOWN_SPACING_COMMENT, DxSettings, dx_dataset, write_dx
from common.io.read import LossyCompression

# DICOM PS3.3, Digital X-Ray Image IOD (A.26): attributes of type 1 and 2 of the mandatory modules, and of Frame of
# Reference and Image Plane, which are there for viewers. Conditional ones are those whose condition holds here.
TYPE_1 = [
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet", "Modality"),
    *("PresentationIntentType", "DeidentificationMethod", "ImageLaterality", "ImageType", "PatientOrientation"),
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelData", "BurnedInAnnotation", "PixelIntensityRelationship"),
    *("PixelIntensityRelationshipSign", "RescaleIntercept", "RescaleSlope", "RescaleType", "LossyImageCompression"),
    *("PresentationLUTShape", "ImagerPixelSpacing", "WindowCenter", "WindowWidth", "FrameOfReferenceUID"),
    *("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
]
TYPE_2 = [
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"),
    *("ReferringPhysicianName", "StudyID", "SeriesNumber", "Manufacturer", "InstanceNumber", "AnatomicRegionSequence"),
    *("DetectorType", "AcquisitionContextSequence", "PositionReferenceIndicator", "SliceThickness"),
]
INTRA_ORAL_TYPE_1 = ["AnatomicRegionSequence", "PositionerType", "PrimaryAnatomicStructureSequence"]
JPEG = LossyCompression(12.5, "ISO_10918_1")
UID_KEYWORDS = ["StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID", "SOPInstanceUID"]


@functools.cache
def image():
    return draw_chest_phantom(65, 63, seed=0).clamp(0, 1)


def made(pixels=None, spacing=None, lossy=None, provenance=None, **settings):
    return dx_dataset(image() if pixels is None else pixels, DxSettings(**settings), spacing, lossy, provenance)


def write(path, pixels=None, **options):
    pixels = image() if pixels is None else pixels
    return write_dx(made(pixels, **options), path, pixels)


@pytest.mark.parametrize(("bits", "most"), [(12, 0.5 / 4095), (16, 0.5 / 65535)])
def test_reader_gives_the_picture_back_to_half_a_level(tmp_path, bits, most):
    radiograph = read_radiograph(write(tmp_path / "a.dcm", bits=bits, spacing=(0.1, 1 / 3)))
    assert float((radiograph.pixels - image()).abs().max()) <= most + 1e-7
    assert radiograph.pixels.shape == (1, 65, 63) and radiograph.modality == "DX"
    assert radiograph.spacing_mm == pytest.approx((0.1, 1 / 3), abs=1e-9)


@pytest.mark.parametrize("modality", ["DX", "IO"])
@pytest.mark.parametrize("bits", [12, 16])
def test_file_has_what_the_standard_demands(tmp_path, modality, bits):
    dataset = pydicom.dcmread(write(tmp_path / "a.dcm", modality=modality, bits=bits, body_part="JAW"))
    type_1 = TYPE_1 + (INTRA_ORAL_TYPE_1 if modality == "IO" else [])
    assert not [name for name in type_1 if name not in dataset or dataset[name].value in ("", None, b"", [])]
    assert not [name for name in TYPE_2 if name not in dataset]
    classes = {"DX": DigitalXRayImageStorageForPresentation, "IO": DigitalIntraOralXRayImageStorageForPresentation}
    assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == classes[modality]
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (16, bits, bits - 1)
    assert (dataset.WindowCenter, dataset.WindowWidth) == (2 ** (bits - 1), 2**bits)
    assert dataset.PhotometricInterpretation == "MONOCHROME2" and dataset.PresentationIntentType == "FOR PRESENTATION"
    assert dataset.AnatomicRegionSequence[0].CodeValue == "661005"
    assert dataset.ImageLaterality == {"DX": "U", "IO": "B"}[modality]


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy of Debian's dicom3tools")
@pytest.mark.parametrize("options", [{}, {"modality": "IO"}, {"lossy": JPEG, "bits": 12, "body_part": "HAND"}])
def test_validator_finds_no_error(tmp_path, options):
    found = subprocess.run(["dciodvfy", write(tmp_path / "a.dcm", **options)], capture_output=True, text=True)
    assert "ForPresentation" in found.stderr and "Error" not in found.stderr


def test_plane_for_overlays_is_called_nominal_and_an_unknown_spacing_is_a_millimetre_that_says_so():
    dataset = made(spacing=(0.1, 0.2))
    assert dataset.ImageOrientationPatient == [1, 0, 0, 0, 1, 0] and dataset.ImagePositionPatient == [0, 0, 0]
    assert dataset.PixelSpacing == dataset.ImagerPixelSpacing == [0.1, 0.2]
    assert "nominal" in dataset.ImageComments and "unknown" not in dataset.ImageComments
    dataset = made()
    assert dataset.PixelSpacing == [1, 1]
    assert UNKNOWN_SPACING_COMMENT in dataset.ImageComments and UNKNOWN_SPACING_COMMENT in dataset.DerivationDescription


def test_file_says_that_it_is_derived_and_of_nobody():
    dataset = made(patient_prefix="STUDY7")
    assert list(dataset.ImageType)[:2] == ["DERIVED", "SECONDARY"] and dataset.DerivationDescription
    assert dataset.PatientIdentityRemoved == "YES" and dataset.LossyImageCompression == "00"
    assert dataset.PatientID.startswith("STUDY7-") and str(dataset.PatientName).startswith("STUDY7^")
    long = made(model="m" * 64, provenance={"note": "n" * 20000}, lossy=LossyCompression(100 / 3, "X" * 30))
    for each in (dataset, long, made(patient_prefix="p" * 32)):
        assert_of_nobody_and_well_formed(each)


def test_loss_of_the_source_stays_known():
    dataset = made(lossy=JPEG)
    assert dataset.LossyImageCompression == "01" and dataset.LossyImageCompressionMethod == "ISO_10918_1"
    assert dataset.LossyImageCompressionRatio == 12.5
    assert "LossyImageCompressionRatio" not in made(lossy=LossyCompression())


def test_synthetic_pictures_say_so_everywhere():
    dataset = made(model="cxr 0.1.0", provenance={"seed": "7"}, patient_prefix="ANON")
    assert dataset[0x0008, 0x001C].value == "YES" and str(dataset.PatientName) == "SYNTHETIC^NOT A PATIENT"
    for keyword in ("PatientID", "StudyDescription", "SeriesDescription", "DerivationDescription", "ImageComments"):
        assert str(dataset[keyword].value).startswith("SYNTHETIC"), keyword
    assert "seed: 7" in dataset.ImageComments and "AI-generated by cxr 0.1.0" in dataset.DerivationDescription
    assert (0x0008, 0x001C) not in made()


def test_same_picture_is_the_same_file_and_settings_make_another_instance_of_its_study(tmp_path):
    first, again = (write(tmp_path / name).read_bytes() for name in ("a.dcm", "b.dcm"))
    assert first == again
    one = made()
    for other in (made(bits=12), made(spacing=(0.1, 0.1)), made(body_part="JAW"), made(provenance={"a": "b"})):
        same = [keyword for keyword in UID_KEYWORDS if one[keyword].value == other[keyword].value]
        assert same == UID_KEYWORDS[:2] and one.PatientID == other.PatientID


@pytest.mark.parametrize("options", [{"uid_seed": "2"}, {"pixels": image() * 0.5}, {"pixels": image().mT}])
def test_another_picture_or_seed_is_another_patient(options):
    one, other = made(), made(**options)
    assert not [keyword for keyword in [*UID_KEYWORDS, "PatientID"] if one[keyword].value == other[keyword].value]
    assert all(pydicom.uid.UID(other[keyword].value).is_valid for keyword in UID_KEYWORDS)


def test_dicom_seg_lies_on_the_same_plane(tmp_path):
    pytest.importorskip("highdicom")
    from common.io.dicom_seg import write_dicom_seg
    from common.io.segmentation_classes import class_table

    mask = np.zeros((65, 63), np.uint8)
    mask[10:20, 5:30] = 1
    source = write(tmp_path / "a.dcm", spacing=(0.1, 0.2))
    seg = pydicom.dcmread(write_dicom_seg(mask, tmp_path / "seg.dcm", class_table("grouped"), source, "m 1"))
    image_header, shared = pydicom.dcmread(source), seg.SharedFunctionalGroupsSequence[0]
    assert seg.FrameOfReferenceUID == image_header.FrameOfReferenceUID
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [0.1, 0.2]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]


def test_picture_that_would_come_back_stretched_is_refused(tmp_path):
    flat = 0.5 + 0.01 * image()
    with pytest.raises(SettingsError, match="one grey"):
        write(tmp_path / "a.dcm", flat)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"modality": "CR"}, "'CR'; expected DX"),
        ({"bits": 8}, "bits: found 8"),
        ({"body_part": "jaw bone!"}, "capitals"),
        ({"modality": "IO", "body_part": "CHEST"}, "MAXILLA with IO"),
        ({"modality": "IO", "laterality": "U"}, "laterality: found 'U'"),
        ({"patient_prefix": "Jane Doe"}, "patient_prefix"),
        ({"model": "a\\b"}, "backslash"),
        ({"model": None}, "model"),
        ({"modality": ["DX"]}, "modality"),
        ({"uid_seed": 5}, "uid_seed"),
        ({"spacing": (0.0, 0.1)}, "pixel spacing: found"),
    ],
)
def test_wrong_settings_are_told(options, found):
    with pytest.raises(SettingsError, match=found):
        made(**options)
