"""Pre-training on radiographs by denoising (DDPM, Ho et al. 2020), as MONAI's `iteration_update`."""

from __future__ import annotations

from typing import Any

from monai.engines import SupervisedEvaluator
from torch import Tensor

from ..data.augmentation import Augmentation, augmented_image
from ..diffusion.noise_schedule import NoiseSchedule
from ..intensity import to_signed
from ..networks.pixel_denoiser import PixelDenoiser
from .denoising_step import DiffusionStep, DiffusionValidation, Predict
from .ema import ExponentialMovingAverage


class ImageDenoisingStep(DiffusionStep[PixelDenoiser]):
    """The denoising step on images: `batch` holds "image" [B, 1, H, W] in [0, 1] and "draw" [B].

    Args:
        schedule: forward process and prediction type.
        min_snr_gamma: of min-SNR weighting; None for none.
        ema: updated after each step.
        max_grad_norm: gradients are clipped to this norm.
        amp: bfloat16 autocast where the hardware has it.
        seed: of everything random here.
        augmentation: of the images, by draw; None for none.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        min_snr_gamma: float | None,
        ema: ExponentialMovingAverage[PixelDenoiser],
        max_grad_norm: float,
        amp: bool,
        seed: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(schedule, min_snr_gamma, ema, max_grad_norm, amp, seed)
        self.augmentation = augmentation

    def clean(self, batch: dict[str, Any], draws: list[int]) -> Tensor:
        """The images, augmented, in [-1, 1]."""
        return to_signed(augmented_image(self.augmentation, batch["image"], self.seed, draws))


class ImageDenoisingValidation(DiffusionValidation):
    """The validation on images: `batch` holds "image" [B, 1, H, W] in [0, 1] and "draw" [B], the images' numbers."""

    def prepare(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> tuple[list[int], Tensor, Predict]:
        """The images in [-1, 1], and the network as it is."""
        return batch["draw"].tolist(), to_signed(batch["image"].to(engine.state.device)), engine.network
