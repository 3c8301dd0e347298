"""The denoiser of radiographs: an unconditional U-Net like that of Dhariwal & Nichol 2021 (ADM), from MONAI core."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.blocks import SABlock
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_image, check_multiple
from .weights import load_weights, recorded


def adm_unet(
    out_channels: int,
    channels: Sequence[int],
    num_res_blocks: int | Sequence[int],
    attention_levels: Sequence[bool],
    num_head_channels: int,
    norm_num_groups: int = 32,
    dropout: float = 0.0,
    use_flash_attention: bool = False,
    patch_size: int = 1,
) -> DiffusionModelUNet:
    """Build the U-Net for images of one channel: residual blocks that also resample, attention at chosen levels.

    Two things that core leaves out are added without a parameter more, so that the keys are core's: dropout before the
    second convolution of each residual block, and the output projection of attention starting at zero. ADM's
    scale-shift normalisation is not in core; the timestep is added.

    Args:
        out_channels: of the output.
        channels: per level, full resolution first; each further level halves H and W.
        num_res_blocks: per level, or one number for all.
        attention_levels: self-attention per level; there always is some at the lowest resolution.
        num_head_channels: channels of an attention head; divides `channels` where there is attention.
        norm_num_groups: of every GroupNorm; divides all of `channels`.
        dropout: probability, in [0, 1).
        use_flash_attention: torch's fused attention; faster on GPUs, slower in bfloat16 training on CPUs.
        patch_size: px, side of the squares that callers fold into channels before the U-Net and unfold after it, so
            that it works at 1 / patch_size of the resolution (Hoogeboom et al. 2023, section 3.4, take 2 to 4); 1 is
            ADM's.

    Raises:
        ValueError: `dropout` outside [0, 1), `patch_size` below 1, or sizes that core refuses.
    """
    if not 0.0 <= dropout < 1.0 or patch_size < 1:
        raise ValueError(f"expected dropout in [0, 1) and patch_size of at least 1 px, found {dropout}, {patch_size}")
    unet = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=patch_size**2,
        out_channels=out_channels * patch_size**2,
        channels=channels,
        num_res_blocks=num_res_blocks,
        attention_levels=attention_levels,
        norm_num_groups=norm_num_groups,
        resblock_updown=True,
        num_head_channels=num_head_channels,
        with_conditioning=False,
        # Attention's output projection, as in ADM. monai-generative never applied it; core 1.6 does, so that it learns.
        include_fc=True,
        use_flash_attention=use_flash_attention,
    )
    for module in unet.modules():
        if isinstance(module, SABlock) and isinstance(module.out_proj, nn.Linear):
            nn.init.zeros_(module.out_proj.weight)
            nn.init.zeros_(module.out_proj.bias)
        if isinstance(module, DiffusionUNetResnetBlock) and dropout > 0.0:
            # A Sequential of one convolution named "conv", as core's own, so that the key stays "conv2.conv.weight".
            convolution: Any = module.conv2.conv
            module.conv2 = nn.Sequential(OrderedDict(dropout=nn.Dropout(dropout), conv=convolution))
    return unet


@recorded
class PixelDenoiser(nn.Module):
    """ADM-style U-Net on radiographs of one channel; see `adm_unet` for the arguments.

    It works on [-1, 1]: the steps map images from [0, 1] by `common.intensity`, and samples back.

    Raises:
        ValueError: what `adm_unet` refuses.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_res_blocks: int | Sequence[int],
        attention_levels: Sequence[bool],
        num_head_channels: int,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        use_flash_attention: bool = False,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        levels = (channels, num_res_blocks, attention_levels, num_head_channels)
        self.unet = adm_unet(1, *levels, norm_num_groups, dropout, use_flash_attention, patch_size)
        self.patch_size = patch_size
        self.downsampling_factor = patch_size * 2 ** (len(channels) - 1)

    def check_size(self, image_size: int | Sequence[int]) -> None:
        """Refuse a size of images, px, that the U-Net cannot halve often enough: SettingsError."""
        check_multiple(image_size, self.downsampling_factor)

    def forward(self, noisy: Tensor, timesteps: Tensor, context: None = None) -> Tensor:
        """Predict [B, 1, H, W] of the noise schedule's prediction type.

        Args:
            noisy: z_t [B, 1, H, W] in the range of [-1, 1]; ValueError if no multiples of `downsampling_factor`.
            timesteps: [B], as `NoiseSchedule` gives them.
            context: none; so that `Sampler` can call it as it calls conditional networks.
        """
        if not torch.jit.is_tracing():
            check_image(noisy, self.downsampling_factor)
        output = self.unet(F.pixel_unshuffle(noisy, self.patch_size), timesteps, context=context)
        return F.pixel_shuffle(output, self.patch_size)


def start_pixel_denoiser(denoiser: PixelDenoiser, path: str | Path | None) -> PixelDenoiser:
    """Return the denoiser to train: as it was initialised, or with the weights at `path`.

    Raises:
        WeightsError: there is no such file, or it is of another network.
    """
    if path is not None:
        load_weights(denoiser, path)
    return denoiser.train()
