"""The store of a data set, made from the weights of autoencoder and encoder where it is missing: what configs name."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..networks.dino import DinoEncoder
from ..networks.weights import load_described
from .latent_cache import LatentCache
from .latent_store import LatentStore
from .readability import readable_radiographs
from .transforms import LoadSquared


def open_store(
    cache_dir: str,
    dataset_dir: str,
    codec_path: str,
    dino_source: str,
    dino_image_size: int = 224,
    image_size: int = 256,
    patch_grid: int = 4,
    num_views: int = 1,
    val_fraction: float = 0.1,
    patient_id_pattern: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    num_workers: int = 1,
    amp: bool = True,
    device: torch.device | str = "cpu",
) -> LatentStore:
    """Make, complete or just open a store; see `LatentCache`.

    Args:
        cache_dir: of the store.
        dataset_dir: of the images, as of `readable_radiographs`, whose arguments the next ones without note are.
        codec_path: weights of the autoencoder.
        dino_source: Hugging Face folder or hub id of the encoder.
        dino_image_size: px at which the encoder sees an image.
        image_size: px; shorter side, then the central square.
        patch_grid: k × k pooled patch tokens are kept.
        num_views: views per image.
        val_fraction: see there.
        patient_id_pattern: see there.
        limit: see there.
        seed: of split and views.
        batch_size: images at a time.
        num_workers: loading processes.
        amp: bfloat16 where the hardware has it.
        device: of both networks.

    Raises:
        SettingsError: numbers out of range, or an image size that the autoencoder cannot divide.
        WeightsError: of the autoencoder.
    """
    codec = load_described(codec_path, device)
    codec.check_size(image_size)
    split: dict[str, Any] = {"val_fraction": val_fraction, "patient_id_pattern": patient_id_pattern, "limit": limit}
    return LatentCache(
        cache_dir=cache_dir,
        items=functools.partial(readable_radiographs, dataset_dir, seed=seed, report_dir=cache_dir, **split),
        dataset_dir=dataset_dir,
        transform=LoadSquared(["image"], image_size),
        codec=codec,
        encoder=DinoEncoder(dino_source, dino_image_size).to(device),
        patch_grid=patch_grid,
        num_views=num_views,
        settings={"image_size": image_size, **split},
        seed=seed,
        batch_size=batch_size,
        num_workers=num_workers,
        amp=amp,
        device=torch.device(device),
    ).run()
