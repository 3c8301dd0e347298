"""Frozen DINO features of files, and of randomly changed views of them, each encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.augmentation import RandomAugmentation
from ..data.transforms import load_square
from ..evaluation.image_features import ImageFeatures
from ..files import atomic_path
from ..fingerprint import file_sha256
from ..seeding import Purpose, derive_seed

Array = NDArray[np.float64]
VIEWS_VERSION = "views_1"  # changes with `plain_augmentation`


def plain_augmentation() -> RandomAugmentation:
    """Flips left to right, small affine changes, gamma and gain: the usual ones for chest radiographs."""
    return RandomAugmentation(
        mirrored_labels=[0],
        flip_horizontal=True,
        flip_vertical=False,
        max_rotation_degrees=10.0,
        max_translation=0.05,
        max_scale=1.15,
        max_gamma=1.2,
        max_gain=1.1,
    )


class ProbeFeatures:
    """CLS tokens of images and of views of them.

    Args:
        encoder: gives tokens, of which the CLS token comes first; keeps them by content.
        num_features: D of the CLS token.
        num_views: changed views of every real image.
    """

    def __init__(self, encoder: ImageFeatures, num_features: int, num_views: int) -> None:
        self.encoder = encoder
        self.view_encoder = ImageFeatures(
            encoder.extractor, None, encoder.image_size, device=encoder.device, progress=False
        )
        self.num_features = num_features
        self.num_views = num_views
        self._known: dict[str, Array] = {}
        self._views: dict[str, Array] = {}

    def of(self, paths: Sequence[str]) -> Array:
        """Features [N, D] of files, all of which must be readable."""
        unknown = [path for path in dict.fromkeys(paths) if path not in self._known]
        if unknown:
            found = self.encoder.of_files(unknown)
            if found.problems:
                path, problem = found.problems[0]
                raise ValueError(f"{path}: {problem}; expected readable images, {len(found.problems)} are not")
            self._known.update(zip(unknown, found.features[:, : self.num_features].astype(np.float64), strict=True))
        return np.stack([self._known[path] for path in paths]) if paths else np.zeros((0, self.num_features))

    def of_views(self, paths: Sequence[str]) -> Array:
        """Features [N, V, D] of changed views; those of a file depend on its content alone."""
        unknown = [path for path in dict.fromkeys(paths) if path not in self._views]
        for path in tqdm(unknown, desc="features of changed views", unit="image", disable=not unknown):
            self._views[path] = self._kept_views(path)
        return np.stack([self._views[path] for path in paths])

    def _kept_views(self, path: str) -> Array:
        digest = file_sha256(path)
        folder = self.encoder.folder
        kept = None if folder is None else folder / VIEWS_VERSION / f"{digest}_{self.num_views}.npy"
        if kept is not None and kept.is_file():
            return np.load(kept, allow_pickle=False).astype(np.float64)
        found = self._encode_views(path, int(digest[:8], 16))
        if kept is not None:
            with atomic_path(kept) as temporary, Path(temporary).open("wb") as file:
                np.save(file, found)
        return found.astype(np.float64)

    def _encode_views(self, path: str, seed: int) -> NDArray[np.float32]:
        if self.num_views == 0:
            return np.zeros((0, self.num_features), dtype=np.float32)
        image = load_square(path, self.encoder.image_size).as_subclass(torch.Tensor)[None]
        seeds = [derive_seed(seed, Purpose.AUGMENTATION, view) for view in range(self.num_views)]
        views = image.expand(self.num_views, -1, -1, -1)
        changed, _ = plain_augmentation()(views, torch.zeros_like(views, dtype=torch.int64), seeds)
        return self.view_encoder.of_batches([changed])[:, : self.num_features]
