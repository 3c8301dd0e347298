"""Did a generator copy its training images? Nearest neighbours, calibrated on real images of patients it never saw.

Two spaces are looked at, DINO's and that of small pictures (`nearest_patients`). In each the statistic is

    ratio = distance to the nearest training image / mean distance to the k nearest training patients,

the adaptive distance of Carlini et al. 2023 (arXiv 2301.13188) without its constant, and with patients for images, so
that several pictures of one patient do not hide that this patient was copied. A plain distance is also small for a
bland picture and where training images lie dense; a ratio is small only if one patient is far nearer than the next.

Held-out images of other patients have ratios too, and no generator copied them from the training set. They say what is
usual, so every figure here answers: how often would a real image of a new patient come out like this, or nearer?

What this does not find for certain: another picture of the same person (that takes a network trained to re-identify
patients, as in Dar et al. 2024, arXiv 2402.01054), and copies that are zoomed, turned or mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, SettingsError
from .held_out_ratios import Floats, HeldOutRatios, nearer
from .nearest_patients import SPACES, CopyFeatures, NearestPatients
from .report import Row

LEAK_P_VALUE = 0.01  # of any held-out image being taken for a copy of a training image by mistake


@dataclass(frozen=True)
class SpaceCheck:
    """What one space says of M samples; arrays [M]."""

    # index of the nearest training image, those of the patients a sample was made from left out
    nearest: NDArray[np.integer]
    distance: Floats  # to it
    ratio: Floats  # of that distance to the mean distance to the k nearest patients
    p_value: Floats  # conformal, (1 + held-out images with this ratio or less) / (n + 1); at least 1 / (n + 1)
    tail_p_value: Floats  # the same extrapolated below what n held-out images can resolve, see `HeldOutRatios`
    is_flagged: NDArray[np.bool_]  # p_value within this space's half of the false flag rate
    source_distance: Floats  # to the nearest of the sample's own sources; NaN where none is known
    source_p_value: Floats  # conformal, of the ratio with that distance; NaN where none is known

    @property
    def nearest_is_own_source(self) -> NDArray[np.bool_]:
        """Whether a sample is nearer to a source of its own than to training images of all other patients."""
        return self.source_distance < self.distance  # false for NaN


@dataclass(frozen=True)
class CopyCheck:
    """Everything about M samples: by space, the masks [M] over both, and the verdict."""

    spaces: dict[str, SpaceCheck]  # space -> SpaceCheck
    is_flagged: NDArray[np.bool_]  # flagged in a space, or a copy
    is_copy: NDArray[np.bool_]  # nearer than chance explains in a set of this size
    # as near in pixels to an own source as flagged samples are to training images. The embedding is not asked: being
    # near the source there is what a conditioned generator is for
    copies_source: NDArray[np.bool_]
    # space -> "distance" or "ratio" -> (probability that a sample is nearer to the training set than a held-out
    # image, one-sided Mann-Whitney p). Above 0.5 by a little needs no copying: smooth images are nearer
    comparison: dict[str, dict[str, tuple[float, float]]]
    verdict: Row  # on the set, see `CopyReference.check`; own sources play no part in it


@dataclass
class CopyReference:
    """What training images and held-out images of other patients say of samples; settings out of range are refused."""

    # k of the ratio. A few, so that small groups of alike images (same device, same frame) are not taken for copies of
    # each other; more than patients that one picture may be listed under
    num_neighbours: int = 5
    max_shift: int = 2  # px of the small pictures, in each direction; 2 of 32 px finds copies shifted by up to 6 %
    false_flag_rate: float = 0.01  # of images of new patients on average at most, half of it in each space
    significance: float = 0.05  # of the verdict, half of it for the number of flags, half for single copies

    def __post_init__(self) -> None:
        shares = self.false_flag_rate, self.significance
        if not (all(0 < share < 1 for share in shares) and self.num_neighbours > 1 and self.max_shift >= 0):
            raise SettingsError(
                f"copy detection: found {self}; expected two shares in (0, 1), 2 neighbours or more, no shift below 0"
            )
        self.held_out: dict[str, HeldOutRatios] = {}
        self.held_out_distance: dict[str, Floats] = {}
        self.leaks: list[tuple[int, int]] = []

    def fit(
        self, train: CopyFeatures, held_out: CopyFeatures, train_patients: Sequence[Hashable] | None = None
    ) -> CopyReference:
        """Take the training images, as they are without augmentation, and held-out images of other patients.

        Both are prepared in the same way and of the same kinds. With fewer than 2 / false_flag_rate - 1 held-out images
        (199 for 1 %) only single copies can be found, and no set be called clean. Without patients each training image
        is of one of its own.

        Raises:
            DatasetError: too few images, or features of different sizes.
        """
        if len(train) < 3 or not len(held_out):
            raise DatasetError(
                f"copy detection: found {len(train)} training and {len(held_out)} held-out images; expected 3 and 1 or "
                "more. Give the training set, and images of patients that are not in it."
            )
        self._patients = NearestPatients(train, held_out, train_patients, self.num_neighbours, self.max_shift)
        found = {space: self._patients.nearest(space, held_out, [()] * len(held_out)) for space in SPACES}
        ratios = {space: distance / typical for space, (_, distance, typical) in found.items()}
        tail = np.stack([HeldOutRatios(ratio, self.false_flag_rate).tail_p_value(ratio) for ratio in ratios.values()])
        is_leak = tail.min(0) <= LEAK_P_VALUE / tail.size
        nearest = np.choose(tail.argmin(0), [index for index, _, _ in found.values()])
        self.leaks = [(int(i), int(nearest[i])) for i in np.flatnonzero(is_leak)]
        self._num_held_out = len(held_out) - len(self.leaks)
        for space, ratio in ratios.items():
            self.held_out_distance[space] = found[space][1][~is_leak]
            self.held_out[space] = HeldOutRatios(ratio[~is_leak], self.false_flag_rate / len(SPACES))
        return self

    def check(
        self,
        samples: CopyFeatures,
        sources: Sequence[Sequence[int]] | None = None,
        groups: Sequence[Hashable] | None = None,
    ) -> CopyCheck:
        """Compare M samples with the training images and judge.

        Args:
            samples: prepared as the images of `fit`.
            sources: for each sample the images it was made from, as indices into the training images followed by the
                held-out images (N + i is held-out image i). Training images of a source's patient are left out of its
                neighbours: that a variation resembles its source is no news. The source is reported on its own.
            groups: samples of the same group are not independent (variations of one source); None if all are.

        Returns:
            The figures of all samples. The verdict's "level" is "copies", "more_near_copies", "no_sign", or "undecided"
            where too few images were held out, its "text" a sentence; "num_groups" count as independent;
            "expected_flagged": at most so many flags on average, were samples real images of new patients;
            "count_p_value": of so many flags or more, given that; "copy_p_value": of the nearest sample, given that,
            corrected for the number of samples and spaces (Bonferroni); "p_value": of both together.

        Raises:
            DatasetError: no samples, another size, no training image left to compare with, or `fit` was not called.
        """
        own = [tuple(indices) for indices in sources] if sources is not None else [()] * len(samples)
        groups = list(range(len(samples)) if groups is None else groups)
        if not self.held_out or not len(samples) or not len(own) == len(groups) == len(samples):
            raise DatasetError(
                f"copy detection: found {len(samples)} samples, {len(own)} sources, {len(groups)} groups; expected as "
                "many of each, at least one, after fit."
            )
        self._patients.check_sizes(samples)
        spaces = {space: self._check_space(space, samples, own) for space in SPACES}
        limit = self.significance / 2 / (len(SPACES) * len(samples))
        is_copy = np.any([space.tail_p_value <= limit for space in spaces.values()], axis=0)
        is_flagged = np.any([space.is_flagged for space in spaces.values()], axis=0) | is_copy
        copies_source = spaces["pixels"].source_p_value <= self.held_out["pixels"].rank / (self._num_held_out + 1)
        comparison = {
            name: {
                "distance": nearer(space.distance, self.held_out_distance[name], groups),
                "ratio": nearer(space.ratio, self.held_out[name].sorted, groups),
            }
            for name, space in spaces.items()
        }
        counts = {"num_flagged": int(is_flagged.sum()), "num_copies": int(is_copy.sum())}
        return CopyCheck(spaces, is_flagged, is_copy, copies_source, comparison, self._judge(spaces, counts, groups))

    def _check_space(self, space: str, samples: CopyFeatures, own: Sequence[tuple[int, ...]]) -> SpaceCheck:
        index, distance, typical = self._patients.nearest(space, samples, own)
        source_distance = self._patients.source_distance(space, samples, own)
        reference, ratio = self.held_out[space], distance / typical
        share = 1 / self.num_neighbours  # of the source in the mean, as that of the nearest image in `typical`
        source_ratio = source_distance / (share * source_distance + (1 - share) * typical)
        source_p_value = np.where(np.isnan(source_distance), np.nan, reference.p_value(source_ratio))
        p_values = reference.p_value(ratio), reference.tail_p_value(ratio)
        flags = reference.flags(ratio)
        return SpaceCheck(index, distance, ratio, *p_values, flags, source_distance, source_p_value)

    def _judge(self, spaces: Mapping[str, SpaceCheck], counts: Mapping[str, int], groups: Sequence[Hashable]) -> Row:
        """From flags and p-values of samples to one sentence; see `check`."""
        total, num_groups, n = len(groups), len(set(groups)), self._num_held_out
        count_p = min(self.held_out[name].count_p_value(space.is_flagged, groups) for name, space in spaces.items())
        count_p = min(1.0, len(spaces) * count_p)
        copy_p = min(1.0, len(spaces) * total * min(float(space.tail_p_value.min()) for space in spaces.values()))
        expected = total * sum(reference.rank for reference in self.held_out.values()) / (n + 1)
        figures = (
            f"{counts['num_flagged']} of {total} samples are flagged as near-copies of a training image; among images "
            f"of new patients at most {expected:.1f} would be, on average"
        )
        chance = f"p = {count_p:.2g}" + (f", by {num_groups} groups of the same source" if num_groups < total else "")
        if counts["num_copies"]:
            level, text = (
                "copies",
                (
                    f"Copies: {counts['num_copies']} of {total} samples are nearer to a training image than chance "
                    f"explains (p = {copy_p:.2g} for the nearest, corrected for {total} samples). {figures}."
                ),
            )
        elif count_p <= self.significance / 2:
            level = "more_near_copies"
            text = f"More near-copies than among held-out real patients: {figures} ({chance})."
        elif not self.held_out[SPACES[0]].rank:
            least = math.ceil(len(SPACES) / self.false_flag_rate) - 1
            level, text = (
                "undecided",
                (
                    f"Undecided: no single copy stands out, but {n} held-out images are too few to flag near-copies, "
                    f"{least} are needed."
                ),
            )
        else:
            level, text = "no_sign", f"No sign of copying: {figures} ({chance})."
        return {
            **{"level": level, "text": text, "num_samples": total, "num_groups": num_groups, **counts},
            **{"expected_flagged": expected, "count_p_value": count_p, "copy_p_value": copy_p},
            "p_value": min(1.0, 2 * min(count_p, copy_p)),
        }
