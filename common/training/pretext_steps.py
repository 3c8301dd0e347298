"""Baselines of the DDPM pre-training on the same U-Net: a denoising autoencoder and masked images.

Both corrupt an image and have the network restore it, at the one timestep that the segmenter is told later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor, nn

from ..amp import autocast
from ..data.augmentation import augmented_image
from ..intensity import to_signed
from ..seeding import Purpose, derive_seed, seeded_normal
from .optimizer_step import TrainingStep


class Pretext(ABC):
    """How images are corrupted, and what a restoration is worth. Images are [B, 1, H, W] in [-1, 1] here."""

    @abstractmethod
    def corrupt(self, image: Tensor, seed: int, draws: list[int]) -> tuple[Tensor, Tensor]:
        """Return the corrupted images and where [B, 1, H, W] their restoration counts, as zeros and ones.

        An image's corruption is a function of the seed and of its draw.
        """

    @abstractmethod
    def distance(self, difference: Tensor) -> Tensor:
        """What a difference of pixels costs, elementwise."""

    def errors(self, restored: Tensor, image: Tensor, counts: Tensor) -> Tensor:
        """Mean cost over the pixels of an image that count: [B]."""
        cost = self.distance(restored.float() - image) * counts
        return cost.flatten(1).sum(1) / counts.flatten(1).sum(1)


class GaussianNoise(Pretext):
    """Denoising autoencoder (Vincent et al. 2010, section 3): add Gaussian noise of one strength, squared error.

    Args:
        noise_std: standard deviation, in units of [-1, 1].

    Raises:
        ValueError: not positive.
    """

    def __init__(self, noise_std: float) -> None:
        if noise_std <= 0.0:
            raise ValueError(f"noise_std: expected a positive number, found {noise_std}")
        self.noise_std = noise_std

    def corrupt(self, image: Tensor, seed: int, draws: list[int]) -> tuple[Tensor, Tensor]:
        """Add the noise; every pixel counts."""
        seeds = [derive_seed(seed, Purpose.NOISE, draw) for draw in draws]
        noise = seeded_normal(seeds, tuple(image.shape[1:])).to(image.device)
        return image + self.noise_std * noise, torch.ones_like(image)

    def distance(self, difference: Tensor) -> Tensor:
        """Return the square."""
        return difference.square()


class MaskedPatches(Pretext):
    """Masked images (SimMIM, Xie et al. 2022, section 3): hide random patches, L1 on what is hidden.

    Hidden pixels are mid-grey, 0 in [-1, 1].

    Args:
        patch_size: px, side of the squares; those at the right and lower border may be cut.
        mask_ratio: share of the patches that are hidden; at least one is, and one is not.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, patch_size: int, mask_ratio: float) -> None:
        if patch_size < 1 or not 0.0 < mask_ratio < 1.0:
            raise ValueError(
                f"expected a patch_size of at least 1 and a mask_ratio in (0, 1), found {patch_size}, {mask_ratio}"
            )
        self.patch_size = patch_size
        self.mask_ratio = mask_ratio

    def corrupt(self, image: Tensor, seed: int, draws: list[int]) -> tuple[Tensor, Tensor]:
        """Hide patches; the hidden pixels count.

        Raises:
            ValueError: the images hold one patch only.
        """
        seeds = [derive_seed(seed, Purpose.MASK, draw) for draw in draws]
        masks = torch.stack([self._mask(image.shape[-2], image.shape[-1], each) for each in seeds])[:, None]
        masks = masks.to(image)
        return image * (1.0 - masks), masks

    def distance(self, difference: Tensor) -> Tensor:
        """Return the magnitude."""
        return difference.abs()

    def _mask(self, height: int, width: int, seed: int) -> Tensor:
        """One where hidden, [H, W]."""
        rows, columns = -(-height // self.patch_size), -(-width // self.patch_size)
        if rows * columns < 2:
            raise ValueError(
                f"expected images larger than one patch of {self.patch_size} px, found {height} × {width}; "
                "give a smaller patch_size"
            )
        hidden = min(max(1, round(self.mask_ratio * rows * columns)), rows * columns - 1)
        order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))
        patches = (order < hidden).float().view(rows, columns)
        return patches.repeat_interleave(self.patch_size, 0).repeat_interleave(self.patch_size, 1)[:height, :width]


@dataclass(kw_only=True, eq=False)
class PretextStep(TrainingStep):
    """One optimiser step on the error of restored images.

    `batch` holds "image" [B, 1, H, W] in [0, 1] and "draw" [B].

    Args:
        pretext: how to corrupt and what to pay.
        timestep: that the U-Net is told, the segmenter's. The others as of `TrainingStep`.
    """

    pretext: Pretext
    timestep: int
    amp: bool = False

    def terms(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss."""
        device = engine.state.device
        draws = batch["draw"].tolist()
        image = to_signed(augmented_image(self.augmentation, batch["image"].to(device), self.seed, draws))
        corrupted, counts = self.pretext.corrupt(image, self.seed, draws)
        with self.forward_pass(engine):
            restored = restore(engine.network, corrupted, self.timestep)
        return {"loss": self.pretext.errors(restored, image, counts).mean()}


@dataclass(frozen=True)
class PretextValidation:
    """Error of restored images, each with its own fixed corruption; `MeanError` averages it.

    `batch` holds "image" [B, 1, H, W] in [0, 1] and "draw" [B], the images' numbers.

    Args:
        pretext: how to corrupt and what to pay.
        timestep: that the U-Net is told, the segmenter's.
        amp: bfloat16 autocast where the hardware has it.
        seed: of the corruption.
    """

    pretext: Pretext
    timestep: int
    amp: bool
    seed: int

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return "errors" [B, 1]."""
        device = engine.state.device
        image = to_signed(batch["image"].to(device))
        corrupted, counts = self.pretext.corrupt(image, self.seed, batch["draw"].tolist())
        with torch.no_grad(), autocast(device, self.amp):
            restored = restore(engine.network, corrupted, self.timestep)
        return {"errors": self.pretext.errors(restored, image, counts)[:, None]}


def restore(network: nn.Module, corrupted: Tensor, timestep: int) -> Tensor:
    """Have a denoiser restore corrupted images [B, 1, H, W] in [-1, 1] at one timestep."""
    return network(corrupted, torch.full((len(corrupted),), timestep, device=corrupted.device))
