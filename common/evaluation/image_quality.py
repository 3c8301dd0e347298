"""How close generated radiographs come to real ones: all distribution metrics, and what two halves of real ones get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .distribution_metrics import (
    bootstrap_interval,
    frechet_distance,
    frechet_distance_extrapolated,
    kernel_distance,
    precision_recall_density_coverage,
)

Array = NDArray[np.floating]

LEAST_IMAGES = 8  # on each side, for the extrapolated distance
FLOOR_NOTE = (
    "Real against real: two halves that share no {unit}. FD, precision and recall depend on n, so compare this row "
    "with the one of as many fakes, not with that of all images."
)


class ImageQualityError(UserError, ValueError):
    """Image sets that cannot be compared."""


@dataclass(frozen=True)
class ImageQuality:
    """Compare features of real and fake images and report it as plain numbers.

    Args:
        num_resamples: of the bootstrap for the Fréchet distance.
        level: of its interval.
        nearest_k: neighbour of precision, recall, density and coverage.
        kid_subsets: subsets of the kernel distance.
        seed: of the bootstrap, the subsets and the halves.
        progress: show progress bars.

    Raises:
        ImageQualityError: one of them is out of range.
    """

    num_resamples: int = 100
    level: float = 0.95
    nearest_k: int = 5
    kid_subsets: int = 100
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        least = {"num_resamples": 2, "nearest_k": 1, "kid_subsets": 1, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ImageQualityError(f"found {name} = {getattr(self, name)}; expected at least {value}")
        if not 0 < self.level < 1:
            raise ImageQualityError(f"found level = {self.level}; expected a share between 0 and 1, such as 0.95")

    def report(
        self, features: Mapping[str, tuple[Array, Array]], patient_ids: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Compare under every extractor.

        Args:
            features: extractor → (real [N, D], fake [M, D]); every extractor has seen the same images.
            patient_ids: of the N real images; None counts every image as a patient of its own.

        Returns:
            {"settings": ..., "extractors": {name: what `compare` gives}}.

        Raises:
            ImageQualityError: too few images, or patient_ids that do not fit.
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
            fd, fd_ci (low, high), fd_infinity, kid, kid_sd, precision, recall, density, coverage, num_real, num_fake;
            real_real_floor: the same without fd_ci for one half of the real images against the other, with a note;
            fake_at_floor_n: the same for the first half against as many fakes as the second half has images.
            Both are None where the halves have fewer than 8 images.

        Raises:
            ImageQualityError: too few images, or patient_ids that do not fit.
        """
        least = max(LEAST_IMAGES, self.nearest_k + 1)
        if min(len(real), len(fake)) < least:
            raise ImageQualityError(
                f"found {len(real)} real and {len(fake)} fake images; expected at least {least} of each, and hundreds "
                "for figures that mean something. Generate more."
            )
        if patient_ids is not None and len(patient_ids) != len(real):
            raise ImageQualityError(
                f"found {len(patient_ids)} patient ids for {len(real)} real images; expected one each"
            )
        interval = self.interval(real, fake)
        first, second = split_halves(patient_ids or [str(i) for i in range(len(real))], self.seed)
        floor = same_n = None
        if min(len(first), len(second)) >= least:
            unit = "image" if patient_ids is None else "patient"
            floor = {**self.metrics(real[first], real[second]), "note": FLOOR_NOTE.format(unit=unit)}
            order = np.random.default_rng(self.seed).permutation(len(fake))
            same_n = self.metrics(real[first], fake[order[: len(second)]])
        found = {**self.metrics(real, fake), "fd_ci": list(interval)}
        return {**found, "real_real_floor": floor, "fake_at_floor_n": same_n}

    def metrics(self, real: Array, fake: Array) -> dict[str, Any]:
        """The figures of one pair of sets [N, D], [M, D] without interval and floor; keys as in `compare`.

        Raises:
            ValueError: too few images for one of the metrics.
        """
        kid = kernel_distance(real, fake, self.kid_subsets, seed=self.seed)
        return {
            "fd": frechet_distance(real, fake),
            "fd_infinity": frechet_distance_extrapolated(real, fake, self.seed),
            "kid": kid.mean,
            "kid_sd": kid.sd,
            **precision_recall_density_coverage(real, fake, self.nearest_k)._asdict(),
            "num_real": len(real),
            "num_fake": len(fake),
        }

    def interval(self, real: Array, fake: Array) -> tuple[float, float]:
        """Bootstrap interval of the Fréchet distance; see `bootstrap_interval` for what it covers."""
        return bootstrap_interval(
            frechet_distance, real, fake, self.num_resamples, self.seed, self.level, self.progress
        )


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


def markdown_table(report: Mapping[str, Any]) -> str:
    """The tables of what `ImageQuality.report` gives: extractor × comparison, with the notes below."""
    settings = report["settings"]
    heading = ["features", "compared", "n", "FD ↓", "FD∞ ↓", "KID × 10³ ↓", "precision ↑", "recall ↑", "density ↑"]
    heading.append("coverage ↑")
    lines = ["| " + " | ".join(heading) + " |", "|---|---|---|" + "---:|" * (len(heading) - 3)]
    notes = []
    for name, found in report["extractors"].items():
        rows = {"real, fake": found, "real half, fake": found["fake_at_floor_n"]}
        rows["real half, real half"] = found["real_real_floor"]
        lines += [_row(name, label, row) for label, row in rows.items() if row is not None]
        if found["real_real_floor"] is None:
            notes.append(f"{name}: too few real images or patients for two halves of real ones.")
        elif found["real_real_floor"]["note"] not in notes:
            notes.append(found["real_real_floor"]["note"])
    notes.append(
        f"FD: Fréchet distance with a {settings['level']:.0%} bootstrap interval ({settings['num_resamples']} "
        "resamples) for other sets of this size; biased upwards at small n, FD∞ less so. KID: mean ± sd over "
        f"{settings['kid_subsets']} subsets. Precision to coverage: k = {settings['nearest_k']}. "
        f"Seed {settings['seed']}."
    )
    return "\n".join([*lines, "", *notes, ""])


def _row(name: str, label: str, values: Mapping[str, Any]) -> str:
    distance = f"{values['fd']:.4g}"
    if "fd_ci" in values:
        distance += f" [{values['fd_ci'][0]:.4g}, {values['fd_ci'][1]:.4g}]"
    cells = [name, label, f"{values['num_real']}, {values['num_fake']}", distance, f"{values['fd_infinity']:.4g}"]
    cells.append(f"{values['kid'] * 1e3:.3g} ± {values['kid_sd'] * 1e3:.2g}")
    cells += [f"{values[key]:.3f}" for key in ("precision", "recall", "density", "coverage")]
    return "| " + " | ".join(cells) + " |"
