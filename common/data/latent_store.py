"""The store of latents and DINO tokens that training reads instead of images: plain files, memory-mapped."""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DatasetError
from ..files import write_json
from ..fingerprint import file_sha256, json_sha256
from .datalist_sources import PATH_COLUMNS

DESCRIPTION_NAME, ITEMS_NAME, SUMS_NAME = "store.json", "items.jsonl", "crc32.npy"
ARRAYS = ("latents_mean", "latents_std", "cls_token", "register_tokens", "patch_grid")
TOKENS = ARRAYS[2:]
VERSION = 2


class LatentStore:
    """A folder with one row per image and view, float16.

    - `arrays` by name, each [num_images, num_views, ...]: `latents_mean`, `latents_std` [C, h, w], the codec's
      posterior, scaled by the codec's statistics, so that mean + std·noise is a draw of the latents that the diffusion
      model learns; `cls_token` [D], `register_tokens` [R, D], `patch_grid` [k, k, D] of the DINO encoder, as it gives
      them. A row lies in one piece in rows.npy, so that `row` reads it at one access to the disk.
    - `done` (uint8): 1 where a row was written; `sums` its CRC-32, checked whenever the row is read.
    - `made_with`: what it is of; `items`: one dict per image, and `splits` of them as bytes. They are read from the
      disk as they are asked for: a million of them in every process would take a gigabyte.

    Stores of version 1, with a file per array and the items in store.json, are read too; they have no sums.

    Args:
        folder: where it is, or a folder that holds just one store.
        writable: map for writing.
        dataset_dir: where the images are now; None for where they were.

    Raises:
        DatasetError: there is no store, or it is damaged.
    """

    def __init__(self, folder: str | Path, writable: bool = False, dataset_dir: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self._arguments = folder, writable, dataset_dir
        if not self.exists(folder):
            inside = [path.parent for path in self.folder.glob(f"*/{DESCRIPTION_NAME}")]
            if len(inside) != 1:
                found = ", ".join(sorted(path.name for path in inside)) or "none"
                raise DatasetError(f"{folder}: expected a store, found {found}; run the cache workflow, or name one")
            self.folder = inside[0]
        described = self.description(self.folder)
        self.made_with: dict[str, Any] = described["made_with"]
        self.items: Sequence[dict[str, Any]]
        self.rows: NDArray[Any] | None = None
        self.sums: NDArray[np.uint32] | None = None
        mode: Literal["r", "r+"] = "r+" if writable else "r"
        if described["version"] == 1:
            self.items = described["items"]
            self.splits = np.array([item["split"] for item in self.items], dtype="S5")
            self.arrays = {name: _mapped(self.folder / f"{name}.npy", mode) for name in ARRAYS}
        else:
            for name, digest in described.get("sha256", {}).items():
                if not (self.folder / name).is_file() or file_sha256(self.folder / name) != digest:
                    raise _damaged(self.folder / name)
            root = dataset_dir or self.made_with["dataset_dir"]
            self.items = _Items(self.folder, root)
            self.splits = _mapped(self.folder / "splits.npy", "r")
            self.rows = _mapped(self.folder / "rows.npy", mode)
            if self.rows.dtype.names != ARRAYS:
                raise _damaged(self.folder / "rows.npy")
            self.arrays = {name: self.rows[name] for name in ARRAYS}
            self.kind = zlib.crc32(str(self.rows.dtype).encode())  # bytes mean nothing without it
            self._file = (self.folder / "rows.npy").open("rb", buffering=0)
            if hasattr(os, "posix_fadvise"):  # else every row brings a megabyte of its neighbours from the disk
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            self.sums = _mapped(self.folder / SUMS_NAME, mode) if "sha256" in described else None
        self.done = _mapped(self.folder / "done.npy", mode)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a process that is started open the files itself; a copy of what is mapped would be the whole store."""
        return type(self), self._arguments

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Say whether a store was begun just there."""
        return (Path(folder) / DESCRIPTION_NAME).is_file()

    @staticmethod
    def description(folder: str | Path) -> dict[str, Any]:
        """What store.json says; raises `DatasetError` where it is damaged, or of an unknown version."""
        path = Path(folder) / DESCRIPTION_NAME
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # no JSON, or no text at all
            raise _damaged(path, error) from None
        if described.get("version") not in (1, VERSION):
            raise DatasetError(f"{path}: found version {described.get('version')}, expected {VERSION}; make it anew")
        if "made_with" not in described or described.get("digest") not in (None, _digest(described)):
            raise _damaged(path)
        return described

    @staticmethod
    def allocate(
        folder: str | Path,
        made_with: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        num_views: int,
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        """Make the files of an empty store; its description comes last, so that a kill before leaves no store.

        Paths of the items that lie in the `dataset_dir` of `made_with`, plain settings, move with it. Items have
        "image" and "split"; `shapes` are those of the arrays without images and views.

        Raises:
            DatasetError: the disk has no room for it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # The files are sparse: a disk that is full later on would end the run with a bus error and no message.
        needed = len(items) * num_views * (5 + 2 * sum(math.prod(shapes[name]) for name in ARRAYS))
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DatasetError(
                f"{folder}: found {free / 1e9:.1f} GB free, expected at least {needed / 1e9:.1f} GB for the store of "
                f"{len(items)} images with {num_views} views; give another --cache_dir, or fewer views"
            )
        row = np.dtype([(name, np.float16, tuple(shapes[name])) for name in ARRAYS])
        for name, dtype in (("rows.npy", row), ("done.npy", np.uint8), (SUMS_NAME, np.uint32)):
            shape = (len(items), num_views)
            np.lib.format.open_memmap(folder / name, mode="w+", dtype=dtype, shape=shape).flush()
        lines = [json.dumps(_moved(item, made_with["dataset_dir"], _inside)).encode() + b"\n" for item in items]
        (folder / ITEMS_NAME).write_bytes(b"".join(lines))
        np.save(folder / "ends.npy", np.cumsum([len(line) for line in lines]))
        np.save(folder / "splits.npy", np.array([item["split"] for item in items], dtype="S5"))
        digests = {name: file_sha256(folder / name) for name in (ITEMS_NAME, "ends.npy", "splits.npy")}
        description = {"version": VERSION, "made_with": dict(made_with), "sha256": digests}
        write_json(folder / DESCRIPTION_NAME, {**description, "digest": _digest(description)})

    @property
    def num_views(self) -> int:
        """Views per image; view 0 is the image as it is."""
        return self.done.shape[1]

    @property
    def token_dim(self) -> int:
        """D of the encoder's tokens."""
        return self.arrays["cls_token"].shape[-1]

    @property
    def is_complete(self) -> bool:
        """Whether every row was written."""
        return bool(self.done.all())

    def row(self, image: int, view: int) -> Mapping[str, Any]:
        """Arrays of a row by name; `DatasetError` where it is done but not as it was written, if there are sums."""
        if self.rows is None:
            return {name: array[image, view] for name, array in self.arrays.items()}
        # Not through the map: its page faults read fifty times as much from the disk, or the row in several accesses.
        size = self.rows.dtype.itemsize
        start = self.rows.offset + (int(image) * self.num_views + view) * size  # type: ignore[attr-defined]
        read = getattr(os, "pread", None)  # not on Windows
        data = read(self._file.fileno(), size, start) if read else self.rows[image, view].tobytes()
        if self.sums is not None and self.done[image, view] and zlib.crc32(data, self.kind) != self.sums[image, view]:
            raise _damaged(f"{self.folder}: the row of {self.items[image]['image']} (view {view})")
        return np.frombuffer(data, self.rows.dtype)[0]

    def write(self, rows: Sequence[tuple[int, int]], values: Mapping[str, Tensor]) -> None:
        """Write rows (image, view) and then mark them done; raises `DatasetError` for what is not finite in float16."""
        images, views = (list(numbers) for numbers in zip(*rows, strict=True))
        for name in ARRAYS:
            halves = values[name].detach().cpu().half().numpy()
            finite = np.isfinite(halves).reshape(len(halves), -1).all(axis=1)
            if not finite.all():
                bad = ", ".join(str(self.items[images[number]]["image"]) for number in np.flatnonzero(~finite))
                raise DatasetError(
                    f"{name}: expected finite numbers in float16, found others for {bad}; look at these files, leave "
                    f"them out of the data set, and delete {self.folder} to make the store anew"
                )
            self.arrays[name][images, views] = halves
        if self.rows is not None and self.sums is not None:
            self.sums[images, views] = [zlib.crc32(self.rows[row].tobytes(), self.kind) for row in rows]
        self.done[images, views] = 1

    def flush(self) -> None:
        """See to it that what was written is on the disk."""
        for array in (*self.arrays.values(), self.sums, self.done):
            if isinstance(array, np.memmap):  # not so where it holds nothing, such as no register tokens
                array.flush()

    def indices(self, split: str) -> NDArray[np.integer]:
        """Numbers of the images of a split; raises `DatasetError` where there are none."""
        found = np.flatnonzero(self.splits == split.encode())
        if not len(found):
            raise DatasetError(f"{self.folder}: no images of the split {split!r} in the store")
        return found

    def tokens(self, indices: Sequence[int] | NDArray[np.integer]) -> dict[str, Tensor]:
        """Tokens of view 0 of these images, float32, ready for `TokenSelection.select`; raises as `row`."""
        found = {name: torch.empty(len(indices), *self.arrays[name].shape[2:]) for name in TOKENS}
        for number, image in enumerate(indices):
            row = self.row(image, 0)
            for name, tokens in found.items():
                tokens[number] = torch.from_numpy(row[name].astype(np.float32))
        return found


def _mapped(path: Path, mode: Literal["r", "r+"]) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mode)
    except Exception as error:  # a damaged header raises anything
        raise _damaged(path, error) from None


def _damaged(what: object, error: Exception | str = "its sum is another") -> DatasetError:
    return DatasetError(f"{what} is missing or damaged ({error}); delete the folder and make the store anew")


def _digest(described: Mapping[str, Any]) -> str:
    return json_sha256([described["made_with"], described.get("sha256")])


class _Items(Sequence):
    """Items, read one by one from items.jsonl; ends.npy has the ends of their lines, in bytes."""

    def __init__(self, folder: Path, root: str | Path) -> None:
        self.folder, self.root = folder, root
        self.text, self.ends = np.memmap(folder / ITEMS_NAME, mode="r"), np.asarray(_mapped(folder / "ends.npy", "r"))

    def __reduce__(self) -> tuple[Any, ...]:
        """As of `LatentStore`."""
        return type(self), (self.folder, self.root)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        end = self.ends[index]
        start = self.ends[index - 1] if index else 0
        return _moved(json.loads(self.text[start:end].tobytes()), self.root, os.path.join)


def _moved(item: Mapping[str, Any], root: str | Path, move: Any) -> dict[str, Any]:
    return {**item, **{column: move(root, item[column]) for column in PATH_COLUMNS if column in item}}


def _inside(root: str, path: str) -> str:
    """The path relative to the root, where it lies in there."""
    return os.path.relpath(path, root) if Path(path).is_relative_to(root) else path


class LatentDataset(Dataset):
    """The split "train" or "val" of a store; items are float32 tensors by its names, plus "draw" and "index".

    Raises `DatasetError` where rows are missing.
    """

    def __init__(self, data: LatentStore, split: str) -> None:
        if not data.is_complete:
            raise DatasetError(
                f"{data.folder}: {int((data.done == 0).sum())} of {data.done.size} rows are missing; "
                "run the cache workflow again, it goes on where it stopped"
            )
        self.store, self.split, self.rows = data, split, data.indices(split)

    def __len__(self) -> int:
        return len(self.rows)

    def all_tokens(self) -> dict[str, Tensor]:
        """Tokens of view 0 of the whole split, for statistics."""
        return self.store.tokens(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One image; `key` is its index (view 0), or (index, number of the draw), which goes through the views."""
        index, draw = key if isinstance(key, tuple) else (key, 0)
        view = (draw // len(self.rows)) % self.store.num_views
        found = self.store.row(self.rows[index], view)
        values = {name: torch.from_numpy(found[name].astype(np.float32)) for name in ARRAYS}
        return {**values, "draw": draw, "index": index}
