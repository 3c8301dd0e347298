"""DICOM through the reader: headers, spacing, what is refused, and real specimens; what files say of their past."""

import numpy as np
import pydicom
import pytest
from conftest import REPOSITORY
from dicom_files import JPEG, compressed, make, pixels, ramp, read, refused, replace_bytes, stretched, write
from PIL import Image
from pydicom.dataset import Dataset

from common.io.read import LossyCompression, SourceHistory, source_history


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.5, 0.5]}, (0.2, 0.1)),
        ({"PixelSpacing": ["0.000", "0.000"], "ImagerPixelSpacing": [0.3, 0.4]}, (0.3, 0.4)),
        ({"PixelSpacing": [-1, 1], "NominalScannedPixelSpacing": [0.15, 0.16]}, (0.15, 0.16)),
        ({"PixelSpacing": ["1e99", "0.1"]}, None),
        ({"PixelSpacing": [0.2]}, None),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [300, 300]}, None),
    ],
)
def test_spacing(elements, expected, tmp_path):
    radiograph = read(write(make(ramp(8, False), **elements), tmp_path / "a.dcm"))
    assert radiograph.spacing_mm == expected and radiograph.modality == "DX"


DELETE = object()
BROKEN = {
    "frames": ({"NumberOfFrames": 2}, "2 frames"),
    "no pixel data": ({"PixelData": DELETE}, "without pixel data"),
    "empty pixel data": ({"PixelData": b""}, "without pixel data"),
    "too few bytes": ({"PixelData": b"\1\2" * 500}, "1000 bytes"),
    "rows beyond the data": ({"Rows": 21}, "1200 bytes"),
    "two frames undeclared": ({"PixelData": b"\1\2" * 1300}, "2600 bytes"),
    "huge": ({"Rows": 65535, "Columns": 65535}, "65535"),
    "no rows": ({"Rows": DELETE}, "without an image"),
    "zero rows": ({"Rows": 0}, "0 pixels"),
    "no photometric": ({"PhotometricInterpretation": DELETE}, "PhotometricInterpretation missing"),
    "odd photometric": ({"PhotometricInterpretation": "CMYK"}, "CMYK"),
    "no bits allocated": ({"BitsAllocated": DELETE}, "BitsAllocated missing"),
    "one bit": ({"BitsAllocated": 1}, "BitsAllocated 1"),
    "three grey samples": ({"SamplesPerPixel": 3}, "3 samples"),
    "blank": ({"PixelData": b"\7\7" * 600}, "all the same"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_headers_and_pixels_give_the_one_error(kind, tmp_path):
    changes, word = BROKEN[kind]
    dataset = make(ramp(12, False), stored=12)
    for keyword, value in changes.items():
        if value is DELETE:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    refused(write(dataset, tmp_path / "a.dcm"), word)


def test_lenient_where_nothing_is_lost(tmp_path):
    stored = ramp(12, False)
    dataset = make(stored, SpecificCharacterSet="NO_SUCH_SET", NumberOfFrames=1)
    for keyword in ("BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "Modality"):
        delattr(dataset, keyword)
    dataset.add_new(0x00180015, "CS", "BECKEN")
    path = replace_bytes(write(dataset, tmp_path / "a.dcm"), b"BECKEN", b"B\xe9CKEN")
    radiograph = read(path)
    assert np.allclose(radiograph.pixels[0].numpy(), stretched(stored), atol=1e-6) and radiograph.modality == ""
    dataset = make(stored, PresentationLUTShape="INVERSE")
    del dataset.PhotometricInterpretation
    assert np.allclose(pixels(dataset, tmp_path), 1 - stretched(stored), atol=1e-6)


def test_objects_without_an_image_and_cut_files_are_refused(tmp_path):
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3", "SR"
    refused(write(report, tmp_path / "sr.dcm"), "Basic Text SR")
    report.SOPClassUID = "1.2.840.10008.1.3.10"
    refused(write(report, tmp_path / "DICOMDIR"), "Directory")
    film = compressed(np.tile(ramp(8, False), (2, 2)), JPEG, 8)
    refused(write(film, tmp_path / "a.dcm", "1.2.840.10008.1.2.4.100"), "MPEG2")
    whole = write(make(ramp(12, False)), tmp_path / "a.dcm").read_bytes()
    for length in (132, 140, 200, 300, 500, 700, len(whole) - 1000, len(whole) - 2):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        refused(tmp_path / "cut.dcm")


# What the reader made of each specimen once its picture had been looked at: shape, spacing, mean and deviation.
SPECIMENS = {
    "chest_cr_FAKE_mono1_header": ((1024, 1024), (0.168, 0.168), 0.370867, 0.211198),
    "chest_cr_mono1_10bit_explicit": ((440, 440), None, 0.54657, 0.156886),
    "chest_cr_mono1_15bit_j2k_lossy_RG1": ((1955, 1841), None, 0.75361, 0.152287),
    "chest_cr_mono1_8bit_jpegbaseline_konica": ((2446, 2010), (0.175, 0.175), 0.354327, 0.290586),
    "chest_cr_mono2_8bit_jpegbaseline_rsna": ((1024, 1024), (0.168, 0.168), 0.629133, 0.211198),
    "dental_opg_cr_mono1_modalityLUT_jpegll": ((1576, 1976), (0.15, 0.15), 0.305949, 0.315969),
    "extremity_cr_mono1_j2k_lossless_RG3": ((1760, 1760), None, 0.696079, 0.359968),
    "extremity_cr_mono1_jpegextended12_RG3": ((1760, 1760), None, 0.695932, 0.359968),
    "extremity_cr_mono1_jpegls_lossless_RG3": ((1760, 1760), None, 0.696079, 0.359968),
    "extremity_cr_mono1_rle_RG3": ((1760, 1760), None, 0.696079, 0.359968),
    "hip_cr_mono2_j2k_lossy_RG2": ((2140, 1760), (0.2, 0.2), 0.44123, 0.330032),
    "pydicom_16x16_cr_mono1": ((16, 16), (0.1, 0.1), 0.383253, 0.034554),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", SPECIMENS)
def test_real_specimens_read_as_they_were_seen(name, shared_data):
    radiograph = read(shared_data / "dicom" / f"{name}.dcm")
    shape, spacing, mean, deviation = SPECIMENS[name]
    assert tuple(radiograph.pixels.shape) == (1, *shape) and radiograph.spacing_mm == spacing
    assert radiograph.modality == "CR"
    image = radiograph.pixels.double()
    assert float(image.mean()) == pytest.approx(mean, abs=2e-4)
    assert float(image.std()) == pytest.approx(deviation, abs=2e-4)


# ---- what a file says of its past, DICOM or not ----------------------------------------------------------------------


RAMP = np.arange(64 * 48, dtype=np.uint32).reshape(64, 48) % 251


def saved(path, **options):
    Image.fromarray(RAMP.astype(np.uint8)).save(path, **options)
    return source_history(path)


def dicom(path, **elements):
    dataset = pydicom.dcmread(REPOSITORY / "bundles/cxr_autoencoder/samples/phantom_07_cr.dcm")
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return source_history(path)


@pytest.mark.parametrize(
    "options", [{"format": "PNG"}, {"format": "TIFF"}, {"format": "TIFF", "compression": "tiff_lzw"}]
)
def test_lossless_files_have_no_history(tmp_path, options):
    assert saved(tmp_path / "a", **options) == SourceHistory()


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "TIFF", "compression": "jpeg"}])
def test_jpeg_is_told_with_its_ratio(tmp_path, options):
    lossy = saved(tmp_path / "a", **options).lossy
    assert lossy.method == "ISO_10918_1"
    assert lossy.ratio == pytest.approx(max(1.0, RAMP.size / (tmp_path / "a").stat().st_size), abs=0.01)


def test_dicom_statements_are_taken_over(tmp_path):
    assert dicom(tmp_path / "a.dcm") == SourceHistory()
    stated = {"LossyImageCompression": "01", "LossyImageCompressionRatio": [4, 2.5]}
    found = dicom(tmp_path / "a.dcm", **stated, LossyImageCompressionMethod=["ISO_15444_1", "ISO_10918_1"])
    assert found.lossy == LossyCompression(10.0, "ISO_10918_1")
    assert dicom(tmp_path / "b.dcm", LossyImageCompression="01").lossy == LossyCompression(None, "")
    assert dicom(tmp_path / "a.dcm", BurnedInAnnotation="YES").burned_in
    assert not dicom(tmp_path / "b.dcm", BurnedInAnnotation="NO").burned_in


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("chest_cr_mono2_8bit_jpegbaseline_rsna", "ISO_10918_1"),
        ("hip_cr_mono2_j2k_lossy_RG2", "ISO_15444_1"),
        ("extremity_cr_mono1_rle_RG3", None),
        ("extremity_cr_mono1_jpegls_lossless_RG3", None),
    ],
)
def test_real_files_tell_their_compression(shared_data, name, method):
    lossy = source_history(shared_data / "dicom" / f"{name}.dcm").lossy
    assert (lossy and lossy.method) == method
    assert lossy is None or lossy.ratio >= 1
