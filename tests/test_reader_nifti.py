"""NIfTI through the reader: orientation, spacing, range, and what is refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from dicom_files import refused
from PIL import Image

from common.io import read_radiograph

SHOWN = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5  # as displayed: 6 rows, 8 columns
UNIT = SHOWN.astype(np.float32) / np.float32(255)


def save(path, data, affine):
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


def affine_of(i, j):
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = i, j
    affine[:3, 2] = np.cross(i, j) / np.linalg.norm(np.cross(i, j))
    affine[:3, 3] = 5, 6, 7
    return affine


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("slices", [False, True])
def test_what_itk_writes_for_a_png_reads_like_the_png(suffix, slices, tmp_path):
    Image.fromarray(SHOWN).save(tmp_path / "a.png")
    data = SHOWN.T[..., None] if slices else SHOWN.T
    path = save(tmp_path / f"a{suffix}", data, np.diag([-0.2, -0.1, 1, 1]))
    radiograph = read_radiograph(path)
    assert np.array_equal(radiograph.pixels, read_radiograph(tmp_path / "a.png").pixels)
    assert radiograph.spacing_mm == pytest.approx((0.1, 0.2)) and radiograph.modality == ""


@pytest.mark.parametrize(
    ("i", "j", "stored"),
    [
        ((-0.2, 0, 0), (0, -0.1, 0), SHOWN.T),
        ((0.2, 0, 0), (0, 0.1, 0), SHOWN.T[::-1, ::-1]),  # RAS, what canonical NIfTI has
        ((-0.2, 0, 0), (0, 0.1, 0), SHOWN.T[:, ::-1]),  # what dcm2niix writes
        ((-0.2, 0, 0), (0, 0, -0.1), SHOWN.T),  # a coronal plane: a chest radiograph with orientation
        ((0, -0.2, 0), (0, 0, 0.1), SHOWN.T[:, ::-1]),  # a lateral view
        ((0, -0.1, 0), (-0.2, 0, 0), SHOWN),  # rows first
        ((0, 0.1, 0), (-0.2, 0, 0), SHOWN[::-1]),
    ],
)
def test_the_affine_says_how_to_display(i, j, stored, tmp_path):
    radiograph = read_radiograph(save(tmp_path / "a.nii", np.ascontiguousarray(stored), affine_of(i, j)))
    assert np.array_equal(radiograph.pixels[0].numpy(), UNIT)
    assert radiograph.spacing_mm == pytest.approx((0.1, 0.2))


@pytest.mark.parametrize("affine", [None, np.eye(4)])
def test_without_geometry_the_stored_order_is_kept(affine, tmp_path):
    radiograph = read_radiograph(save(tmp_path / "a.nii", SHOWN.T, affine))
    assert np.array_equal(radiograph.pixels[0].numpy(), UNIT) and radiograph.spacing_mm is None


def test_nifti_2_big_endian_and_metres(tmp_path):
    nib.Nifti2Image(SHOWN.T, np.diag([-0.2, -0.1, 1, 1])).to_filename(tmp_path / "a.nii")
    assert np.array_equal(read_radiograph(tmp_path / "a.nii").pixels[0].numpy(), UNIT)
    image = nib.Nifti1Image(SHOWN.T, np.diag([-0.0002, -0.0001, 1, 1]), nib.Nifti1Header(endianness=">"))
    image.set_data_dtype(np.uint8)
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "b.nii")
    radiograph = read_radiograph(tmp_path / "b.nii")
    assert np.array_equal(radiograph.pixels[0].numpy(), UNIT)
    assert radiograph.spacing_mm == pytest.approx((0.1, 0.2))


def test_the_ranges_are_those_of_the_other_formats(tmp_path):
    lps = np.diag([-1.0, -1.0, 1, 1])
    generated = np.linspace(0.1, 0.6, 48, dtype=np.float32).reshape(8, 6)
    assert np.array_equal(read_radiograph(save(tmp_path / "a.nii", generated, lps)).pixels[0].numpy(), generated.T)
    wide = np.linspace(-1000, 3000, 2400).astype(np.int16).reshape(60, 40)
    low, high = np.percentile(wide, (0.5, 99.5))
    pixels = read_radiograph(save(tmp_path / "b.nii", wide, lps)).pixels[0].numpy()
    assert np.allclose(pixels, np.clip((wide.T - low) / (high - low), 0, 1), atol=1e-6)


def test_volumes_colour_and_damage_are_refused(tmp_path):
    lps = np.diag([-1.0, -1.0, 1, 1])
    noise = np.random.default_rng(0).integers(0, 255, (30, 20), dtype=np.uint8)
    refused(save(tmp_path / "volume.nii", np.stack([noise] * 4, -1), lps), "shape")
    refused(save(tmp_path / "line.nii", noise[:, :1], lps), "shape")
    refused(save(tmp_path / "complex.nii", noise.astype(np.complex64), lps), "type complex64")
    refused(save(tmp_path / "blank.nii", noise * 0, lps), "all the same")
    refused(save(tmp_path / "nan.nii", np.full((4, 4), np.nan, np.float32), lps), "NaN")
    rgb = np.zeros((6, 5, 1), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    refused(save(tmp_path / "rgb.nii", rgb, lps), "type RGB")
    whole = save(tmp_path / "whole.nii.gz", noise, lps).read_bytes()
    for name, content in {
        "cut.nii.gz": whole[:-200],
        "header.nii.gz": whole[:20],
        "changed.nii.gz": whole[:100] + bytes(200) + whole[300:],
        "cut.nii": gzip.decompress(whole)[:-100],
        "text.nii.gz": gzip.compress(b"no image at all" * 50),
        "plain.nii": b"no image at all" * 50,
    }.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)
    pair = nib.Nifti1Pair(noise, lps)
    pair.to_filename(tmp_path / "pair.hdr")
    refused(tmp_path / "pair.hdr", "without its data")
