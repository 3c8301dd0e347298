"""What was measured, told in one way: rows of plain values, mean ± sd, Markdown tables, JSON, CSV and plots."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]  # by column: what is known of an image or a trial, and what was measured of it
Point = tuple[float, float, float | None]  # x, mean, sd

# Okabe & Ito 2008, whose colours stay apart in colour-blind vision; grey for their yellow, too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#808080")
GROUPS = ("source", "set", "kind", "age_group", "view", "quality")  # columns of a manifest that tables are divided by
LEAST_IN_GROUP = 5  # images of a group that is called the worst
MARKERS = "os^Dvos^"  # shapes differ, too, for print in grey
DODGE = 0.05  # of the distance between ticks, by which series stand apart


def mean_sd(values: Iterable[float | None]) -> Row:
    """Mean, the sample's standard deviation (None for fewer than two) and n of what is finite; mean None for none."""
    counted = [float(value) for value in values if value is not None and math.isfinite(value)]
    return {
        "mean": statistics.fmean(counted) if counted else None,
        "sd": statistics.stdev(counted) if len(counted) > 1 else None,
        "n": len(counted),
    }


def cell(
    value: float | Mapping[str, Any] | None, decimals: int, sign: str = "", missing: str = "", factor: float = 1
) -> str:
    """A table's cell of a number or of `mean_sd`; sign "+" writes that of positive ones, factor 100 makes percent."""
    found = value if isinstance(value, Mapping) else {"mean": value, "sd": None}
    if found["mean"] is None:
        return missing
    mean = f"{factor * found['mean']:{sign}.{decimals}f}"
    return mean if found["sd"] is None else f"{mean} ± {factor * found['sd']:.{decimals}f}"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr") -> str:
    """A table with a line break at its end; align has l or r for each column, the last holds for all further ones."""
    letters = align.ljust(len(headings), align[-1])
    rule = "".join("---|" if letter == "l" else "---:|" for letter in letters[: len(headings)])
    lines = [f"| {' | '.join(headings)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def by_group(rows: Iterable[Mapping[str, Any]], figure: str) -> dict[str, Row]:
    """`mean_sd` of a figure of each image by "column value", for those of `GROUPS` that have several values."""
    values: dict[str, dict[str, list[float | None]]] = {column: {} for column in GROUPS}
    for row in rows:
        for column in (column for column in GROUPS if column in row):
            values[column].setdefault(str(row[column]) or "unknown", []).append(row[figure])
    several = {column: found for column, found in values.items() if len(found) > 1}
    return {f"{column} {value}": mean_sd(found[value]) for column, found in several.items() for value in sorted(found)}


def group_table(groups: Mapping[str, Row] | None, heading: str, decimals: int) -> str:
    """What `by_group` gives as a table and the group with the lowest mean; empty where there are no groups."""
    if not groups:
        return ""
    lines = [[name, str(found["n"]), cell(found, decimals, missing="–")] for name, found in groups.items()]
    large = {name: found["mean"] for name, found in groups.items() if found["n"] >= LEAST_IN_GROUP}
    worst = f"\nLowest: {min(large, key=large.__getitem__)}.\n" if large else ""
    return "\n" + markdown_table(["images", "n", heading], lines) + worst


def best_median_worst(scores: Sequence[float], count: int) -> list[tuple[str, int]]:
    """(Label, index) of the `count` best, median and worst finite scores (higher is better), best first, none twice."""
    order = sorted((i for i, score in enumerate(scores) if math.isfinite(score)), key=lambda i: -scores[i])
    middle = max(0, (len(order) - count + 1) // 2)
    parts = {"worst": order[max(0, len(order) - count) :], "best": order[:count]}
    parts["median"] = order[middle : middle + count]
    label_of: dict[int, str] = {}
    for label, indices in parts.items():
        for i in indices:
            label_of.setdefault(i, label)
    return [(label_of[i], i) for i in order if i in label_of]


# ---- files -----------------------------------------------------------------------------------------------------------


def write_report(folder: str | Path, report: Mapping[str, Any], table: str, names: tuple[str, str]) -> None:
    """Write the report as JSON and its tables as Markdown, each whole or not at all, by the names of the two files."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    for name, content in zip(names, (text, table), strict=True):
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows as CSV, whole or not at all; None is empty. The columns given come first, then what else rows have."""
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a CSV, without what is empty; a number that `write_rows` wrote is one again."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return [{name: _value(text) for name, text in row.items() if text} for row in csv.DictReader(file)]


def _value(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            if repr(kind(text)) == text:
                return kind(text)
        except ValueError:
            continue
    return text


# ---- plots -----------------------------------------------------------------------------------------------------------


@contextmanager
def plot_file(path: str | Path, panels: int = 1, columns: int = 1) -> Iterator[list[Axes]]:
    """Give the axes of so many panels to draw in, then write the PNG, whole or not at all; always the same bytes."""
    from matplotlib.figure import Figure  # half a second that other commands do not pay

    rows = -(-panels // columns)
    figure = Figure((8 * columns**0.5, 5.3 * rows / columns**0.5), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[panels:]:
        unused.remove()
    yield axes[:panels]
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def draw_shares(axes: Axes, series: Mapping[str, NDArray[Any]], title: str, is_first_grey: bool = False) -> None:
    """Histograms of several sets of values over the same 40 bins, as shares of each set, whose size is told.

    The first may be a grey area, which the others are held against.
    """
    edges = np.histogram_bin_edges(np.concatenate(list(series.values())), 40).tolist()
    styles: list[Row] = [{"color": colour, "histtype": "step"} for colour in COLOURS]
    if is_first_grey:
        styles.insert(0, {"color": "#bbbbbb"})
    for style, (name, values) in zip(styles[: len(series)], series.items(), strict=True):
        axes.hist(values, edges, weights=np.full(len(values), 1 / len(values)), label=f"{len(values)} {name}", **style)
    axes.set_title(title)


def write_error_bar_plot(
    path: str | Path, series: Mapping[str, Sequence[Point]], titles: tuple[str, str], ticks: Sequence[str] | None = None
) -> None:
    """Draw means with error bars, a line for each of at most eight series; sd None or 0 draws no bar.

    Titles are of the x and the y axis, with their units; ticks are names of the places 0, 1, 2, ... that x counts, None
    for an axis of positive numbers that doubles. No points or too many series are a ValueError.
    """
    xs = sorted({x for points in series.values() for x, _, _ in points})
    if not xs or len(series) > len(COLOURS):
        raise ValueError(f"plot: found {len(xs)} places, {len(series)} series; expected some, at most {len(COLOURS)}.")
    place = {x: x if ticks else math.log2(x) for x in xs}
    with plot_file(path) as (axes,):
        for number, (name, points) in enumerate(series.items()):
            moved = (number - (len(series) - 1) / 2) * DODGE
            across = [place[x] + moved for x, _, _ in points]
            bars = [sd or math.nan for _, _, sd in points]
            style: Row = {"color": COLOURS[number], "marker": MARKERS[number], "capsize": 3}
            axes.errorbar(across, [mean for _, mean, _ in points], bars, label=name, **style)
        axes.set_xticks([place[x] for x in xs], ticks or [f"{x:g}" for x in xs])
        axes.set_xlabel(titles[0])
        axes.set_ylabel(titles[1])
        axes.grid(axis="y", alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.figure.legend(loc="outside upper center", ncols=2, frameon=False)
