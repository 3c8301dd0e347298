"""How close generated radiographs come to real ones: all distribution metrics, and what two halves of real ones get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingsError
from .distribution_metrics import (
    bootstrap_interval,
    frechet_distance,
    frechet_distance_extrapolated,
    frechet_leverages,
    gaussian_mmd,
    precision_recall_density_coverage,
)
from .report import Row, cell, markdown_table

Array = NDArray[np.floating]

LEAST_IMAGES = 8  # on each side, for the extrapolated distance
NUM_LEFT_OUT = 5
SHARES = ("precision", "recall", "density", "coverage")
FLOOR_NOTE = (
    "Real against real: two halves that share no {unit}. FD, precision and recall depend on n, so compare this row "
    "with the one of as many fakes, not with that of all images."
)


@dataclass(frozen=True)
class ImageQuality:
    """Compare features of real and fake images and report it as plain numbers; wrong settings are refused."""

    num_resamples: int = 100  # of the bootstrap for the Fréchet distance
    level: float = 0.95  # of its interval
    nearest_k: int = 5  # neighbour of precision, recall, density and coverage
    num_left_out: int = NUM_LEFT_OUT  # images of both sets together that the Fréchet distance is told without, too
    seed: int = 0  # of the bootstrap, the extrapolation and the halves
    progress: bool = True  # show progress bars

    def __post_init__(self) -> None:
        for name, least in {"num_resamples": 2, "nearest_k": 1, "num_left_out": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise SettingsError(f"found {name} = {getattr(self, name)}; expected at least {least}")
        if not 0 < self.level < 1:
            raise SettingsError(f"found level = {self.level}; expected a share between 0 and 1, such as 0.95")

    @property
    def least(self) -> int:
        """Images that each of two sets must have to be compared."""
        return max(LEAST_IMAGES, self.nearest_k + 1, self.num_left_out + 2)

    def check_counts(self, num_real: int, num_fake: int) -> None:
        """Refuse sets that are too small, by a SettingsError, before anything is made of them."""
        if min(num_real, num_fake) < self.least:
            raise SettingsError(
                f"found {num_real} real and {num_fake} fake images; expected at least {self.least} of each, and "
                "hundreds for figures that mean something. Give more images."
            )

    def report(
        self, features: Mapping[str, tuple[Array, Array]], patient_ids: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Compare under every extractor: {"settings": ..., "extractors": {name: what `compare` gives}}.

        Features are real ones [N, D] and fake ones [M, D] by extractor; every extractor has seen the same images.
        """
        settings = {key: value for key, value in asdict(self).items() if key != "progress"}
        compared = {name: self.compare(real, fake, patient_ids) for name, (real, fake) in features.items()}
        return {"settings": settings, "extractors": compared}

    def compare(self, real: Array, fake: Array, patient_ids: Sequence[str] | None = None) -> dict[str, Any]:
        """All metrics of features [N, D] and [M, D] under one extractor; without ids each image is of another patient.

        Returns:
            What `metrics` and `intervals` give; real_real_floor: `metrics` for one half of the real images against the
            other, with a note; fake_at_floor_n: the same for the first half against as many fakes as the second half
            has images. Both are None where the halves are too small.

        Raises:
            SettingsError: too few images, or patient_ids that do not fit.
        """
        self.check_counts(len(real), len(fake))
        if patient_ids is not None and len(patient_ids) != len(real):
            raise SettingsError(f"found {len(patient_ids)} patient ids for {len(real)} real images; expected one each")
        found = {**self.metrics(real, fake), **self.intervals(real, fake)}
        first, second = split_halves(patient_ids or [str(i) for i in range(len(real))], self.seed)
        floor = same_n = None
        if min(len(first), len(second)) >= self.least:
            note = FLOOR_NOTE.format(unit="image" if patient_ids is None else "patient")
            floor = {**self.metrics(real[first], real[second]), "note": note}
            order = np.random.default_rng(self.seed).permutation(len(fake))
            same_n = self.metrics(real[first], fake[order[: len(second)]])
        return {**found, "real_real_floor": floor, "fake_at_floor_n": same_n}

    def metrics(self, real: Array, fake: Array) -> dict[str, Any]:
        """The figures of one pair of sets [N, D], [M, D]: fd, fd_infinity, mmd, `SHARES`, num_real, num_fake.

        Beside them left_out, the images of largest leverage on fd as ("real" or "fake", place), and fd_without them.
        """
        leverages = frechet_leverages(real, fake)
        largest = np.argsort(-np.abs(np.concatenate(leverages)), kind="stable")[: self.num_left_out].tolist()
        left_out = [("real", i) if i < len(real) else ("fake", i - len(real)) for i in largest]
        kept = [np.delete(x, [i for s, i in left_out if s == side], 0) for side, x in (("real", real), ("fake", fake))]
        return {
            "fd": frechet_distance(real, fake),
            "fd_without": frechet_distance(*kept),
            "left_out": [list(each) for each in left_out],
            "fd_infinity": frechet_distance_extrapolated(real, fake, self.seed),
            "mmd": gaussian_mmd(real, fake),
            **precision_recall_density_coverage(real, fake, self.nearest_k),
            "num_real": len(real),
            "num_fake": len(fake),
        }

    def intervals(self, real: Array, fake: Array) -> dict[str, list[float]]:
        """Bootstrap intervals fd_ci and mmd_ci; see `bootstrap_interval` for what they cover."""
        options = self.num_resamples, self.seed, self.level, self.progress
        metrics = {"fd_ci": frechet_distance, "mmd_ci": gaussian_mmd}
        return {name: list(bootstrap_interval(metric, real, fake, *options)) for name, metric in metrics.items()}


def split_halves(patient_ids: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Ascending indices of two halves of a list of images, as equal in size as its patients allow; none is in both.

    Patients are dealt in an order from the seed, each to the half that is smaller so far: of a single one, the second
    half is empty. `patient_ids` has one entry per image.
    """
    images: dict[str, list[int]] = {}
    for i, patient in enumerate(patient_ids):
        images.setdefault(patient, []).append(i)
    patients = sorted(images)
    halves: tuple[list[int], list[int]] = [], []
    for place in np.random.default_rng(seed).permutation(len(patients)):
        min(halves, key=len).extend(images[patients[place]])
    return sorted(halves[0]), sorted(halves[1])


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of what `ImageQuality.report` gives: extractor × comparison, with the notes below."""
    settings = report["settings"]
    lines, notes = [], []
    for name, found in report["extractors"].items():
        rows = {"real, fake": found, "real half, fake": found["fake_at_floor_n"]}
        rows["real half, real half"] = found["real_real_floor"]
        for label, row in rows.items():
            if row is not None:
                lines.append([name, label, f"{row['num_real']}, {row['num_fake']}", *cells(row)])
        if found["real_real_floor"] is None:
            notes.append(f"{name}: too few real images or patients for two halves of real ones.")
        elif found["real_real_floor"]["note"] not in notes:
            notes.append(found["real_real_floor"]["note"])
    notes.append(
        f"FD: Fréchet distance with a {settings['level']:.0%} bootstrap interval ({settings['num_resamples']} "
        "resamples) for other sets of this size; biased upwards at small n, FD∞ less so. Without "
        f"{settings['num_left_out']}: without the images that it hangs on most. MMD: of a bounded Gaussian kernel, "
        f"unbiased. Precision to coverage: k = {settings['nearest_k']}. Seed {settings['seed']}."
    )
    return markdown_table(["features", "compared", "n", *headings(settings["num_left_out"])], lines, "lllr") + (
        "\n" + "\n".join(notes) + "\n"
    )


def headings(num_left_out: int) -> list[str]:
    """Of the columns of `cells`."""
    return ["FD ↓", f"without {num_left_out}", "FD∞", "MMD × 1000 ↓", *(f"{name} ↑" for name in SHARES)]


def cells(row: Row) -> list[str]:
    """A table's cells of what `ImageQuality.metrics` and `intervals` give; – for what an older report lacks."""

    def with_interval(name: str, factor: float) -> str:
        values = (row.get(name), *row.get(f"{name}_ci", ()))
        numbers = [f"{factor * value:.4g}" for value in values if value is not None]
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if len(numbers) == 3 else "".join(numbers) or "–"

    factors = {"fd": 1, "fd_without": 1, "fd_infinity": 1, "mmd": 1000}
    return [*(with_interval(*each) for each in factors.items()), *(cell(row[key], 3) for key in SHARES)]
