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
    kernel_distance,
    precision_recall_density_coverage,
)
from .report import Row, cell, markdown_table

Array = NDArray[np.floating]

LEAST_IMAGES = 8  # on each side, for the extrapolated distance
KID_FEATURES = "inception"  # whose KID tables show: the kernel was made for features of that size
SHARES = ("precision", "recall", "density", "coverage")
FLOOR_NOTE = (
    "Real against real: two halves that share no {unit}. FD, precision and recall depend on n, so compare this row "
    "with the one of as many fakes, not with that of all images."
)


@dataclass(frozen=True)
class ImageQuality:
    """Compare features of real and fake images and report it as plain numbers.

    Attributes:
        num_resamples: of the bootstrap for the Fréchet distance.
        level: of its interval.
        nearest_k: neighbour of precision, recall, density and coverage.
        kid_subsets: subsets of the kernel distance.
        seed: of the bootstrap, the subsets and the halves.
        progress: show progress bars.

    Raises:
        SettingsError: one of them is out of range.
    """

    num_resamples: int = 100
    level: float = 0.95
    nearest_k: int = 5
    kid_subsets: int = 100
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in {"num_resamples": 2, "nearest_k": 1, "kid_subsets": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise SettingsError(f"found {name} = {getattr(self, name)}; expected at least {least}")
        if not 0 < self.level < 1:
            raise SettingsError(f"found level = {self.level}; expected a share between 0 and 1, such as 0.95")

    @property
    def least(self) -> int:
        """Images that each of two sets must have to be compared."""
        return max(LEAST_IMAGES, self.nearest_k + 1)

    def check_counts(self, num_real: int, num_fake: int) -> None:
        """Refuse sets that are too small, before anything is made of them.

        Raises:
            SettingsError: says what was found.
        """
        if min(num_real, num_fake) < self.least:
            raise SettingsError(
                f"found {num_real} real and {num_fake} fake images; expected at least {self.least} of each, and "
                "hundreds for figures that mean something. Give more images."
            )

    def report(
        self, features: Mapping[str, tuple[Array, Array]], patient_ids: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Compare under every extractor: {"settings": ..., "extractors": {name: what `compare` gives}}.

        Args:
            features: extractor → (real [N, D], fake [M, D]); every extractor has seen the same images.
            patient_ids: of the N real images; None counts every image as a patient of its own.
        """
        settings = {key: value for key, value in asdict(self).items() if key != "progress"}
        compared = {name: self.compare(real, fake, patient_ids) for name, (real, fake) in features.items()}
        return {"settings": settings, "extractors": compared}

    def compare(self, real: Array, fake: Array, patient_ids: Sequence[str] | None = None) -> dict[str, Any]:
        """All metrics of one pair of sets under one extractor.

        Args:
            real: features [N, D].
            fake: features [M, D].
            patient_ids: of the N real images; None counts every image as a patient of its own.

        Returns:
            What `metrics` gives, and fd_ci (low, high); real_real_floor: the same without fd_ci for one half of the
            real images against the other, with a note; fake_at_floor_n: the same for the first half against as many
            fakes as the second half has images. Both are None where the halves are too small.

        Raises:
            SettingsError: too few images, or patient_ids that do not fit.
        """
        self.check_counts(len(real), len(fake))
        if patient_ids is not None and len(patient_ids) != len(real):
            raise SettingsError(f"found {len(patient_ids)} patient ids for {len(real)} real images; expected one each")
        found = {**self.metrics(real, fake), "fd_ci": list(self.interval(real, fake))}
        first, second = split_halves(patient_ids or [str(i) for i in range(len(real))], self.seed)
        floor = same_n = None
        if min(len(first), len(second)) >= self.least:
            note = FLOOR_NOTE.format(unit="image" if patient_ids is None else "patient")
            floor = {**self.metrics(real[first], real[second]), "note": note}
            order = np.random.default_rng(self.seed).permutation(len(fake))
            same_n = self.metrics(real[first], fake[order[: len(second)]])
        return {**found, "real_real_floor": floor, "fake_at_floor_n": same_n}

    def metrics(self, real: Array, fake: Array) -> dict[str, Any]:
        """The figures of one pair of sets [N, D], [M, D]: fd, fd_infinity, kid, kid_sd, `SHARES`, num_real, num_fake.

        Raises:
            ValueError: too few images for one of the metrics.
        """
        kid, kid_sd = kernel_distance(real, fake, self.kid_subsets, seed=self.seed)
        return {
            "fd": frechet_distance(real, fake),
            "fd_infinity": frechet_distance_extrapolated(real, fake, self.seed),
            "kid": kid,
            "kid_sd": kid_sd,
            **precision_recall_density_coverage(real, fake, self.nearest_k),
            "num_real": len(real),
            "num_fake": len(fake),
        }

    def interval(self, real: Array, fake: Array) -> tuple[float, float]:
        """Bootstrap interval of the Fréchet distance; see `bootstrap_interval` for what it covers."""
        options = self.num_resamples, self.seed, self.level, self.progress
        return bootstrap_interval(frechet_distance, real, fake, *options)


def split_halves(patient_ids: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Two halves of a list, as equal in size as its patients allow; no patient is in both.

    Args:
        patient_ids: one for each image.
        seed: of the order in which patients are dealt, each to the half that is smaller so far.

    Returns:
        Indices of both halves, ascending.
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
    kid = ["KID × 10³ ↓"] if KID_FEATURES in report["extractors"] else []
    lines, notes = [], []
    for name, found in report["extractors"].items():
        rows = {"real, fake": found, "real half, fake": found["fake_at_floor_n"]}
        rows["real half, real half"] = found["real_real_floor"]
        lines += [_line(name, label, row, bool(kid)) for label, row in rows.items() if row is not None]
        if found["real_real_floor"] is None:
            notes.append(f"{name}: too few real images or patients for two halves of real ones.")
        elif found["real_real_floor"]["note"] not in notes:
            notes.append(found["real_real_floor"]["note"])
    notes.append(
        f"FD: Fréchet distance with a {settings['level']:.0%} bootstrap interval ({settings['num_resamples']} "
        "resamples) for other sets of this size; biased upwards at small n, FD∞ less so. KID: mean ± sd over "
        f"{settings['kid_subsets']} subsets, of Inception's features only. Precision to coverage: k = "
        f"{settings['nearest_k']}. Seed {settings['seed']}."
    )
    headings = ["features", "compared", "n", "FD ↓", "FD∞ ↓", *kid, *(f"{name} ↑" for name in SHARES)]
    return markdown_table(headings, lines, "lllr") + "\n" + "\n".join(notes) + "\n"


def _line(name: str, label: str, row: Row, with_kid: bool) -> list[str]:
    distance = f"{row['fd']:.4g}"
    if "fd_ci" in row:
        distance += f" [{row['fd_ci'][0]:.4g}, {row['fd_ci'][1]:.4g}]"
    cells = [name, label, f"{row['num_real']}, {row['num_fake']}", distance, f"{row['fd_infinity']:.4g}"]
    if with_kid:
        shown = name == KID_FEATURES
        cells.append(f"{row['kid'] * 1e3:.3g} ± {row['kid_sd'] * 1e3:.2g}" if shown else "")
    return [*cells, *(cell(row[key], 3) for key in SHARES)]
