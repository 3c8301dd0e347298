"""DICOM through the reader: headers, spacing, what is refused, and real specimens; what files say of their past."""

import math

import dicom_files
import numpy as np
import pydicom
import pytest
from conftest import REPOSITORY
from dicom_files import JPEG, compressed, make, pixels, ramp, read, refused, replace_bytes, stretched, write
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

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


# ---- grey values: rescale, windows, tables and padding against the standard's formulas -------------------------------


def shown(value, centre, width, function):
    """Show one value through a window, as in PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(-4 * (value - centre) / width))
    if function == "LINEAR_EXACT":
        return min(max((value - centre) / width + 0.5, 0), 1)
    return min(max((value - (centre - 0.5)) / (width - 1) + 0.5, 0), 1)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rescale", [None, (0.5, -100.0), (-2.0, 30.0)])
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_truth_table(photometric, bits, signed, rescale, function, tmp_path):
    stored = ramp(bits, signed)
    slope, intercept = rescale or (1.0, 0.0)
    values = stored.astype(np.float64) * slope + intercept
    dataset = make(stored, photometric, bits)
    if rescale:
        dataset.RescaleSlope, dataset.RescaleIntercept = str(slope), str(intercept)
    if function:
        centre, width = float(np.median(values)) // 1, float(np.ptp(values)) // 2
        dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = [centre, 0], [width, 9], function
        expected = np.vectorize(shown, otypes=[float])(values, centre, width, function)
    elif bits == 8 and not signed and not rescale:
        expected = values / 255
    else:
        expected = stretched(values)
    if photometric == "MONOCHROME1":
        expected = 1 - expected
    assert np.allclose(pixels(dataset, tmp_path), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [None, "INVERSE", "IDENTITY"])
def test_the_presentation_lut_shape_never_inverts_again(shape, tmp_path):
    stored = ramp(8, False)
    extra = {"PresentationLUTShape": shape} if shape else {}
    assert np.allclose(pixels(make(stored, "MONOCHROME1", **extra), tmp_path), 1 - stored / 255, atol=1e-6)
    assert np.allclose(pixels(make(stored, "MONOCHROME2", **extra), tmp_path), stored / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("centre", "width"),
    [("2000", "0"), ("2000", "-5"), ("90000", "10"), ("-5000", "1"), ("2000", "1e9"), ("2000", "1"), ("2000", None)],
)
def test_a_window_that_shows_nothing_is_replaced(centre, width, tmp_path):
    stored = ramp(12, False)
    dataset = make(stored, stored=12, WindowCenter=centre, WindowWidth=width)
    assert np.allclose(pixels(dataset, tmp_path), stretched(stored), atol=1e-6)


def test_a_window_of_text_is_replaced(tmp_path):
    stored = ramp(12, False)
    path = write(make(stored, stored=12, WindowCenter="2047", WindowWidth="4093"), tmp_path / "a.dcm")
    replace_bytes(path, b"4093", b"wide")
    assert np.allclose(read(path).pixels[0].numpy(), stretched(stored), atol=1e-6)


def test_padding_is_black_and_does_not_stretch(tmp_path):
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        stored = np.linspace(1000, 2000, 600).astype(np.int16).reshape(20, 30)
        stored[:5] = -2000
        # The padding value in the wrong sign, as it often is: 63536 are the bits of -2000.
        dataset = make(stored, photometric)
        dataset.add_new(0x00280120, "US", 63536)
        expected = stretched(stored[5:])
        found = pixels(dataset, tmp_path)
        assert np.allclose(found[5:], 1 - expected if photometric == "MONOCHROME1" else expected, atol=1e-6)
        assert (found[:5] == 0).all()


def lut(entries, first, bits, data_vr):
    item = Dataset()
    item.add_new(0x00283002, "US" if first >= 0 else "SS", [len(entries), first, bits])
    values = entries.astype(np.uint16)
    item.add_new(0x00283006, data_vr, values.tobytes() if data_vr == "OW" else values.tolist())
    item.ModalityLUTType = "US"
    return Sequence([item])


@pytest.mark.parametrize("data_vr", ["US", "OW"])
@pytest.mark.parametrize("syntax", [dicom_files.IMPLICIT, dicom_files.EXPLICIT])
def test_lookup_tables(data_vr, syntax, tmp_path):
    stored = ramp(10, False)
    curve = np.round(4095 * np.linspace(0, 1, 1024) ** 2)
    dataset = make(stored, stored=10, ModalityLUTSequence=lut(curve, 0, 12, data_vr), RescaleSlope=7)
    assert np.allclose(pixels(dataset, tmp_path, syntax), stretched(curve[stored]), atol=1e-6)
    # Entries for 100 and up; what is below takes the first. The window must not be applied as well.
    dataset = make(stored, stored=10, VOILUTSequence=lut(curve[:900], 100, 12, data_vr), WindowCenter=5, WindowWidth=9)
    expected = curve[np.clip(stored.astype(int) - 100, 0, 899)] / 4095
    assert np.allclose(pixels(dataset, tmp_path, syntax), expected, atol=1e-6)
    # A depth of 16 is often declared whatever the table holds.
    dataset = make(stored, "MONOCHROME1", 10, VOILUTSequence=lut(curve, 0, 16, data_vr))
    assert np.allclose(pixels(dataset, tmp_path, syntax), 1 - curve[stored] / 4095, atol=1e-6)


def test_a_table_of_8_bits_may_have_two_entries_in_a_word(tmp_path):
    stored, curve = ramp(8, False), np.arange(256)[::-1].astype(np.uint8)
    table = lut(curve, 0, 8, "OW")
    table[0].LUTData = curve.tobytes()
    dataset = make(stored, stored=8, VOILUTSequence=table)
    assert np.allclose(pixels(dataset, tmp_path), curve[stored] / 255, atol=1e-6)


def test_malformed_lookup_tables_count_as_absent(tmp_path):
    stored = ramp(10, False)
    short = lut(np.arange(10), 0, 12, "US")
    short[0].LUTDescriptor = [1024, 0, 12]
    dataset = make(stored, stored=10, ModalityLUTSequence=short, VOILUTSequence=lut(np.zeros(1024), 0, 12, "US"))
    assert np.allclose(pixels(dataset, tmp_path), stretched(stored), atol=1e-6)


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
