"""What the images were like that weights were trained on: how unlike them another image is, for a warning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.weights import load_described, recorded
from ..spectrum import power_spectrum, radial_bands
from .transforms import center_square

FILE_NAME = "typical_images.pt"
SIDE = 64  # px of the square that is looked at
BANDS = tuple(cycles / SIDE for cycles in (1, 2.5, 4.5, 8, 13, 20, 32))  # edges, in cycles per pixel
TEXTURE, ALL = 14, 39  # features: power by band and direction, symmetries; these, and quantiles and a 4 × 4 layout
SHRINKAGE = 0.1  # of the correlations towards none
HELD_OUT_SHARE = 0.99  # of held-out images that are below the limits


def features(image: Tensor) -> Tensor:
    """Texture and layout [39] of the central square of an image [1, H, W] in [0, 1]."""
    square = center_square(image.as_subclass(Tensor).float(), SIDE)
    quantiles = square.flatten().quantile(torch.linspace(0.1, 0.9, 9))
    even = (square - square.mean()) / (square.std() + 1e-6)
    power, rings = power_spectrum(even)[0], radial_bands(SIDE, SIDE, BANDS)
    down = torch.fft.fftfreq(SIDE).abs()[:, None] >= torch.fft.rfftfreq(SIDE).abs()
    bands = [(ring * power * part).sum() / (ring * part).sum() for ring in rings for part in (~down, down)]
    symmetries = [(even * even.flip(axis)).mean() for axis in (-1, -2)]
    layout = F.adaptive_avg_pool2d(even, 4).flatten()
    return torch.cat([torch.stack(bands).add(1e-6).log(), torch.stack(symmetries), quantiles, layout])


@recorded
class TypicalImages(nn.Module):
    """How unlike the training images an image is: above 1 for 1 % of held-out ones of their kind, and for others.

    The larger of two Mahalanobis distances, of texture and of all features, each over its limit.
    """

    mean: Tensor
    std: Tensor
    correlation: Tensor
    limits: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("mean", (ALL,)), ("std", (ALL,)), ("correlation", (ALL, ALL)), ("limits", (2,))):
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, image: Tensor) -> float:
        """Of an image [1, H, W] in [0, 1], H and W any."""
        return self.of_features(features(image))

    def of_features(self, found: Tensor) -> float:
        """Of an image's features [39]."""
        return float((self._distances(found[None]) / self.limits).max())

    def fit(self, training: Sequence[Tensor], held_out: Sequence[Tensor]) -> TypicalImages:
        """Learn from features [39] of training images, and set the limits on held-out ones."""
        found = torch.stack(list(training))
        self.mean, self.std = found.mean(0), found.std(0) + 1e-6
        correlation = torch.corrcoef(((found - self.mean) / self.std).T)
        self.correlation = (1 - SHRINKAGE) * correlation + SHRINKAGE * torch.eye(ALL)
        self.limits = self._distances(torch.stack(list(held_out))).quantile(HELD_OUT_SHARE, dim=0)
        return self

    def _distances(self, found: Tensor) -> Tensor:
        """Root mean squares of whitened features: [B, 2]."""
        lengths = []
        for count in (TEXTURE, ALL):
            part = ((found - self.mean) / self.std)[:, :count]
            whitened = torch.linalg.solve(self.correlation[:count, :count].double(), part.T.double()).T
            lengths.append(((part * whitened).sum(1) / count).clamp_min(0).sqrt().float())
        return torch.stack(lengths, 1)


def load_typical(weights_path: str | Path) -> TypicalImages | None:
    """What `scripts/typical_images.py` wrote beside weights of their training images; None where there is nothing.

    Raises:
        WeightsError: it is damaged.
    """
    path = Path(weights_path).with_name(FILE_NAME)
    return load_described(path) if path.is_file() else None
