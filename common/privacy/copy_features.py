"""What the privacy check compares of an image: its DINO cls token and a small picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .copy_detection import CopyFeatures
from .held_out_ratios import Floats


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
