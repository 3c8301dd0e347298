"""Latents and tokens of a store, or images, in one file of eight bits a number: what a training needs, and no more."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DatasetError
from ..files import atomic_path
from .latent_store import TOKENS, LatentDataset, LatentStore

DESCRIPTION = "description"
SCALE = "_scale"
CARRIED = ("split", "label")  # of an item; names of files and patients stay where they are
ROWS_AT_ONCE = 256

Rounded = tuple[NDArray[Any], NDArray[np.float32]]  # integers [N, ...] and the scale that makes them numbers again


def eight_bits(values: NDArray[Any], axis: int) -> Rounded:
    """Round to int8 with one scale per index of `axis`, the largest magnitude there over 127."""
    others = tuple(each for each in range(values.ndim) if each != axis % values.ndim)
    largest = np.abs(values).max(axis=others, keepdims=True, initial=1e-6).astype(np.float32)
    return np.rint(values * (127.0 / largest)).astype(np.int8), largest / np.float32(127.0)


def rounded_store(
    store: LatentStore, patch_grid: int, latents: bool = True
) -> tuple[dict[str, Rounded], dict[str, float]]:
    """View 0 of a store in eight bits: latents by channel, tokens by feature; the posterior's std by channel alone.

    `patch_grid` is k of the grid of patch tokens, which divides the store's; without `latents` it is tokens only.

    Returns:
        Arrays by the names of the store, and of each what rounding lost: root mean square over standard deviation.

    Raises:
        DatasetError: rows are missing or damaged, or the store's grid cannot be pooled to this one.
    """
    LatentDataset(store, "train")  # refuses what is incomplete
    for image in range(len(store.items)):
        store.row(image, 0)
    found: dict[str, Rounded] = {}
    lost: dict[str, float] = {}
    for name in ("latents_mean", *TOKENS) if latents else TOKENS:
        values = _pooled(store.arrays[name], patch_grid) if name == "patch_grid" else store.arrays[name][:, 0]
        values = np.asarray(values, np.float32)
        integers, scale = found[name] = eight_bits(values, 1 if name == "latents_mean" else -1)
        if values.size:
            lost[name] = float(np.sqrt(np.square(integers * scale - values).mean()) / values.std())
    if latents:
        squares = np.stack([np.square(part[0].astype(np.float32)).mean((1, 2)) for part in store.arrays["latents_std"]])
        std = np.sqrt(squares.mean(0)).reshape(1, -1, 1, 1)
        found["latents_std"] = (std, np.ones((1,), np.float32))
    return found, lost


def _pooled(grids: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Averages [N, k, k, D] of view 0 of grids [N, views, K, K, D]; a few rows at a time, as they are large."""
    cached = grids.shape[2]
    if side < 1 or cached % side:
        raise DatasetError(f"patch_grid: expected a divisor of the store's {cached}, found {side}")
    shape = (-1, side, cached // side, side, cached // side, grids.shape[-1])
    starts = range(0, len(grids), ROWS_AT_ONCE)
    parts = [grids[start : start + ROWS_AT_ONCE, 0].astype(np.float32).reshape(shape).mean((2, 4)) for start in starts]
    return np.concatenate(parts)


def write_pack(
    path: str | Path, arrays: Mapping[str, Rounded], items: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> None:
    """Write arrays [N, ...], or [1, ...] for what is the same of all, and of N items split and label, atomically.

    Plain settings in `about` come back as `PackedData.about`.
    """
    kept = [{name: str(item.get(name) or "") for name in CARRIED} for item in items]
    text = json.dumps({"items": kept, "about": dict(about)}).encode()
    content: dict[str, NDArray[Any]] = {DESCRIPTION: np.frombuffer(text, np.uint8)}
    for name, (integers, scale) in arrays.items():
        content |= {name: integers, name + SCALE: scale}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **content)  # type: ignore[arg-type]


class PackedData:
    """A packed file in memory; `items` are split and label of each row, `about` what `write_pack` was told.

    Raises `DatasetError` where it is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            with np.load(path) as file:
                self.arrays: dict[str, NDArray[Any]] = {name: file[name] for name in file.files}
            described = json.loads(self.arrays.pop(DESCRIPTION).tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DatasetError(
                f"{path} is missing, damaged or no packed file ({error}); copy or pack it anew"
            ) from None
        self.items: list[dict[str, str]] = described["items"]
        self.about: dict[str, Any] = described["about"]


class PackedSplit:
    """One split of a packed file as float32 tensors in the memory of a device; stands for a `LatentDataset`.

    `tensors` [n, ...] are by name, `rows` their numbers in the file: at most the first `limit` of the split.

    Raises:
        DatasetError: there are none.
    """

    def __init__(self, store: PackedData, split: str, device: torch.device, limit: int | None = None) -> None:
        self.store = store
        self.rows = [row for row, item in enumerate(store.items) if item["split"] == split][:limit]
        if not self.rows:
            raise DatasetError(f"no rows of the split {split!r} in the packed file; pack a store that has some")
        names = [name for name in store.arrays if not name.endswith(SCALE)]
        self.tensors = {name: self._tensor(name, device) for name in names}

    def _tensor(self, name: str, device: torch.device) -> Tensor:
        integers, scale = self.store.arrays[name], torch.from_numpy(self.store.arrays[name + SCALE]).to(device)
        if len(integers) < len(self.store.items):  # the same of all
            return (torch.from_numpy(integers).to(device) * scale).expand(len(self.rows), *integers.shape[1:])
        return torch.from_numpy(integers[self.rows]).to(device) * scale

    def __len__(self) -> int:
        return len(self.rows)

    def all_tokens(self) -> dict[str, Tensor]:
        """Tokens of the whole split, for statistics."""
        return {name: self.tensors[name] for name in TOKENS}
