"""One radiograph to the evidence for its lungs, by each of the methods that are compared, and to its mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..networks.conditioning import TokenSelection, pooled_patch_grid
from ..networks.dino import DinoEncoder
from .attention_maps import SelfAttention, aggregate, fitted_size
from .lung_baselines import kmeans_labels, membership_affinity, otsu_labels
from .lung_choice import Evidence, gather
from .position_prior import EllipsePrior
from .segment_merging import label_map, merge

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
class Networks:
    """What the bundle's evaluate.yaml builds.

    Attributes:
        attention: reads the denoiser's self-attention.
        encoder: DINO.
        selection: which of its tokens condition the denoiser.
        patch_grid: k that the selection is pooled from.
    """

    attention: SelfAttention
    encoder: DinoEncoder
    selection: TokenSelection
    patch_grid: int


def load_networks(bundle_root: str | Path, device: str | None = None) -> Networks:
    """Build the networks as the bundle's evaluate.yaml says, with its weights.

    Args:
        bundle_root: of the latent diffusion bundle.
        device: such as "cpu"; None takes the config's own choice.

    Raises:
        WeightsError: the bundle has no weights.
    """
    parser = ConfigParser()
    parser.read_config(str(Path(bundle_root) / "configs" / "evaluate.yaml"))
    parser["bundle_root"] = str(bundle_root)
    if device is not None:
        parser["device"] = f"$torch.device('{device}')"
    built = {
        name: parser.get_parsed_content(name)
        for name in ("network", "codec", "schedule", "device", "encoder", "selection", "cached_patch_grid")
    }
    attention = SelfAttention(built["network"].eval(), built["codec"].eval(), built["schedule"], built["device"])
    return Networks(attention, built["encoder"], built["selection"], built["cached_patch_grid"])


@dataclass(frozen=True)
class Seen:
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


@torch.inference_mode()
def look(networks: Networks, pixels: Tensor, timesteps: tuple[float, ...], num_noises: int, seed: int) -> Seen:
    """Resize to about `WORKING_SIDE`² px, encode, and read self-attention at each timestep.

    Args:
        networks: of the bundle.
        pixels: [1, H, W] in [0, 1].
        timesteps: to read at.
        num_noises: draws per timestep.
        seed: of the noise.
    """
    size = fitted_size(pixels.shape[1], pixels.shape[2], WORKING_SIDE, networks.attention.multiple)
    image = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True, align_corners=False)
    encoder = networks.encoder
    tokens = encoder(image.to(networks.attention.device))
    rows, columns = encoder.resized_size(*size)
    grid = rows // encoder.patch_size, columns // encoder.patch_size
    named = {
        "cls_token": tokens.cls_token,
        "register_tokens": tokens.register_tokens,
        "patch_grid": pooled_patch_grid(tokens, grid, networks.patch_grid),
    }
    context = networks.selection.select(named)
    layers = {t: networks.attention.layers(image[0], t, seed, context, num_noises) for t in timesteps}
    return Seen(image[0], tokens.patch_tokens[0].cpu(), grid, layers)


def segments(seen: Seen, method: str, settings: SegmentSettings) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels [h, w] and the affinity between places of the grid `grid_of`, by one of `METHODS`."""
    size = (seen.image.shape[1], seen.image.shape[2])
    grid = grid_of(seen)
    if method == DIFFSEG:
        maps = aggregate(seen.layers[settings.timestep], grid, settings.exponent)
        labels = label_map(merge(maps, settings.anchors, settings.threshold), size).numpy()
        return labels, maps.reshape(grid[0] * grid[1], -1).numpy()
    if method == KMEANS:
        labels = kmeans_labels(seen.patch_tokens, seen.patch_size, size, settings.clusters, settings.seed)
    else:
        labels = otsu_labels(seen.image[0].numpy())
    return labels, membership_affinity(labels, grid)


def evidence(
    seen: Seen, method: str, settings: SegmentSettings, prior: EllipsePrior
) -> tuple[Evidence, NDArray[np.int64]]:
    """What the choice of lungs needs, and the segments."""
    labels, affinity = segments(seen, method, settings)
    return gather(seen.image[0].numpy(), labels, affinity, grid_of(seen), prior), labels


def grid_of(seen: Seen) -> tuple[int, int]:
    """Rows and columns of the places that attention is brought to: twice those of the finest layer."""
    finest = max((layer for layers in seen.layers.values() for layer in layers), key=len)
    return 2 * finest.shape[0], 2 * finest.shape[1]


def at_size(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask [h, w] at the image's own rows and columns [H, W], its outline interpolated."""
    values = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
    return (F.interpolate(values, size=size, mode="bilinear", align_corners=False)[0, 0] > 0.5).numpy()
