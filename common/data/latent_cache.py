"""Radiographs to a store of latents and DINO tokens, once: resumable, and shared between the processes of torchrun."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..amp import autocast
from ..checks import check_numbers
from ..distributed import is_rank_zero, rank, wait_for_all, world_size
from ..errors import DatasetError
from ..files import locked_folder
from ..fingerprint import json_sha256, network_sha256
from ..networks.conditioning import named_tokens
from ..networks.dino import DinoEncoder
from ..networks.latent_codec import DECODER, LatentCodec
from ..seeding import Purpose, derive_seed
from .datalist_sources import data_list_sha256
from .latent_store import DESCRIPTION_NAME, LatentStore
from .views import augmented_view

_logger = logging.getLogger(__name__)


class LatentCache:
    """Make, or go on making, or just open the store of a data set.

    Each data list and each set of settings has a store of its own in `cache_dir`, so that a trial does not touch the
    store of the real run, and a data set that was moved finds its store again. A finished store is opened without
    looking at the images, so training can run where they are not. Processes that share the work have to be on one
    machine, as they write to the same memory maps.

    Args:
        cache_dir: folder of stores.
        items: called with split="train" and "val" for dicts with "image", but only when a store has to be begun.
        dataset_dir: of the images; its data list is part of what the store is for, not its place.
        transform: dict transform from an item to "image" [1, H, W] in [0, 1].
        codec: with weights and latent statistics.
        encoder: frozen DINO encoder.
        patch_grid: k of the grid of pooled patch tokens, 0 for none.
        num_views: views per image: the image itself, and num_views - 1 augmented ones.
        settings: further plain numbers and texts that the store depends on (image size, split, limit).
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
        check_numbers(num_views=num_views, batch_size=batch_size, num_workers=num_workers)
        self.cache_dir, self.items, self.transform = Path(cache_dir), items, transform
        self.codec, self.encoder, self.patch_grid, self.num_views = codec, encoder, patch_grid, num_views
        self.seed, self.batch_size, self.num_workers, self.amp, self.device = seed, batch_size, num_workers, amp, device
        self.dataset_dir = os.path.abspath(dataset_dir)
        made_with = {
            "dataset_dir": self.dataset_dir,
            "data_list_sha256": data_list_sha256(dataset_dir),
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
            DatasetError: the data set cannot be listed, or, where it is not there, several stores may be of it.
            RunError: another process makes this store.
        """
        folder = self._folder()
        begun = LatentStore.exists(folder)
        is_done = begun and LatentStore(folder).is_complete
        wait_for_all()  # nobody begins before all have looked
        with locked_folder(folder) if is_rank_zero() and not is_done else nullcontext():
            store = self._completed(folder, begun)
        if is_rank_zero():
            counts = {split: int((store.splits == split.encode()).sum()) for split in ("train", "val")}
            _logger.info("store %s: %s images, %d views each", folder, counts, store.num_views)
        return store

    def _completed(self, folder: Path, begun: bool) -> LatentStore:
        if not begun:
            self._begin(folder)
            wait_for_all()
        store = LatentStore(folder, dataset_dir=self.dataset_dir)
        missing = [(int(image), int(view)) for image, view in zip(*(store.done == 0).nonzero(), strict=True)]
        wait_for_all()  # nobody writes before all know what is missing, or their shares would not fit together
        if missing:
            self._fill(LatentStore(folder, writable=True, dataset_dir=self.dataset_dir), missing)
            wait_for_all()
            store = LatentStore(folder, dataset_dir=self.dataset_dir)
        return store

    def _folder(self) -> Path:
        """Where the store of this data list and these settings is, or else is to be."""
        own = self.cache_dir / json_sha256({**self.made_with, "dataset_dir": None})[:12]
        found = [path.parent for place in ("", "*/") for path in self.cache_dir.glob(place + DESCRIPTION_NAME)]
        fitting = [folder for folder in found if self._fits(LatentStore.description(folder)["made_with"])]
        if own in fitting or not fitting:
            return own
        if len(fitting) > 1:
            names = ", ".join(sorted(str(folder) for folder in fitting))
            raise DatasetError(f"{self.dataset_dir} is not there, and any of {names} may be of it; keep one of them")
        return fitting[0]

    def _fits(self, there: Mapping[str, Any]) -> bool:
        """Whether a store is of these settings, and of this data list unless the images are not there to tell."""
        mine = {**self.made_with, "dataset_dir": None}
        if "data_list_sha256" not in there:  # of version 1, which knows the place only
            place = there["dataset_dir"] == str(Path(self.dataset_dir).resolve())
            return place and all(mine[name] == there[name] for name in mine.keys() & there.keys() - {"dataset_dir"})
        if mine["data_list_sha256"] is None:
            mine["data_list_sha256"] = there["data_list_sha256"]
        return mine == {**there, "dataset_dir": None}

    def _begin(self, folder: Path) -> None:
        items = [{**item, "split": split} for split in ("train", "val") for item in self.items(split=split)]
        if not is_rank_zero() or LatentStore.exists(folder):  # another process made it just now
            return
        first = self.transform(dict(items[0]))["image"]
        shapes = {name: tuple(value.shape[1:]) for name, value in self._encode(first[None]).items()}
        LatentStore.allocate(folder, self.made_with, items, self.num_views, shapes)

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
        store.flush()

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
