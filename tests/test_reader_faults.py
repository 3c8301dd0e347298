"""Kinds of files that other readers, or this one in its time, got wrong without a word; each with the right values."""

import gzip
import io
import struct
import zlib

import dicom_files as dicom
import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from dicom_files import encoded, framed, make, pixels, ramp, read, refused, stretched, write
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from script_module import load_script

from common.errors import RunError, UserError
from common.io import is_radiograph_file, read_radiograph
from common.io.mask_files import read_mask

LOSSLESS = [dicom.RLE, dicom.JPEG_LOSSLESS, dicom.JPEG_LS, dicom.JPEG_2000]
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
TWELVE = np.tile(ramp(12, False), (2, 2))
SMOOTH = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)


def words_of(kind):
    """Twelve bits in words of sixteen, compressed with all of them: the words, and what the header says."""
    return {
        "overlay": (TWELVE | (TWELVE % 2) << 15, WINDOW),
        "high bit 15": (TWELVE << 4, {**WINDOW, "HighBit": 15}),
        "signed": (TWELVE ^ 0x800, {"PixelRepresentation": 1, "WindowCenter": 0, "WindowWidth": 4096}),
    }[kind]


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("kind", ["overlay", "high bit 15", "signed"])
def test_only_the_bits_that_count_are_pixels(kind, syntax, tmp_path):
    words, elements = words_of(kind)
    dataset = framed(words, encoded(words, syntax, 16), 12, **elements)
    assert np.allclose(pixels(dataset, tmp_path, syntax), TWELVE / 4095, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_coding_errors_beyond_the_bits_that_count_are_clipped(signed, tmp_path):
    values = np.clip(TWELVE.astype(int), 1000, 3000) - (2000 if signed else 0)
    values = values.astype("i2" if signed else "u2")
    values[0, 0], values[0, 1] = (2100, -2100) if signed else (4200, 0)  # 4200 in 12 bits is 104
    frame = imagecodecs.jpeg2k_encode(values, 0, codecformat="J2K", reversible=True)
    dataset = framed(values, frame, 12, WindowCenter=0 if signed else 2048, WindowWidth=4096)
    found = pixels(dataset, tmp_path, "1.2.840.10008.1.2.4.91")
    assert found[0, 0] == 1 and found[0, 1] == 0
    dataset.WindowWidth = 16384  # shows values beyond 12 bits, too
    low = -2048 if signed else 0
    expected = (np.clip(values, low, low + 4095) - (dataset.WindowCenter - 0.5)) / 16383 + 0.5
    assert np.allclose(pixels(dataset, tmp_path, "1.2.840.10008.1.2.4.91"), expected, atol=1e-5)
    dataset.LossyImageCompression = "00"  # then the bit above is an overlay
    assert pixels(dataset, tmp_path, "1.2.840.10008.1.2.4.91")[0, 0] < 0.6


@pytest.mark.parametrize("syntax", [dicom.JPEG, dicom.JPEG_12, dicom.JPEG_LOSSLESS, dicom.JPEG_LS, dicom.JPEG_2000])
@pytest.mark.parametrize("padding", [64, 512])
def test_zeros_behind_the_end_of_an_image_do_no_harm(syntax, padding, tmp_path):
    bits, values = (8, SMOOTH) if syntax == dicom.JPEG else (12, SMOOTH.astype(np.uint16) * 16)
    frame = encoded(values, syntax, bits)
    for behind in (bytes(padding), b"\xff " * padding):
        pixels(framed(values, frame + behind, bits, **WINDOW), tmp_path, syntax)
    refused(write(framed(values, frame[:-2] + bytes(padding), bits), tmp_path / "a.dcm", syntax), "without its end")


def test_the_length_tells_whether_two_pixels_share_their_colour(tmp_path):
    ycc = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    dataset = make(ycc, "YBR_FULL_422")
    assert np.array_equal(pixels(dataset, tmp_path), ycc[..., 0] / np.float32(255))
    dataset.PlanarConfiguration, dataset.PixelData = 1, ycc.transpose(2, 0, 1).tobytes()
    assert np.array_equal(pixels(dataset, tmp_path), ycc[..., 0] / np.float32(255))


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422"])
@pytest.mark.parametrize("told_by", ["JFIF", "Adobe", "component names", "transform"])
def test_the_image_tells_its_colours_better_than_the_header(told_by, photometric, tmp_path):
    picture = Image.fromarray(np.stack([SMOOTH, 255 - SMOOTH, SMOOTH // 2], -1))
    samples, buffer = np.asarray(picture), io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0, keep_rgb=told_by != "JFIF")
    frame, syntax = buffer.getvalue(), dicom.JPEG
    if told_by == "component names":
        at = frame.index(b"\xff\xee")  # Adobe's marker of 16 bytes
        frame = frame[:at] + frame[at + 16 :]
    elif told_by == "transform":
        syntax = dicom.JPEG_2000
        frame = imagecodecs.jpeg2k_encode(samples, 0, codecformat="J2K", reversible=True, mct=True)
    found = pixels(framed(samples, frame, 8, photometric), tmp_path, syntax)
    assert np.abs(found - np.asarray(picture.convert("L")) / 255).max() < 0.03


@pytest.mark.parametrize("sop_class", ["12.1", "12.2", "1"])
@pytest.mark.parametrize("relationship", ["LOG", "DISP", "LIN"])
def test_the_modality_lut_of_xa_and_xrf_to_beam_intensity_is_not_for_display(sop_class, relationship, tmp_path):
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [4096, 0, 16], "US"
    curve = (65535 * np.linspace(1, 0, 4096) ** 2).astype(np.uint16)
    item.add_new(0x00283006, "OW", curve.tobytes())
    dataset = make(TWELVE, stored=12, ModalityLUTSequence=Sequence([item]), PixelIntensityRelationship=relationship)
    dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{sop_class}"
    applied = sop_class == "1" or relationship == "LIN"
    expected = stretched(curve[TWELVE] if applied else TWELVE)
    assert np.allclose(pixels(dataset, tmp_path), expected, atol=1e-5)


def test_what_modality_values_may_be_tells_the_sign_of_a_voi_lut(tmp_path):
    item = Dataset()
    item.add_new(0x00283002, "US", [4096, 65536 - 1000, 12])  # -1000, in the VR that has no sign
    item.add_new(0x00283006, "US", list(range(4096)))
    stored = np.clip(TWELVE, 1500, 3500)  # no value is negative once it is rescaled
    dataset = make(stored, stored=12, VOILUTSequence=Sequence([item]), RescaleSlope=1, RescaleIntercept=-1000)
    assert np.allclose(pixels(dataset, tmp_path), stored / 4095, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_padding_is_known_by_the_bits_that_do_not_count(signed, tmp_path):
    values = np.linspace(1000, 2000, 600).astype(np.uint16).reshape(20, 30)
    values[:5] = 0x8FFF
    dataset = make(values.view(np.int16) if signed else values, stored=12)
    dataset.add_new(0x00280120, "US", 0x8FFF)
    found = pixels(dataset, tmp_path)
    assert (found[:5] == 0).all() and np.allclose(found[5:], stretched(values[5:]), atol=1e-6)


def cut_scan(frame, share):
    """Leave out a share of the entropy-coded data but keep the end of the image."""
    start, end = frame.rfind(b"\xff\xda") + 10, frame.rfind(b"\xff\xd9")
    kept = frame[: start + int((end - start) * (1 - share))]
    return kept.rstrip(b"\xff") + frame[end:]


@pytest.mark.parametrize("syntax", [dicom.JPEG, dicom.JPEG_12, dicom.JPEG_LOSSLESS, dicom.JPEG_LS, dicom.JPEG_2000])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_an_image_of_which_a_part_is_missing_is_refused(syntax, share, tmp_path):
    bits, dtype = (8, np.uint8) if syntax == dicom.JPEG else (12, np.uint16)
    values = np.random.default_rng(0).integers(0, 200, (64, 64)).astype(dtype)
    frame = encoded(values, syntax, bits)
    has_scan = syntax not in (dicom.JPEG_LS, dicom.JPEG_2000)
    broken = cut_scan(frame, share) if has_scan else frame[: int(len(frame) * (1 - share))]
    broken = broken if broken.endswith(b"\xff\xd9") else broken + b"\xff\xd9"
    read(write(framed(values, frame, bits), tmp_path / "whole.dcm", syntax))
    refused(write(framed(values, broken, bits), tmp_path / "a.dcm", syntax))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}], ids=str
)
def test_a_jpeg_file_of_which_a_part_is_missing_is_refused(options, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", **options)
    whole = (tmp_path / "a.jpg").read_bytes()
    assert np.abs(read(tmp_path / "a.jpg").pixels[0].numpy() - noise / 255).mean() < 0.2
    (tmp_path / "a.jpg").write_bytes(cut_scan(whole, 0.3))
    refused(tmp_path / "a.jpg", "missing")
    (tmp_path / "a.jpg").write_bytes(whole + b"\0" * 700)
    read(tmp_path / "a.jpg")


@pytest.mark.parametrize("lost", [slice(None, 0), slice(None, -100), slice(50, -50), slice(100, None)], ids=str)
@pytest.mark.parametrize("syntax", [dicom.JPEG, dicom.JPEG_LOSSLESS])
@pytest.mark.parametrize("restart", [0, 4])
def test_a_part_of_a_scan_that_is_missing_or_zeros_is_refused(lost, syntax, restart, tmp_path):
    noise = np.random.default_rng(0).integers(0, 60, (128, 160), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=90, restart_marker_blocks=restart)
    frame = buffer.getvalue() if syntax == dicom.JPEG else encoded(noise, syntax, 8)
    start = frame.index(b"\xff\xda") + 10
    scan = frame[start:-2]
    read(write(framed(noise, frame, 8), tmp_path / "whole.dcm", syntax))
    if lost.stop == 0:  # the second half is zeros
        broken = scan[: len(scan) // 2] + bytes(len(scan) - len(scan) // 2)
    elif restart and syntax == dicom.JPEG:  # forty of eighty restart intervals, or a few less
        marks = [at for at in range(len(scan) - 1) if scan[at] == 0xFF and 0xD0 <= scan[at + 1] <= 0xD7]
        first, last = {None: (0, marks[39] + 2), 50: (marks[20], marks[60]), 100: (marks[39], len(scan))}[lost.start]
        broken = scan[:first] + scan[last:]
    else:
        places = slice(*(None if n is None else n * len(scan) // 200 for n in (lost.start, lost.stop)))
        first, last, _ = places.indices(len(scan))
        broken = scan[:first] + scan[last:]
    refused(write(framed(noise, frame[:start] + broken.rstrip(b"\xff") + frame[-2:], 8), tmp_path / "a.dcm", syntax))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "zlib", "predictor": True}], ids=str)
def test_tiff_numbers_are_those_that_were_written(byteorder, dtype, options, tmp_path):
    low, high = (0, 1) if dtype[0] == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = np.linspace(low, high, 2400).reshape(40, 60).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=byteorder, **options)
    expected = {"u1": values / 255, "f4": values, "f8": values}.get(dtype)
    found = read(tmp_path / "a.tif").pixels[0].numpy()
    assert np.allclose(found, stretched(values.astype(np.float64)) if expected is None else expected, atol=1e-5)


@pytest.mark.parametrize("offset", [0, 348])
def test_the_header_of_a_nifti_is_no_pixels(offset, tmp_path):
    shown = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    nibabel.save(nibabel.Nifti1Image(shown.T, np.diag([-1.0, -1, 1, 1])), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = struct.pack("<f", offset)
    (tmp_path / "a.nii").write_bytes(content)
    assert np.array_equal(read(tmp_path / "a.nii").pixels[0].numpy(), shown / np.float32(255))


@pytest.mark.parametrize("highest", [7, 11, 32])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16])
def test_labels_are_whole_within_a_step_of_what_they_were_scaled_to(highest, dtype, tmp_path):
    mask = np.random.default_rng(0).integers(0, highest + 1, (50, 70))
    for name, values in (("mask", mask), ("probabilities", mask / 7.3)):
        image = nibabel.Nifti1Image(values.T.astype(np.float32), np.diag([-1.0, -1, 1, 1]))
        image.header.set_data_dtype(dtype)
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    assert np.array_equal(read_mask(tmp_path / "mask.nii.gz"), mask)
    with pytest.raises(UserError):
        read_mask(tmp_path / "probabilities.nii.gz")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_as_its_image_is(orientation, tmp_path):
    mask = np.random.default_rng(0).integers(0, 2, (8, 32)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(mask * 255).save(tmp_path / "image.png", exif=exif)
    Image.fromarray(mask).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), read(tmp_path / "image.png").pixels[0].numpy())


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_functional_groups_of_one_frame_are_read(groups, tmp_path):
    group, measures, voi, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, voi.WindowCenter, voi.WindowWidth = [0.2, 0.1], 1048, 4096
    values.RescaleSlope, values.RescaleIntercept = 1, -1000
    group.PixelMeasuresSequence, group.FrameVOILUTSequence = Sequence([measures]), Sequence([voi])
    group.PixelValueTransformationSequence = Sequence([values])
    dataset = make(TWELVE, stored=12, NumberOfFrames=1, WindowCenter="", WindowWidth="")  # as good as absent
    setattr(dataset, groups, Sequence([group]))
    radiograph = read(write(dataset, tmp_path / "a.dcm"))
    assert np.allclose(radiograph.pixels[0].numpy(), TWELVE / 4095, atol=1e-6) and radiograph.spacing_mm == (0.2, 0.1)


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((2, 2), np.uint8), np.eye(4))
    header = bytearray(image.to_bytes()[:352])
    header[40:58] = struct.pack("<9h", 3, 32000, 24000, 1, 1, 1, 1, 1, 1)
    header[70:74] = struct.pack("<hh", 64, 64)  # float64
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header))
    refused(tmp_path / "a.nii.gz", "32000")
    with pytest.raises(UserError):
        read_mask(tmp_path / "a.nii.gz")
    blank = imagecodecs.jpegls_encode(np.zeros((4000, 4000), np.uint8))
    refused(write(framed(np.zeros((4000, 4000), np.uint8), blank, 8), tmp_path / "a.dcm", dicom.JPEG_LS), "pixels in")


def test_a_deflate_bomb_is_refused_without_inflating_it(tmp_path):
    path = write(make(TWELVE, stored=12), tmp_path / "a.dcm", dicom.DEFLATED)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    most = 513  # MiB, a little more than the limit; 500 kB on disk
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    padding = struct.pack("<HH2s2xI", 0xFFFC, 0xFFFC, b"OB", most << 20)  # Data Set Trailing Padding
    whole = zlib.decompress(content[start:], -zlib.MAX_WBITS) + padding
    with path.open("wb") as file:
        file.write(content[:start] + deflater.compress(whole))
        for _ in range(most):
            file.write(deflater.compress(bytes(1 << 20)))
        file.write(deflater.flush())
    refused(path, "deflated")


def test_the_content_tells_a_radiograph_where_the_name_does_not(tmp_path):
    whole = write(make(TWELVE, stored=12), tmp_path / "a.dcm").read_bytes()
    bare = whole[144 + int.from_bytes(whole[140:144], "little") :]
    named = ("IM0001", "1.2.840.MR.7", "scan.ima", "scan.img", "scan.dic", "PORTABLE.CHEST", "x.txt")
    for name, content in {**dict.fromkeys(named, whole), "bare": bare, "b.PNG": b"", "a.nii.gz": b""}.items():
        (tmp_path / name).write_bytes(content)
        assert is_radiograph_file(tmp_path / name), name
    for name in ("a.jpe", "picture"):
        Image.fromarray(SMOOTH).save(tmp_path / name, "JPEG")
        assert is_radiograph_file(tmp_path / name), name
    Image.fromarray(SMOOTH).save(tmp_path / "a.bmp")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "absent")
    (tmp_path / "folder.png").mkdir()
    others = {"README": b"text", "._a.png": b"", ".DS_Store": whole, "DICOMDIR": whole, "a.gz": b""}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    for name in (*others, "a.bmp", "dangling.png", "folder.png", "missing.png"):
        assert not is_radiograph_file(tmp_path / name), name


@pytest.mark.shared
def test_shared_faults_have_their_right_values(shared_data):
    right = np.load(shared_data / "faults" / "right.npz")
    for name in right.files:
        found = read(shared_data / "faults" / name)
        assert np.abs(found.pixels[0].numpy() - right[name]).max() < 0.06, name
    mask = np.load(shared_data / "faults" / "12_mask_right.npy")
    assert np.array_equal(read_mask(shared_data / "faults" / "12_mask_float_saved_as_uint8.nii.gz"), mask)


# ---- damaged files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    return load_script("fuzz_reader")


def test_whole_files_are_read(script, tmp_path):
    for whole, reader in ((script.whole_radiographs(48), read_radiograph), (script.whole_masks(48), read_mask)):
        for name, content in whole.items():
            (tmp_path / name).write_bytes(content)
            reader(tmp_path / name)


def test_damaged_files_are_read_or_refused_with_one_error(script):
    script.fuzz(radiographs=400, masks=100, size=48)


def test_another_error_stops_the_run_and_the_file_is_kept(script, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def read(path):
        raise KeyError("missed")

    with pytest.raises(RunError, match="missed"):
        script.fuzz_kind(1, {"a": b"content"}, read, np.random.default_rng(0), tmp_path / "damaged")
    assert list(tmp_path.glob("fuzz_a_0"))
