"""One radiograph to segments, by self-attention and by what it has to beat, and to the evidence for its lungs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.cluster.vq import kmeans2, whiten
from torch import Tensor
from torch.nn import functional as F

from ..errors import SettingsError
from ..networks.conditioning import pooled_patch_grid
from ..pipelines.diffusion import DinoDiffusion
from .chest_atlas import SIDE, Array, Box, ChestAtlas, Pose, Size, find_pose, resized
from .diffseg import aggregate, attention_layers, label_map, merge

WORKING_SIDE = 256  # px: the area that the networks were trained on
THRESHOLD_STEP = 1.1  # by which the threshold rises until few segments are left
DIFFSEG, KMEANS, OTSU = "diffseg", "kmeans", "otsu"
METHODS = (DIFFSEG, KMEANS, OTSU)
BINS, SMOOTH_BINS = 48, 2.0  # of the histograms of grey values, and the sd that they are smoothed with
GREY_BLUR = 1 / 170  # of the longer side: ribs and noise are finer than lungs
CORE = 0.9  # how sure the atlas is of a place whose grey value is taken for that of a lung
BETWEEN = (slice(9, 27), slice(14, 18))  # rows and columns of an atlas: the mediastinum, from the arch to the dome

Labels = NDArray[np.integer]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SegmentSettings:
    """Hyperparameters of the segments.

    Timestep and anchors are those of DiNO-Diffusion; the weight of edges was set by hand on eight children.
    """

    timestep: float = 300.0  # at which self-attention is read
    exponent: float = 9.0  # of a layer's resolution in its weight, see `aggregate`
    anchors: int = 16  # per side
    threshold: float = 0.02  # of the symmetric KL divergence, nats, where the search for it begins
    max_segments: int = 40  # the threshold rises until no more are left
    edges: float = 0.15  # weight of a pixel's grey value in the choice of its segment, beside attention
    clusters: int = 32  # of k-means
    num_noises: int = 1  # draws that self-attention is the mean of
    seed: int = 0  # of noise and k-means


@dataclass(frozen=True)
class EncodedChest:
    """The chest in an image as the networks see it."""

    image: Tensor  # [1, h, w] in [0, 1], what the box holds
    patch_tokens: Tensor  # of DINO, [N, D]
    patch_size: Size  # rows and columns of patches
    layers: list[Tensor]  # self-attention
    box: Box  # rows and columns of the image around the chest
    whole: Size  # rows and columns of all of the image
    pose: Pose  # of the lungs in the box

    @property
    def size(self) -> Size:
        """h, w."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def grid(self) -> Size:
        """Rows and columns of the places that attention is brought to: twice those of the finest layer."""
        finest = max(self.layers, key=len)
        return 2 * finest.shape[0], 2 * finest.shape[1]

    def part(self, mask: Mask) -> Mask:
        """What of a mask of the whole image lies in the box, [h, w]."""
        return at_size(mask[self.box], self.size)

    def whole_mask(self, mask: Mask) -> Mask:
        """A mask [h, w] of the box at the image's own rows and columns, nothing beyond the box."""
        whole = np.zeros(self.whole, bool)
        whole[self.box] = at_size(mask, whole[self.box].shape)
        return whole


@torch.inference_mode()
def encode_chest(pipe: DinoDiffusion, pixels: Tensor, settings: SegmentSettings, atlas: ChestAtlas) -> EncodedChest:
    """Find the chest in [1, H, W] in [0, 1], resize it to about `WORKING_SIDE`² px, encode it, and read self-attention.

    So it does not matter how the radiograph is framed, and the networks see chests as they did in training.
    """
    whole = pixels.shape[1], pixels.shape[2]
    pose = find_pose(pixels[0].numpy(), atlas)
    box = pose.frame(whole)
    chest = pixels[(slice(None), *box)]
    multiple = pipe.codec.downsampling_factor * pipe.network.downsampling_factor
    size = fitted_size(chest.shape[1], chest.shape[2], WORKING_SIDE, multiple)
    image = F.interpolate(chest[None], size=size, mode="bilinear", antialias=True, align_corners=False)
    encoder = pipe.encoder
    tokens = encoder(image.to(pipe.device))
    rows, columns = encoder.resized_size(*size)
    patches = rows // encoder.patch_size, columns // encoder.patch_size
    named = {"cls_token": tokens.cls_token, "register_tokens": tokens.register_tokens}
    context = pipe.selection.select({**named, "patch_grid": pooled_patch_grid(tokens, patches, pipe.patch_grid)})
    layers = attention_layers(pipe, image[0], settings.timestep, settings.seed, context, settings.num_noises)
    patch_tokens = tokens.patch_tokens[0].cpu()
    return EncodedChest(image[0], patch_tokens, patches, layers, box, whole, pose.seen_from(box, whole))


def fitted_size(height: int, width: int, side: int, multiple: int) -> Size:
    """Rows and columns, multiples of `multiple`, near an area of `side`² px with nearly the aspect of the image."""
    if side < multiple:
        raise SettingsError(f"side: found {side} px; expected at least {multiple}, which the networks divide by")
    scale = side / math.sqrt(height * width)
    rows, columns = (max(1, round(length * scale / multiple)) * multiple for length in (height, width))
    return rows, columns


def segments(encoded: EncodedChest, method: str, settings: SegmentSettings) -> tuple[Labels, Array]:
    """Labels [h, w] and the affinity [h·w, h·w] between places of `encoded.grid`, rows sum to 1, by one of `METHODS`.

    Segments without attention of their own are equally near to all of themselves, and not to others.
    """
    grid, size, grey = encoded.grid, encoded.size, encoded.image[0].numpy()
    if method == DIFFSEG:
        maps = aggregate(encoded.layers, grid, settings.exponent)
        threshold = settings.threshold
        while len(proposals := merge(maps, settings.anchors, threshold)) > settings.max_segments:
            threshold *= THRESHOLD_STEP
        labels = label_map(proposals, size, encoded.image[0], settings.edges).numpy()
        return labels, maps.reshape(grid[0] * grid[1], -1).numpy()
    if method == KMEANS:
        labels = kmeans_labels(encoded.patch_tokens, encoded.patch_size, size, settings.clusters, settings.seed)
    else:
        labels = (grey < otsu_threshold(grey)).astype(np.int64)
    return labels, membership_affinity(labels, grid)


@dataclass(frozen=True)
class Evidence:
    """What one segmentation of one chest offers to the choice."""

    components: Labels  # connected parts of segments, numbered from 0, [H, W]
    lung: Array  # how likely each place is lung by the atlas alone, [H, W]
    spread: Array  # the same as self-attention spreads it, standardised, [H, W]
    appearance: Array  # log-likelihood ratio of the grey values, [H, W]
    air: Array  # above 0 where the grey value is nearer to that of air than to that of the heart, [H, W]


def gather(encoded: EncodedChest, labels: Labels, affinity: Array, atlas: ChestAtlas) -> Evidence:
    """Collect the evidence from segments and the affinity between places of the grid, see `segments`."""
    image, size, grid, pose = encoded.image[0].numpy(), encoded.size, encoded.grid, encoded.pose
    lung = np.clip(pose.laid(atlas.lung, size), 0, 1)
    shown = pose.laid(np.ones((SIDE, SIDE)), size) > 0.5
    grey = ndimage.gaussian_filter(image, GREY_BLUR * max(size))
    looked_at = affinity @ (affinity @ resized(lung, grid).ravel())  # what a place looks at, and what that looks at
    looked_at = (looked_at - looked_at.mean()) / max(float(looked_at.std()), 1e-6)
    spread = resized(looked_at.reshape(grid), size)
    return Evidence(connected_parts(labels), lung, spread, likelihood_ratio(grey, lung, shown), _air(grey, lung, pose))


def connected_parts(labels: Labels) -> Labels:
    """Number the connected parts of all segments from 0 on, [H, W]."""
    parts = np.zeros(labels.shape, np.int64)
    total = 0
    for label in np.unique(labels):
        numbered, count = ndimage.label(labels == label)
        parts += np.where(numbered > 0, numbered + total, 0)
        total += count
    return parts - 1


def likelihood_ratio(grey: Array, lung: Array, shown: Mask) -> Array:
    """How much likelier each grey value [H, W] is in lungs than beside them, as a logarithm.

    Both histograms are of this image, each pixel counted as lung as far as `lung` [H, W] in [0, 1] says so, over what
    is `shown` [H, W] of the chest.
    """
    if not shown.any():
        return np.zeros(grey.shape)
    edges = np.linspace(grey[shown].min(), grey[shown].max() + 1e-6, BINS + 1)
    places = np.clip(np.digitize(grey, edges) - 1, 0, BINS - 1)
    densities = []
    for weights in (lung, 1 - lung):
        counts = np.bincount(places[shown], weights=weights[shown], minlength=BINS)
        counts = ndimage.gaussian_filter1d(counts, SMOOTH_BINS)
        densities.append(counts / max(float(counts.sum()), 1e-6) + 0.1 / BINS)
    return np.log(densities[0] / densities[1])[places]


def _air(grey: Array, lung: Array, pose: Pose) -> Array:
    """Midway between the medians of the lungs' core and of the mediastinum, less the grey value, [H, W].

    1 everywhere, which excludes nothing, without either of them or where the mediastinum is not the brighter one.
    """
    strip = np.zeros((SIDE, SIDE))
    strip[BETWEEN] = 1
    parts = lung > CORE, pose.laid(strip, (grey.shape[0], grey.shape[1])) > 0.5
    core, between = (np.median(grey[part]) if part.any() else np.nan for part in parts)
    return (core + between) / 2 - grey if between > core else np.ones(grey.shape)


def at_size(mask: NDArray, size: tuple[int, ...]) -> Mask:
    """A mask [h, w] at the image's own rows and columns [H, W], its outline interpolated."""
    return resized(mask.astype(np.float32), size, antialias=False) > 0.5


# ---- what self-attention has to beat: clusters of DINO patch tokens, and a threshold on grey values ------------------


def kmeans_labels(patch_tokens: Tensor, grid: Size, size: Size, clusters: int, seed: int) -> NDArray[np.int64]:
    """K-means (k-means++ start) on standardised patch tokens, clusters enlarged bilinearly: labels [H, W] of `size`.

    Patch tokens are [N, D], row by row of a grid of N patches.
    """
    tokens = whiten(patch_tokens.double().numpy())
    _, nearest = kmeans2(tokens, clusters, iter=50, minit="++", seed=np.random.default_rng(seed))
    membership = F.one_hot(torch.from_numpy(nearest).long(), clusters).float().T.reshape(1, clusters, *grid)
    return F.interpolate(membership, size=size, mode="bilinear", align_corners=False)[0].argmax(0).numpy()


def otsu_threshold(image: Array, bins: int = 256) -> float:
    """The grey value that splits the histogram with the largest between-class variance (Otsu 1979)."""
    counts, edges = np.histogram(image, bins=bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    moment = np.cumsum(counts * centres)
    difference = moment[:-1] / np.maximum(below, 1) - (moment[-1] - moment[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * difference**2)])


def otsu_lungs(image: Array) -> Mask:
    """What needs neither model nor mask: of an image [H, W] the two largest dark parts that leave its border free."""
    numbered, _ = ndimage.label(image < otsu_threshold(image))
    areas = np.bincount(numbered.ravel())
    areas[[0, *numbered[[0, -1]].ravel(), *numbered[:, [0, -1]].ravel()]] = 0
    kept = [part for part in np.argsort(areas)[-2:] if areas[part]]
    return ndimage.binary_fill_holes(np.isin(numbered, kept))


def membership_affinity(labels: Labels, grid: Size) -> NDArray[np.float32]:
    """An affinity [h·w, h·w] on a grid for segments [H, W] without one: equal within one, 0 beyond; rows sum to 1."""
    rows, columns = ((np.arange(n) * 2 + 1) * length // (2 * n) for n, length in zip(grid, labels.shape, strict=True))
    flat = labels[rows][:, columns].ravel()
    same = (flat[:, None] == flat[None]).astype(np.float32)
    return same / same.sum(1, keepdims=True)
