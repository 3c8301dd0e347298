"""From DINO tokens and seeds to radiographs: context, sampler and codec in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..amp import autocast, quick_inference
from ..checks import check_multiple
from ..fingerprint import network_sha256
from ..networks.latent_codec import LatentCodec
from ..networks.latent_denoiser import LatentDenoiser
from .samplers import Known, Sampler


@dataclass(eq=False, repr=False)
class ImageSampler:
    """Draw images with a latent denoiser.

    Args:
        denoiser: with trained weights.
        codec: with weights and latent statistics.
        sampler: method, steps, guidance.
        image_size: px of the square images; a multiple of what codec and denoiser divide by.
        amp: bfloat16 autocast of the denoiser where the hardware has it; decoding stays float32.
        device: of both networks.

    Raises:
        SettingsError: an image size that the networks cannot divide.
    """

    denoiser: LatentDenoiser
    codec: LatentCodec
    sampler: Sampler
    image_size: int
    amp: bool
    device: torch.device | str

    def __post_init__(self) -> None:
        check_multiple(self.image_size, self.codec.downsampling_factor * self.denoiser.downsampling_factor)
        side = self.image_size // self.codec.downsampling_factor
        self.latents_shape = (self.codec.latent_channels, side, side)

    @property
    def settings(self) -> dict[str, Any]:
        """What an image depends on beside the denoiser, its tokens and its seed, in plain JSON types."""
        guidance = {"guidance_interval": list(self.sampler.guidance_interval)}
        others = {"codec_sha256": network_sha256(self.codec), "amp": self.amp, "image_size": self.image_size}
        return {**self.sampler.settings, **guidance, **others}

    @torch.inference_mode()
    def inpaint(self, image: Tensor, hole: Tensor, tokens: Tensor, seeds: Sequence[int]) -> Tensor:
        """What a radiograph could show in a hole, [B, 1, S, S] in [0, 1] on the CPU; outside it, nearly the radiograph.

        Args:
            image: [1, 1, S, S] in [0, 1]; what it shows in the hole reaches the latents around it, so fill it before.
            hole: bool [1, 1, S, S].
            tokens: [B, N, D].
            seeds: one per row.
        """
        known = self.codec.eval().encode(image.to(self.device)).float()
        cells = max_pool2d(hole.float(), self.codec.downsampling_factor).bool().to(self.device)
        return self.sample(tokens, seeds, known=Known(known, cells))

    @torch.inference_mode()
    def sample(
        self, tokens: Tensor, seeds: Sequence[int], progress: bool = False, known: Known | None = None
    ) -> Tensor:
        """Images [B, 1, H, W] in [0, 1], on the CPU: one per row of tokens [B, N, D] and seed.

        A sample depends on its tokens and seed, not on the batch it is in (to float tolerance; with amp to that of
        bfloat16). Latents of it may be `known`.
        """
        denoiser = self.denoiser.eval()
        contexts = denoiser.encode_tokens(tokens.to(self.device)), denoiser.null_context
        with quick_inference(denoiser, self.device, self.amp):
            latents = self.sampler.sample(
                self._predict, self.latents_shape, seeds, *contexts, self.device, progress, known
            )
        with quick_inference(self.codec.eval(), self.device, amp=False):
            return self.codec.decode(latents).float().cpu()

    def _predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        with autocast(self.device, self.amp):
            return self.denoiser(noisy, timesteps, context)
