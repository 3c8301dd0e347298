"""Loss terms of the autoencoder, each on its own so that each is weighted and logged on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn

from ..intensity import to_signed
from ..spectrum import power_spectrum, radial_bands


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std²) || N(0, 1)) in nats per latent element, averaged: a scalar (Kingma & Welling 2014, appendix B).

    Args:
        mean: posterior mean, [B, C, h, w].
        std: posterior standard deviation, positive, same shape.
    """
    mean, std = mean.float(), std.float()
    variance = std.square()
    return 0.5 * (mean.square() + variance - variance.clamp_min(1e-20).log() - 1.0).mean()


class LocalPower(nn.Module):
    """How far two images differ in local power, octave by octave: mean |log(P + ε) - log(P' + ε)|.

    L1 and LPIPS are content with too little fine texture. Power says how much there is, where, without saying where
    each grain lies, and unlike a discriminator it does not learn to be fooled.

    Args:
        window: px, side of the squares that overlap by half.
        edges: of the bands, in cycles per pixel.
        floor: ε, a variance of images in [0, 1]: less power than this is not seen. 8-bit rounding has 1.3e-6.
    """

    def __init__(
        self, window: int = 32, edges: Sequence[float] = (0.0625, 0.125, 0.25, 0.5), floor: float = 4.0e-6
    ) -> None:
        super().__init__()
        self.window, self.floor = window, floor
        self.register_buffer("bands", radial_bands(window, window, edges).flatten(1), persistent=False)
        self.bands: Tensor

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distances [B] of images [B, 1, H, W] in [0, 1] from their references."""
        return (self._log_power(image) - self._log_power(reference)).abs().flatten(1).mean(1)

    def _log_power(self, image: Tensor) -> Tensor:
        squares = image[:, 0].unfold(1, self.window, self.window // 2).unfold(2, self.window, self.window // 2)
        return (power_spectrum(squares).flatten(-2) @ self.bands.T + self.floor).log()


class ReconstructionLoss(nn.Module):
    """L1 on [-1, 1] plus weighted LPIPS and local power, per image; also what validation ranks checkpoints by.

    Args:
        perceptual: maps two images [B, 1, H, W] in [0, 1] to distances [B]; None for L1 alone.
        perceptual_weight: weight of the distance.
        local_power_weight: weight of `LocalPower`; 0 goes without.
    """

    def __init__(self, perceptual: nn.Module | None, perceptual_weight: float, local_power_weight: float = 0.0) -> None:
        super().__init__()
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.local_power = LocalPower() if local_power_weight > 0 else None
        self.local_power_weight = local_power_weight

    def terms(self, reconstruction: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name, each [B]; both images [B, 1, H, W], nominally in [0, 1]."""
        terms = {"l1": (to_signed(reconstruction.float()) - to_signed(image)).abs().flatten(1).mean(1)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(reconstruction, image).float()
        if self.local_power is not None:
            terms["local_power"] = self.local_power_weight * self.local_power(reconstruction.float(), image)
        return terms

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Sum of the terms, [B, 1], as MONAI's LossMetric wants it."""
        return torch.stack(list(self.terms(reconstruction, image).values())).sum(0)[:, None]


@dataclass(eq=False, repr=False)
class AdversarialTerm:
    """The two sides of a patch adversarial loss (Isola et al. 2017; least squares: Mao et al. 2017).

    Args:
        discriminator: MONAI PatchDiscriminator, possibly wrapped for distribution; sees [-1, 1].
        weight: of the generator's term.
        start_step: first step with the term; before it the discriminator is not trained either.
        criterion: "least_squares" or "hinge".
        gradient_penalty: γ of R1, γ/2·E‖∇D(x)‖² on real images (Mescheder et al. 2018), per patch that is judged; it
            keeps the discriminator from winning. 0 goes without.
        penalty_interval: steps between two penalties, each as many times as strong (Karras et al. 2020, section 3.1).
    """

    discriminator: nn.Module
    weight: float
    start_step: int
    criterion: str = "least_squares"
    gradient_penalty: float = 0.0
    penalty_interval: int = 8

    def __post_init__(self) -> None:
        self.loss = PatchAdversarialLoss(criterion=self.criterion)

    def is_active(self, step: int) -> bool:
        """Say whether the term counts at this step (the first step is 1)."""
        return self.weight > 0 and step >= self.start_step

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        """How far the reconstruction [B, 1, H, W] is from passing as real, weighted; only for the generator."""
        discriminator = getattr(self.discriminator, "module", self.discriminator)
        discriminator.requires_grad_(False)
        logits = discriminator(to_signed(reconstruction))[-1].float()
        discriminator.requires_grad_(True)
        return self.weight * self.loss(logits, target_is_real=True, for_discriminator=False)

    def discriminator_loss(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """How badly the discriminator tells image from reconstruction, both [B, 1, H, W]; only for itself."""
        both = self.discriminator(to_signed(torch.cat([reconstruction.detach().to(image), image])))[-1].float()
        fake, real = both.chunk(2)
        fake_loss = self.loss(fake, target_is_real=False, for_discriminator=True)
        return 0.5 * (fake_loss + self.loss(real, target_is_real=True, for_discriminator=True))

    def penalty(self, image: Tensor, step: int) -> Tensor | None:
        """R1 on real images [B, 1, H, W] in [0, 1], a scalar; None at steps that have none."""
        if self.gradient_penalty == 0 or step % self.penalty_interval:
            return None
        signed = to_signed(image).detach().requires_grad_(True)
        logits = self.discriminator(signed)[-1].float()
        (gradient,) = torch.autograd.grad(logits.sum(), signed, create_graph=True)
        return 0.5 * self.gradient_penalty * self.penalty_interval * gradient.square().sum() / logits.numel()
