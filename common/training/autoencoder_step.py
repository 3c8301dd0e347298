"""One optimiser step of the KL autoencoder, as MONAI's `iteration_update`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor
from torch.optim import Optimizer

from ..amp import autocast
from ..data.transforms import random_patches
from ..errors import SettingsError
from ..seeding import Purpose, derive_seed, seeded_normal
from .losses import AdversarialTerm, ReconstructionLoss, kl_divergence
from .optimizer_step import TrainingStep, optimizer_step


@dataclass(kw_only=True, eq=False)
class AutoencoderStep(TrainingStep):
    """Generator step, then discriminator step (VAE-GAN, Rombach et al. 2022, appendix G), then EMA.

    Args:
        reconstruction_loss: L1 and perceptual terms.
        kl_weight: of the KL divergence per latent element.
        patch_size: px, the random square that a step sees of each image.
        full_size_from_step: from this step on it sees whole images, as the network will be used (GroupNorm's
            statistics depend on the size).
        latent_noise: standard deviations of the latents; noise that is added to them before decoding, so that a decoder
            puts up with latents that a generator gets a little wrong. Each image draws its own amount: this times |n|,
            n normal and at most 2. Needs a codec with latent statistics.
        adversarial: the adversarial term; None to go without.
        discriminator_optimizer: of its discriminator; needed with `adversarial`. The others as of `TrainingStep`.
    """

    reconstruction_loss: ReconstructionLoss
    kl_weight: float
    patch_size: int
    full_size_from_step: int
    latent_noise: float = 0.0
    adversarial: AdversarialTerm | None = None
    discriminator_optimizer: Optimizer | None = None

    def __post_init__(self) -> None:
        if self.adversarial is not None and self.discriminator_optimizer is None:
            raise ValueError("adversarial is given: expected a discriminator_optimizer too, found None")
        if self.accumulation_steps != 1:
            raise SettingsError(f"accumulation_steps: expected 1 for an autoencoder, found {self.accumulation_steps}")
        if self.latent_noise and not self.ema.network.latents_num_images:
            raise SettingsError(
                f"latent_noise {self.latent_noise}: expected weights that hold latent statistics, found none; give "
                "init_weights and trained_part decoder"
            )

    def __call__(self, engine: SupervisedTrainer, batch: dict) -> dict:
        """Do one step; return image, pred and every loss term as floats.

        `batch` holds "image" [B, 1, H, W] in [0, 1] and "draw" [B], the numbers of the draws.

        Raises:
            NonFiniteLossError: names the step and the terms.
        """
        step, draws = engine.state.iteration, batch["draw"].tolist()
        adversarial = self.adversarial if self.adversarial is not None and self.adversarial.is_active(step) else None
        image = batch["image"].to(engine.state.device, non_blocking=engine.non_blocking)
        if step < self.full_size_from_step:
            image = random_patches(image, self.patch_size, self._seeds(Purpose.PATCH, draws))
        codec = self.ema.network
        shape = (codec.latent_channels, *(side // codec.downsampling_factor for side in image.shape[-2:]))
        noise = seeded_normal(self._seeds(Purpose.POSTERIOR, draws), shape).to(image.device)
        latent_noise = self._latent_noise(draws, shape).to(image.device) if self.latent_noise else None
        engine.network.train()
        with autocast(image.device, self.amp):
            reconstruction, mean, std = engine.network(image, noise, latent_noise)
            per_image = self.reconstruction_loss.terms(reconstruction, image)
            terms = {name: values.mean() for name, values in per_image.items()}
            terms["kl"] = self.kl_weight * kl_divergence(mean, std)
            if adversarial is not None:
                terms["adversarial"] = adversarial.generator_loss(reconstruction)
        logged = self.update(engine, [terms])
        if adversarial is not None:
            logged |= self._discriminator_step(adversarial, step, reconstruction, image)
        return {"image": image, "pred": reconstruction.detach(), **logged}

    def _seeds(self, purpose: Purpose, draws: list[int]) -> list[int]:
        return [derive_seed(self.seed, purpose, draw) for draw in draws]

    def _latent_noise(self, draws: list[int], shape: tuple[int, ...]) -> Tensor:
        amounts = seeded_normal(self._seeds(Purpose.TIMESTEP, draws), (1, 1, 1)).abs().clamp(max=2.0)
        return self.latent_noise * amounts * seeded_normal(self._seeds(Purpose.NOISE, draws), shape)

    def _discriminator_step(
        self, adversarial: AdversarialTerm, step: int, reconstruction: Tensor, image: Tensor
    ) -> dict[str, float]:
        assert self.discriminator_optimizer is not None
        adversarial.discriminator.train()
        with autocast(image.device, self.amp):
            terms = {"discriminator": adversarial.discriminator_loss(reconstruction, image)}
            penalty = adversarial.penalty(image, step)
            terms |= {} if penalty is None else {"gradient_penalty": penalty}
        optimizer = self.discriminator_optimizer
        values, norm = optimizer_step(adversarial.discriminator, optimizer, [terms], self.max_grad_norm, step)
        return {**values, "discriminator_grad_norm": norm}


def image_as_label(
    batchdata: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """An autoencoder's target is its input: (image, image), each [B, 1, H, W] on `device`."""
    image = batchdata["image"].to(device=device, non_blocking=non_blocking, **kwargs)
    return image, image
