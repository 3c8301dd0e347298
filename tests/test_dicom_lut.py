"""The grey-scale pipeline of DICOM against the standard's formulas: rescale, windows, lookup tables, padding."""

import math

import numpy as np
import pytest
from dicom_files import EXPLICIT, IMPLICIT, make, pixels, ramp, read, replace_bytes, stretched, write
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence


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
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
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
