"""Did a generator copy its training images? Nearest neighbours, calibrated on real images of patients it never saw.

Two spaces are looked at: cosine distance between DINO cls tokens ("embedding"), and 1 - correlation between small grey
pictures whose local mean and contrast are evened out, the least over small shifts ("pixels"). In each the statistic is

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
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from .errors import UserError

SPACES = ("embedding", "pixels")
MIN_DISTANCE = 1e-6  # of cosine or correlation; float32 cannot tell less from 0
DETAIL = 1 / 16  # of the side: sd of the Gaussian that local mean and contrast are taken with
MIN_CONTRAST = 0.1  # of a picture's sd, added to the local one: flat parts stay flat
TAIL_SHARE = 0.1  # of the held-out images: those nearest to the training set, which the tail is fitted to
CENSORED_SHARE = 0.2  # of the tail: the very nearest, of which the fit only takes that they are nearer than the others
LEAK_P_VALUE = 0.01  # of any held-out image being taken for a copy of a training image by mistake
TAIL_MIN_HELD_OUT = 20  # with fewer held-out images nothing is fitted

Floats = NDArray[np.floating]


class CopyDetectionError(UserError, ValueError):
    """Features that cannot be compared."""


@dataclass(frozen=True)
class CopyFeatures:
    """What is compared of N images.

    Args:
        embeddings: [N, D], any scale.
        pictures: [N, 1, h, w], grey, any scale; sides of 32 to 64 px.

    Raises:
        CopyDetectionError: other shapes, different N, values that are not finite.
    """

    embeddings: Tensor
    pictures: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.embeddings.shape), tuple(self.pictures.shape)
        if len(shapes[0]) != 2 or len(shapes[1]) != 4 or shapes[1][1] != 1 or shapes[0][0] != shapes[1][0]:
            raise CopyDetectionError(
                f"copy detection: found embeddings {shapes[0]} and pictures {shapes[1]}; expected [N, D] and "
                "[N, 1, h, w] of the same N images."
            )
        if not (self.embeddings.isfinite().all() and self.pictures.isfinite().all()):
            raise CopyDetectionError("copy detection: found NaN or infinity; leave images without finite features out.")

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | Sequence[int]) -> CopyFeatures:
        return CopyFeatures(self.embeddings[rows], self.pictures[rows])


@dataclass(frozen=True)
class SpaceCheck:
    """What one space says of M samples; arrays [M].

    Attributes:
        nearest: index of the nearest training image, those of the patients a sample was made from left out.
        distance: to it.
        ratio: of that distance to the mean distance to the k nearest patients.
        p_value: conformal, (1 + held-out images with this ratio or less) / (n + 1); at least 1 / (n + 1).
        tail_p_value: the same extrapolated below what n held-out images can resolve, see `HeldOutRatios`.
        is_flagged: p_value within this space's half of the false flag rate.
        source_distance: to the nearest of the sample's own sources; NaN where none is known.
        source_p_value: conformal, of the ratio with that distance; NaN where none is known.
    """

    nearest: NDArray[np.integer]
    distance: Floats
    ratio: Floats
    p_value: Floats
    tail_p_value: Floats
    is_flagged: NDArray[np.bool_]
    source_distance: Floats
    source_p_value: Floats

    @property
    def nearest_is_own_source(self) -> NDArray[np.bool_]:
        """Whether a sample is nearer to a source of its own than to training images of all other patients."""
        return self.source_distance < self.distance  # false for NaN


@dataclass(frozen=True)
class CopyVerdict:
    """The judgement on a set.

    Attributes:
        level: "copies", "more_near_copies", "no_sign", or "undecided" where too few images were held out.
        text: the same as a sentence, with its figures.
        num_samples: how many were checked.
        num_groups: how many of them count as independent.
        num_flagged: samples flagged.
        num_copies: those of them that are nearer than chance explains, one by one.
        expected_flagged: at most so many flags on average, if samples were as real images of new patients.
        count_p_value: of so many flags or more, given that.
        copy_p_value: of the nearest sample, given that, times the number of samples and spaces (Bonferroni).
        p_value: of both together (Bonferroni).
    """

    level: str
    text: str
    num_samples: int
    num_groups: int
    num_flagged: int
    num_copies: int
    expected_flagged: float
    count_p_value: float
    copy_p_value: float
    p_value: float


@dataclass(frozen=True)
class CopyCheck:
    """Everything about M samples: by space, the masks [M] over both, and the verdict.

    Attributes:
        spaces: space -> SpaceCheck.
        is_flagged: flagged in a space, or a copy.
        is_copy: nearer than chance explains in a set of this size.
        copies_source: as near in pixels to an own source as flagged samples are to training images. The embedding is
            not asked: being near the source there is what a conditioned generator is for.
        comparison: space -> "distance" or "ratio" -> (probability that a sample is nearer to the training set than a
            held-out image, one-sided Mann-Whitney p). Above 0.5 by a little needs no copying: smooth images are nearer.
        verdict: on the set; own sources play no part in it.
    """

    spaces: dict[str, SpaceCheck]
    is_flagged: NDArray[np.bool_]
    is_copy: NDArray[np.bool_]
    copies_source: NDArray[np.bool_]
    comparison: dict[str, dict[str, tuple[float, float]]]
    verdict: CopyVerdict


class HeldOutRatios:
    """Ratios of n held-out images, and what they say of others.

    `p_value` and `flags` need no more than that a sample which copies nothing is like a held-out image. The p-value has
    a floor of 1 / (n + 1), so it cannot tell an exact copy from chance among many samples. `tail_p_value` can: the
    number of neighbours within a distance grows as a power of it, so -log(ratio) has an exponential tail.
    Let u be the (m + 1)-th smallest ratio, t = log(u / ratio) of the sample, and S the sum of log(u / ratio) over the m
    nearest held-out images, where the c nearest of all count as the next one (censored), as they may be copies
    themselves. Then p = (m + 1) / (n + 1) · (1 + t / S)^-(m - c), which includes the uncertainty of the fitted scale.
    """

    def __init__(self, ratios: Floats, rate: float) -> None:
        self.sorted = np.sort(ratios)
        self.rank = math.floor(rate * (len(ratios) + 1) + 1e-9)  # flag what is nearer than the rank-th nearest

    @property
    def threshold(self) -> float | None:
        """Ratios below this are flagged; None where n is too small to flag anything."""
        return float(self.sorted[self.rank - 1]) if self.rank else None

    def p_value(self, ratio: Floats) -> Floats:
        """Conformal p-values [M]."""
        return (1 + np.searchsorted(self.sorted, ratio, side="right")) / (len(self.sorted) + 1)

    def flags(self, ratio: Floats) -> NDArray[np.bool_]:
        """Whether p_value is within the rate."""
        return np.searchsorted(self.sorted, ratio, side="right") < self.rank

    def tail_p_value(self, ratio: Floats) -> Floats:
        """Extrapolated p-values [M]; the conformal ones outside the tail and where n is too small for a fit."""
        n, m = len(self.sorted), round(TAIL_SHARE * len(self.sorted))
        start, censored = self.sorted[m], round(CENSORED_SHARE * m)
        total = float(np.log(start / np.maximum(self.sorted[:m], self.sorted[censored])).sum())
        if n < TAIL_MIN_HELD_OUT or total <= 0:
            return self.p_value(ratio)
        excess = np.log(start / np.minimum(ratio, start))
        tail = (m + 1) / (n + 1) * (1 + excess / total) ** (censored - m)
        return np.where(ratio < start, tail, self.p_value(ratio))

    def count_p_value(self, flagged: NDArray[np.bool_], groups: Sequence[Hashable]) -> float:
        """Chance that so many samples or more are flagged, if samples are like held-out images.

        The threshold itself is an order statistic of n images, so the flagged among G new ones are beta-binomial
        (G, rank, n + 1 - rank), exactly; a binomial test with the nominal rate would take the threshold for known and
        call too many sets copied. Samples made from the same source are not independent: each group of them counts
        once, by the share of it that is flagged.
        """
        if not self.rank:
            return 1.0
        sizes = Counter(groups)
        count = math.floor(sum(flag / sizes[group] for flag, group in zip(flagged, groups, strict=True)) + 1e-9)
        law = stats.betabinom(len(sizes), self.rank, len(self.sorted) + 1 - self.rank)
        return float(min(1.0, law.sf(count - 1)))


def evened_out(pictures: Tensor) -> Tensor:
    """Take the local mean out of pictures [N, 1, h, w] and divide by the local contrast; float32.

    What all chest radiographs share is coarse. What is left here, ribs and vessels and their exact place, belongs to
    one picture.
    """
    array = pictures.detach().float().numpy()
    array = array - array.mean((2, 3), keepdims=True)
    array /= np.maximum(array.std((2, 3), keepdims=True), MIN_DISTANCE)
    sigma = (0, 0, DETAIL * array.shape[2], DETAIL * array.shape[3])
    array -= gaussian_filter(array, sigma, mode="nearest")
    return torch.from_numpy(array / (np.sqrt(gaussian_filter(array**2, sigma, mode="nearest")) + MIN_CONTRAST))


class CopyReference:
    """What training images and held-out images of other patients say of samples.

    Args:
        num_neighbours: k of the ratio. A few, so that small groups of alike images (same device, same frame) are not
            taken for copies of each other; more than patients that one picture may be listed under.
        max_shift: px of the small pictures, in each direction; 2 of 32 px finds copies shifted by up to 6 %.
        false_flag_rate: at most this share of images of new patients is flagged on average, half of it in each space.
        significance: of the verdict, half of it for the number of flags, half for single copies.
        chunk_size: images compared at a time; changes memory, not results.
    """

    def __init__(
        self,
        num_neighbours: int = 5,
        max_shift: int = 2,
        false_flag_rate: float = 0.01,
        significance: float = 0.05,
        chunk_size: int = 256,
    ) -> None:
        if not (0 < false_flag_rate < 1 and 0 < significance < 1 and num_neighbours > 1 and max_shift >= 0):
            raise CopyDetectionError(
                f"copy detection: found false_flag_rate {false_flag_rate}, significance {significance}, num_neighbours "
                f"{num_neighbours}, max_shift {max_shift}; expected two shares in (0, 1), 2 or more, 0 or more."
            )
        self.num_neighbours, self.max_shift, self.chunk_size = num_neighbours, max_shift, chunk_size
        self.false_flag_rate, self.significance = false_flag_rate, significance
        self.held_out: dict[str, HeldOutRatios] = {}
        self.held_out_distance: dict[str, Floats] = {}
        self.leaks: list[tuple[int, int]] = []

    def fit(
        self, train: CopyFeatures, held_out: CopyFeatures, train_patients: Sequence[Hashable] | None = None
    ) -> CopyReference:
        """Take the training images, and held-out ones whose patients are not among the training patients.

        Args:
            train: N images that the generator was trained on, as they are without augmentation.
            held_out: n images it was not trained on, prepared in the same way and of the same kinds. With n below
                2 / false_flag_rate - 1 (199 for 1 %) only single copies can be found, and no set be called clean.
            train_patients: of the N; None if each is a patient of its own.

        Raises:
            CopyDetectionError: too few images, or features of different sizes.
        """
        if len(train) < 3 or not len(held_out):
            raise CopyDetectionError(
                f"copy detection: found {len(train)} training and {len(held_out)} held-out images; expected 3 and 1 or "
                "more. Give the training set, and images of patients that are not in it."
            )
        self._check_sizes(train, held_out)
        if min(train.pictures.shape[2:]) <= 2 * self.max_shift + 1:
            raise CopyDetectionError(
                f"copy detection: found pictures {tuple(train.pictures.shape[2:])} and max_shift {self.max_shift}; "
                "expected larger pictures or smaller shifts."
            )
        self._train = train
        patients = list(range(len(train)) if train_patients is None else train_patients)
        codes = {patient: code for code, patient in enumerate(dict.fromkeys(patients))}
        self._patients = torch.tensor([codes[patient] for patient in patients])
        self._keys = {space: self._key_vectors(space, train, held_out) for space in SPACES}
        found = {space: self._nearest(space, held_out, [()] * len(held_out)) for space in SPACES}
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

        Raises:
            CopyDetectionError: no samples, another size, or no training image left to compare with.
        """
        if not self.held_out:
            raise CopyDetectionError("copy detection: found no training images to compare with; call fit first.")
        if not len(samples):
            raise CopyDetectionError("copy detection: found no samples; expected one or more.")
        self._check_sizes(self._train, samples)
        own = [tuple(indices) for indices in sources] if sources is not None else [()] * len(samples)
        groups = list(range(len(samples)) if groups is None else groups)
        if len(own) != len(samples) or len(groups) != len(samples):
            raise CopyDetectionError(
                f"copy detection: found {len(samples)} samples, {len(own)} sources, {len(groups)} groups; expected as "
                "many of each."
            )
        spaces = {space: self._check_space(space, samples, own) for space in SPACES}
        limit = self.significance / 2 / (len(SPACES) * len(samples))
        is_copy = np.any([space.tail_p_value <= limit for space in spaces.values()], axis=0)
        is_flagged = np.any([space.is_flagged for space in spaces.values()], axis=0) | is_copy
        pixels = spaces["pixels"]
        copies_source = pixels.source_p_value <= self.held_out["pixels"].rank / (self._num_held_out + 1)
        comparison = {space: self._compare(space, spaces[space], groups) for space in SPACES}
        verdict = self._judge(spaces, is_flagged, is_copy, groups)
        return CopyCheck(spaces, is_flagged, is_copy, copies_source, comparison, verdict)

    # ---- distances -------------------------------------------------------------------------------------------------

    def _check_sizes(self, train: CopyFeatures, other: CopyFeatures) -> None:
        for name in ("embeddings", "pictures"):
            expected, found = (tuple(getattr(features, name).shape[1:]) for features in (train, other))
            if expected != found:
                raise CopyDetectionError(
                    f"copy detection: found {name} of size {found}; expected {expected}, as the training images have. "
                    "Prepare all images in the same way."
                )

    def _key_vectors(self, space: str, *parts: CopyFeatures) -> Tensor:
        """Unit vectors [N + n, P] of training and held-out images, unshifted."""
        return torch.cat([self._vectors(space, features, 0)[0] for features in parts])

    def _vectors(self, space: str, features: CopyFeatures, shift: int) -> Tensor:
        """Unit vectors [number of shifts, B, P]; their dot product with keys is 1 - distance."""
        if space == "embedding":
            return F.normalize(features.embeddings.detach().float(), dim=1)[None]
        pictures = evened_out(features.pictures)
        height, width = (side - 2 * self.max_shift for side in pictures.shape[2:])
        offsets = range(self.max_shift - shift, self.max_shift + shift + 1)
        windows = [pictures[..., y : y + height, x : x + width].flatten(1) for y in offsets for x in offsets]
        return torch.stack([F.normalize(w - w.mean(1, keepdim=True), dim=1) for w in windows])

    def _nearest(
        self, space: str, queries: CopyFeatures, own: Sequence[tuple[int, ...]]
    ) -> tuple[NDArray[np.integer], Floats, Floats]:
        """Index of the nearest training image, distance to it, mean distance to the k nearest patients; each [M]."""
        num_patients = int(self._patients.max()) + 1
        keys, found = self._keys[space][: len(self._train)], []
        for start in range(0, len(queries), self.chunk_size):
            chunk = self._vectors(space, queries[start : start + self.chunk_size], self.max_shift)
            similarity = chunk[0] @ keys.T
            for shifted in chunk[1:]:
                torch.maximum(similarity, shifted @ keys.T, out=similarity)
            for row, indices in enumerate(own[start : start + self.chunk_size]):
                for code in {int(self._patients[i]) for i in indices if i < len(self._train)}:
                    similarity[row, self._patients == code] = -math.inf
            by_patient = torch.full((len(similarity), num_patients), -math.inf)
            by_patient.scatter_reduce_(1, self._patients.expand_as(similarity), similarity, "amax")
            nearest = by_patient.topk(min(self.num_neighbours, num_patients), dim=1).values
            distance = (1 - nearest.double()).clamp_min(MIN_DISTANCE)  # infinite where left out
            is_there = distance.isfinite()
            typical = torch.where(is_there, distance, 0.0).sum(1) / is_there.sum(1)
            found.append((similarity.argmax(1), distance[:, 0], typical))
        columns = [torch.cat(column).numpy() for column in zip(*found, strict=True)]
        if not np.isfinite(columns[1]).all():
            raise CopyDetectionError(
                "copy detection: found a sample whose sources' patients are the whole training set; expected training "
                "images of other patients too."
            )
        return columns[0], columns[1], columns[2]

    def _source_distance(self, space: str, samples: CopyFeatures, own: Sequence[tuple[int, ...]]) -> Floats:
        """Distance [M] to the nearest own source; NaN where there is none."""
        distance = np.full(len(samples), np.nan)
        for row in (row for row, indices in enumerate(own) if indices):
            vectors = self._vectors(space, samples[row : row + 1], self.max_shift)[:, 0]
            similarity = float((vectors @ self._keys[space][list(own[row])].T).max())
            distance[row] = max(1 - similarity, MIN_DISTANCE)
        return distance

    def _check_space(self, space: str, samples: CopyFeatures, own: Sequence[tuple[int, ...]]) -> SpaceCheck:
        index, distance, typical = self._nearest(space, samples, own)
        source_distance = self._source_distance(space, samples, own)
        reference, ratio = self.held_out[space], distance / typical
        share = 1 / self.num_neighbours  # of the source in the mean, as that of the nearest image in `typical`
        source_ratio = source_distance / (share * source_distance + (1 - share) * typical)
        source_p_value = np.where(np.isnan(source_distance), np.nan, reference.p_value(source_ratio))
        p_values = reference.p_value(ratio), reference.tail_p_value(ratio)
        flags = reference.flags(ratio)
        return SpaceCheck(index, distance, ratio, *p_values, flags, source_distance, source_p_value)

    # ---- judgement -------------------------------------------------------------------------------------------------

    def _compare(self, space: str, check: SpaceCheck, groups: Sequence[Hashable]) -> dict[str, tuple[float, float]]:
        """Mann-Whitney on one sample per group: are samples nearer than held-out images?"""
        first = list({group: row for row, group in reversed(list(enumerate(groups)))}.values())
        pairs = {
            "distance": (check.distance[first], self.held_out_distance[space]),
            "ratio": (check.ratio[first], self.held_out[space].sorted),
        }
        result = {}
        for name, (sample, held_out) in pairs.items():
            test = stats.mannwhitneyu(sample, held_out, alternative="less")
            result[name] = (1 - float(test.statistic) / (len(sample) * len(held_out)), float(test.pvalue))
        return result

    def _judge(
        self,
        spaces: dict[str, SpaceCheck],
        is_flagged: NDArray[np.bool_],
        is_copy: NDArray[np.bool_],
        groups: Sequence[Hashable],
    ) -> CopyVerdict:
        total, flagged, copies = len(groups), int(is_flagged.sum()), int(is_copy.sum())
        counts = [self.held_out[name].count_p_value(space.is_flagged, groups) for name, space in spaces.items()]
        count_p = min(1.0, len(SPACES) * min(counts))
        nearest = min(float(space.tail_p_value.min()) for space in spaces.values())
        copy_p = min(1.0, len(SPACES) * total * nearest)
        n, num_groups = self._num_held_out, len(set(groups))
        expected = total * sum(self.held_out[name].rank for name in SPACES) / (n + 1)
        figures = (
            f"{flagged} of {total} samples are flagged as near-copies of a training image; among images of new "
            f"patients at most {expected:.1f} would be, on average"
        )
        chance = f"p = {count_p:.2g}" + (f", by {num_groups} groups of the same source" if num_groups < total else "")
        if copies:
            level = "copies"
            text = (
                f"Copies: {copies} of {total} samples are nearer to a training image than chance explains "
                f"(p = {copy_p:.2g} for the nearest, corrected for {total} samples). {figures}."
            )
        elif count_p <= self.significance / 2:
            level = "more_near_copies"
            text = f"More near-copies than among held-out real patients: {figures} ({chance})."
        elif not self.held_out[SPACES[0]].rank:
            level = "undecided"
            needed = math.ceil(len(SPACES) / self.false_flag_rate) - 1
            text = (
                f"Undecided: no single copy stands out, but {n} held-out images are too few to flag near-copies, "
                f"{needed} are needed."
            )
        else:
            level, text = "no_sign", f"No sign of copying: {figures} ({chance})."
        p_value = min(1.0, 2 * min(count_p, copy_p))
        return CopyVerdict(level, text, total, num_groups, flagged, copies, expected, count_p, copy_p, p_value)
