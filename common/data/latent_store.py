"""The store of latents and DINO tokens that training reads instead of images: plain .npy files, memory-mapped."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from ..files import atomic_path

DESCRIPTION_NAME = "store.json"
DONE_NAME = "done.npy"
ARRAYS = ("latents_mean", "latents_std", "cls_token", "register_tokens", "patch_grid")
VERSION = 1


class StoreError(UserError, ValueError):
    """A store is missing, unfinished, or made for something else."""


class LatentStore:
    """A folder with one row per image and view, float16, each file [num_images, num_views, ...].

    - `latents_mean`, `latents_std` [C, h, w]: the codec's posterior, scaled by the codec's statistics, so that
      mean + std·noise is a draw of the latents that the diffusion model learns.
    - `cls_token` [D], `register_tokens` [R, D], `patch_grid` [k, k, D]: of the DINO encoder, as it gives them.
    - `done` (uint8): 1 where a row was written; `store.json`: what it was made of and with, and the items.

    Args:
        folder: where it is.
        writable: map for writing.

    Raises:
        StoreError: there is no store of this version.
    """

    def __init__(self, folder: str | Path, writable: bool = False) -> None:
        self.folder = Path(folder)
        try:
            described = json.loads((self.folder / DESCRIPTION_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(f"{self.folder}: no {DESCRIPTION_NAME} there; run the cache workflow first") from None
        except ValueError as error:  # no JSON, or no text at all
            raise StoreError(
                f"{self.folder / DESCRIPTION_NAME} is damaged ({error}); delete the folder and make the store anew"
            ) from None
        if described.get("version") != VERSION:
            found = described.get("version")
            raise StoreError(f"{self.folder}: found store version {found}, expected {VERSION}; make it anew")
        self.made_with: dict[str, Any] = described["made_with"]
        self.items: list[dict[str, Any]] = described["items"]
        mode: Literal["r", "r+"] = "r+" if writable else "r"
        self.arrays = {name: self._mapped(f"{name}.npy", mode) for name in ARRAYS}
        self.done = self._mapped(DONE_NAME, mode)

    def _mapped(self, name: str, mode: Literal["r", "r+"]) -> np.ndarray:
        try:
            return np.load(self.folder / name, mmap_mode=mode)
        except (FileNotFoundError, EOFError, ValueError) as error:
            raise StoreError(
                f"{self.folder / name} is missing or damaged ({error}); delete the folder and make the store anew"
            ) from None

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Say whether a store was begun there."""
        return (Path(folder) / DESCRIPTION_NAME).is_file()

    @staticmethod
    def allocate(
        folder: str | Path,
        made_with: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        num_views: int,
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        """Make the files of an empty store; its description comes last, so that a kill before leaves no store.

        Raises:
            StoreError: the disk has no room for it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # The files are sparse: a disk that is full later on would end the run with a bus error and no message.
        needed = len(items) * num_views * (1 + 2 * sum(math.prod(shapes[name]) for name in ARRAYS))
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise StoreError(
                f"{folder}: found {free / 1e9:.1f} GB free, expected at least {needed / 1e9:.1f} GB for the store of "
                f"{len(items)} images with {num_views} views; give another --cache_dir, or fewer views"
            )
        for name in ARRAYS:
            shape = (len(items), num_views, *shapes[name])
            np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float16, shape=shape).flush()
        np.lib.format.open_memmap(folder / DONE_NAME, mode="w+", dtype=np.uint8, shape=(len(items), num_views)).flush()
        text = json.dumps({"version": VERSION, "made_with": dict(made_with), "items": list(items)}, indent=1)
        with atomic_path(folder / DESCRIPTION_NAME) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @property
    def num_views(self) -> int:
        """Views per image; view 0 is the image as it is."""
        return self.done.shape[1]

    @property
    def is_complete(self) -> bool:
        """Whether every row was written."""
        return bool(self.done.all())

    def write(self, rows: Sequence[tuple[int, int]], values: Mapping[str, Tensor]) -> None:
        """Write rows (image, view) and then mark them done.

        Raises:
            StoreError: a value is not finite in float16.
        """
        images, views = zip(*rows, strict=True)
        for name in ARRAYS:
            halves = values[name].detach().cpu().half().numpy()
            finite = np.isfinite(halves).reshape(len(halves), -1).all(axis=1)
            if not finite.all():
                bad = ", ".join(str(self.items[images[number]]["image"]) for number in np.flatnonzero(~finite))
                raise StoreError(
                    f"{name}: expected finite numbers in float16, found others for {bad}; look at these files, leave "
                    f"them out of the data set, and delete {self.folder} to make the store anew"
                )
            self.arrays[name][list(images), list(views)] = halves
        self.done[list(images), list(views)] = 1

    def indices(self, split: str) -> list[int]:
        """Images of a split.

        Raises:
            StoreError: there are none.
        """
        found = [index for index, item in enumerate(self.items) if item["split"] == split]
        if not found:
            raise StoreError(f"{self.folder}: no images of the split '{split}' in the store")
        return found

    def tokens(self, indices: Sequence[int], view: int = 0) -> dict[str, Tensor]:
        """Tokens of one view of these images, float32, ready for `TokenSelection.select`."""
        names = ("cls_token", "register_tokens", "patch_grid")
        return {name: torch.from_numpy(self.arrays[name][list(indices), view].astype(np.float32)) for name in names}


class LatentDataset(Dataset):
    """One split of a store; items are float32 tensors by the names of the store, plus "draw" and "index".

    Args:
        data: a complete store; so named because MONAI looks for a data set's `data`.
        split: "train" or "val".

    Raises:
        StoreError: rows are missing.
    """

    def __init__(self, data: LatentStore, split: str) -> None:
        if not data.is_complete:
            raise StoreError(
                f"{data.folder}: {int((data.done == 0).sum())} of {data.done.size} rows are missing; "
                "run the cache workflow again, it goes on where it stopped"
            )
        self.store = data
        self.split = split
        self.rows = data.indices(split)

    def __len__(self) -> int:
        return len(self.rows)

    def all_tokens(self) -> dict[str, Tensor]:
        """Tokens of view 0 of the whole split, for statistics."""
        return self.store.tokens(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One image; `key` is its index (view 0), or (index, number of the draw), which goes through the views."""
        index, draw = key if isinstance(key, tuple) else (key, 0)
        view = (draw // len(self.rows)) % self.store.num_views
        row = self.rows[index]
        values = {name: torch.from_numpy(self.store.arrays[name][row, view].astype(np.float32)) for name in ARRAYS}
        return {**values, "draw": draw, "index": index}
