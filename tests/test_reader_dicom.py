"""DICOM through the reader: the grey-scale pipeline against the standard's formulas, codings, and what is refused."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from common.reader import Radiograph, UnreadableRadiographError, is_radiograph_file, read_radiograph

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 80, 90))
PYDICOM_3 = int(pydicom.__version__.split(".")[0]) >= 3


def make(values: np.ndarray, photometric: str = "MONOCHROME2", stored: int = 0, **elements: object) -> Dataset:
    """Return a data set of these pixels, [rows, columns] or [rows, columns, 3]."""
    width = values.dtype.itemsize * 8
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    dataset.Modality, dataset.PhotometricInterpretation = "DX", photometric
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored = width, stored or width
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    dataset["PixelData"].VR = "OW" if width > 8 else "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def write(dataset: Dataset, path: Path, syntax: str = EXPLICIT) -> Path:
    """Write with either pydicom."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    encoding = {"is_implicit_VR": syntax == IMPLICIT, "is_little_endian": syntax != BIG}
    whole = FileDataset(str(path), dataset, file_meta=meta, preamble=b"\0" * 128, **encoding)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if PYDICOM_3:
            whole.save_as(path, enforce_file_format=True)
        else:
            whole.save_as(path, write_like_original=False)
    return path


def read(path: Path) -> Radiograph:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        radiograph = read_radiograph(path)
    assert radiograph.pixels.isfinite().all() and 0 <= radiograph.pixels.min() < radiograph.pixels.max() <= 1
    assert radiograph.pixels.is_contiguous() and radiograph.pixels.dtype.is_floating_point
    return radiograph


def pixels(dataset: Dataset, tmp_path: Path, syntax: str = EXPLICIT) -> np.ndarray:
    return read(write(dataset, tmp_path / "a.dcm", syntax)).pixels[0].numpy()


def refused(path: Path, *words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableRadiographError) as caught:
            read_radiograph(path)
    for word in (str(path), "found", "expected", *words):
        assert word in str(caught.value)


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values - low) / (high - low), 0, 1)


def ramp(bits: int, signed: bool) -> np.ndarray:
    """Return 20 × 30 values over all of the range, in no order that a wrong layout would survive."""
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.linspace(low, low + 2**bits - 1, 600).astype(np.int64)
    dtype = ("i" if signed else "u") + ("1" if bits == 8 else "2")
    return np.random.default_rng(0).permutation(values).reshape(20, 30).astype(dtype)


def shown(value: float, centre: float, width: float, function: str) -> float:
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
def test_truth_table(
    photometric: str, bits: int, signed: bool, rescale: tuple | None, function: str | None, tmp_path: Path
) -> None:
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


def test_golden_numbers(tmp_path: Path) -> None:
    stored = np.array([[0, 500, 1000], [2000, 3000, 4095]], np.uint16)
    dataset = make(stored, "MONOCHROME1", 12, WindowCenter="2048", WindowWidth="4096")
    golden = [[1.0, 0.8778998851776123, 0.7557997703552246], [0.5115995407104492, 0.26739931106567383, 0.0]]
    assert np.allclose(pixels(dataset, tmp_path), golden, atol=1e-7)


@pytest.mark.parametrize("shape", [None, "INVERSE", "IDENTITY"])
def test_the_presentation_lut_shape_never_inverts_again(shape: str | None, tmp_path: Path) -> None:
    stored = ramp(8, False)
    extra = {"PresentationLUTShape": shape} if shape else {}
    assert np.allclose(pixels(make(stored, "MONOCHROME1", **extra), tmp_path), 1 - stored / 255, atol=1e-6)
    assert np.allclose(pixels(make(stored, "MONOCHROME2", **extra), tmp_path), stored / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("centre", "width"),
    [("2000", "0"), ("2000", "-5"), ("90000", "10"), ("-5000", "1"), ("2000", "1e9"), ("2000", "1"), ("2000", None)],
)
def test_a_window_that_shows_nothing_is_replaced(centre: str, width: str | None, tmp_path: Path) -> None:
    stored = ramp(12, False)
    dataset = make(stored, stored=12, WindowCenter=centre, WindowWidth=width)
    assert np.allclose(pixels(dataset, tmp_path), stretched(stored), atol=1e-6)


def replace_bytes(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def test_a_window_of_text_is_replaced(tmp_path: Path) -> None:
    stored = ramp(12, False)
    path = write(make(stored, stored=12, WindowCenter="2047", WindowWidth="4093"), tmp_path / "a.dcm")
    replace_bytes(path, b"4093", b"wide")
    assert np.allclose(read(path).pixels[0].numpy(), stretched(stored), atol=1e-6)


def test_padding_is_black_and_does_not_stretch(tmp_path: Path) -> None:
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


def lut(entries: np.ndarray, first: int, bits: int, data_vr: str) -> Sequence:
    item = Dataset()
    item.add_new(0x00283002, "US" if first >= 0 else "SS", [len(entries), first, bits])
    values = entries.astype(np.uint16)
    item.add_new(0x00283006, data_vr, values.tobytes() if data_vr == "OW" else values.tolist())
    item.ModalityLUTType = "US"
    return Sequence([item])


@pytest.mark.parametrize("data_vr", ["US", "OW"])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_lookup_tables(data_vr: str, syntax: str, tmp_path: Path) -> None:
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


def test_malformed_lookup_tables_count_as_absent(tmp_path: Path) -> None:
    stored = ramp(10, False)
    short = lut(np.arange(10), 0, 12, "US")
    short[0].LUTDescriptor = [1024, 0, 12]
    dataset = make(stored, stored=10, ModalityLUTSequence=short, VOILUTSequence=lut(np.zeros(1024), 0, 12, "US"))
    assert np.allclose(pixels(dataset, tmp_path), stretched(stored), atol=1e-6)


def test_overlay_bits_above_and_below_are_not_pixels(tmp_path: Path) -> None:
    stored = ramp(10, False)
    noisy = (stored << 2) | 0x8003
    dataset = make(noisy, stored=10, HighBit=11, WindowCenter=512, WindowWidth=1024)
    assert np.allclose(pixels(dataset, tmp_path), stored / 1023, atol=1e-6)


def test_colour_becomes_luma(tmp_path: Path) -> None:
    grey = ramp(8, False)
    grey3 = np.stack([grey] * 3, -1)
    assert np.array_equal(pixels(make(grey3, "RGB"), tmp_path), grey / np.float32(255))
    colour = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    luma = np.asarray(Image.fromarray(colour).convert("L")) / np.float32(255)
    assert np.array_equal(pixels(make(colour, "RGB"), tmp_path), luma)
    planar = make(colour, "RGB", PlanarConfiguration=1, PixelData=colour.transpose(2, 0, 1).tobytes())
    assert np.array_equal(pixels(planar, tmp_path), luma)
    assert np.array_equal(pixels(make(colour, "YBR_FULL"), tmp_path), colour[..., 0] / np.float32(255))
    pairs = grey.reshape(-1, 2)
    quads = np.concatenate([pairs, np.full_like(pairs, 128)], 1)
    assert np.array_equal(
        pixels(make(grey3, "YBR_FULL_422", PixelData=quads.tobytes()), tmp_path), grey / np.float32(255)
    )


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colour(bits: int, tmp_path: Path) -> None:
    indices = ramp(8, False)
    dataset = make(indices, "PALETTE COLOR")
    entries = np.arange(255, -1, -1).astype(np.uint16) << (bits - 8)
    for offset in range(3):
        dataset.add_new(0x00281101 + offset, "US", [256, 0, bits])
        dataset.add_new(0x00281201 + offset, "OW", entries.tobytes())
    assert np.array_equal(pixels(dataset, tmp_path), (255 - indices) / np.float32(255))
    del dataset.BluePaletteColorLookupTableData
    refused(write(dataset, tmp_path / "a.dcm"), "BluePaletteColorLookupTableData")


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
def test_spacing(elements: dict, expected: tuple | None, tmp_path: Path) -> None:
    radiograph = read(write(make(ramp(8, False), **elements), tmp_path / "a.dcm"))
    assert radiograph.spacing_mm == expected and radiograph.modality == "DX"


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
@pytest.mark.parametrize("bits", [8, 12])
def test_uncompressed_codings(syntax: str, bits: int, tmp_path: Path) -> None:
    stored = ramp(bits, False)
    dataset = make(stored, stored=bits, WindowCenter=2 ** (bits - 1), WindowWidth=2**bits)
    if syntax == BIG:
        dataset.PixelData = stored.byteswap().tobytes()
    assert np.allclose(pixels(dataset, tmp_path, syntax), stored / (2**bits - 1), atol=1e-6)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
@pytest.mark.parametrize("drop", [128, "meta"])
def test_without_preamble(syntax: str, drop: int | str, tmp_path: Path) -> None:
    stored = ramp(12, False)
    path = write(make(stored, stored=12), tmp_path / "a.dcm", syntax)
    content = path.read_bytes()
    start = 132 if drop == 128 else 144 + int.from_bytes(content[140:144], "little")
    path.write_bytes(content[start:])
    assert np.allclose(read(path).pixels[0].numpy(), stretched(stored), atol=1e-6)


def encoded(values: np.ndarray, syntax: str, bits: int) -> bytes:
    if syntax == JPEG:
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "JPEG", quality=100)
        return buffer.getvalue()
    if syntax == JPEG_LS:
        import jpeg_ls

        return bytes(jpeg_ls.encode_array(values))
    if syntax == JPEG_2000:
        from openjpeg.utils import encode_array

        return encode_array(values, bits_stored=bits)
    from rle.utils import encode_pixel_data

    samples = values.shape[2] if values.ndim == 3 else 1
    shape = {"rows": values.shape[0], "columns": values.shape[1], "samples_per_pixel": samples, "number_of_frames": 1}
    return encode_pixel_data(values.tobytes(), byteorder="<", bits_allocated=values.dtype.itemsize * 8, **shape)


def test_an_rle_stream_that_runs_past_its_segments_is_refused(tmp_path: Path) -> None:
    """Such streams make the decoder of pylibjpeg panic, which no `except Exception` stops."""
    stored = np.tile(ramp(12, False), (2, 2))
    frame = bytearray(encoded(stored, RLE, 12))
    path = tmp_path / "a.dcm"
    for at, value in ((4, 255), (8, 255), (65, 127), (len(frame) - 2, 127), (len(frame) - 2, 129), (0, 3)):
        broken = bytearray(frame)
        broken[at] = value
        dataset = compressed(stored, RLE, 12)
        dataset.PixelData = encapsulate([bytes(broken)])
        write(dataset, path, RLE)
        with contextlib.suppress(UnreadableRadiographError):  # some changes only alter pixels
            read(path)


def compressed(values: np.ndarray, syntax: str, bits: int, photometric: str = "MONOCHROME2") -> Dataset:
    frame = encoded(values, syntax, bits)
    dataset = make(values, photometric, bits, PixelData=encapsulate([frame + b"\0" * (len(frame) % 2)]))
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return dataset


@pytest.mark.parametrize("syntax", [RLE, JPEG_LS, JPEG_2000])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (16, True), (12, True)])
def test_lossless_codings(syntax: str, bits: int, signed: bool, tmp_path: Path) -> None:
    if signed and syntax == JPEG_LS:
        pytest.skip("the encoder takes no signed values")
    stored = np.tile(ramp(bits, signed), (2, 2))  # what the JPEG 2000 encoder needs at least
    dataset = compressed(stored, syntax, bits)
    dataset.WindowCenter, dataset.WindowWidth = 0 if signed else 2 ** (bits - 1), 2**bits
    low = 2 ** (bits - 1) if signed else 0
    assert np.allclose(pixels(dataset, tmp_path, syntax), (stored.astype(float) + low) / (2**bits - 1), atol=1e-6)


@pytest.mark.parametrize("syntax", [RLE, JPEG_LS, JPEG_2000])
def test_lossless_colour(syntax: str, tmp_path: Path) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    luma = np.asarray(Image.fromarray(colour).convert("L")) / np.float32(255)
    assert np.array_equal(pixels(compressed(colour, syntax, 8, "RGB"), tmp_path, syntax), luma)


def test_jpeg_baseline_grey_and_colour(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(20, 230, 64).astype(np.uint8), (64, 1))
    assert np.abs(pixels(compressed(smooth, JPEG, 8), tmp_path, JPEG) - smooth / 255).max() < 0.02
    colour = compressed(np.stack([smooth] * 3, -1), JPEG, 8, "YBR_FULL_422")
    assert np.abs(pixels(colour, tmp_path, JPEG) - smooth / 255).max() < 0.02


@pytest.mark.parametrize("syntax", [RLE, JPEG, JPEG_LS, JPEG_2000])
def test_broken_compressed_streams_are_refused(syntax: str, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    frame = encoded(stored, syntax, 8)
    half = frame[: len(frame) // 4 * 2]
    path = tmp_path / "a.dcm"
    for broken in (half, b"\0" * 400, b"no image" * 50, frame[:20], b"\xff\xd8\xff\xd9"):
        dataset = compressed(stored, syntax, 8)
        dataset.PixelData = encapsulate([broken])
        refused(write(dataset, path, syntax))
    dataset = compressed(stored, syntax, 8)
    dataset.Rows = 32
    refused(write(dataset, path, syntax))
    dataset.Rows, dataset.Columns = 640, 640
    refused(write(dataset, path, syntax))
    whole = write(compressed(stored, syntax, 8), path, syntax).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path)


DELETE = object()
BROKEN: dict[str, tuple[dict[str, object], str]] = {
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
def test_broken_headers_and_pixels_give_the_one_error(kind: str, tmp_path: Path) -> None:
    changes, word = BROKEN[kind]
    dataset = make(ramp(12, False), stored=12)
    for keyword, value in changes.items():
        if value is DELETE:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    refused(write(dataset, tmp_path / "a.dcm"), word)


def test_lenient_where_nothing_is_lost(tmp_path: Path) -> None:
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


def test_objects_without_an_image_and_cut_files_are_refused(tmp_path: Path) -> None:
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


def test_a_deflate_bomb_is_refused_without_inflating_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import common.reader.dicom

    monkeypatch.setattr(common.reader.dicom, "_MAX_INFLATED_BYTES", 1 << 22)
    path = write(make(ramp(12, False)), tmp_path / "a.dcm", DEFLATED)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(content[:start] + deflater.compress(bytes(1 << 24)) + deflater.flush())
    refused(path, "deflated")


# What the reader made of each specimen once its picture had been looked at: shape, spacing, mean and deviation.
SPECIMENS = {
    "chest_cr_FAKE_mono1_header": ((1024, 1024), (0.168, 0.168), 0.370867, 0.211198),
    "chest_cr_mono1_10bit_explicit": ((440, 440), None, 0.54657, 0.156886),
    "chest_cr_mono1_15bit_j2k_lossy_RG1": ((1955, 1841), None, 0.75361, 0.152287),
    "chest_cr_mono1_8bit_jpegbaseline_konica": ((2446, 2010), (0.175, 0.175), 0.354327, 0.290586),
    "chest_cr_mono2_8bit_jpegbaseline_rsna": ((1024, 1024), (0.168, 0.168), 0.629133, 0.211198),
    "dental_opg_cr_mono1_modalityLUT_jpegll": ((1576, 1976), (0.15, 0.15), 0.305949, 0.315969),
    "extremity_cr_mono1_j2k_lossless_RG3": ((1760, 1760), None, 0.696079, 0.359968),
    "extremity_cr_mono1_jpegls_lossless_RG3": ((1760, 1760), None, 0.696079, 0.359968),
    "extremity_cr_mono1_rle_RG3": ((1760, 1760), None, 0.696079, 0.359968),
    "hip_cr_mono2_j2k_lossy_RG2": ((2140, 1760), (0.2, 0.2), 0.44123, 0.330032),
    "pydicom_16x16_cr_mono1": ((16, 16), (0.1, 0.1), 0.383253, 0.034554),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", SPECIMENS)
def test_real_specimens_read_as_they_were_seen(name: str, shared_data: Path) -> None:
    radiograph = read(shared_data / "dicom" / f"{name}.dcm")
    shape, spacing, mean, deviation = SPECIMENS[name]
    assert tuple(radiograph.pixels.shape) == (1, *shape) and radiograph.spacing_mm == spacing
    assert radiograph.modality == "CR"
    image = radiograph.pixels.double()
    assert float(image.mean()) == pytest.approx(mean, abs=2e-4)
    assert float(image.std()) == pytest.approx(deviation, abs=2e-4)


@pytest.mark.shared
def test_real_chests_have_dark_lungs_and_a_bright_mediastinum(shared_data: Path) -> None:
    chests = [n for n in SPECIMENS if n.startswith("chest")]
    for name in chests:
        image = read(shared_data / "dicom" / f"{name}.dcm").pixels[0]
        height, width = image.shape
        rows = slice(int(0.3 * height), int(0.5 * height))
        lung, mediastinum = (
            float(image[rows, int(a * width) : int(b * width)].mean()) for a, b in ((0.22, 0.32), (0.48, 0.56))
        )
        # The header of one of them is wrong about its polarity; it is believed, so that one comes out inverted.
        assert (lung < mediastinum - 0.05) is ("FAKE" not in name), name


@pytest.mark.shared
def test_the_three_lossless_codings_of_one_image_agree(shared_data: Path) -> None:
    first, *others = (
        read(shared_data / "dicom" / f"extremity_cr_mono1_{coding}_RG3.dcm").pixels
        for coding in ("rle", "j2k_lossless", "jpegls_lossless")
    )
    assert all(first.equal(other) for other in others)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("xa_multiframe96_jpeg_fragments", "96 frames"),
        ("cr_no_pixeldata", "without pixel data"),
        ("extremity_cr_mono1_jpegextended12_RG3", "libjpeg"),
    ],
)
def test_unreadable_specimens_give_the_one_error(name: str, word: str, shared_data: Path) -> None:
    path = shared_data / "dicom" / f"{name}.dcm"
    assert is_radiograph_file(path)
    refused(path, word)
