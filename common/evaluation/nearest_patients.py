"""How near an image is to the training images, by patient: in DINO's space and in that of small pictures.

Distances are cosine between DINO cls tokens ("embedding"), and 1 - correlation between small grey pictures whose local
mean and contrast are evened out, the least over small shifts ("pixels").
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.alignment import evened_out
from ..errors import DatasetError
from .held_out_ratios import Floats, codes

SPACES = ("embedding", "pixels")
MIN_DISTANCE = 1e-6  # of cosine or correlation; float32 cannot tell less from 0
CHUNK = 256  # images compared at a time; changes memory, not results


@dataclass(frozen=True)
class CopyFeatures:
    """What is compared of N images; other shapes or values that are not finite are a DatasetError."""

    embeddings: Tensor  # [N, D], any scale
    pictures: Tensor  # [N, 1, h, w], grey, any scale; sides of 32 to 64 px

    def __post_init__(self) -> None:
        shapes = tuple(self.embeddings.shape), tuple(self.pictures.shape)
        if len(shapes[0]) != 2 or len(shapes[1]) != 4 or shapes[1][1] != 1 or shapes[0][0] != shapes[1][0]:
            raise DatasetError(
                f"copy detection: found embeddings {shapes[0]} and pictures {shapes[1]}; expected [N, D] and "
                "[N, 1, h, w] of the same N images."
            )
        if not (self.embeddings.isfinite().all() and self.pictures.isfinite().all()):
            raise DatasetError("copy detection: found NaN or infinity; leave images without finite features out.")

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | Sequence[int]) -> CopyFeatures:
        return CopyFeatures(self.embeddings[rows], self.pictures[rows])


class CopyFeatureNetwork(nn.Module):
    """What is compared of an image, in one vector: [B, 1, H, W] in [0, 1] -> [B, D + s²].

    The encoder gives an object with `cls_token` [B, D]; s px is the side of the small picture (mean over areas).
    """

    def __init__(self, encoder: nn.Module, picture_size: int) -> None:
        super().__init__()
        self.encoder, self.picture_size = encoder, picture_size

    def forward(self, image: Tensor) -> Tensor:
        """Encode a batch."""
        pictures = F.adaptive_avg_pool2d(image.float(), self.picture_size)
        return torch.cat([self.encoder(image).cls_token.float(), pictures.flatten(1)], dim=1)

    def unpack(self, features: Floats) -> CopyFeatures:
        """The two parts of features [N, D + s²]."""
        size, values = self.picture_size, torch.from_numpy(features)
        return CopyFeatures(values[:, : -(size**2)], values[:, -(size**2) :].reshape(-1, 1, size, size))


class NearestPatients:
    """N training images, by the patients they show, and the nearest of them to any others.

    The n held-out images may be sources of samples, too. Distances to patients are the mean over `num_neighbours`;
    `max_shift` is in px of the small pictures, in each direction. Without patients each image is one of its own.

    Raises:
        DatasetError: features of different sizes, or pictures too small for the shifts.
    """

    def __init__(
        self,
        train: CopyFeatures,
        held_out: CopyFeatures,
        train_patients: Sequence[Hashable] | None,
        num_neighbours: int,
        max_shift: int,
    ) -> None:
        self._train = train
        self.num_neighbours, self.max_shift = num_neighbours, max_shift
        self.check_sizes(held_out)
        if min(train.pictures.shape[2:]) <= 2 * max_shift + 1:
            raise DatasetError(
                f"copy detection: found pictures {tuple(train.pictures.shape[2:])} and max_shift {max_shift}; "
                "expected larger pictures or smaller shifts."
            )
        self._patients = torch.from_numpy(codes(range(len(train)) if train_patients is None else train_patients))
        # Unit vectors [N + n, P], unshifted.
        self._keys = {
            space: torch.cat([self._vectors(space, features, 0)[0] for features in (train, held_out)])
            for space in SPACES
        }

    def check_sizes(self, features: CopyFeatures) -> None:
        """Refuse, by a DatasetError, what was prepared in another way than the training images."""
        for name in ("embeddings", "pictures"):
            expected, found = (tuple(getattr(each, name).shape[1:]) for each in (self._train, features))
            if expected != found:
                raise DatasetError(
                    f"copy detection: found {name} of size {found}; expected {expected}, as the training images have. "
                    "Prepare all images in the same way."
                )

    def nearest(
        self, space: str, queries: CopyFeatures, own: Sequence[tuple[int, ...]]
    ) -> tuple[NDArray[np.integer], Floats, Floats]:
        """Index of the nearest training image, distance to it, mean distance to the k nearest patients; each [M].

        Patients of a query's own images, see `source_distance`, are left out; DatasetError where none other is left.
        """
        num_patients = int(self._patients.max()) + 1
        keys, found = self._keys[space][: len(self._train)], []
        for start in range(0, len(queries), CHUNK):
            chunk = self._vectors(space, queries[start : start + CHUNK], self.max_shift)
            similarity = chunk[0] @ keys.T
            for shifted in chunk[1:]:
                torch.maximum(similarity, shifted @ keys.T, out=similarity)
            for row, indices in enumerate(own[start : start + CHUNK]):
                for code in {int(self._patients[i]) for i in indices if i < len(self._train)}:
                    similarity[row, self._patients == code] = -math.inf
            by_patient = torch.full((len(similarity), num_patients), -math.inf)
            by_patient.scatter_reduce_(1, self._patients.expand_as(similarity), similarity, "amax")
            nearest = by_patient.topk(min(self.num_neighbours, num_patients), dim=1).values
            distance = (1 - nearest.double()).clamp_min(MIN_DISTANCE)  # infinite where left out
            is_there = distance.isfinite()
            typical = torch.where(is_there, distance, 0.0).sum(1) / is_there.sum(1)
            found.append((similarity.argmax(1), distance[:, 0], typical))
        columns = [torch.cat(column).numpy() for column in zip(*found, strict=True)]
        if not np.isfinite(columns[1]).all():
            raise DatasetError(
                "copy detection: found a sample whose sources' patients are the whole training set; expected training "
                "images of other patients too."
            )
        return columns[0], columns[1], columns[2]

    def source_distance(self, space: str, samples: CopyFeatures, own: Sequence[tuple[int, ...]]) -> Floats:
        """Distance [M] to the nearest own source; NaN where there is none.

        Own sources are indices into the training images followed by the held-out images.
        """
        distance = np.full(len(samples), np.nan)
        for row in (row for row, indices in enumerate(own) if indices):
            vectors = self._vectors(space, samples[row : row + 1], self.max_shift)[:, 0]
            similarity = float((vectors @ self._keys[space][list(own[row])].T).max())
            distance[row] = max(1 - similarity, MIN_DISTANCE)
        return distance

    def _vectors(self, space: str, features: CopyFeatures, shift: int) -> Tensor:
        """Unit vectors [number of shifts, B, P]; their dot product with keys is 1 - distance."""
        if space == "embedding":
            return F.normalize(features.embeddings.detach().float(), dim=1)[None]
        pictures = evened_out(features.pictures)
        height, width = (side - 2 * self.max_shift for side in pictures.shape[2:])
        offsets = range(self.max_shift - shift, self.max_shift + shift + 1)
        windows = [pictures[..., y : y + height, x : x + width].flatten(1) for y in offsets for x in offsets]
        return torch.stack([F.normalize(w - w.mean(1, keepdim=True), dim=1) for w in windows])
