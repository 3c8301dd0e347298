import math

import numpy as np
import pytest
from PIL import Image, ImageColor

from common.experiments.error_bar_plot import COLOURS, ErrorBarPlot, nice_ticks, write_error_bar_plot

SERIES = {
    "none": [(1, 0.1, 0.05), (2, 0.3, 0.02), (8, 0.5, 0.01)],
    "ddpm": [(8, 0.7, None), (1, 0.2, 0.05), (2, 0.45, 0.0)],
}


def draw(series=SERIES, **changes):
    knobs = {"x_title": "labels", "y_title": "mIoU", "size": (600, 400), **changes}
    return np.asarray(ErrorBarPlot(series, **knobs).image()).astype(int)


def coloured(picture, number):
    """Rows and columns of the pixels that have a series' colour, below the legend."""
    colour = np.array(ImageColor.getrgb(COLOURS[number]))
    rows, columns = np.nonzero((abs(picture - colour) < 12).all(axis=2))
    return rows, columns


# ---- ticks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 0.6, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        (11.0, 68.0, [10, 20, 30, 40, 50, 60, 70]),
        (-0.02, 0.03, [-0.02, -0.01, 0.0, 0.01, 0.02, 0.03]),
        (5.0, 5.0, [5.0, 6.0]),
        (0.0, 0.0, [0.0, 0.2]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-6, 0.37, 1.0, 912.0, 1e7])
def test_there_are_a_handful_of_ticks_at_any_scale(scale):
    ticks = nice_ticks(0.13 * scale, 0.87 * scale)
    assert 4 <= len(ticks) <= 9 and ticks[0] <= 0.13 * scale and ticks[-1] >= 0.87 * scale


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.0, math.nan), (-math.inf, 0.0)])
def test_no_range_has_no_ticks(low, high):
    with pytest.raises(ValueError, match="expected two finite numbers in order"):
        nice_ticks(low, high)


# ---- the picture ---------------------------------------------------------------------------------------------------


def test_it_has_the_size_and_each_series_its_colour():
    picture = draw()
    assert picture.shape == (400, 600, 3)
    assert all(len(coloured(picture, number)[0]) > 100 for number in (0, 1))
    assert len(coloured(picture, 2)[0]) == 0


def test_doublings_are_equally_wide_and_higher_means_stand_higher():
    far = {"far": [(1, 0.0, None), (4, 1.0, None), (16, 0.0, None)]}
    rows, columns = coloured(draw(far), 0)
    top = rows[rows > 90].min()
    peak = columns[(rows >= top) & (rows < top + 4) & (rows > 90)]
    line = columns[rows > 90]
    assert np.median(peak) == pytest.approx((line.min() + line.max()) / 2, abs=2)
    assert rows.max() - top > 150


def heights(sd):
    rows, _ = coloured(draw({"one": [(1, 0.0, sd), (2, 0.0, sd)], "range": [(4, -1.0, None), (8, 1.0, None)]}), 0)
    below_legend = rows[rows > 90]
    return below_legend.max() - below_legend.min()


def test_bars_are_as_long_as_the_deviation_says():
    none, half, whole = heights(None), heights(0.3), heights(0.6)
    assert none < 20 and heights(0.0) == none
    assert whole == pytest.approx(2 * half, abs=4) and half > 60


def test_bars_of_series_with_the_same_values_stand_side_by_side():
    same = {name: [(1, 0.5, 0.2), (4, 0.5, 0.2)] for name in ("first", "second", "third")}
    picture = draw(same)
    ends = []
    for number in range(3):
        rows, columns = coloured(picture, number)
        bar = columns[(rows > 90) & (columns < 300)]
        counts = np.bincount(bar)
        ends.append(int(counts.argmax()))
    assert ends[1] - ends[0] == pytest.approx(ends[2] - ends[1], abs=1) and ends[1] - ends[0] >= 7


def test_crowded_ticks_keep_the_series_of_one_x_apart_from_those_of_the_next():
    crowded = {str(number): [(x, number, 0.1) for x in range(20, 40)] for number in range(5)}
    picture = draw(crowded)
    starts = []
    for number in range(5):
        rows, columns = coloured(picture, number)
        starts.append(columns[rows > 80].min())
    narrowest = (600 - 150) * math.log2(39 / 38) / (1 + math.log2(39 / 20))
    assert 0 < starts[-1] - starts[0] < narrowest


def test_titles_labels_and_legend_are_drawn():
    plain = draw()
    for change in ({"title": "Efficiency"}, {"x_title": "images"}, {"y_title": "Dice"}, {"x_labels": {8: "all"}}):
        assert (draw(**change) != plain).any()
    renamed = draw(dict(zip(("zero", "one"), SERIES.values(), strict=True)))
    changed = np.nonzero((renamed != plain).any(axis=2))[0]
    assert changed.min() > 20 and changed.max() < 75


def test_a_long_legend_takes_more_rows_and_leaves_no_entry_out():
    names = ["a name that is rather long", "another one of the kind", "and a third, also long"]
    picture = draw(dict.fromkeys(names, SERIES["none"]))
    starts = [tuple(int(axis[0]) for axis in coloured(picture, number)) for number in range(3)]
    assert starts[0][0] < starts[2][0] < 150  # topmost pixels: the marker in the legend


def test_the_same_plot_gives_the_same_bytes_and_no_partial_file_stays(tmp_path):
    contents = []
    for name in ("one.png", "two.png"):
        path = write_error_bar_plot(SERIES, tmp_path / "new" / name, x_title="labels", y_title="mIoU")
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.png", "two.png"]
    with Image.open(path) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (1200, 800))


@pytest.mark.parametrize("series", [{"one": [(4, 0.5, None)]}, {"none": [], "one": [(1, -3.0, 1.0)]}])
def test_a_single_point_is_enough(series):
    assert (draw(series) < 255).any()


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "0 points in 0 series"),
        ({"one": []}, "0 points in 1 series"),
        ({str(n): [(1, 0.0, None)] for n in range(9)}, "expected 1 to 8 series"),
        ({"one": [(0, 0.0, None)]}, "expected x > 0"),
        ({"one": [(1, math.nan, None)]}, "a finite mean"),
        ({"one": [(1, 0.0, math.nan)]}, "sd >= 0"),
        ({"one": [(1, 0.0, -0.1)]}, "sd >= 0"),
        ({"one": [(1, 0.0, 0.1), (1, 0.2, 0.1)]}, "an x twice in series 'one'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(series, message):
    with pytest.raises(ValueError, match=message):
        ErrorBarPlot(series, "labels", "mIoU")
