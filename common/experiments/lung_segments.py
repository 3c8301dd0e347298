"""One radiograph to segments, by self-attention and by what it has to beat, and to the evidence for its lungs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
from .chest_atlas import Box, ChestAtlas, Pose, Size, find_pose, resized
from .diffseg import aggregate, attention_layers, label_map, merge
from .lung_choice import Evidence, gather

WORKING_SIDE = 256  # px: the area that the networks were trained on
THRESHOLD_STEP = 1.1  # by which the threshold rises until few segments are left
DIFFSEG, KMEANS, OTSU = "diffseg", "kmeans", "otsu"
METHODS = (DIFFSEG, KMEANS, OTSU)


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

    def part(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What of a mask of the whole image lies in the box, [h, w]."""
        return at_size(mask[self.box], self.size)

    def whole_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
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
    named["patch_grid"] = pooled_patch_grid(tokens, patches, pipe.patch_grid)
    context = pipe.selection.select(named)
    layers = attention_layers(pipe, image[0], settings.timestep, settings.seed, context, settings.num_noises)
    pose = pose.seen_from(box, whole)
    return EncodedChest(image[0], tokens.patch_tokens[0].cpu(), patches, layers, box, whole, pose)


def fitted_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """Rows and columns near an area of `side`² px with nearly the aspect ratio of the image, multiples of `multiple`.

    Raises:
        SettingsError: `side` is smaller than `multiple`.
    """
    if side < multiple:
        raise SettingsError(f"side: found {side} px; expected at least {multiple}, which the networks divide by")
    scale = side / math.sqrt(height * width)
    rows, columns = (max(1, round(length * scale / multiple)) * multiple for length in (height, width))
    return rows, columns


def segments(
    encoded: EncodedChest, method: str, settings: SegmentSettings
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels [h, w] and the affinity between places of `encoded.grid`, by one of `METHODS`."""
    grid = encoded.grid
    if method == DIFFSEG:
        maps = aggregate(encoded.layers, grid, settings.exponent)
        threshold = settings.threshold
        while len(proposals := merge(maps, settings.anchors, threshold)) > settings.max_segments:
            threshold *= THRESHOLD_STEP
        labels = label_map(proposals, encoded.size, encoded.image[0], settings.edges).numpy()
        return labels, maps.reshape(grid[0] * grid[1], -1).numpy()
    if method == KMEANS:
        labels = kmeans_labels(encoded.patch_tokens, encoded.patch_size, encoded.size, settings.clusters, settings.seed)
    else:
        grey = encoded.image[0].numpy()
        labels = (grey < otsu_threshold(grey)).astype(np.int64)
    return labels, membership_affinity(labels, grid)


def evidence(
    encoded: EncodedChest, method: str, settings: SegmentSettings, atlas: ChestAtlas
) -> tuple[Evidence, NDArray[np.int64]]:
    """What the choice of lungs needs, and the segments."""
    labels, affinity = segments(encoded, method, settings)
    return gather(encoded.image[0].numpy(), labels, affinity, encoded.grid, atlas, encoded.pose), labels


def at_size(mask: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask [h, w] at the image's own rows and columns [H, W], its outline interpolated."""
    return resized(mask.astype(np.float32), size, antialias=False) > 0.5


# ---- what self-attention has to beat: clusters of DINO patch tokens, and a threshold on grey values ------------------


def kmeans_labels(
    patch_tokens: Tensor, grid: tuple[int, int], size: tuple[int, int], clusters: int, seed: int
) -> NDArray[np.int64]:
    """K-means (k-means++ start) on standardised patch tokens, clusters enlarged bilinearly: labels [H, W] of `size`.

    Patch tokens are [N, D], row by row of a grid of N patches.
    """
    tokens = whiten(patch_tokens.double().numpy())
    _, nearest = kmeans2(tokens, clusters, iter=50, minit="++", seed=np.random.default_rng(seed))
    membership = F.one_hot(torch.from_numpy(nearest).long(), clusters).float().T.reshape(1, clusters, *grid)
    return F.interpolate(membership, size=size, mode="bilinear", align_corners=False)[0].argmax(0).numpy()


def otsu_threshold(image: NDArray[np.floating], bins: int = 256) -> float:
    """The grey value that splits the histogram with the largest between-class variance (Otsu 1979)."""
    counts, edges = np.histogram(image, bins=bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    moment = np.cumsum(counts * centres)
    difference = moment[:-1] / np.maximum(below, 1) - (moment[-1] - moment[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * difference**2)])


def otsu_lungs(image: NDArray[np.floating]) -> NDArray[np.bool_]:
    """What needs neither model nor mask: of an image [H, W] the two largest dark parts that leave its border free."""
    numbered, _ = ndimage.label(image < otsu_threshold(image))
    areas = np.bincount(numbered.ravel())
    areas[[0, *numbered[[0, -1]].ravel(), *numbered[:, [0, -1]].ravel()]] = 0
    kept = [part for part in np.argsort(areas)[-2:] if areas[part]]
    return ndimage.binary_fill_holes(np.isin(numbered, kept))


def membership_affinity(labels: NDArray[np.integer], grid: tuple[int, int]) -> NDArray[np.float32]:
    """An affinity [h·w, h·w] for segments [H, W] that have none of their own: equal within a segment, 0 beyond.

    Each row sums to 1; h, w is the grid.
    """
    rows, columns = ((np.arange(n) * 2 + 1) * length // (2 * n) for n, length in zip(grid, labels.shape, strict=True))
    flat = labels[rows][:, columns].ravel()
    same = (flat[:, None] == flat[None]).astype(np.float32)
    return same / same.sum(1, keepdims=True)
