"""One mean ± sd, one table, one CSV, one plot."""

import math

import pytest
from PIL import Image

from common.evaluation.report import (
    best_median_worst,
    by_group,
    cell,
    group_table,
    markdown_table,
    mean_sd,
    plot_file,
    read_rows,
    write_error_bar_plot,
    write_report,
    write_rows,
)


def test_mean_and_spread_of_none_one_and_several():
    assert mean_sd([]) == mean_sd([math.nan, None]) == {"mean": None, "sd": None, "n": 0}
    assert mean_sd([0.5, math.inf]) == {"mean": 0.5, "sd": None, "n": 1}
    assert mean_sd([1.0, 3.0, None]) == {"mean": 2.0, "sd": pytest.approx(2**0.5), "n": 2}


@pytest.mark.parametrize(
    ("found", "options", "text"),
    [
        (mean_sd([0.5]), {"decimals": 3}, "0.500"),
        (mean_sd([1.0, 3.0]), {"decimals": 2, "sign": "+"}, "+2.00 ± 1.41"),
        (mean_sd([0.1, 0.2]), {"decimals": 1, "factor": 100}, "15.0 ± 7.1"),
        (-0.25, {"decimals": 1, "sign": "+"}, "-0.2"),
        (None, {"decimals": 1}, ""),
        (mean_sd([]), {"decimals": 1, "missing": "–"}, "–"),
    ],
)
def test_a_cell_of_a_table(found, options, text):
    assert cell(found, **options) == text


def test_a_table_has_a_rule_of_its_alignment():
    text = markdown_table(["a", "b", "c"], [["x", "1", "2"], ["y", "3", "4"]], "lr")
    assert text == "| a | b | c |\n|---|---:|---:|\n| x | 1 | 2 |\n| y | 3 | 4 |\n"
    assert markdown_table(["a", "b", "c"], [], "rlr").splitlines()[1] == "|---:|---|---:|"


def test_groups_are_those_of_columns_with_several_values_and_the_lowest_is_named():
    rows = [{"source": "a", "view": "AP" if i % 2 else "", "set": "one", "score": i} for i in range(10)]
    rows += [{"source": "b", "view": "AP", "set": "one", "score": score} for score in (-5.0, None)]
    groups = by_group(rows, "score")
    assert {name: (found["mean"], found["n"]) for name, found in groups.items()} == {
        "source a": (4.5, 10),
        "source b": (-5.0, 1),
        "view AP": (pytest.approx(20 / 6), 6),
        "view unknown": (4.0, 5),
    }
    text = group_table(groups, "score", 1)
    assert "| source b | 1 | -5.0 |" in text and text.endswith("Lowest: view AP.\n")  # one image is no group
    assert group_table({}, "score", 1) == group_table(None, "score", 1) == ""


def test_examples_are_best_median_and_worst_and_none_twice():
    scores = [value / 10 for value in range(9)]
    assert best_median_worst([math.nan, *scores], 1) == [("best", 9), ("median", 5), ("worst", 1)]
    assert sorted(index for _, index in best_median_worst(scores[:2], 3)) == [0, 1]
    assert best_median_worst(scores, 0) == []


def test_rows_come_back_with_their_numbers_and_without_what_is_empty(tmp_path):
    rows = [{"name": "a, b", "seed": 0, "auc": 0.1 + 0.2}, {"name": "007", "commit": "1e5", "loss": None, "auc": -1e-7}]
    write_rows(tmp_path / "rows.csv", rows, ["seed"])
    assert (tmp_path / "rows.csv").read_text().splitlines()[0] == "seed,name,auc,commit,loss"
    assert read_rows(tmp_path / "rows.csv") == [rows[0], {"name": "007", "commit": "1e5", "auc": -1e-7}]


def test_a_report_is_two_files_and_refuses_what_json_cannot_hold(tmp_path):
    write_report(tmp_path, {"n": 1, "é": None}, "| n |\n", ("a.json", "a.md"))
    assert (tmp_path / "a.json").read_text() == '{\n "n": 1,\n "é": null\n}\n'
    assert (tmp_path / "a.md").read_text() == "| n |\n"
    with pytest.raises(ValueError):
        write_report(tmp_path, {"n": math.nan}, "new", ("a.json", "a.md"))
    assert (tmp_path / "a.md").read_text() == "| n |\n"


SERIES = {"a": [(1, 0.5, 0.1), (8, 0.7, None)], "b": [(2, 0.6, 0.0)]}


def test_a_plot_is_the_same_bytes_each_time_and_shows_what_changed(tmp_path):
    drawn = []
    for number, series in enumerate((SERIES, SERIES, {**SERIES, "b": [(2, 0.9, 0.0)]})):
        write_error_bar_plot(tmp_path / f"{number}.png", series, ("labels", "mIoU, %"))
        drawn.append((tmp_path / f"{number}.png").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
    assert Image.open(tmp_path / "0.png").size == (1200, 795)


def test_places_of_a_plot_have_names_and_too_many_series_are_refused(tmp_path):
    write_error_bar_plot(tmp_path / "a.png", {"a": [(0, 0.5, 0.1), (1, 0.7, None)]}, ("kind", "AUC"), ["one", "two"])
    assert Image.open(tmp_path / "a.png").format == "PNG"
    for series in ({}, {str(number): [(1, 0, None)] for number in range(9)}):
        with pytest.raises(ValueError):
            write_error_bar_plot(tmp_path / "b.png", series, ("x", "y"))
    assert not (tmp_path / "b.png").exists()


def test_panels_are_drawn_and_a_failed_plot_leaves_nothing(tmp_path):
    with plot_file(tmp_path / "a.png", panels=3, columns=2) as axes:
        assert len(axes) == 3
        axes[2].plot([0, 1])
    assert Image.open(tmp_path / "a.png").size[0] > 1200
    with pytest.raises(KeyError), plot_file(tmp_path / "b.png"):
        raise KeyError
    assert not (tmp_path / "b.png").exists()
