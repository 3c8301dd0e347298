import functools
import re

import pydicom
import pytest
import torch
from dicom_files import assert_of_nobody_and_well_formed
from pydicom.uid import SecondaryCaptureImageStorage

from common.data.phantom import draw_chest_phantom
from common.io import read_radiograph
from common.io.synthetic_dicom import write_synthetic_dicom

MODEL = "cxr_dino_latent_diffusion 0.1.0, weights 3fa94c01"

# DICOM PS3.3 2024, Secondary Capture Image IOD: the mandatory modules' attributes of type 1 and 2 and those conditional
# ones whose condition holds here (deidentification method: identity removed is YES; pixel data: no provider URL;
# orientation and laterality may be empty: neither is known).
TYPE_1 = [
    *("StudyInstanceUID", "Modality", "SeriesInstanceUID", "ConversionType", "SOPClassUID", "SOPInstanceUID"),
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelData", "WindowCenter", "WindowWidth", "SpecificCharacterSet"),
    "DeidentificationMethod",
]
TYPE_2 = [
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"),
    *("ReferringPhysicianName", "StudyID", "SeriesNumber", "Laterality", "InstanceNumber", "PatientOrientation"),
]


@functools.cache
def image():
    return draw_chest_phantom(65, 63, seed=0).clamp(0, 1)


def write(path, pixels=None, **options):
    options = {"identity": "run/images/1.png", "model": MODEL, "description": "chest radiograph, prior", **options}
    return write_synthetic_dicom(image() if pixels is None else pixels, path, **options)


def written(path, **options):
    return pydicom.dcmread(write(path, **options))


@pytest.mark.parametrize("bits", [8, 16])
def test_every_level_comes_back_exactly(tmp_path, bits):
    levels = (torch.arange(2**bits) / (2**bits - 1)).reshape(1, 2 ** (bits // 2), -1)
    assert torch.allclose(read_radiograph(write(tmp_path / "a.dcm", levels, bits=bits)).pixels, levels, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 16])
def test_file_has_what_the_standard_demands_of_a_secondary_capture(tmp_path, bits):
    dataset = written(tmp_path / "a.dcm", bits=bits)
    assert not [name for name in TYPE_1 if name not in dataset or dataset[name].value in ("", None, b"")]
    assert not [name for name in TYPE_2 if name not in dataset]
    assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == SecondaryCaptureImageStorage
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
    assert (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PixelRepresentation) == (65, 63, 1, 0)
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (bits, bits, bits - 1)
    assert len(dataset.PixelData) == (4096 if bits == 8 else 8190)  # an odd number of bytes is padded
    equipment = dataset.ContributingEquipmentSequence[0]
    purpose = equipment.PurposeOfReferenceCodeSequence[0]
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
    assert equipment.Manufacturer and equipment.ManufacturerModelName == MODEL
    assert (tmp_path / "a.dcm").read_bytes()[128:132] == b"DICM"


def test_file_holds_no_dates_no_persons_nothing_private_and_no_text_that_is_too_long(tmp_path):
    assert_of_nobody_and_well_formed(written(tmp_path / "a.dcm"), persons=False)
    dataset = written(tmp_path / "a.dcm", model="m" * 64, description="d" * 53, provenance={"note": "n" * 9000})
    assert_of_nobody_and_well_formed(dataset, persons=False)
    assert len(dataset.ImageComments) > 9000


def test_every_place_a_system_looks_says_that_it_is_synthetic(tmp_path):
    dataset = written(tmp_path / "a.dcm", provenance={"seed": "7", "method": "ddim"})
    assert dataset[0x0008, 0x001C].value == "YES" and dataset[0x0008, 0x001C].VR == "CS"
    assert dataset.ConversionType == "SYN" and dataset.Modality == "OT" and dataset.ContentQualification == "RESEARCH"
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY"]
    for keyword in ("PatientName", "PatientID", "StudyDescription", "SeriesDescription"):
        assert str(dataset[keyword].value).startswith("SYNTHETIC"), keyword
    for text in (dataset.DerivationDescription, dataset.ContributingEquipmentSequence[0].ContributionDescription):
        assert "AI-generated" in text and MODEL in text
    assert re.search(r"AI-generated.*\r\nseed: 7\r\nmethod: ddim", str(dataset.ImageComments))
    assert dataset.PatientIdentityRemoved == "YES"
    assert dataset.BurnedInAnnotation == dataset.RecognizableVisualFeatures == "NO"


def test_identity_decides_the_uids_and_nothing_else_does(tmp_path):
    first, again = (write(tmp_path / name).read_bytes() for name in ("a.dcm", "b.dcm"))
    assert first == again
    one, two = written(tmp_path / "a.dcm"), written(tmp_path / "c.dcm", identity="run/images/2.png")
    uids = [
        dataset[keyword].value
        for dataset in (one, two)
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
    ]
    assert len(set(uids)) == 6 and all(pydicom.uid.UID(uid).is_valid for uid in uids)
    assert one.PatientID != two.PatientID and "images" not in one.PatientID
    brighter = written(tmp_path / "d.dcm", pixels=image() * 0.5, provenance={"seed": "8"})
    assert brighter.SOPInstanceUID == one.SOPInstanceUID and brighter.PixelData != one.PixelData


def test_spacing_is_rows_first_and_text_in_any_script_comes_back(tmp_path):
    path = write(tmp_path / "a.dcm", pixel_spacing=(0.139, 1 / 3), description="Röntgen 胸部")
    assert read_radiograph(path).spacing_mm == pytest.approx((0.139, 1 / 3), abs=1e-9)
    assert pydicom.dcmread(path).SeriesDescription == "SYNTHETIC: Röntgen 胸部"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"identity": ""}, "identity"),
        ({"model": "m" * 65}, "model"),
        ({"model": " "}, "model"),
        ({"description": "d" * 54}, "description"),
        ({"description": "two\\values"}, "description"),
        ({"description": "two\nlines"}, "description"),
        ({"provenance": {"note": "n" * 10240}}, "provenance"),
        ({"pixel_spacing": (0.0, 0.1)}, "pixel_spacing"),
        ({"pixel_spacing": (0.1, float("nan"))}, "pixel_spacing"),
        ({"bits": 12}, "bits 12"),
        ({"pixels": torch.full((1, 4, 4), 2.0)}, "Clamp"),
    ],
)
def test_what_the_file_cannot_hold_is_refused_and_nothing_is_written(tmp_path, options, found):
    with pytest.raises(ValueError, match=found):
        write(tmp_path / "a.dcm", **options)
    assert not list(tmp_path.iterdir())
