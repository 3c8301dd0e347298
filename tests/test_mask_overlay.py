import numpy as np
import pytest
import torch
from PIL import Image

from common.io.mask_overlay import class_layers, overlay_image, write_overlay_png
from common.io.segmentation_classes import ELEVEN, GROUPED


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


def test_areas_that_touch_the_border_have_no_outline_there():
    mask = np.zeros((30, 200), int)
    mask[:10] = 1
    picture = np.asarray(overlay_image(torch.zeros(1, 30, 200), mask, GROUPED))
    root = np.array(GROUPED.classes[0].colour)
    assert np.array_equal(picture[9, 100], root) and not np.array_equal(picture[0, 100], root)


def test_neighbouring_classes_are_outlined_against_each_other():
    mask = np.zeros((30, 200), int)
    mask[10:20, 50:100], mask[10:20, 100:150] = 1, 2
    picture = np.asarray(overlay_image(torch.zeros(1, 30, 200), mask, GROUPED))
    assert np.array_equal(picture[15, 99], GROUPED.classes[0].colour)
    assert np.array_equal(picture[15, 100], GROUPED.classes[1].colour)


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    pixels, mask = drawn()
    with pytest.raises(ValueError):
        write_overlay_png(pixels, mask[1:], tmp_path / "a.png", GROUPED)
    with pytest.raises(ValueError, match=r"mask values \[7\]"):
        write_overlay_png(*drawn(7), tmp_path / "a.png", GROUPED)
    assert not list(tmp_path.iterdir())
    assert write_overlay_png(pixels, mask, tmp_path / "folder" / "a.png", GROUPED).is_file()
