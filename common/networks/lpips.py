"""LPIPS with AlexNet, without torchvision and without the `lpips` package."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checks import check_image
from ..intensity import to_signed
from .weights import load_weights

CHANNELS = (64, 192, 384, 256, 256)  # of AlexNet's five convolutions
CONVOLUTIONS = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))  # kernel, stride, padding of each
MIN_SIZE = 31  # pixels: the smallest side that leaves one position after AlexNet's strides


class LPIPS(nn.Module):
    """Learned perceptual distance LPIPS v0.1 on AlexNet features; frozen, always in evaluation mode.

    Zhang et al. 2018, arXiv:1801.03924, Eq. 1: unit-normalise each layer's features over the channels, weight the
    squared differences per channel, average over positions, sum over the five layers.

    Args:
        weights_path: state dict file (`torch.save`) with exactly the keys features.{0,3,6,8,10}.{weight,bias}
            (AlexNet's convolutions) and lin{0..4}.model.1.weight (LPIPS v0.1).

    Raises:
        WeightsError: no such file, or other keys or shapes than those above.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights_path: str | Path) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k, (before, after) in enumerate(pairwise((3, *CHANNELS))):
            kernel, stride, padding = CONVOLUTIONS[k]
            layers += [nn.Conv2d(before, after, kernel, stride, padding), nn.ReLU()]
            layers += [nn.MaxPool2d(3, 2)] if k < 2 else []
        self.features = nn.Sequential(*layers)
        for k, channels in enumerate(CHANNELS):  # named as the `lpips` package does; its dropout served its training
            model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{k}", nn.ModuleDict({"model": model}))
        # ImageNet mean and standard deviation, written for an input in [-1, 1]; constants, so not in the state dict.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        load_weights(self, weights_path)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> LPIPS:
        """Stay in evaluation mode whatever is asked: a parent's `.train()` must not change the metric."""
        return super().train(False)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance of each image to its reference: [B, 1, H, W] in [0, 1] twice -> [B] float32, 0 = the same.

        Gradients flow to both inputs. Convolutions run in float32 unless an enclosing autocast chooses otherwise;
        what follows them is float32 always.

        Raises:
            ValueError: shapes differ, are not [B, 1, H, W], or a side is below 31 pixels.
        """
        check_image(image)
        if image.shape != reference.shape or min(image.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f"LPIPS: found image {tuple(image.shape)} and reference {tuple(reference.shape)}; expected the same "
                f"shape [B, 1, H, W] with sides of at least {MIN_SIZE} px. Use larger images or switch LPIPS off."
            )
        total = image.new_zeros(image.shape[0], dtype=torch.float32)
        for k, (a, b) in enumerate(zip(self._unit_features(image), self._unit_features(reference), strict=True)):
            weight = self.get_parameter(f"lin{k}.model.1.weight")  # [1, C, 1, 1], float32 under autocast too
            total = total + ((a - b).square() * weight).sum(dim=1).mean(dim=(1, 2))
        return total

    def _unit_features(self, image: Tensor) -> list[Tensor]:
        """Channel-normalised features after each of the five ReLUs, float32."""
        x = (to_signed(image.float()).expand(-1, 3, -1, -1) - self.shift) / self.scale
        units = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                # float32 first: in float16 the 1e-10 would be 0, and a position without features 0 / 0.
                feature = x.float()
                units.append(feature / (torch.linalg.vector_norm(feature, dim=1, keepdim=True) + 1e-10))
        return units
