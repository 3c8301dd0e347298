import csv

import nibabel
import numpy as np
import pytest
from PIL import Image

from common.io import read_radiograph
from common.io.mask_files import read_mask, write_mask_png
from common.io.mask_writer import MaskWriter, area_row, write_area_table
from common.io.segmentation_classes import GROUPED


@pytest.fixture
def mask():
    """Labels 0 to 5 [123, 457]."""
    return np.random.default_rng(0).integers(0, 6, (123, 457))


def grey(size=(123, 457)):
    return np.random.default_rng(1).integers(0, 255, size, np.uint8)


def writer(folder, **options):
    chosen = {"overlay": True, "nifti": False, "dicom_seg": False, **options}
    return MaskWriter(folder, GROUPED, model="test 0", **chosen)


def test_the_png_holds_labels_and_shows_colours(mask, tmp_path):
    path = write_mask_png(mask, tmp_path / "mask.png", GROUPED)
    with Image.open(path) as image:
        assert image.mode == "P" and image.size == (457, 123)
        assert np.array_equal(np.asarray(image), mask)
        colours = np.asarray(image.convert("RGB"))
    assert np.array_equal(colours[mask == 3][0], GROUPED.classes[2].colour)
    assert path.read_bytes()[24:26] == bytes([8, 3])  # 8 bits, palette
    assert np.array_equal(read_mask(path), mask)


def test_labels_without_class_are_not_written(mask, tmp_path):
    with pytest.raises(ValueError, match=r"mask values \[6\]"):
        write_mask_png(mask + 1, tmp_path / "mask.png", GROUPED)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_each_image_gets_its_files_at_its_own_size(mask, tmp_path, suffix):
    Image.fromarray(grey()).save(tmp_path / f"image.{suffix}")
    radiograph = read_radiograph(tmp_path / f"image.{suffix}")
    row = writer(tmp_path / "out", nifti=True, dicom_seg=False).write(radiograph, mask, "case")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"case_mask.png", "case_overlay.png", "case_mask.nii.gz"}
    assert np.array_equal(read_mask(tmp_path / "out" / "case_mask.png"), mask)
    assert np.array_equal(read_mask(tmp_path / "out" / "case_mask.nii.gz"), mask)
    assert (row["rows"], row["columns"], row["decay_mm2"]) == (123, 457, "")


def test_only_what_is_asked_for_is_written(mask, tmp_path):
    Image.fromarray(grey()).save(tmp_path / "image.png")
    writer(tmp_path / "out", overlay=False).write(read_radiograph(tmp_path / "image.png"), mask, "case")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case_mask.png"]


def test_the_nifti_of_a_nifti_lies_where_its_image_lies(mask, tmp_path):
    affine = np.diag([0.1, 0.2, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(grey().T[..., None], affine), tmp_path / "image.nii.gz")
    radiograph = read_radiograph(tmp_path / "image.nii.gz")
    row = writer(tmp_path, nifti=True).write(radiograph, mask, "case")
    stored = nibabel.load(tmp_path / "case_mask.nii.gz")
    np.testing.assert_allclose(stored.affine, affine, atol=1e-7)
    assert np.array_equal(read_mask(tmp_path / "case_mask.nii.gz"), mask)
    assert row["root_mm2"] == pytest.approx((mask == 1).sum() * 0.02, rel=1e-6)


def test_a_mask_of_another_size_is_refused_before_anything_is_written(mask, tmp_path):
    Image.fromarray(grey((457, 123))).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match=r"image\.png: found a mask \(123, 457\); expected \(457, 123\)"):
        writer(tmp_path / "out").write(read_radiograph(tmp_path / "image.png"), mask, "case")
    assert not (tmp_path / "out").exists()


def test_areas_by_hand(tmp_path):
    mask = np.zeros((10, 20), int)
    mask[:2, :3], mask[5, :4] = 1, 5
    row = area_row("a", mask, GROUPED, (0.5, 0.2))
    assert (row["root_px"], row["decay_px"], row["canal_px"]) == (6, 4, 0)
    assert row["root_mm2"] == pytest.approx(0.6) and row["decay_mm2"] == pytest.approx(0.4)
    path = write_area_table([row, area_row("b, c", mask, GROUPED, None)], tmp_path / "areas.csv")
    with path.open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert list(first)[:5] == ["image", "rows", "columns", "row_spacing_mm", "column_spacing_mm"]
    assert (first["root_px"], float(first["row_spacing_mm"])) == ("6", 0.5)
    assert (second["image"], second["root_px"], second["root_mm2"]) == ("b, c", "6", "")
    with pytest.raises(ValueError, match="no rows"):
        write_area_table([], path)
