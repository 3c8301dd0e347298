"""Training and validation of denoisers, as MONAI's `iteration_update`: on cached latents, and on images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ignite.metrics import Average
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor
from torch.nn import functional as F

from ..amp import autocast
from ..data.augmentation import augmented_image
from ..diffusion.noise_schedule import NoiseSchedule
from ..intensity import to_signed
from ..networks.conditioning import TokenSelection
from ..seeding import Purpose, derive_seed, seeded_normal
from .optimizer_step import TrainingStep

Predict = Callable[[Tensor, Tensor], Tensor]  # (noisy, timesteps) to output

GOLDEN_RATIO = 0.6180339887498949


def spread_uniform(draws: list[int], seed: int) -> Tensor:
    """Uniform numbers [B] in [0, 1), spread evenly over consecutive draws (golden ratio sequence).

    Like the low-discrepancy timesteps of Kingma et al. 2021 (appendix I.1), but a function of the draw alone.
    """
    offset = derive_seed(seed, Purpose.TIMESTEP) / 2**63
    return torch.tensor([(offset + draw * GOLDEN_RATIO) % 1.0 for draw in draws], dtype=torch.float64)


def alignment_loss(projected: Tensor, patch_grid: Tensor) -> Tensor:
    """1 - cosine between projected features [B, D, h, w] and patch tokens [B, k, k, D], averaged: a scalar (REPA).

    The batch's mean token is taken off the tokens first: it is most of every token of a radiograph, and would be all
    that is learned.
    """
    features = F.adaptive_avg_pool2d(projected.float(), patch_grid.shape[1]).permute(0, 2, 3, 1)
    centred = patch_grid.float() - patch_grid.float().mean((0, 1, 2))
    return 1.0 - F.cosine_similarity(features, centred, dim=-1).mean()


@dataclass(kw_only=True, eq=False)
class DiffusionStep(TrainingStep, ABC):
    """One optimiser step on ‖output - target‖² (Ho et al. 2020, eq. 14; weights as `NoiseSchedule.loss_weight`).

    Subclasses say what x0 is and what else the network is given. Noise and timestep are functions of the seed and the
    number of the draw; dropout, where the network has any, of the seed and the step.

    Args:
        schedule: forward process and prediction type.
        min_snr_gamma: of min-SNR weighting; None for none.
        noise_device: where to draw noise with one seed per batch: quicker for large ones, but it then depends on batch
            and hardware; None draws each image's with a seed of its own. The others as of `TrainingStep`.
    """

    schedule: NoiseSchedule
    min_snr_gamma: float | None = None
    noise_device: torch.device | None = None

    @abstractmethod
    def clean(self, batch: dict[str, Any], draws: list[int]) -> Tensor:
        """The x0 [B, ...] of a batch."""

    def conditions(self, batch: dict[str, Any], draws: list[int]) -> tuple[Tensor, ...]:
        """What the network is given beside noisy sample and timesteps."""
        return ()

    def split(self, found: Any, batch: dict[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What the network gave, as its prediction and further loss terms."""
        return found, {}

    def terms(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss, and what `split` adds."""
        device = engine.state.device
        draws = batch["draw"].tolist()
        x0 = self.clean(batch, draws).to(device)
        noise = self._normal(Purpose.NOISE, draws, tuple(x0.shape[1:])).to(device)
        timesteps = self.schedule.sample_timesteps(spread_uniform(draws, self.seed)).to(device)
        conditions = [part.to(device) for part in self.conditions(batch, draws)]
        noisy = self.schedule.add_noise(x0, noise, timesteps)
        with self.forward_pass(engine):
            found = engine.network(noisy, timesteps, *conditions)
            output, terms = self.split(found, batch, engine.state.iteration)
        error = (output.float() - self.schedule.target(x0, noise, timesteps)).square().flatten(1).mean(1)
        terms["loss"] = (self.schedule.loss_weight(timesteps, self.min_snr_gamma) * error).mean()
        return terms

    def _normal(self, purpose: Purpose, draws: list[int], shape: tuple[int, ...]) -> Tensor:
        if self.noise_device is not None:
            generator = torch.Generator(self.noise_device).manual_seed(derive_seed(self.seed, purpose, draws[0]))
            return torch.randn(len(draws), *shape, generator=generator, device=self.noise_device)
        return seeded_normal([derive_seed(self.seed, purpose, draw) for draw in draws], shape)


@dataclass(kw_only=True, eq=False)
class ConditionalStep(DiffusionStep):
    """The step of a network that is trained without its context, too, for guidance (Ho & Salimans 2022).

    Args:
        uncond_prob: share of samples trained without context, in [0, 1). The others as of `DiffusionStep`.

    Raises:
        ValueError: no such share.
    """

    uncond_prob: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.uncond_prob < 1.0:
            raise ValueError(f"uncond_prob: expected a share in [0, 1), found {self.uncond_prob}")

    def dropped(self, draws: list[int]) -> Tensor:
        """Which samples [B] to train without context; a function of seed and draw."""
        chances = [derive_seed(self.seed, Purpose.CONTEXT_DROP, draw) / 2**63 for draw in draws]
        return torch.tensor(chances, dtype=torch.float64) < self.uncond_prob


@dataclass(kw_only=True, eq=False)
class DenoisingStep(ConditionalStep):
    """The step on cached latents, with tokens as context.

    Args:
        selection: which tokens condition.
        alignment_weight: of `alignment_loss` with the patch grid of the store, where the network projects its middle.
        alignment_steps: it counts in so many first steps (HASTE, arXiv 2505.16792: later it holds the network back).
            The others as of `ConditionalStep`.
    """

    selection: TokenSelection
    alignment_weight: float = 0.0
    alignment_steps: float = math.inf

    def clean(self, batch: dict[str, Any], draws: list[int]) -> Tensor:
        """A draw of the codec's posterior, mean + std·noise, [B, C, h, w]; a function of seed and draw, too."""
        mean = batch["latents_mean"]
        return mean + batch["latents_std"] * self._normal(Purpose.POSTERIOR, draws, tuple(mean.shape[1:]))

    def conditions(self, batch: dict[str, Any], draws: list[int]) -> tuple[Tensor, ...]:
        """Tokens [B, N, D], and which samples [B] to train without them."""
        return self.selection.select(batch), self.dropped(draws)

    def split(self, found: Any, batch: dict[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The prediction, and the alignment where the network projects its middle; 0 times it once its steps are over.

        DistributedDataParallel wants every parameter in every step.
        """
        output, projected = found
        if projected is None:
            return output, {}
        weight = self.alignment_weight if step <= self.alignment_steps else 0.0
        return output, {"alignment": weight * alignment_loss(projected, batch["patch_grid"].to(projected.device))}


@dataclass(kw_only=True, eq=False)
class DiffusionValidation(ABC):
    """Error of the output on fixed noise and timesteps, one per stratum of noise levels and image; unweighted.

    The strata cut the training distribution of timesteps into `num_levels` parts of equal probability, 0 the least
    noisy. Subclasses say what x0 is and how the network is called. `amp` is bfloat16 where the hardware has it.
    """

    schedule: NoiseSchedule
    num_levels: int = 4
    amp: bool = True
    seed: int = 0

    @abstractmethod
    def prepare(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> tuple[list[int], Tensor, Predict]:
        """Return the images' numbers, their x0 [B, ...] on the engine's device, and (noisy, timesteps) to output."""

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return "errors" [B, num_levels]."""
        device = engine.state.device
        indices, x0, predict = self.prepare(engine, batch)
        errors = []
        for level in range(self.num_levels):
            seeds = [derive_seed(self.seed, Purpose.NOISE, level, index) for index in indices]
            noise = seeded_normal(seeds, tuple(x0.shape[1:])).to(device)
            within = spread_uniform(indices, self.seed)
            timesteps = self.schedule.sample_timesteps((level + within) / self.num_levels).to(device)
            noisy = self.schedule.add_noise(x0, noise, timesteps)
            with torch.no_grad(), autocast(device, self.amp):
                output = predict(noisy, timesteps)
            errors.append((output.float() - self.schedule.target(x0, noise, timesteps)).square().flatten(1).mean(1))
        return {"errors": torch.stack(errors, dim=1)}


@dataclass(kw_only=True, eq=False)
class DenoisingValidation(DiffusionValidation):
    """The validation on cached latents, given the tokens that `selection` chooses; the context is never dropped."""

    selection: TokenSelection

    def prepare(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> tuple[list[int], Tensor, Predict]:
        """Means of the posteriors, and the denoiser with the tokens of each image."""
        denoiser: Any = engine.network
        tokens = self.selection.select(batch).to(engine.state.device)

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return denoiser(noisy, timesteps, denoiser.encode_tokens(tokens))

        return batch["index"].tolist(), batch["latents_mean"].to(engine.state.device), predict


class ImageDenoisingStep(DiffusionStep):
    """The step on images (PTDR): `batch` holds "image" [B, 1, H, W] in [0, 1] and "draw" [B]."""

    def clean(self, batch: dict[str, Any], draws: list[int]) -> Tensor:
        """The images, augmented, in [-1, 1]."""
        return to_signed(augmented_image(self.augmentation, batch["image"], self.seed, draws))


class ImageDenoisingValidation(DiffusionValidation):
    """The validation on images: `batch` holds "image" [B, 1, H, W] in [0, 1] and "draw" [B], the images' numbers."""

    def prepare(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> tuple[list[int], Tensor, Predict]:
        """The images in [-1, 1], and the network as it is."""
        return batch["draw"].tolist(), to_signed(batch["image"].to(engine.state.device)), engine.network


class MeanError(Average):
    """Mean over images of "errors" [B, num_levels]: over all levels (None), or of one."""

    def __init__(self, level: int | None = None) -> None:
        self.level = level
        super().__init__(output_transform=self._pick)

    def _pick(self, output: dict[str, Tensor]) -> Tensor:
        errors = output["errors"].double()
        return (errors.mean(1) if self.level is None else errors[:, self.level])[:, None]

    def compute(self) -> float:
        """The mean as a number."""
        return float(super().compute())
