"""Where each position of a latent looks: the self-attention of a denoiser's U-Net, brought to one resolution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from monai.networks.blocks import SABlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.noise_schedule import NoiseSchedule
from ..errors import UserError
from ..networks.latent_codec import LatentCodec
from ..networks.latent_denoiser import LatentDenoiser
from ..seeding import Purpose, derive_seed, seeded_normal


class AttentionMapsError(UserError, ValueError):
    """Self-attention cannot be had as asked."""


def fitted_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """Rows and columns near an area of `side`² px with nearly the aspect ratio of the image, multiples of `multiple`.

    Raises:
        AttentionMapsError: `side` is smaller than `multiple`.
    """
    if side < multiple:
        raise AttentionMapsError(
            f"side: expected at least {multiple} px, which codec and U-Net divide by, found {side}"
        )
    scale = side / math.sqrt(height * width)
    rows, columns = (max(1, round(length * scale / multiple)) * multiple for length in (height, width))
    return rows, columns


@contextmanager
def saved_attention(network: nn.Module) -> Iterator[list[SABlock]]:
    """Within the block the self-attentions of a network keep their `att_mat` [B, heads, N, N]; given in their order.

    Raises:
        AttentionMapsError: it has none, or fused ones, which never hold the matrix.
    """
    found = [getattr(module, "attn1", None) for module in network.modules()]
    blocks = [block for block in found if isinstance(block, SABlock)]
    if not blocks or any(block.use_flash_attention for block in blocks):
        raise AttentionMapsError(
            f"self-attention: found {len(blocks)} blocks, fused ones among them or none at all; expected "
            "transformer blocks built with use_flash_attention false"
        )
    before = [block.save_attn for block in blocks]
    for block in blocks:
        block.save_attn = True
    try:
        yield blocks
    finally:
        for block, save_attn in zip(blocks, before, strict=True):
            block.save_attn = save_attn
            block.att_mat = torch.Tensor()  # a large matrix that nobody else would ever free


@dataclass(frozen=True)
class SelfAttention:
    """Reads the self-attention of a denoiser for one image.

    Attributes:
        denoiser: with trained weights.
        codec: with weights and latent statistics.
        schedule: the one of the denoiser's training.
        device: of both networks.
    """

    denoiser: LatentDenoiser
    codec: LatentCodec
    schedule: NoiseSchedule
    device: torch.device

    @property
    def multiple(self) -> int:
        """What rows and columns of an image must be multiples of."""
        return self.codec.downsampling_factor * self.denoiser.downsampling_factor

    @torch.inference_mode()
    def layers(
        self, image: Tensor, timestep: float, seed: int, tokens: Tensor | None = None, num_noises: int = 1
    ) -> list[Tensor]:
        """One forward pass of the noised latents; the attention of each layer, mean over heads and noises.

        Args:
            image: [1, H, W] in [0, 1], H and W multiples of `multiple`.
            timestep: how noisy, of `schedule`.
            seed: of the noise.
            tokens: [1, N, D] of the image's DINO encoding; None takes the null context.
            num_noises: draws to average over.

        Returns:
            Per layer float32 [h, w, h, w] on the CPU: queries, then keys, each query's keys sum to 1.
        """
        latents = self.codec.encode(image[None].to(self.device)).expand(num_noises, -1, -1, -1)
        seeds = [derive_seed(seed, Purpose.NOISE, draw) for draw in range(num_noises)]
        noise = seeded_normal(seeds, tuple(latents.shape[1:])).to(self.device)
        kind = torch.float32 if self.schedule.is_flow else torch.int64
        timesteps = torch.full((num_noises,), timestep, device=self.device).to(kind)
        given = None if tokens is None else tokens.to(self.device)
        context = self.denoiser.null_context if given is None else self.denoiser.encode_tokens(given)
        self.denoiser.eval()
        with saved_attention(self.denoiser.unet) as blocks:
            noisy = self.schedule.add_noise(latents, noise, timesteps)
            self.denoiser(noisy, timesteps, context.expand(num_noises, -1, -1))
            matrices = [block.att_mat.float().mean((0, 1)).cpu() for block in blocks]
        return [_as_grid(matrix, (latents.shape[2], latents.shape[3])) for matrix in matrices]


def aggregate(layers: Sequence[Tensor], size: tuple[int, int], exponent: float = 1.0) -> Tensor:
    """Attention of all layers at one resolution (DiffSeg, arXiv 2308.12469, section 3.2.1, equations 1 and 2).

    Keys are interpolated bilinearly, queries repeated (nearest), layers weighted in proportion to their resolution.

    Args:
        layers: each [h, w, h, w], queries, then keys.
        size: rows R_h and columns R_w of the result.
        exponent: of the resolution in a layer's weight; 1 is DiffSeg's, 0 weighs all alike.

    Returns:
        [R_h, R_w, R_h, R_w]; each query's map sums to 1.
    """
    rows, columns = size
    total = torch.zeros(rows, columns, rows, columns)
    weights = [(layer.shape[0] * layer.shape[1]) ** (exponent / 2) for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        height, width = layer.shape[:2]
        keys = layer.reshape(height * width, 1, height, width)
        keys = F.interpolate(keys, size=size, mode="bilinear", align_corners=False)
        keys = (keys / keys.sum((2, 3), keepdim=True)).reshape(height, width, rows, columns)
        row = (torch.arange(rows) * height).div(rows, rounding_mode="floor")
        column = (torch.arange(columns) * width).div(columns, rounding_mode="floor")
        total += weight / sum(weights) * keys[row][:, column]
    return total


def _as_grid(matrix: Tensor, latent: tuple[int, int]) -> Tensor:
    """[N, N] to [h, w, h, w], where h × w = N is the latent's size halved some times."""
    height, width = latent
    while height * width > len(matrix):
        height, width = height // 2, width // 2
    return matrix.reshape(height, width, height, width)
