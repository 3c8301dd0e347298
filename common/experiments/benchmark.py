"""Contenders measured side by side: warmed up, interleaved, with spread and peak memory."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ..evaluation.report import markdown_table
from ..files import atomic_path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LONG_SECONDS = 10.0  # of a call: it is made once only
RESET_PEAK = "5"  # written to clear_refs, see proc(5)
COMPARED = 5000  # images of an evaluation, and held out by a privacy check: their square counts, so limit them
METRIC_PASSES = 310  # of three sets of images, each resampled a hundred times
PICTURE_BYTES = 27_000  # of a PNG of 256 px
FEATURE_BYTES = 2 * 4 * (384 + 32**2)  # in memory, of an image of a privacy check, and of its key


@dataclass(frozen=True)
class Row:
    """What is compared: calls by the name of who makes them; the first is what the others are held against."""

    name: str  # of the row
    unit: str  # what one figure is of, such as "step of batch 8"
    contenders: Mapping[str, Callable[[], object]]  # what to time
    parameters: Mapping[str, int] = field(default_factory=dict)  # of the networks, where there are some
    # a contender's time is multiplied by it, 1 where none is given: calls that do several, or a part
    factors: Mapping[str, float] = field(default_factory=dict)
    note: str = ""  # what a reader must know
    is_wall: bool = False  # time the clock even on a CPU, where waiting is what is measured
    before: Callable[[], object] = lambda: None  # called before each timed call


def measure(row: Row, device: torch.device, repetitions: int) -> list[dict[str, Any]]:
    """Time all contenders in turn, `repetitions` times after one that does not count; calls that take long just once.

    On a CPU the seconds are those that its cores worked for the process, so that other programs do not count; on a GPU
    they are of the clock.

    Returns:
        Of each its seconds (median, and the quartiles), the ratio to the first (median over the repetitions; above 1
        the first is faster) and the memory that a call took at its peak, in MiB, None where nobody knows.
    """
    wall = row.is_wall or device.type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in row.contenders}
    peaks: dict[str, float | None] = {}
    long: dict[str, float] = {}
    for repetition in range(repetitions + 1):
        for name, call in row.contenders.items():
            if name in long:
                seconds[name].append(long[name])
                continue
            row.before()
            taken, peak = _timed(call, device, wall)
            if repetition == 0:
                peaks[name] = peak
                if taken > LONG_SECONDS:
                    long[name] = taken * row.factors.get(name, 1.0)
            else:
                seconds[name].append(taken * row.factors.get(name, 1.0))
    first = next(iter(seconds.values()))
    found = []
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        ratio = statistics.median(one / other for one, other in zip(values, first, strict=True))
        about: dict[str, Any] = {"parameters": row.parameters.get(name), "peak_mebibytes": peaks[name]}
        about["clock"] = "wall" if wall else "CPU"
        times = {"seconds": median, "lower_quartile": low, "upper_quartile": high, "ratio": ratio}
        found.append({"row": row.name, "contender": name, "unit": row.unit, **times, **about, "note": row.note})
    return found


def _timed(call: Callable[[], object], device: torch.device, wall: bool) -> tuple[float, float | None]:
    """Seconds and peak MiB of a call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = None
    if CLEAR.exists():
        ctypes.CDLL(None).malloc_trim(0)  # else what an earlier call had given back would be taken again unseen
        CLEAR.write_text(RESET_PEAK)
        before = _resident("VmRSS")
    clock = time.perf_counter if wall else time.process_time
    start = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return clock() - start, torch.cuda.max_memory_allocated(device) / 2**20
    taken = clock() - start
    return taken, None if before is None else max(0.0, _resident("VmHWM") - before)


def _resident(name: str) -> float:
    """A line of the process's status, in MiB."""
    return next(int(line.split()[1]) / 1024 for line in STATUS.read_text().splitlines() if line.startswith(name))


def hardware(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found: dict[str, Any] = {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count()}
    found |= {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}
    if hasattr(os, "getloadavg"):
        found["load_average"] = os.getloadavg()[0]
    return found if device.type != "cuda" else {**found, "gpu": torch.cuda.get_device_name(device)}


def predicted_costs(
    seconds: Mapping[str, float], num_images: int, num_devices: int, num_epochs: int, item_bytes: int
) -> dict[str, tuple[float, float, float]]:
    """Hours of the clock, GB on disk and GB of memory from a folder of images to as many generated and checked ones.

    Args:
        seconds: of a device for an image by what is done with it (reading, encoding, training, reconstruction,
            generation, features), for a `pair` of images whose features are compared, and a `nearest` pair of pictures.
        num_images: of the folder.
        num_devices: share all but the comparison of features and the privacy check, which a process does alone.
        num_epochs: of the denoiser's training.
        item_bytes: of an image in the store.
    """
    n, few = num_images, min(num_images, COMPARED)
    look = seconds["reading"] + seconds["features"]
    sampled = few * (2 * seconds["generation"] + seconds["reconstruction"] + 4 * look)
    compared = METRIC_PASSES * seconds["pair"] * few**2
    checked = (n + 2 * few) * look + 2 * few * n * seconds["nearest"]
    found = {
        "store": (n * (seconds["reading"] + seconds["encoding"]) / num_devices, n * item_bytes, 0),
        "training": (n * num_epochs * seconds["training"] / num_devices, 0, 0),
        "generation": (n * seconds["generation"] / num_devices, n * PICTURE_BYTES, 0),
        "evaluation": (sampled / num_devices + compared, 3 * few * PICTURE_BYTES, 0),
        "privacy": (checked, n * FEATURE_BYTES / 2, n * FEATURE_BYTES),
    }
    return {name: (time / 3600, disk / 1e9, memory / 1e9) for name, (time, disk, memory) in found.items()}


def markdown(figures: Iterable[Mapping[str, Any]]) -> str:
    """The figures as a table."""
    lines = []
    for each in figures:
        low, median, high = (readable(each[name]) for name in ("lower_quartile", "seconds", "upper_quartile"))
        peak = "" if each["peak_mebibytes"] is None else f"{each['peak_mebibytes']:,.0f} MiB"
        count = "" if each["parameters"] is None else f"{each['parameters'] / 1e6:.2f} M"
        times = median, f"{low} – {high}", f"{each['ratio']:.2f}"
        lines.append([f"{each['row']}, {each['unit']}", each["contender"], *times, peak, count])
    titles = ["row", "contender", "time", "quartiles", "ratio", "peak memory", "parameters"]
    return markdown_table(titles, lines, "llr")


def readable(seconds: float) -> str:
    """Seconds with the unit that suits them."""
    factor, unit = next((f, u) for f, u in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")) if seconds * f >= 1 or u == "µs")
    return f"{seconds * factor:.3g} {unit}"


def draw(figures: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Bars of the ratios, a group for each row."""
    figure = Figure(figsize=(8.0, 0.6 + 0.28 * len(figures)), layout="constrained")
    axes = figure.subplots()
    names = [f"{each['row']}: {each['contender']}" for each in figures]
    colours = ["tab:blue" if each["ratio"] == 1.0 else "tab:grey" for each in figures]
    axes.barh(names, [each["ratio"] for each in figures], color=colours)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("time over that of the row's first (log scale); longer bars are slower")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
