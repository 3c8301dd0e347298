"""Find radiographs that are the same picture, under whatever name, patient or source.

Two steps, because neither is enough. Perceptual hashes of all pictures and of zoomed views of them, and the embeddings
of an encoder if there are any, say cheaply which pairs to look at; the correlation of fine detail, after aligning,
decides. Chest radiographs resemble each other, so hash or embedding alone calls different patients the same.

Found: pictures that were stored again, resized, changed in contrast or polarity, cropped or framed by up to 5 % on each
side (more where the crop is central, or with embeddings), squashed. Not looked for: turned, mirrored, small parts.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from ..errors import DatasetError
from ..io import read_radiograph
from ..progress import ProgressBar
from .alignment import aligned_correlation, zoomed

logger = logging.getLogger(__name__)

SIDE = 64  # px of the pictures that are compared
HASH_SIDE = 12  # the hash is the signs of the lowest 12 × 12 cosines without the first: 143 bits
MAX_HASH_DISTANCE = 36  # bits; so near are all planted copies but larger crops, and 0.2 % of other chest films
# Shares of height and width around the centre that are hashed: what a crop or a frame leaves, or a square crop
VIEWS = ((1.0, 1.0), (0.9, 0.9), (0.8, 0.8), (1.0, 0.85), (1.0, 0.7), (0.85, 1.0), (0.7, 1.0))
NUM_NEIGHBOURS = 20  # pairs looked at per picture, so that their number grows as that of the pictures
NUM_EMBEDDING_NEIGHBOURS = 5
MAX_IMAGES = 100_000
SAME_PICTURE = 0.89  # least correlation of the same picture; see `find_duplicates`
ALIKE = 0.78  # from here on a look is worth while: one person, radiographed twice in one position
_FIRST_LOOK = (32, 1 / 16, 4, 0.8)  # px, detail, iterations, least correlation to go on with
_DETAIL, _ITERATIONS = 1 / 32, 8  # of the look that decides
_BLOCK = 512  # rows or pairs at a time; changes memory, not results

IDENTICAL, COPY, INVERTED, SIMILAR = "identical", "copy", "inverted copy", "alike"
Integers = NDArray[np.integer]


class Pair(NamedTuple):
    """Two images, by index, that are, or may be, the same picture."""

    first: int
    second: int
    kind: str  # "identical" (equal pixels), "copy", "inverted copy", or "alike", which is below the threshold
    hash_distance: int  # bits that differ, the least over views; half of them do by chance
    correlation: float  # of fine detail after aligning, up to 1


class Duplicates(NamedTuple):
    """Pairs among N images, highest correlation first."""

    pairs: list[Pair]
    num_images: int

    def groups(self, with_alike: bool = False) -> list[list[int]]:
        """Indices of images that are one picture, in groups of two or more; alike ones count if asked for."""
        same = [(pair.first, pair.second) for pair in self.pairs if with_alike or pair.kind != SIMILAR]
        return linked_groups(self.num_images, same)


def linked_groups(count: int, links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Groups of two or more of the numbers below `count` that links join, directly or through others."""
    ends = np.array(links, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [group.tolist() for group in groups if len(group) > 1]


def find_duplicates(items: Sequence[Mapping[str, Any]], embeddings: NDArray[np.floating] | None = None) -> Duplicates:
    """Compare all images with each other.

    Thresholds were chosen on 4,944 chest and 705 dental radiographs. Planted copies of 450 of them (JPEG of quality 30,
    half the size, gamma 0.6 and 1.5, clipped contrast, inverted, cropped, framed, squashed) correlate by 0.87 to 1.00,
    99.3 % or more of each kind by 0.89; copies that two sources published with other tone curves or aspect ratios by
    0.91 to 0.97. Other pairs reach 0.84; all seven above 0.78 show one person twice, two of them under two names.

    Hashes are compared all with all in blocks, which is quick but grows with the square of their number; pixels only
    of each image's nearest. On one core 5,000 images of 256 px take 45 s, reading included.

    Args:
        items: dicts with "image", the path; readable ones, such as `readable_radiographs` gives.
        embeddings: [N, D] of the same images, such as DINO's cls tokens; each image's nearest are then looked at,
            too. Of crops by up to 10 % a side that finds 98 %, hashes alone 85 %. They decide nothing: other patients
            reach a cosine of 0.99.

    Raises:
        DatasetError: no images, too many, or another number of embeddings.
        UnreadableRadiographError: an image cannot be read.
    """
    if not 0 < len(items) <= MAX_IMAGES:
        raise DatasetError(
            f"duplicates: found {len(items)} images, expected 1 to {MAX_IMAGES}: hashes are compared all with all; "
            "look at one source at a time"
        )
    if embeddings is not None and len(embeddings) != len(items):
        raise DatasetError(f"duplicates: found {len(embeddings)} embeddings of {len(items)} images; give one for each")

    def read(item: Mapping[str, Any]) -> tuple[NDArray[np.float16], bytes]:
        pixels = read_radiograph(item["image"]).pixels
        digest = hashlib.blake2b(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes(), digest_size=16)
        return small_picture(pixels), digest.digest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pictures, digests = zip(*ProgressBar(pool.map(read, items), total=len(items), desc="reading"), strict=True)
    first_of: dict[bytes, int] = {}
    first = [first_of.setdefault(digest, index) for index, digest in enumerate(digests)]
    pairs = [Pair(one, index, IDENTICAL, 0, 1.0) for index, one in enumerate(first) if one != index]
    distinct = np.array(list(first_of.values()))
    different = np.stack([pictures[index] for index in distinct])
    hashes = perceptual_hashes(different)
    links = nearest_pairs(hashes, NUM_NEIGHBOURS, 1 - 2 * MAX_HASH_DISTANCE / hashes.shape[2])
    if embeddings is not None:
        spread = embeddings[distinct] - embeddings[distinct].mean(0)
        spread /= np.maximum(embeddings[distinct].std(0), 1e-6)
        unit = (spread / np.maximum(np.linalg.norm(spread, axis=1, keepdims=True), 1e-6)).astype(np.float32)
        near = nearest_pairs(unit[:, None], NUM_EMBEDDING_NEIGHBOURS, -1.0)
        links = np.unique(np.concatenate([links, near]), axis=0)
    for pair in _compared(different, hashes, links):
        pairs.append(pair._replace(first=int(distinct[pair.first]), second=int(distinct[pair.second])))
    return Duplicates(sorted(pairs, key=lambda pair: (-pair.correlation, pair.first, pair.second)), len(items))


def small_picture(pixels: Tensor) -> NDArray[np.float16]:
    """Image [1, H, W] -> [64, 64], means over areas with mean 0 and sd 1; the aspect ratio is lost."""
    picture = F.adaptive_avg_pool2d(pixels.float(), SIDE)[0]
    return ((picture - picture.mean()) / picture.std().clamp_min(1e-6)).numpy().astype(np.float16)


def perceptual_hashes(pictures: NDArray[np.float16]) -> NDArray[np.int8]:
    """Hashes [N, views, 143] of pictures [N, 64, 64], as -1 and 1: an inverted picture has the inverted hash."""
    hashes = []
    for start in ProgressBar(range(0, len(pictures), _BLOCK), desc="hashing"):
        block = torch.from_numpy(pictures[start : start + _BLOCK].astype(np.float32))[:, None]
        views = [zoomed(block, torch.tensor([[*view, 0, 0]]).expand(len(block), 4))[:, 0].numpy() for view in VIEWS]
        cosines = dctn(np.stack(views, 1), axes=(2, 3))[..., :HASH_SIDE, :HASH_SIDE]
        hashes.append(np.where(cosines.reshape(len(block), len(VIEWS), -1)[..., 1:] > 0, 1, -1).astype(np.int8))
    return np.concatenate(hashes)


def nearest_pairs(views: NDArray[Any], num_neighbours: int, least: float) -> Integers:
    """Pairs [P, 2], lower index first, of which one is among the `num_neighbours` nearest of the other.

    Compared are, of views [N, V, D] of -1 and 1, all of one with the first of the other, by the mean of products, whose
    sign does not count; a pair has a similarity of at least `least`, in [-1, 1].
    """
    num_neighbours = min(num_neighbours, len(views) - 1)
    keys = views[:, 0].astype(np.float32).T * (1 / views.shape[2])
    pairs = [np.empty((0, 2), dtype=int)]
    for start in range(0, len(views) if num_neighbours else 0, _BLOCK):
        block = views[start : start + _BLOCK].astype(np.float32)
        similarity = np.max([np.abs(view @ keys) for view in block.transpose(1, 0, 2)], axis=0)
        rows = np.arange(len(block))[:, None]
        similarity[rows[:, 0], rows[:, 0] + start] = -2  # itself
        nearest = np.argpartition(-similarity, num_neighbours - 1, axis=1)[:, :num_neighbours]
        row, column = np.nonzero(similarity[rows, nearest] >= least)
        pairs.append(np.stack([row + start, nearest[row, column]], axis=1))
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def _starts(hashes: NDArray[np.int8], pairs: Integers) -> tuple[Integers, Tensor, Integers, Integers]:
    """The most similar views of each pair: (target, picture) [P, 2], box in the picture, sign, hash distance."""
    ends = hashes[pairs].astype(np.float32)  # [P, 2, V, D]
    products = np.stack([(ends[:, 1] @ ends[:, 0, 0, :, None])[..., 0], (ends[:, 0] @ ends[:, 1, 0, :, None])[..., 0]])
    products = products.transpose(1, 0, 2).reshape(len(pairs), -1)  # [P, 2 V]: views of the second, then of the first
    best = np.abs(products).argmax(1)
    product = products[np.arange(len(pairs)), best]
    ordered = np.where((best < len(VIEWS))[:, None], pairs, pairs[:, ::-1])
    boxes = torch.tensor(VIEWS)[torch.from_numpy(best % len(VIEWS))]
    boxes = torch.cat([boxes, torch.zeros_like(boxes)], dim=1)
    distance = (hashes.shape[2] - np.abs(product)) / 2
    return ordered, boxes, np.where(product < 0, -1, 1), distance.round().astype(int)


def _compared(pictures: NDArray[np.float16], hashes: NDArray[np.int8], pairs: Integers) -> Iterator[Pair]:
    """Those of the pairs that are at least alike, by a coarse look and, where that is promising, a fine one."""
    size, detail, num_iterations, go_on = _FIRST_LOOK
    for start in ProgressBar(range(0, len(pairs), _BLOCK), desc="comparing"):
        ordered, boxes, sign, distance = _starts(hashes, pairs[start : start + _BLOCK])
        both = torch.from_numpy(pictures[ordered].astype(np.float32))
        both[:, 1] *= torch.from_numpy(sign)[:, None, None]
        small = F.adaptive_avg_pool2d(both, size)
        correlation, boxes = aligned_correlation(small[:, :1], small[:, 1:], boxes, detail, num_iterations)
        kept = (correlation >= go_on).nonzero()[:, 0]
        if not len(kept):
            continue
        correlation, _ = aligned_correlation(both[kept, :1], both[kept, 1:], boxes[kept], _DETAIL, _ITERATIONS)
        for row, value in zip(kept.tolist(), correlation.tolist(), strict=True):
            if value >= ALIKE:
                kind = SIMILAR if value < SAME_PICTURE else COPY if sign[row] > 0 else INVERTED
                first, second = sorted(ordered[row].tolist())
                yield Pair(first, second, kind, int(distance[row]), min(value, 1.0))
