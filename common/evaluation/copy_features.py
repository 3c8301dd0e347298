"""What the privacy check compares of an image: its DINO cls token and a small picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .held_out_ratios import Floats


class CopyDetectionError(UserError, ValueError):
    """Features that cannot be compared."""


@dataclass(frozen=True)
class CopyFeatures:
    """What is compared of N images.

    Args:
        embeddings: [N, D], any scale.
        pictures: [N, 1, h, w], grey, any scale; sides of 32 to 64 px.

    Raises:
        CopyDetectionError: other shapes, different N, values that are not finite.
    """

    embeddings: Tensor
    pictures: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.embeddings.shape), tuple(self.pictures.shape)
        if len(shapes[0]) != 2 or len(shapes[1]) != 4 or shapes[1][1] != 1 or shapes[0][0] != shapes[1][0]:
            raise CopyDetectionError(
                f"copy detection: found embeddings {shapes[0]} and pictures {shapes[1]}; expected [N, D] and "
                "[N, 1, h, w] of the same N images."
            )
        if not (self.embeddings.isfinite().all() and self.pictures.isfinite().all()):
            raise CopyDetectionError("copy detection: found NaN or infinity; leave images without finite features out.")

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | Sequence[int]) -> CopyFeatures:
        return CopyFeatures(self.embeddings[rows], self.pictures[rows])


class CopyFeatureNetwork(nn.Module):
    """What is compared of an image, in one vector: [B, 1, H, W] in [0, 1] -> [B, D + s²].

    Args:
        encoder: gives an object with `cls_token` [B, D].
        picture_size: s, px of the small picture (mean over areas).
    """

    def __init__(self, encoder: nn.Module, picture_size: int) -> None:
        super().__init__()
        self.encoder, self.picture_size = encoder, picture_size

    def forward(self, image: Tensor) -> Tensor:
        """Encode a batch."""
        return torch.cat([self.encoder(image).cls_token.float(), self.pictures(image).flatten(1)], dim=1)

    def pictures(self, image: Tensor) -> Tensor:
        """The small pictures [B, 1, s, s] alone, for whom the tokens are known."""
        return F.adaptive_avg_pool2d(image.float(), self.picture_size)

    def unpack(self, features: Floats) -> CopyFeatures:
        """The two parts of features [N, D + s²]."""
        size = self.picture_size
        values = torch.from_numpy(features)
        return CopyFeatures(values[:, : -(size**2)], values[:, -(size**2) :].reshape(-1, 1, size, size))
