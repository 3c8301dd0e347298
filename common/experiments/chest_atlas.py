"""Where the chest is in a radiograph, however it is framed: a mean chest laid over it, with no mask of this image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import OptimizeResult, minimize
from torch.nn import functional as F

SIDE, COARSE_SIDE = 32, 16  # px of the atlas, and of what the first search compares
MARGIN = 0.15  # of the lungs' extent: what the atlas shows around them
WORKING_SIDE = 128  # px: the root of the area that an image is reduced to
DETAIL = 1 / 6  # of the working side, sd of the Gaussian that brightness and contrast are evened out with
BLACK, WHITE, BLANK_SHARE = 0.06, 0.96, 0.9  # a line of which so much is black or white belongs to a border
MIN_CONTENT = 0.25  # of the rows, and of the columns, that a border has to leave
HEIGHTS, ASPECTS = (0.45, 0.52, 0.6, 0.68, 0.78, 0.9, 1.0), (1.0, 1.2, 1.4)  # the first search, shares of the rows
TRIED_STEPS, NUM_KEPT, STEPS = 50, 2, 150  # of the second search: from each height of the first, from the best, these
MIN_OVERLAP = 0.45  # of the atlas that has to lie in the image
DEVIATION = 0.02  # weight of a pose's squared distance from the usual one, beside a correlation
OUTSIDE = 0.5  # weight of the share of the lungs' extent that lies outside the image
SIMPLEX = (0.05, 0.04, 0.08, 0.08, 0.05)  # of the second search: first steps in the units of a pose

Array = NDArray[np.floating]
Size = tuple[int, int]
Box = tuple[slice, slice]


@dataclass(frozen=True)
class Pose:
    """Where both lungs lie: the box around them, turned about its centre."""

    row: float  # centre, in image heights and widths
    column: float
    height: float  # extent, in image heights and widths
    width: float
    angle: float = 0.0  # radians, clockwise

    def deviation(self, size: Size) -> float:
        """Squared distance from where lungs usually lie in an image of so many rows and columns without its border."""
        aspect = self.width * size[1] / (self.height * size[0])
        place = ((self.row - 0.48) / 0.12) ** 2 + ((self.column - 0.5) / 0.08) ** 2 + (self.angle / 0.06) ** 2
        return place + (math.log(aspect / 1.22) / 0.15) ** 2 + (math.log(self.height / 0.72) / 0.3) ** 2

    def share_outside(self) -> float:
        """How much of the extent lies beyond the image, rows and columns added."""
        parts = ((self.row, self.height), (self.column, self.width))
        return sum((max(0.0, s / 2 - c) + max(0.0, c + s / 2 - 1)) / s for c, s in parts)

    def within(self, box: Box, size: Size) -> Pose:
        """The same place where this image is but the box of one of `size`."""
        starts, parts = _start_and_part(box, size)
        row, column, height, width = [*starts + parts * (self.row, self.column), *parts * (self.height, self.width)]
        return Pose(row, column, height, width, self.angle)

    def seen_from(self, box: Box, size: Size) -> Pose:
        """The same place in the box of this image, the way back of `within`."""
        starts, parts = _start_and_part(box, size)
        row, column, height, width = [*((self.row, self.column) - starts) / parts, *(self.height, self.width) / parts]
        return Pose(row, column, height, width, self.angle)

    def frame(self, size: Size, margin: float = MARGIN) -> Box:
        """Rows and columns of an image of `size` that hold the extent and a margin around it."""
        parts = zip((self.row, self.column), (self.height, self.width), size, strict=True)
        reach = [(c - s * (0.5 + margin), c + s * (0.5 + margin), length) for c, s, length in parts]
        rows, columns = (slice(max(0, round(a * n)), min(n, round(b * n))) for a, b, n in reach)
        return rows, columns

    def places(self, size: Size) -> Array:
        """Rows and columns [2, SIDE, SIDE] in pixels of an image of `size` that the pixels of an atlas lie on."""
        steps = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) * (1 + 2 * MARGIN)
        down, across = np.meshgrid(steps * self.height * size[0], steps * self.width * size[1], indexing="ij")
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        rows, columns = cos * down + sin * across, cos * across - sin * down
        return np.stack([self.row * size[0] + rows, self.column * size[1] + columns]) - 0.5

    def laid(self, atlas: Array, size: Size) -> Array:
        """An atlas [SIDE, SIDE] laid over an image of `size`, 0 around it: the way back of `places`."""
        down, across = np.meshgrid(
            *(np.arange(n) + 0.5 - c * n for n, c in zip(size, (self.row, self.column), strict=True)), indexing="ij"
        )
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        rows = (cos * down - sin * across) / (self.height * size[0])
        columns = (sin * down + cos * across) / (self.width * size[1])
        places = [(part / (1 + 2 * MARGIN) + 0.5) * SIDE - 0.5 for part in (rows, columns)]
        return ndimage.map_coordinates(np.asarray(atlas, np.float64), places, order=1)


@dataclass(frozen=True)
class ChestAtlas:
    """The mean of chests that were brought to one pose, symmetric, as rows of hexadecimal bytes."""

    picture: tuple[str, ...]  # evened out, in sixteenths of its sd, 128 its mean
    lungs: tuple[str, ...]  # how often each place is lung, 255 always

    @cached_property
    def chest(self) -> Array:
        """[SIDE, SIDE], standardised."""
        return (_from_hex(self.picture) - 128) / 16

    @cached_property
    def lung(self) -> Array:
        """[SIDE, SIDE] in [0, 1]."""
        return _from_hex(self.lungs) / 255


def make_atlas(
    images: Sequence[Array], masks: Sequence[NDArray[np.bool_]], counted: Sequence[bool] | None = None
) -> ChestAtlas:
    """The atlas of images [H, W] in [0, 1] and their lungs [H, W]; some ten make it smooth.

    All masks say how their images lie; what is lung is the mean of those that are `counted`, by default all.
    """
    chests, lungs = [], []
    for image, mask, counts in zip(images, masks, counted or [True] * len(masks), strict=True):
        pose, picture = pose_of_mask(mask), evened(image)
        chests.append(ndimage.map_coordinates(picture, pose.places(_size(picture)), order=1, mode="nearest"))
        if counts:
            lungs.append(ndimage.map_coordinates(mask.astype(np.float64), pose.places(_size(mask)), order=1))
    chest, lung = (np.mean(found, axis=0) for found in (chests, lungs))
    chest, lung = ((part + part[:, ::-1]) / 2 for part in (chest, lung))
    chest = 128 + 16 * (chest - chest.mean()) / max(float(chest.std()), 1e-6)
    return ChestAtlas(_to_hex(chest), _to_hex(255 * lung))


def pose_of_mask(mask: NDArray[np.bool_]) -> Pose:
    """Where the lungs of a mask [H, W] lie, unturned; ValueError where it is empty."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        raise ValueError("pose_of_mask: found no pixel of lung; expected some")
    return Pose(0.5, 0.5, 1.0, 1.0).within(found[0], _size(mask))


def find_pose(image: Array, atlas: ChestAtlas) -> Pose:
    """Where the lungs of an image [H, W] in [0, 1] lie: the pose in which it is most like the atlas.

    Black and white borders are left out, brightness and contrast evened out; then a search over place, height and
    aspect on a grid, and one over all of a pose from the best of each height. What is maximised is the correlation of
    the picture with the atlas, less a little for unusual poses, which only decides what correlation leaves open.
    """
    box = content_box(image)
    picture = evened(image[box])

    def loss(values: Array) -> float:
        pose = Pose(*values)
        if min(pose.height, pose.width) < min(HEIGHTS) / 2:
            return 1.0
        places = pose.places(_size(picture))
        inside = _inside(places, _size(picture))
        if inside.mean() < MIN_OVERLAP:
            return 1.0
        found = ndimage.map_coordinates(picture, places, order=1, mode="nearest")
        return _cost(pose, _size(picture)) - float(np.corrcoef(found[inside], atlas.chest[inside])[0, 1])

    def searched(start: Array, num_steps: int) -> OptimizeResult:
        simplex = np.vstack([start, start + np.diag(SIMPLEX)])
        options = {"initial_simplex": simplex, "maxiter": num_steps, "xatol": 1e-3, "fatol": 1e-4}
        return minimize(loss, start, method="Nelder-Mead", options=options)

    tried = [searched(np.array(astuple(pose)), TRIED_STEPS) for pose in _first_poses(picture, atlas)]
    tried.sort(key=lambda each: float(each.fun))
    best = min((searched(each.x, STEPS) for each in tried[:NUM_KEPT]), key=lambda each: float(each.fun)).x
    return Pose(*(float(value) for value in best)).within(box, _size(image))


def content_box(image: Array) -> Box:
    """Rows and columns of an image [H, W] in [0, 1] without black or white borders."""
    rows = _lit(image, 1)
    return rows, _lit(image[rows], 0)


def evened(image: Array) -> NDArray[np.float32]:
    """An image [H, W] at about `WORKING_SIDE`² px with brightness and contrast evened out, but not what is flat."""
    scale = WORKING_SIDE / math.sqrt(image.size)
    small = resized(image, (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))))
    small = small - ndimage.gaussian_filter(small, DETAIL * WORKING_SIDE, mode="nearest")
    spread = np.sqrt(ndimage.gaussian_filter(small**2, DETAIL * WORKING_SIDE, mode="nearest"))
    return (small / (spread + 0.3 * small.std() + 1e-3)).astype(np.float32)


def _first_poses(picture: NDArray[np.float32], atlas: ChestAtlas) -> list[Pose]:
    """The best on a grid for each height: one normalised cross-correlation for each height and aspect."""
    size, side = _size(picture), COARSE_SIDE
    template = torch.from_numpy(resized(atlas.chest, (side, side)))[None, None]
    tensor = torch.from_numpy(picture)[None, None]
    best: dict[float, tuple[float, Pose]] = {}
    for height, aspect in itertools.product(HEIGHTS, ASPECTS):
        width = height * aspect * size[0] / size[1]
        lengths = [max(1, round(side / (extent * (1 + 2 * MARGIN)))) for extent in (height, width)]
        small = F.interpolate(tensor, size=lengths, mode="bilinear", antialias=True)
        small, inside = (F.pad(part, (side // 2,) * 4) for part in (small, torch.ones_like(small)))
        scores = _correlation(small, inside, template)[0, 0].numpy()
        places = itertools.product(*(np.arange(n) / length for n, length in zip(scores.shape, lengths, strict=True)))
        poses = [Pose(row, column, height, width) for row, column in places]
        scores = scores.ravel() - [_cost(pose, size) for pose in poses]
        if height not in best or scores.max() > best[height][0]:
            best[height] = float(scores.max()), poses[int(scores.argmax())]
    return [pose for _, pose in best.values()]


def _correlation(picture: torch.Tensor, inside: torch.Tensor, template: torch.Tensor) -> torch.Tensor:
    """Of a template with each part of a picture, 0 outside, over what is inside; -1 where that is too little."""
    ones = torch.ones_like(template)
    count = F.conv2d(inside, ones).clamp_min(1)
    means = F.conv2d(inside, template) / count, F.conv2d(picture, ones) / count
    squares = F.conv2d(inside, template**2) / count, F.conv2d(picture**2, ones) / count
    spread = [(square - mean**2).clamp_min(1e-4).sqrt() for square, mean in zip(squares, means, strict=True)]
    found = (F.conv2d(picture, template) / count - means[0] * means[1]) / (spread[0] * spread[1])
    return found.masked_fill(count < MIN_OVERLAP * ones.numel(), -1.0)


def _cost(pose: Pose, size: Size) -> float:
    return DEVIATION * pose.deviation(size) + OUTSIDE * pose.share_outside()


def _inside(places: Array, size: Size) -> NDArray[np.bool_]:
    limits = np.reshape(size, (2, 1, 1)) - 0.5
    return np.logical_and.reduce((places > -0.5) & (places < limits))


def _lit(image: Array, axis: int) -> slice:
    blank = np.maximum((image < BLACK).mean(axis), (image > WHITE).mean(axis)) > BLANK_SHARE
    lit = np.nonzero(~blank)[0]
    if not len(lit) or lit[-1] + 1 - lit[0] < MIN_CONTENT * len(blank):
        return slice(0, len(blank))
    return slice(int(lit[0]), int(lit[-1]) + 1)


def _start_and_part(box: Box, size: Size) -> tuple[Array, Array]:
    """Of rows and columns where a box begins and how much of the image it takes, as shares of the image."""
    ends = np.array([(part.start, part.stop) for part in box]) / np.reshape(size, (2, 1))
    return ends[:, 0], ends[:, 1] - ends[:, 0]


def _size(array: NDArray) -> Size:
    return array.shape[0], array.shape[1]


def resized(values: Array, size: tuple[int, ...], antialias: bool = True) -> NDArray[np.float32]:
    """[h, w] to [H, W], bilinear, by default antialiased where it gets smaller."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    if values.shape == tuple(size):
        return tensor[0, 0].numpy()
    return F.interpolate(tensor, size=tuple(size), mode="bilinear", antialias=antialias)[0, 0].numpy()


def _to_hex(values: Array) -> tuple[str, ...]:
    return tuple(bytes(row).hex() for row in values.round().clip(0, 255).astype(np.uint8))


def _from_hex(rows: Sequence[str]) -> Array:
    return np.stack([np.frombuffer(bytes.fromhex(row), np.uint8) for row in rows]).astype(np.float64)
