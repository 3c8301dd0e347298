"""Baselines of the DDPM pre-training on the same U-Net: a denoising autoencoder and masked images.

Both corrupt an image and have the network restore it, at the one timestep that the segmenter is told later. Images are
[B, 1, H, W] in [-1, 1] here; of batches, "image" is in [0, 1], and "draw" [B] the numbers of draws or images.
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
    """How images are corrupted, and what a restoration is worth."""

    cost = staticmethod(torch.square)  # of a difference of pixels, elementwise

    @abstractmethod
    def corrupt(self, image: Tensor, seed: int, draws: list[int]) -> tuple[Tensor, Tensor]:
        """The corrupted images, and where [B, 1, H, W] their restoration counts, as zeros and ones.

        An image's corruption is a function of the seed and of its draw.
        """

    def errors(self, network: nn.Module, image: Tensor, corruption: tuple[Tensor, Tensor], timestep: int) -> Tensor:
        """Mean cost over the pixels of an image that count, where a denoiser restores it at one timestep: [B]."""
        corrupted, counts = corruption
        restored = network(corrupted, torch.full((len(corrupted),), timestep, device=corrupted.device))
        cost = self.cost(restored.float() - image) * counts
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


class MaskedPatches(Pretext):
    """Masked images (SimMIM, Xie et al. 2022, section 3): hide random patches as mid-grey (0), L1 on what is hidden.

    Args:
        patch_size: px, side of the squares; those at the right and lower border may be cut.
        mask_ratio: share of the patches that are hidden; at least one is, and one is not.

    Raises:
        ValueError: a number out of range, or later images that hold one patch only.
    """

    cost = staticmethod(torch.abs)

    def __init__(self, patch_size: int, mask_ratio: float) -> None:
        if patch_size < 1 or not 0.0 < mask_ratio < 1.0:
            raise ValueError(
                f"expected a patch_size of at least 1 and a mask_ratio in (0, 1), found {patch_size}, {mask_ratio}"
            )
        self.patch_size, self.mask_ratio = patch_size, mask_ratio

    def corrupt(self, image: Tensor, seed: int, draws: list[int]) -> tuple[Tensor, Tensor]:
        """Hide patches; the hidden pixels count."""
        height, width = image.shape[-2:]
        rows, columns = -(-height // self.patch_size), -(-width // self.patch_size)
        if rows * columns < 2:
            raise ValueError(
                f"expected images larger than one patch of {self.patch_size} px, found {height} × {width}; "
                "give a smaller patch_size"
            )
        hidden = min(max(1, round(self.mask_ratio * rows * columns)), rows * columns - 1)
        generators = [torch.Generator().manual_seed(derive_seed(seed, Purpose.MASK, draw)) for draw in draws]
        orders = torch.stack([torch.randperm(rows * columns, generator=generator) for generator in generators])
        patches = (orders < hidden).to(image).view(-1, 1, rows, columns)
        whole = patches.repeat_interleave(self.patch_size, 2).repeat_interleave(self.patch_size, 3)
        masks = whole[:, :, :height, :width]
        return image * (1.0 - masks), masks


@dataclass(kw_only=True, eq=False)
class PretextStep(TrainingStep):
    """One optimiser step on the error of restored images.

    Args:
        pretext: how to corrupt and what to pay.
        timestep: that the U-Net is told, the segmenter's. The others as of `TrainingStep`.
    """

    pretext: Pretext
    timestep: int
    amp: bool = False

    def terms(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss."""
        draws = batch["draw"].tolist()
        image = batch["image"].to(engine.state.device)
        image = to_signed(augmented_image(self.augmentation, image, self.seed, draws))
        corruption = self.pretext.corrupt(image, self.seed, draws)
        with self.forward_pass(engine):
            return {"loss": self.pretext.errors(engine.network, image, corruption, self.timestep).mean()}


@dataclass(frozen=True)
class PretextValidation:
    """Error of restored images, each with its own fixed corruption; `MeanError` averages it.

    Arguments as of `PretextStep`, `amp`: bfloat16 autocast where the hardware has it, `seed`: of the corruption.
    """

    pretext: Pretext
    timestep: int
    amp: bool
    seed: int

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return "errors" [B, 1]."""
        device = engine.state.device
        image = to_signed(batch["image"].to(device))
        corruption = self.pretext.corrupt(image, self.seed, batch["draw"].tolist())
        with torch.no_grad(), autocast(device, self.amp):
            return {"errors": self.pretext.errors(engine.network, image, corruption, self.timestep)[:, None]}
