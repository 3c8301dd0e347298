import functools
import re

import pydicom
import pytest
import torch
from pydicom.uid import SecondaryCaptureImageStorage

from common.data.phantom import draw_chest_phantom
from common.io import read_radiograph
from common.io.synthetic_dicom import write_synthetic_dicom

MODEL = "cxr_dino_latent_diffusion 0.1.0, weights 3fa94c01"

# DICOM PS3.3 2024, Secondary Capture Image IOD: the mandatory modules' attributes of type 1 and 2 and those conditional
# ones whose condition holds here (deidentification method: identity removed is YES; pixel data: no provider URL;
# orientation and laterality may be empty: neither is known).
TYPE_1 = {
    "general study": ["StudyInstanceUID"],
    "general series": ["Modality", "SeriesInstanceUID"],
    "SC equipment": ["ConversionType"],
    "image pixel": [
        *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
        *("PixelRepresentation", "PixelData"),
    ],
    "VOI LUT": ["WindowCenter", "WindowWidth"],
    "SOP common": ["SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet"],
    "patient": ["DeidentificationMethod"],
}
TYPE_2 = {
    "patient": ["PatientName", "PatientID", "PatientBirthDate", "PatientSex"],
    "general study": ["StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"],
    "general series": ["SeriesNumber", "Laterality"],
    "general image": ["InstanceNumber", "PatientOrientation"],
}


@functools.cache
def image():
    return draw_chest_phantom(65, 63, seed=0).clamp(0, 1)


def write(path, pixels=None, **options):
    options = {"identity": "run/images/1.png", "model": MODEL, "description": "chest radiograph, prior", **options}
    return write_synthetic_dicom(image() if pixels is None else pixels, path, **options)


def written(path, **options):
    return pydicom.dcmread(write(path, **options))


def elements(dataset):
    return list(dataset.iterall())


@pytest.mark.parametrize("bits", [8, 16])
def test_every_level_comes_back_exactly(tmp_path, bits):
    levels = (torch.arange(2**bits) / (2**bits - 1)).reshape(1, 2 ** (bits // 2), -1)
    assert torch.allclose(read_radiograph(write(tmp_path / "a.dcm", levels, bits=bits)).pixels, levels, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 16])
def test_file_has_what_the_standard_demands_of_a_secondary_capture(tmp_path, bits):
    dataset = written(tmp_path / "a.dcm", bits=bits)
    empty = [k for module in TYPE_1.values() for k in module if k not in dataset or dataset[k].value in ("", None, b"")]
    absent = [k for module in TYPE_2.values() for k in module if k not in dataset]
    assert not empty and not absent
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


def test_texts_keep_to_the_lengths_of_their_types(tmp_path):
    dataset = written(tmp_path / "a.dcm", model="m" * 64, description="d" * 53, provenance={"note": "n" * 9000})
    most = {"LO": 64, "SH": 16, "CS": 16, "ST": 1024, "LT": 10240, "UI": 64, "PN": 64, "DS": 16, "IS": 12}
    for element in elements(dataset):
        values = element.value if element.VM > 1 else [element.value]
        assert all(len(str(value)) <= most.get(element.VR, 2**31) for value in values), element
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


def test_file_holds_no_dates_no_persons_and_nothing_private(tmp_path):
    for element in elements(written(tmp_path / "a.dcm")):
        assert not element.tag.is_private
        if element.VR in ("DA", "TM", "DT", "AS"):
            assert not element.value, element
        if element.VR == "PN":
            assert str(element.value) in ("", "SYNTHETIC^NOT A PATIENT"), element


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


def test_spacing_is_rows_first_and_fits_its_type(tmp_path):
    path = write(tmp_path / "a.dcm", pixel_spacing=(0.139, 1 / 3))
    assert read_radiograph(path).spacing_mm == pytest.approx((0.139, 1 / 3), abs=1e-9)


def test_text_in_any_script_comes_back(tmp_path):
    assert written(tmp_path / "a.dcm", description="Röntgen 胸部").SeriesDescription == "SYNTHETIC: Röntgen 胸部"


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
