"""Radiographs to a store of latents and DINO tokens, once: resumable, and shared between the processes of torchrun."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..amp import autocast
from ..checks import check_multiple, check_numbers
from ..distributed import is_rank_zero, share, wait_for_all
from ..errors import DatasetError
from ..files import locked_folder
from ..fingerprint import json_sha256, network_sha256
from ..io.scaling import reading_settings
from ..networks.conditioning import named_tokens
from ..networks.dino import DinoEncoder
from ..networks.latent_codec import DECODER, LatentCodec
from ..networks.latent_denoiser import LatentDenoiser
from ..networks.weights import load_described
from ..progress import ProgressBar, stopwatch
from ..seeding import Purpose, derive_seed
from .augmentation import augmented_view
from .datalist_sources import data_list_sha256
from .latent_store import DESCRIPTION_NAME, LatentStore
from .readability import readable_radiographs
from .transforms import load_square

_logger = logging.getLogger(__name__)

Row = tuple[int, int]  # image and view


def open_store(
    cache_dir: str,
    dataset_dir: str,
    codec_path: str,
    dino_source: str,
    dino_image_size: int = 224,
    device: torch.device | str = "cpu",
    denoiser: LatentDenoiser | None = None,
    **settings: Any,
) -> LatentStore:
    """Make, complete or just open the store of a data set, for a denoiser: what configs name.

    `cache_dir` is a folder of stores, `dino_source` a Hugging Face folder or hub id of the encoder, which sees images
    at `dino_image_size` px; `settings` are others of `LatentCache`.

    Raises:
        SettingsError: numbers out of range, or an image size that autoencoder and denoiser cannot divide.
        WeightsError: of the autoencoder.
        DatasetError, RunError: as `LatentCache.run`.
    """
    codec = load_described(codec_path, device)
    size, factor = settings.get("image_size", LatentCache.image_size), denoiser.downsampling_factor if denoiser else 1
    check_multiple(size, codec.downsampling_factor * factor)
    encoder = DinoEncoder(dino_source, dino_image_size).to(device)
    return LatentCache(cache_dir, dataset_dir, codec, encoder, device=device, **settings).run()


@dataclass
class LatentCache:
    """The stores of a folder: one for each data list and each set of settings.

    So a trial does not touch the store of the real run, and a data set that was moved finds its store again. A finished
    store is opened without looking at the images, so training can run where they are not. Processes that share the
    work have to be on one machine, as they write to the same memory maps.

    Raises:
        SettingsError: numbers out of range, or an image size that the codec cannot divide.
    """

    cache_dir: str
    dataset_dir: str  # its data list is part of what the store is for, not its place
    codec: LatentCodec  # with weights and latent statistics
    encoder: DinoEncoder
    image_size: int = 256  # px; shorter side, then the central square
    patch_grid: int = 4  # k of the grid of pooled patch tokens, 0 for none
    num_views: int = 1  # per image: the image itself, and others that are augmented
    val_fraction: float = 0.1  # as of `readable_radiographs`, like the next two
    patient_id_pattern: str | None = None
    limit: int | None = None
    seed: int = 0  # of split and views
    batch_size: int = 16
    num_workers: int = 1
    amp: bool = True  # bfloat16 where the hardware has it
    device: torch.device | str = "cpu"  # of codec and encoder

    def __post_init__(self) -> None:
        check_numbers(num_views=self.num_views, batch_size=self.batch_size, num_workers=self.num_workers)
        self.codec.check_size(self.image_size)
        self._split = {name: getattr(self, name) for name in ("val_fraction", "patient_id_pattern", "limit")}
        made_with = {
            "dataset_dir": os.path.abspath(self.dataset_dir),
            "data_list_sha256": data_list_sha256(self.dataset_dir),
            "codec_sha256": network_sha256(self.codec, leave_out=DECODER),  # latents do not depend on it
            "encoder_sha256": network_sha256(self.encoder),
            "encoder_image_size": self.encoder.image_size,
            **{name: getattr(self, name) for name in ("patch_grid", "num_views", "seed", "image_size")},
            **self._split,
            **reading_settings(),
        }
        # As the store's description gives it back: a tuple, for instance, comes back as a list.
        self.made_with: dict[str, Any] = json.loads(json.dumps(made_with))

    def run(self) -> LatentStore:
        """Return the finished store, made or completed where needed.

        Raises:
            DatasetError: the data set cannot be listed, or, where it is not there, several stores may be of it.
            RunError: another process makes this store.
        """
        elapsed, folder = stopwatch(), self._folder()
        begun = LatentStore.exists(folder)
        is_done = begun and LatentStore(folder).is_complete
        wait_for_all()  # nobody begins before all have looked
        with locked_folder(folder) if is_rank_zero() and not is_done else nullcontext():
            if not begun:
                self._begin(folder)
                wait_for_all()
            store = LatentStore(folder, dataset_dir=self.made_with["dataset_dir"])
            missing = [(int(image), int(view)) for image, view in zip(*(store.done == 0).nonzero(), strict=True)]
            wait_for_all()  # nobody writes before all know what is missing, or their shares would not fit together
            if missing:
                self._fill(LatentStore(folder, writable=True, dataset_dir=self.made_with["dataset_dir"]), missing)
                wait_for_all()
        if is_rank_zero():
            counts = {split: int((store.splits == split.encode()).sum()) for split in ("train", "val")}
            _logger.info("store %s: %s images, %d views each, in %s", folder, counts, store.num_views, elapsed())
        return store

    def _folder(self) -> Path:
        """Where the store of this data list and these settings is, or else is to be."""
        root = Path(self.cache_dir)
        own = root / json_sha256({**self.made_with, "dataset_dir": None})[:12]
        found = [path.parent for place in ("", "*/") for path in root.glob(place + DESCRIPTION_NAME)]
        fitting = [folder for folder in found if self._fits(LatentStore.description(folder)["made_with"])]
        if own in fitting or not fitting:
            return own
        if len(fitting) > 1:
            names = ", ".join(sorted(map(str, fitting)))
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
        options = {"seed": self.seed, "report_dir": self.cache_dir, **self._split}
        items = [
            {**item, "split": split}
            for split in ("train", "val")
            for item in readable_radiographs(self.dataset_dir, split, **options)
        ]
        if not is_rank_zero() or LatentStore.exists(folder):  # another process made it just now
            return
        first = self._encode(load_square(items[0]["image"], self.image_size)[None])
        shapes = {name: tuple(value.shape[1:]) for name, value in first.items()}
        LatentStore.allocate(folder, self.made_with, items, self.num_views, shapes)

    def _fill(self, store: LatentStore, missing: Sequence[Row]) -> None:
        mine = share(missing)
        # Its own generator: from the global one it would draw only where a store is made, and the weights that are
        # initialised afterwards would depend on that.
        options: dict[str, Any] = {"num_workers": self.num_workers, "generator": torch.Generator()}
        load = partial(_load_views, store.items, self.image_size, self.seed)
        with ProgressBar(total=len(mine), desc="caching", unit="image", disable=not is_rank_zero()) as bar:
            for rows, images in DataLoader(mine, self.batch_size, collate_fn=load, **options):  # type: ignore[arg-type]
                store.write(rows, self._encode(images))
                bar.update(len(rows))
        store.flush()

    @torch.inference_mode()
    def _encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        images = images.to(self.device)
        with autocast(self.device, self.amp):
            mean, std = self.codec.posterior(images)
            tokens = named_tokens(self.encoder, images, self.patch_grid)
        scaled_std = std.float() / self.codec.latents_std.view(1, -1, 1, 1)
        return {"latents_mean": self.codec.scale(mean.float()), "latents_std": scaled_std, **tokens}


def _load_views(
    items: Sequence[Mapping[str, Any]], image_size: int, seed: int, rows: list[Row]
) -> tuple[list[Row], torch.Tensor]:
    """The rows (image, view) of a store, and their images [B, 1, size, size]."""
    images = []
    for image, view in rows:
        pixels = load_square(items[image]["image"], image_size)
        images.append(augmented_view(pixels, derive_seed(seed, Purpose.VIEW, image, view)) if view else pixels)
    return rows, torch.stack(images)
