"""Radiographs to a store of latents and DINO tokens, once: resumable, and shared between the processes of torchrun."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..amp import autocast
from ..distributed import is_rank_zero, rank, wait_for_all, world_size
from ..fingerprint import network_sha256
from ..networks.conditioning import named_tokens
from ..networks.dino import DinoEncoder
from ..networks.latent_codec import DECODER, LatentCodec
from ..seeding import Purpose, derive_seed
from .latent_store import LatentStore, StoreError
from .views import augmented_view

_logger = logging.getLogger(__name__)


class LatentCache:
    """Make, or go on making, or just open the store of a data set.

    A finished store is opened without looking at the images, so training can run where they are not. Processes that
    share the work have to be on one machine, as they write to the same memory maps.

    Args:
        cache_dir: of the store; one store per data set, codec and encoder.
        items: called with split="train" and "val" for dicts with "image", but only when the store has to be begun.
        dataset_dir: of the images; part of what the store is for.
        transform: dict transform from an item to "image" [1, H, W] in [0, 1].
        codec: with weights and latent statistics.
        encoder: frozen DINO encoder.
        patch_grid: k of the grid of pooled patch tokens, 0 for none.
        num_views: views per image: the image itself, and num_views - 1 augmented ones.
        settings: further plain numbers and texts that the store depends on (image size, split, seed).
        seed: of the augmented views.
        batch_size: images at a time.
        num_workers: loading processes.
        amp: bfloat16 where the hardware has it.
        device: of codec and encoder.
    """

    def __init__(
        self,
        cache_dir: str,
        items: Callable[..., list[dict[str, Any]]],
        dataset_dir: str,
        transform: Callable[[dict], dict],
        codec: LatentCodec,
        encoder: DinoEncoder,
        patch_grid: int,
        num_views: int,
        settings: dict[str, Any],
        seed: int,
        batch_size: int,
        num_workers: int,
        amp: bool,
        device: torch.device,
    ) -> None:
        if num_views < 1:
            raise StoreError(f"num_views: expected at least 1, found {num_views}")
        self.cache_dir = Path(cache_dir)
        self.items = items
        self.transform = transform
        self.codec = codec
        self.encoder = encoder
        self.patch_grid = patch_grid
        self.num_views = num_views
        self.seed = seed
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.amp = amp
        self.device = device
        made_with = {
            "dataset_dir": str(Path(dataset_dir).resolve()),
            "codec_sha256": network_sha256(codec, leave_out=DECODER),  # latents do not depend on it
            "encoder_sha256": network_sha256(encoder),
            "encoder_image_size": encoder.image_size,
            "patch_grid": patch_grid,
            "num_views": num_views,
            "seed": seed,
            **settings,
        }
        # As the store's description gives it back: a tuple, for instance, comes back as a list.
        self.made_with: dict[str, Any] = json.loads(json.dumps(made_with))

    def run(self) -> LatentStore:
        """Return the finished store, made or completed where needed.

        Raises:
            StoreError: the folder holds a store of something else; says of what.
        """
        begun = LatentStore.exists(self.cache_dir)
        wait_for_all()  # nobody begins before all have looked
        if not begun:
            self._begin()
            wait_for_all()
        store = LatentStore(self.cache_dir)
        self._refuse_others(store)
        missing = [(int(image), int(view)) for image, view in zip(*(store.done == 0).nonzero(), strict=True)]
        wait_for_all()  # nobody writes before all know what is missing, or their shares would not fit together
        if missing:
            self._fill(LatentStore(self.cache_dir, writable=True), missing)
            wait_for_all()
            store = LatentStore(self.cache_dir)
        if is_rank_zero():
            counts = {split: sum(item["split"] == split for item in store.items) for split in ("train", "val")}
            _logger.info("store %s: %s images, %d views each", self.cache_dir, counts, store.num_views)
        return store

    def _begin(self) -> None:
        items = [{**item, "split": split} for split in ("train", "val") for item in self.items(split=split)]
        if not is_rank_zero():
            return
        first = self.transform(dict(items[0]))["image"]
        values = self._encode(first[None])
        shapes = {name: tuple(value.shape[1:]) for name, value in values.items()}
        LatentStore.allocate(self.cache_dir, self.made_with, items, self.num_views, shapes)

    def _refuse_others(self, store: LatentStore) -> None:
        there = store.made_with
        different = [
            f"{key}: {there.get(key)} there, {self.made_with.get(key)} now"
            for key in sorted(there.keys() | self.made_with.keys())
            if there.get(key) != self.made_with.get(key)
        ]
        if different:
            raise StoreError(
                f"{self.cache_dir} holds a store of something else ({'; '.join(different)}). Give another --cache_dir, "
                "or the settings of that store"
            )

    def _fill(self, store: LatentStore, missing: Sequence[tuple[int, int]]) -> None:
        mine = missing[rank() :: world_size()]
        views = _Views(store.items, mine, self.transform, self.seed)
        # Its own generator: from the global one it would draw only where a store is made, and the weights that are
        # initialised afterwards would depend on that.
        loader = DataLoader(
            views, batch_size=self.batch_size, num_workers=self.num_workers, generator=torch.Generator()
        )
        done = 0
        bar = tqdm(total=len(mine), desc="caching", unit="image", dynamic_ncols=True, disable=not is_rank_zero())
        with bar:
            for images in loader:
                store.write(mine[done : done + len(images)], self._encode(images))
                done += len(images)
                bar.update(len(images))
        for array in (*store.arrays.values(), store.done):
            array.flush()  # type: ignore[attr-defined]

    @torch.inference_mode()
    def _encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        images = images.to(self.device)
        with autocast(self.device, self.amp):
            mean, std = self.codec.posterior(images)
            tokens = named_tokens(self.encoder, images, self.patch_grid)
        scaled = self.codec.scale(mean.float())
        return {
            "latents_mean": scaled,
            "latents_std": std.float() / self.codec.latents_std.view(1, -1, 1, 1),
            **tokens,
        }


class _Views(Dataset):
    """The missing rows of a store as images."""

    def __init__(
        self,
        items: Sequence[dict[str, Any]],
        rows: Sequence[tuple[int, int]],
        transform: Callable[[dict], dict],
        seed: int,
    ) -> None:
        self.items, self.rows, self.transform, self.seed = items, rows, transform, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int) -> torch.Tensor:
        image, view = self.rows[key]
        pixels = self.transform(dict(self.items[image]))["image"]
        return augmented_view(pixels, derive_seed(self.seed, Purpose.VIEW, image, view)) if view else pixels
