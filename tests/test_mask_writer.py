import csv

import numpy as np
import pytest
import torch
from PIL import Image

from common.io import read_radiograph
from common.io.mask_files import read_mask, write_mask_png
from common.io.mask_writer import area_row, class_layers, overlay_image, write_area_table, write_segmentation
from common.io.segmentation_classes import ELEVEN, GROUPED


@pytest.fixture
def mask():
    """Labels 0 to 5 [123, 457]."""
    return np.random.default_rng(0).integers(0, 6, (123, 457))


def write(path, mask, folder):
    formats = {"overlay": True, "nifti": True, "dicom_seg": False}
    return write_segmentation(read_radiograph(path), mask, folder / "case", GROUPED, "test 0", **formats)


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
def test_each_image_gets_its_files_at_its_own_size_or_none(mask, tmp_path, suffix):
    grey = np.random.default_rng(1).integers(0, 255, mask.shape, np.uint8)
    Image.fromarray(grey.T).save(tmp_path / f"turned.{suffix}")
    with pytest.raises(ValueError, match=r"turned\.\w+: found a mask \(123, 457\); expected \(457, 123\)"):
        write(tmp_path / f"turned.{suffix}", mask, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    Image.fromarray(grey).save(tmp_path / f"image.{suffix}")
    row = write(tmp_path / f"image.{suffix}", mask, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"case_mask.png", "case_overlay.png", "case_mask.nii.gz"}
    assert np.array_equal(read_mask(tmp_path / "out" / "case_mask.png"), mask)
    assert np.array_equal(read_mask(tmp_path / "out" / "case_mask.nii.gz"), mask)
    assert (row["rows"], row["columns"], row["decay_mm2"]) == (123, 457, "")


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


def drawn(label=4, size=(90, 400)):
    mask = np.zeros(size, np.uint8)
    mask[20:40, 100:130] = label
    return torch.full((1, *size), 0.5), mask


def test_the_picture_lies_pixel_on_pixel_and_only_the_area_is_coloured():
    pixels, mask = drawn()
    picture = np.asarray(overlay_image(pixels, mask, GROUPED))[:90, :400]
    is_grey = (picture == 128).all(-1)
    assert np.array_equal(is_grey, mask == 0)
    lesion = np.array(GROUPED.classes[3].colour)
    assert np.array_equal(picture[20, 100], lesion)  # the outline is opaque
    np.testing.assert_allclose(picture[30, 115], 0.65 * 127.5 + 0.35 * lesion, atol=1)


def test_layers_of_the_classes_one_over_the_other_are_the_overlay():
    pixels, mask = drawn()
    mask[30:60, 120:200] = 1
    sheet = Image.new("RGBA", (400, 90), (128, 128, 128, 255))
    layers = class_layers(mask, GROUPED)
    assert [np.asarray(layer)[..., 3].any() for layer in layers] == [True, False, False, True, False]
    for layer in layers:
        sheet.alpha_composite(layer)
    expected = np.asarray(overlay_image(pixels, mask, GROUPED))[:90, :400]
    np.testing.assert_allclose(np.asarray(sheet)[..., :3].astype(int), expected, atol=2)


@pytest.mark.parametrize(("table", "width"), [(GROUPED, 400), (GROUPED, 30), (ELEVEN, 400), (ELEVEN, 2400)])
def test_the_legend_shows_every_class_below_the_image(table, width):
    sheet = np.asarray(overlay_image(torch.full((1, 50, width), 0.2), np.zeros((50, width), int), table))
    legend = sheet[50:]
    assert sheet.shape[1] >= width
    for entry in table.classes:
        swatch = (legend == entry.colour).all(-1)
        rows, columns = np.nonzero(swatch)
        side = np.ptp(rows) + 1
        assert side >= 12 and swatch.sum() == side**2  # whole, not cut off, not overdrawn
        beside = legend[rows.min() : rows.max() + 1, columns.max() + 2 : columns.max() + 2 + 2 * side]
        assert (beside < 128).all(-1).any(), f"no name beside {entry.name}"
    assert (sheet[:50, width:] == 255).all()


def test_areas_are_outlined_against_each_other_but_not_at_the_border():
    mask = np.zeros((30, 200), int)
    mask[:10], mask[15:20, 50:100], mask[15:20, 100:150] = 1, 1, 2
    picture = np.asarray(overlay_image(torch.zeros(1, 30, 200), mask, GROUPED))
    root, canal = (np.array(entry.colour) for entry in GROUPED.classes[:2])
    assert np.array_equal(picture[9, 100], root) and not np.array_equal(picture[0, 100], root)
    assert np.array_equal(picture[17, 99], root) and np.array_equal(picture[17, 100], canal)


def test_what_does_not_fit_is_refused():
    pixels, mask = drawn()
    for given in ((pixels, mask[1:]), drawn(7)):
        with pytest.raises(ValueError):
            overlay_image(*given, GROUPED)
