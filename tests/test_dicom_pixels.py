"""DICOM's codings and photometric interpretations give the pixels that were put in, or one error."""

import dicom_files as dicom
import numpy as np
import pytest
from dicom_files import compressed, encoded, make, pixels, ramp, read, refused, stretched, write
from PIL import Image
from pydicom.encaps import encapsulate


def test_overlay_bits_above_and_below_are_not_pixels(tmp_path):
    stored = ramp(10, False)
    noisy = (stored << 2) | 0x8003
    dataset = make(noisy, stored=10, HighBit=11, WindowCenter=512, WindowWidth=1024)
    assert np.allclose(pixels(dataset, tmp_path), stored / 1023, atol=1e-6)


def test_colour_becomes_luma(tmp_path):
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
def test_palette_colour(bits, tmp_path):
    indices = ramp(8, False)
    dataset = make(indices, "PALETTE COLOR")
    entries = np.arange(255, -1, -1).astype(np.uint16) << (bits - 8)
    for offset in range(3):
        dataset.add_new(0x00281101 + offset, "US", [256, 0, bits])
        dataset.add_new(0x00281201 + offset, "OW", entries.tobytes())
    assert np.array_equal(pixels(dataset, tmp_path), (255 - indices) / np.float32(255))
    del dataset.BluePaletteColorLookupTableData
    refused(write(dataset, tmp_path / "a.dcm"), "BluePaletteColorLookupTableData")


def test_8_bits_in_big_endian_words_are_swapped(tmp_path):
    stored = ramp(8, False)
    dataset = make(stored)
    dataset.PixelData = np.frombuffer(stored.tobytes(), "<u2").byteswap().tobytes()
    dataset["PixelData"].VR = "OW"
    assert np.allclose(pixels(dataset, tmp_path, dicom.BIG), stored / 255, atol=1e-6)


@pytest.mark.parametrize("syntax", [dicom.IMPLICIT, dicom.EXPLICIT, dicom.BIG, dicom.DEFLATED])
@pytest.mark.parametrize("bits", [8, 12])
def test_uncompressed_codings(syntax, bits, tmp_path):
    stored = ramp(bits, False)
    dataset = make(stored, stored=bits, WindowCenter=2 ** (bits - 1), WindowWidth=2**bits)
    if syntax == dicom.BIG:
        dataset.PixelData = stored.byteswap().tobytes()
    assert np.allclose(pixels(dataset, tmp_path, syntax), stored / (2**bits - 1), atol=1e-6)


@pytest.mark.parametrize("syntax", [dicom.IMPLICIT, dicom.EXPLICIT])
@pytest.mark.parametrize("drop", [128, "meta"])
def test_without_preamble(syntax, drop, tmp_path):
    stored = ramp(12, False)
    path = write(make(stored, stored=12), tmp_path / "a.dcm", syntax)
    content = path.read_bytes()
    start = 132 if drop == 128 else 144 + int.from_bytes(content[140:144], "little")
    path.write_bytes(content[start:])
    assert np.allclose(read(path).pixels[0].numpy(), stretched(stored), atol=1e-6)


@pytest.mark.parametrize("syntax", [dicom.RLE, dicom.JPEG_LS, dicom.JPEG_2000])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (16, True), (12, True)])
def test_lossless_codings(syntax, bits, signed, tmp_path):
    if signed and syntax == dicom.JPEG_LS:
        pytest.skip("the encoder takes no signed values")
    stored = np.tile(ramp(bits, signed), (2, 2))  # what the JPEG 2000 encoder needs at least
    dataset = compressed(stored, syntax, bits)
    dataset.WindowCenter, dataset.WindowWidth = 0 if signed else 2 ** (bits - 1), 2**bits
    low = 2 ** (bits - 1) if signed else 0
    assert np.allclose(pixels(dataset, tmp_path, syntax), (stored.astype(float) + low) / (2**bits - 1), atol=1e-6)


@pytest.mark.parametrize("syntax", [dicom.RLE, dicom.JPEG_LS, dicom.JPEG_2000])
def test_lossless_colour(syntax, tmp_path):
    colour = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    luma = np.asarray(Image.fromarray(colour).convert("L")) / np.float32(255)
    assert np.array_equal(pixels(compressed(colour, syntax, 8, "RGB"), tmp_path, syntax), luma)


def test_jpeg_baseline_grey_and_colour(tmp_path):
    smooth = np.tile(np.linspace(20, 230, 64).astype(np.uint8), (64, 1))
    assert np.abs(pixels(compressed(smooth, dicom.JPEG, 8), tmp_path, dicom.JPEG) - smooth / 255).max() < 0.02
    colour = compressed(np.stack([smooth] * 3, -1), dicom.JPEG, 8, "YBR_FULL_422")
    assert np.abs(pixels(colour, tmp_path, dicom.JPEG) - smooth / 255).max() < 0.02


@pytest.mark.parametrize("syntax", [dicom.RLE, dicom.JPEG, dicom.JPEG_LS, dicom.JPEG_2000])
def test_broken_compressed_streams_are_refused(syntax, tmp_path):
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
