"""From seeds to radiographs with a denoiser that works on pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..amp import autocast, quick_inference
from ..errors import SettingsError
from ..intensity import to_unit
from ..networks.pixel_denoiser import PixelDenoiser
from .samplers import Sampler


@dataclass(eq=False, repr=False)
class PixelImageSampler:
    """Draw images with an unconditional denoiser of pixels; `ImageSampler` is its counterpart for latents.

    At each step x̂0 is clipped to [-1, 1], which no radiograph leaves (`clip_denoised` in the code of Dhariwal & Nichol
    2021), and the output changed to agree with it. With `epsilon` an error of the network is multiplied by 1/α in x̂0,
    so that the first steps would otherwise lead out of the range.

    Args:
        denoiser: with trained weights.
        sampler: method, steps, spacing; without guidance, as there is nothing to be guided by.
        image_size: px, (rows, columns); multiples of what the denoiser divides by.
        amp: bfloat16 autocast of the denoiser where the hardware has it.
        device: of the denoiser.

    Raises:
        SettingsError: not two positive multiples of the denoiser's `downsampling_factor`.
    """

    denoiser: PixelDenoiser
    sampler: Sampler
    image_size: Sequence[int]
    amp: bool
    device: torch.device

    def __post_init__(self) -> None:
        factor = self.denoiser.downsampling_factor
        sides = tuple(self.image_size) if isinstance(self.image_size, Sequence) else (self.image_size,)
        if len(sides) != 2 or any(side < 1 or side % factor for side in sides):
            raise SettingsError(
                f"image_size: expected rows and columns, each a positive multiple of {factor}, found "
                f"{self.image_size}; give the image_size of the training"
            )
        self.image_size = sides

    @property
    def settings(self) -> dict[str, Any]:
        """What an image depends on beside the denoiser and its seed, in plain JSON types."""
        schedule, timesteps = self.sampler.schedule, self.sampler.timesteps
        return {
            **self.sampler.settings,
            "eta": self.sampler.eta,
            "prediction_type": schedule.prediction_type,
            "timesteps": timesteps.tolist(),
            # Tells one table from another; rounded, as other hardware may differ in the last digits.
            "middle_log_snr": round(schedule.log_snr(timesteps[len(timesteps) // 2, None]).item(), 2),
            "amp": self.amp,
            "image_size": list(self.image_size),
        }

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], progress: bool = False) -> Tensor:
        """Images [B, 1, H, W] in [0, 1], float32 on the CPU: one per seed.

        A sample depends on its seed, not on the batch it is in (to float tolerance; with amp to that of bfloat16).

        Raises:
            SettingsError: no seeds, or a guidance scale other than 1.
        """
        with quick_inference(self.denoiser.eval(), self.device, self.amp):
            signed = self.sampler.sample(
                self._predict, (1, *self.image_size), seeds, device=self.device, progress=progress
            )
        return to_unit(signed).clamp(0.0, 1.0).float().cpu()

    def _predict(self, noisy: Tensor, timesteps: Tensor, context: None = None) -> Tensor:
        """The denoiser's output, changed to that of the clipped x̂0."""
        with autocast(self.device, self.amp):
            output = self.denoiser(noisy, timesteps, context)
        schedule = self.sampler.schedule
        x0, _ = schedule.to_x0_and_noise(output.to(noisy), noisy, timesteps)
        x0 = x0.clamp(-1.0, 1.0)
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in schedule.alpha_sigma(timesteps))
        return schedule.target(x0, (noisy - alpha * x0) / sigma, timesteps)
