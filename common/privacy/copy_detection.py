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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .copy_verdict import CopyVerdict, judge
from .held_out_ratios import Floats, HeldOutRatios

SPACES = ("embedding", "pixels")
MIN_DISTANCE = 1e-6  # of cosine or correlation; float32 cannot tell less from 0
DETAIL = 1 / 16  # of the side: sd of the Gaussian that local mean and contrast are taken with
MIN_CONTRAST = 0.1  # of a picture's sd, added to the local one: flat parts stay flat
LEAK_P_VALUE = 0.01  # of any held-out image being taken for a copy of a training image by mistake


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
        verdict = judge(self.held_out, spaces, is_flagged, is_copy, groups, self.false_flag_rate, self.significance)
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
