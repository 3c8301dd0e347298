"""One radiograph to segments, by self-attention and by what it has to beat, and to the evidence for its lungs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2, whiten
from torch import Tensor
from torch.nn import functional as F

from ..errors import SettingsError
from ..networks.conditioning import pooled_patch_grid
from ..pipelines.diffusion import DinoDiffusion
from .diffseg import aggregate, attention_layers, label_map, merge
from .lung_choice import Evidence, gather, resized
from .position_prior import EllipsePrior

WORKING_SIDE = 256  # px: the area that the networks were trained on
DIFFSEG, KMEANS, OTSU = "diffseg", "kmeans", "otsu"
METHODS = (DIFFSEG, KMEANS, OTSU)


@dataclass(frozen=True)
class SegmentSettings:
    """Hyperparameters of the segments.

    Attributes:
        timestep: at which self-attention is read.
        exponent: of a layer's resolution in its weight, see `aggregate`.
        anchors: per side.
        threshold: of the symmetric KL divergence, nats.
        clusters: of k-means.
        num_noises: draws that self-attention is the mean of.
        seed: of noise and k-means.
    """

    timestep: float = 500.0
    exponent: float = 3.0
    anchors: int = 16
    threshold: float = 0.0125
    clusters: int = 16
    num_noises: int = 1
    seed: int = 0


@dataclass(frozen=True)
class EncodedImage:
    """An image as the networks see it.

    Attributes:
        image: [1, h, w] in [0, 1].
        patch_tokens: of DINO, [N, D].
        patch_size: rows and columns of patches.
        layers: self-attention by timestep.
    """

    image: Tensor
    patch_tokens: Tensor
    patch_size: tuple[int, int]
    layers: dict[float, list[Tensor]]

    @property
    def size(self) -> tuple[int, int]:
        """h, w."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the places that attention is brought to: twice those of the finest layer."""
        finest = max((layer for layers in self.layers.values() for layer in layers), key=len)
        return 2 * finest.shape[0], 2 * finest.shape[1]


@torch.inference_mode()
def encode_image(
    pipe: DinoDiffusion, pixels: Tensor, timesteps: tuple[float, ...], num_noises: int, seed: int
) -> EncodedImage:
    """Resize [1, H, W] in [0, 1] to about `WORKING_SIDE`² px, encode, and read self-attention at each timestep.

    What is read at a timestep is the mean over `num_noises` draws of noise from the seed.
    """
    multiple = pipe.codec.downsampling_factor * pipe.network.downsampling_factor
    size = fitted_size(pixels.shape[1], pixels.shape[2], WORKING_SIDE, multiple)
    image = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True, align_corners=False)
    encoder = pipe.encoder
    tokens = encoder(image.to(pipe.device))
    rows, columns = encoder.resized_size(*size)
    patches = rows // encoder.patch_size, columns // encoder.patch_size
    named = {"cls_token": tokens.cls_token, "register_tokens": tokens.register_tokens}
    named["patch_grid"] = pooled_patch_grid(tokens, patches, pipe.patch_grid)
    context = pipe.selection.select(named)
    layers = {t: attention_layers(pipe, image[0], t, seed, context, num_noises) for t in timesteps}
    return EncodedImage(image[0], tokens.patch_tokens[0].cpu(), patches, layers)


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
    encoded: EncodedImage, method: str, settings: SegmentSettings
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels [h, w] and the affinity between places of `encoded.grid`, by one of `METHODS`."""
    grid = encoded.grid
    if method == DIFFSEG:
        maps = aggregate(encoded.layers[settings.timestep], grid, settings.exponent)
        labels = label_map(merge(maps, settings.anchors, settings.threshold), encoded.size).numpy()
        return labels, maps.reshape(grid[0] * grid[1], -1).numpy()
    if method == KMEANS:
        labels = kmeans_labels(encoded.patch_tokens, encoded.patch_size, encoded.size, settings.clusters, settings.seed)
    else:
        grey = encoded.image[0].numpy()
        labels = (grey < otsu_threshold(grey)).astype(np.int64)
    return labels, membership_affinity(labels, grid)


def evidence(
    encoded: EncodedImage, method: str, settings: SegmentSettings, prior: EllipsePrior
) -> tuple[Evidence, NDArray[np.int64]]:
    """What the choice of lungs needs, and the segments."""
    labels, affinity = segments(encoded, method, settings)
    return gather(encoded.image[0].numpy(), labels, affinity, encoded.grid, prior), labels


def at_size(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
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


def membership_affinity(labels: NDArray[np.integer], grid: tuple[int, int]) -> NDArray[np.float32]:
    """An affinity [h·w, h·w] for segments [H, W] that have none of their own: equal within a segment, 0 beyond.

    Each row sums to 1; h, w is the grid.
    """
    rows, columns = ((np.arange(n) * 2 + 1) * length // (2 * n) for n, length in zip(grid, labels.shape, strict=True))
    flat = labels[rows][:, columns].ravel()
    same = (flat[:, None] == flat[None]).astype(np.float32)
    return same / same.sum(1, keepdims=True)
