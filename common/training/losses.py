"""Loss terms of the autoencoder, each on its own so that each is weighted and logged on its own."""

from __future__ import annotations

import torch
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn

from ..intensity import to_signed


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std²) || N(0, 1)) in nats per latent element, averaged: a scalar (Kingma & Welling 2014, appendix B).

    Args:
        mean: posterior mean, [B, C, h, w].
        std: posterior standard deviation, positive, same shape.
    """
    mean, std = mean.float(), std.float()
    variance = std.square()
    return 0.5 * (mean.square() + variance - variance.clamp_min(1e-20).log() - 1.0).mean()


class ReconstructionLoss(nn.Module):
    """L1 on [-1, 1] plus weighted LPIPS, per image; also what validation ranks checkpoints by.

    Args:
        perceptual: maps two images [B, 1, H, W] in [0, 1] to distances [B]; None for L1 alone.
        perceptual_weight: weight of the distance.
    """

    def __init__(self, perceptual: nn.Module | None, perceptual_weight: float) -> None:
        super().__init__()
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight

    def terms(self, reconstruction: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name, each [B]; both images [B, 1, H, W], nominally in [0, 1]."""
        terms = {"l1": (to_signed(reconstruction.float()) - to_signed(image)).abs().flatten(1).mean(1)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(reconstruction, image).float()
        return terms

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Sum of the terms, [B, 1], as MONAI's LossMetric wants it."""
        return torch.stack(list(self.terms(reconstruction, image).values())).sum(0)[:, None]


class AdversarialTerm:
    """The two sides of a patch adversarial loss (Isola et al. 2017; least squares: Mao et al. 2017).

    It starts after a warm-up, when there is something worth judging.

    Args:
        discriminator: MONAI PatchDiscriminator, possibly wrapped for distribution; sees [-1, 1].
        weight: of the generator's term.
        start_step: first step with the term; before it the discriminator is not trained either.
    """

    def __init__(self, discriminator: nn.Module, weight: float, start_step: int) -> None:
        self.discriminator = discriminator
        self.weight = weight
        self.start_step = start_step
        self.criterion = PatchAdversarialLoss(criterion="least_squares")

    def is_active(self, step: int) -> bool:
        """Say whether the term counts at this step (the first step is 1)."""
        return self.weight > 0 and step >= self.start_step

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        """How far the reconstruction [B, 1, H, W] is from passing as real, weighted; no gradient to the critic."""
        critic = getattr(self.discriminator, "module", self.discriminator)
        critic.requires_grad_(False)
        logits = critic(to_signed(reconstruction))[-1].float()
        critic.requires_grad_(True)
        return self.weight * self.criterion(logits, target_is_real=True, for_discriminator=False)

    def discriminator_loss(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """How badly the critic tells the image from its reconstruction, both [B, 1, H, W]; no gradient to the codec."""
        both = self.discriminator(to_signed(torch.cat([reconstruction.detach().to(image), image])))[-1].float()
        fake, real = both.chunk(2)
        fake_loss = self.criterion(fake, target_is_real=False, for_discriminator=True)
        return 0.5 * (fake_loss + self.criterion(real, target_is_real=True, for_discriminator=True))
