"""Means with error bars over a doubling axis, such as accuracy over the number of labels; drawn by Pillow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..files import atomic_path

Point = tuple[float, float, float | None]
Corner = tuple[float, float]

# Okabe & Ito 2008, whose colours stay apart in colour-blind vision; grey for their yellow, too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#808080")
# Shapes differ, too, for print in grey.
MARKERS = ("circle", "square", "triangle", "diamond", "turned", "circle", "square", "triangle")

SCALE = 3  # drawn this much larger and reduced, as Pillow does not smooth edges
LEFT, RIGHT, TOP, BOTTOM = 110, 40, 30, 90  # px around the axes, without title and legend
FONT, SMALL_FONT, LINE_HEIGHT = 24, 20, 36  # px
DODGE, CAP, MARKER = 9.0, 6.0, 7.0  # px: between series, half a bar's cap, a marker's radius
SAMPLE, GAP = 44, 36  # px: a line in the legend, the space between its entries
TICKS = 7  # aimed at on the y axis


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten that cover [low, high], about `count` of them."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"ticks: found {low} to {high}; expected two finite numbers in order.")
    rough = (high - low or abs(low) or 1.0) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class ErrorBarPlot:
    """What is drawn; `image` draws it.

    Attributes:
        series: by name, points (x, mean, sd), any number for each; sd None or 0 draws no bar. At most eight series.
        x_title: of the axis, with its unit.
        y_title: likewise.
        title: above all; none if empty.
        x_labels: texts of ticks that are not their number, such as {325: "all"}.
        size: px, (width, height).

    Raises:
        ValueError: no points, more than eight series, an x that is not positive or appears twice in a series, a number
            that is not finite, or a negative sd.
    """

    series: Mapping[str, Sequence[Point]]
    x_title: str
    y_title: str
    title: str = ""
    x_labels: Mapping[float, str] | None = None
    size: tuple[int, int] = (1200, 800)

    def __post_init__(self) -> None:
        points = [point for found in self.series.values() for point in found]
        if not points or len(self.series) > len(COLOURS):
            raise ValueError(
                f"plot: found {len(points)} points in {len(self.series)} series; expected 1 to {len(COLOURS)} series."
            )
        for x, mean, sd in points:
            if not (0 < x < math.inf and math.isfinite(mean) and 0 <= (sd or 0.0) < math.inf):
                raise ValueError(f"plot: found point ({x}, {mean}, {sd}); expected x > 0, a finite mean and sd >= 0.")
        for name, found in self.series.items():
            if len({x for x, _, _ in found}) < len(found):
                raise ValueError(f"plot: found an x twice in series {name!r}; expected one mean for each.")

    def image(self) -> Image.Image:
        """The picture, RGB, of `size`."""
        return _Canvas(self).draw()


def write_error_bar_plot(
    series: Mapping[str, Sequence[Point]],
    path: str | Path,
    x_title: str,
    y_title: str,
    title: str = "",
    x_labels: Mapping[float, str] | None = None,
    size: tuple[int, int] = (1200, 800),
) -> Path:
    """Write the picture as PNG, atomically; the arguments are `ErrorBarPlot`'s. Returns the path.

    Raises:
        ValueError: as ErrorBarPlot.
    """
    plot = ErrorBarPlot(series, x_title, y_title, title, x_labels, size)
    with atomic_path(path) as temporary:
        plot.image().save(temporary, format="PNG", optimize=True)
    return Path(path)


class _Canvas:
    """One drawing: positions are in px of the final picture, the ink SCALE times larger."""

    def __init__(self, plot: ErrorBarPlot) -> None:
        self.plot = plot
        self.width, self.height = plot.size
        self.picture = Image.new("RGB", (self.width * SCALE, self.height * SCALE), "white")
        self.pen = ImageDraw.Draw(self.picture)
        self.font, self.small = (ImageFont.load_default(size * SCALE) for size in (FONT, SMALL_FONT))
        points = [point for found in plot.series.values() for point in found]
        self.xs = sorted({x for x, _, _ in points})
        self.ticks = nice_ticks(
            min(mean - (sd or 0.0) for _, mean, sd in points), max(mean + (sd or 0.0) for _, mean, sd in points)
        )
        self.legend = self._legend_rows()
        title_height = LINE_HEIGHT + 8 if plot.title else 0
        self.left, self.right = LEFT, self.width - RIGHT
        self.top = TOP + title_height + LINE_HEIGHT * len(self.legend)
        self.bottom = self.height - BOTTOM

    def draw(self) -> Image.Image:
        if self.plot.title:
            self.text((self.width / 2, TOP), self.plot.title, "mm", self.font)
        self._draw_axes()
        self._draw_legend()
        for number, name in enumerate(self.plot.series):
            self._draw_series(number, name)
        return self.picture.resize(self.plot.size, Image.Resampling.LANCZOS)

    # ---- positions ---------------------------------------------------------------------------------------------------

    def x_of(self, x: float) -> float:
        """Half a doubling of room at both ends, so that the outer bars keep off the frame."""
        low, high = math.log2(self.xs[0]) - 0.5, math.log2(self.xs[-1]) + 0.5
        return self.left + (math.log2(x) - low) / (high - low) * (self.right - self.left)

    def y_of(self, y: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.bottom - (y - low) / (high - low) * (self.bottom - self.top)

    def dodge(self, number: int) -> float:
        """Px by which a series is moved, so that its bars stay beside the others' and nearer to their x than to any."""
        places = [self.x_of(x) for x in self.xs]
        nearest = min((b - a for a, b in itertools.pairwise(places)), default=math.inf)
        step = min(DODGE, 0.6 * nearest / len(self.plot.series))
        return (number - (len(self.plot.series) - 1) / 2) * step

    # ---- ink ---------------------------------------------------------------------------------------------------------

    def line(self, corners: Iterable[Corner], colour: str, width: float) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in corners]
        self.pen.line(scaled, fill=colour, width=round(width * SCALE), joint="curve")

    def text(self, place: Corner, text: str, anchor: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
        self.pen.text((place[0] * SCALE, place[1] * SCALE), text, fill="black", anchor=anchor, font=font)

    def marker(self, number: int, x: float, y: float) -> None:
        """White round the edge keeps it apart from lines of other series."""
        for colour, radius in (("white", MARKER + 1.5), (COLOURS[number], MARKER)):
            if MARKERS[number] == "circle":
                box = [(end * SCALE) for end in (x - radius, y - radius, x + radius, y + radius)]
                self.pen.ellipse(box, fill=colour)
            else:
                corners = [(x + dx * radius, y + dy * radius) for dx, dy in _SHAPES[MARKERS[number]]]
                self.pen.polygon([(a * SCALE, b * SCALE) for a, b in corners], fill=colour)

    def _draw_axes(self) -> None:
        step = self.ticks[1] - self.ticks[0]
        decimals = next(digits for digits in range(13) if math.isclose(round(step, digits), step, rel_tol=1e-6))
        for tick in self.ticks:
            y = self.y_of(tick)
            self.line([(self.left, y), (self.right, y)], "#dddddd", 1)
            self.text((self.left - 12, y), f"{tick + 0.0:.{decimals}f}", "rm", self.small)
        for x in self.xs:
            place = self.x_of(x)
            self.line([(place, self.bottom), (place, self.bottom + 7)], "black", 1.5)
            label = (self.plot.x_labels or {}).get(x, f"{x:g}")
            self.text((place, self.bottom + 24), label, "mm", self.small)
        self.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], "black", 1.5)
        self.text(((self.left + self.right) / 2, self.height - 26), self.plot.x_title, "mm", self.font)
        self._draw_y_title()

    def _draw_y_title(self) -> None:
        box = self.font.getbbox(self.plot.y_title, anchor="lt")
        label = Image.new("RGB", (math.ceil(box[2]) + 2, math.ceil(box[3]) + 2), "white")
        ImageDraw.Draw(label).text((0, 0), self.plot.y_title, fill="black", anchor="lt", font=self.font)
        turned = label.rotate(90, expand=True)
        middle = (self.top + self.bottom) / 2 * SCALE
        self.picture.paste(turned, (round(28 * SCALE - turned.width / 2), round(middle - turned.height / 2)))

    def _draw_series(self, number: int, name: str) -> None:
        colour, moved = COLOURS[number], self.dodge(number)
        points = sorted(self.plot.series[name])
        places = [(self.x_of(x) + moved, self.y_of(mean)) for x, mean, _ in points]
        if len(places) > 1:
            self.line(places, colour, 2.5)
        for (x, _), (_, mean, sd) in zip(places, points, strict=True):
            if sd:
                ends = self.y_of(mean - sd), self.y_of(mean + sd)
                self.line([(x, ends[0]), (x, ends[1])], colour, 2)
                for end in ends:
                    self.line([(x - CAP, end), (x + CAP, end)], colour, 2)
        for x, y in places:
            self.marker(number, x, y)

    # ---- legend ------------------------------------------------------------------------------------------------------

    def _entry_width(self, name: str) -> float:
        return SAMPLE + 10 + self.small.getlength(name) / SCALE + GAP

    def _legend_rows(self) -> list[list[int]]:
        """Numbers of the series, in as many rows as their names need."""
        rows: list[list[int]] = [[]]
        used = 0.0
        for number, name in enumerate(self.plot.series):
            width = self._entry_width(name)
            if rows[-1] and used + width > self.width - LEFT - RIGHT + GAP:
                rows.append([])
                used = 0.0
            rows[-1].append(number)
            used += width
        return rows

    def _draw_legend(self) -> None:
        names = list(self.plot.series)
        for row, numbers in enumerate(self.legend):
            x = float(self.left)
            y = self.top - LINE_HEIGHT * (len(self.legend) - row) + LINE_HEIGHT / 2 - 12
            for number in numbers:
                self.line([(x, y), (x + SAMPLE, y)], COLOURS[number], 2.5)
                self.marker(number, x + SAMPLE / 2, y)
                self.text((x + SAMPLE + 10, y), names[number], "lm", self.small)
                x += self._entry_width(names[number])


_SHAPES: dict[str, tuple[Corner, ...]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0.0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
    "diamond": ((0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)),
    "turned": ((0.0, 1.15), (1.1, -0.85), (-1.1, -0.85)),
}
