"""PNG, JPEG and TIFF through the reader, and what the reader promises whatever the format."""

import io
import pickle
import struct
import zlib

import dicom_files
import numpy as np
import pytest
import tifffile
import torch
from dicom_files import refused, stretched
from PIL import Image

from common.io import UnreadableRadiographError, read_radiograph
from common.io.scaling import STRETCH_VARIABLE, reading_settings

GREY = np.arange(256, dtype=np.uint8).reshape(8, 32)


def read(path):
    """Pixels [height, width]."""
    return dicom_files.read(path).pixels[0].numpy()


def test_8_bit_png_is_divided_by_255_exactly(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.dcm", "PNG", dpi=(300, 300))  # the content tells, not the name
    assert np.array_equal(read(tmp_path / "a.dcm"), GREY.astype(np.float32) / np.float32(255))
    radiograph = read_radiograph(str(tmp_path / "a.dcm"))
    assert radiograph.spacing_mm is None and radiograph.modality == ""  # dpi is that of a screen


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA", "P", "tiff", "tiff-rgb"])
def test_equal_channels_and_alpha_leave_the_grey_value(mode, tmp_path):
    image = Image.fromarray(GREY)
    path = tmp_path / ("a.tif" if "tiff" in mode else "a.png")
    if mode == "P":
        image = Image.fromarray(255 - GREY)
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([255 - n // 3 for n in range(768)])
    elif mode == "tiff-rgb":
        image = image.convert("RGB")
    elif mode != "tiff":
        image = image.convert(mode)
        if "A" in mode:
            image.putalpha(Image.fromarray(GREY[::-1].copy()))
    image.save(path)
    assert np.array_equal(read(path), GREY.astype(np.float32) / np.float32(255))


def test_1_bit_png_is_black_and_white(tmp_path):
    Image.fromarray(GREY > 99).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), (GREY > 99).astype(np.float32))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("top", [4095, 65535])
def test_16_bit_is_stretched_between_its_percentiles(name, top, tmp_path):
    values = np.linspace(100, top, 2000).astype(np.uint16).reshape(40, 50)
    Image.fromarray(values).save(tmp_path / name)
    assert np.allclose(read(tmp_path / name), stretched(values), atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_tiff_whose_zero_is_white_is_turned_over_once(dtype, tmp_path):
    values = np.linspace(0, 1 if dtype == "float32" else 250, 2000).astype(dtype).reshape(40, 50)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), values), "tifffile gives what is stored"
    expected = {"uint8": values / 255, "float32": values}.get(dtype)
    assert np.allclose(read(tmp_path / "a.tif"), 1 - (stretched(values) if expected is None else expected), atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint8"])
def test_the_stretch_can_be_switched_off(dtype, tmp_path, monkeypatch):
    monkeypatch.setenv(STRETCH_VARIABLE, "0")
    values = np.linspace(100, 255 if dtype == "uint8" else 4095, 2000).astype(dtype).reshape(40, 50)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.allclose(read(tmp_path / "a.tif"), values / (255 if dtype == "uint8" else 65535), atol=1e-7)
    assert reading_settings()
    monkeypatch.delenv(STRETCH_VARIABLE)
    assert not reading_settings()


@pytest.mark.parametrize("size", [(2, 2), (20, 4000), (4000, 20), (2, 15)])
def test_sizes_that_no_radiograph_has_are_refused(size, tmp_path):
    Image.fromarray(np.resize(GREY, size)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", *map(str, size))
    Image.fromarray(np.resize(GREY, (40, 160))).save(tmp_path / "a.png")
    read(tmp_path / "a.png")


def test_float_tiff_within_0_and_1_is_kept_and_others_are_stretched(tmp_path):
    values = np.linspace(0.2, 0.7, 600, dtype=np.float32).reshape(20, 30)
    Image.fromarray(values).save(tmp_path / "unit.tif")
    assert np.array_equal(read(tmp_path / "unit.tif"), values)
    values = values * 1000 - 300
    Image.fromarray(values).save(tmp_path / "wide.tif")
    assert np.allclose(read(tmp_path / "wide.tif"), stretched(values), atol=1e-6)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "nan.tif")
    assert read(tmp_path / "nan.tif")[3, 3] == 0


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_tiff_whose_zero_is_white_is_inverted_once(dtype, tmp_path):
    values = np.linspace(0, 255, 600).astype(dtype).reshape(20, 30)
    Image.fromarray(values).save(tmp_path / "a.tif")
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    at = raw.find(struct.pack("<HHI", 262, 3, 1))
    raw[at : at + 12] = struct.pack("<HHIHH", 262, 3, 1, 0, 0)
    (tmp_path / "b.tif").write_bytes(raw)
    assert np.allclose(read(tmp_path / "b.tif"), 1 - read(tmp_path / "a.tif"), atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_keeps_its_polarity_within_the_coding_error(mode, tmp_path):
    smooth = np.tile(np.linspace(20, 230, 64).astype(np.uint8), (64, 1))
    Image.fromarray(smooth).convert(mode).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read(tmp_path / "a.jpg") - smooth / 255).max() < 0.03


TURNED = [GREY, GREY[:, ::-1], GREY[::-1, ::-1], GREY[::-1]]  # by EXIF's orientation, from 1
TURNED += [GREY.T, np.rot90(GREY, -1), GREY[::-1, ::-1].T, np.rot90(GREY)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"})])
def test_exif_orientation_is_applied_once(orientation, name, options, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREY).save(tmp_path / name, exif=exif, **options)
    assert np.array_equal(read(tmp_path / name), TURNED[orientation - 1].astype(np.float32) / np.float32(255))


def png_of(width, height, depth, colour, data):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved(image_format, **options):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, image_format, **options)
    return buffer.getvalue()


PAGE = Image.fromarray(GREY)
BROKEN = {
    "empty": (b"", "0 bytes"),
    "text": ("Bericht: Röntgen Thorax\n".encode() * 9, "text"),
    "binary": (b"\x00\x01\x02\x03" * 200, "unknown format"),
    "bmp": (saved("BMP"), "BMP"),
    "webp": (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "WebP"),
    "cut png": (saved("PNG")[:-900], "damaged"),
    "cut jpeg": (saved("JPEG")[:-900], "without its end"),
    "cut tiff": (saved("TIFF")[:2000], "damaged"),
    "head of a jpeg": (saved("JPEG")[:10], "no JPEG image"),
    "magic of a png": (b"\x89PNG\r\n\x1a\n", "damaged"),
    "two pages": (saved("TIFF", save_all=True, append_images=[PAGE]), "2 pages"),
    "animated png": (saved("PNG", save_all=True, append_images=[PAGE]), "pages"),
    "bomb": (png_of(50_000, 50_000, 8, 0, b""), "50000"),
    "large": (png_of(13_000, 13_000, 8, 0, b""), "13000"),
    "blank": (png_of(8, 8, 8, 0, (b"\x00" + b"\x07" * 8) * 8), "all the same"),
    "16-bit colour": (png_of(2, 1, 16, 2, b"\x00" + b"\x01\x02" * 6), "16 bits per channel"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_image_gives_the_one_error(kind, tmp_path):
    content, word = BROKEN[kind]
    path = tmp_path / "image.png"
    path.write_bytes(content)
    refused(path, word)


def test_what_holds_no_number_or_is_no_file_is_refused(tmp_path):
    for fill in (np.nan, np.inf):
        Image.fromarray(np.full((5, 5), fill, np.float32)).save(tmp_path / "a.tif")
        refused(tmp_path / "a.tif", "NaN")
    refused(tmp_path / "missing.png", "no such file")
    refused(tmp_path, "directory")


def test_the_error_survives_pickling_and_worker_processes(tmp_path):
    error = refused(tmp_path / "missing.png")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.hint == error.hint and copy.path == error.path

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return read_radiograph(tmp_path / "missing.png").pixels

    loader = torch.utils.data.DataLoader(Files(), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(UnreadableRadiographError, match="found no such file"):
        next(iter(loader))
