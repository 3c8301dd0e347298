"""The segmenter: the denoiser's U-Net with a final convolution of its own, at one fixed timestep (arXiv 2307.14066)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_image
from ..errors import WeightsError
from ..intensity import to_signed
from .pixel_denoiser import adm_unet
from .weights import first_difference, load_weights, read_weights, recorded

FINAL_CONVOLUTION = "unet.out.2.conv."  # prefix of its keys, in the denoiser and in the segmenter

_logger = logging.getLogger(__name__)


@recorded
class DiffusionSegmenter(nn.Module):
    """Image to logits by a denoiser's U-Net, which is told that the image is almost free of noise.

    Args:
        num_classes: K, background included.
        timestep: that the U-Net is told, of the schedule that it was pre-trained with; 0 is the cleanest. The others
            as of `adm_unet`, and as the pre-trained denoiser has them, but for dropout and fused attention.

    Raises:
        ValueError: fewer than two classes, a negative timestep, or what `adm_unet` refuses.
    """

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int],
        num_res_blocks: int | Sequence[int],
        attention_levels: Sequence[bool],
        num_head_channels: int,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        use_flash_attention: bool = False,
        timestep: int = 1,
        patch_size: int = 1,
    ) -> None:
        if num_classes < 2 or timestep < 0:
            raise ValueError(
                f"expected two classes or more and a timestep of 0 or more, found {num_classes}, {timestep}"
            )
        super().__init__()
        levels = (channels, num_res_blocks, attention_levels, num_head_channels)
        self.unet = adm_unet(num_classes, *levels, norm_num_groups, dropout, use_flash_attention, patch_size)
        self.patch_size = patch_size
        # Core starts it at zero, as a denoiser needs it; here that would keep the first step from all other weights.
        cast(nn.Conv2d, self.unet.out[2].conv).reset_parameters()
        self.num_classes = num_classes
        self.timestep = timestep
        self.downsampling_factor = patch_size * 2 ** (len(channels) - 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, K, H, W] of images [B, 1, H, W] in [0, 1]; ValueError for other shapes.

        Sizes that the U-Net cannot halve often enough are padded, by repeating the last row and column, and the logits
        cut to size.
        """
        if not torch.jit.is_tracing():
            check_image(image)
        height, width, factor = image.shape[2], image.shape[3], self.downsampling_factor
        padded = F.pad(image, (0, -width % factor, 0, -height % factor), mode="replicate")
        timesteps = torch.full((image.shape[0],), self.timestep, dtype=torch.int64, device=image.device)
        logits = self.unet(F.pixel_unshuffle(to_signed(padded), self.patch_size), timesteps)
        return F.pixel_shuffle(logits, self.patch_size)[:, :, :height, :width]


def take_pretrained(segmenter: DiffusionSegmenter, path: str | Path) -> list[str]:
    """Load every tensor but those of the final convolution, from a denoiser's weights or from another segmenter's.

    Returns:
        Names of the tensors that stay as they were.

    Raises:
        WeightsError: there is no such file, or a tensor is missing, unknown or of another shape; nothing was loaded.
    """
    own, found = segmenter.state_dict(), read_weights(path)
    new = [key for key in own if key.startswith(FINAL_CONVOLUTION)]
    kept = {key: value for key, value in found.items() if not key.startswith(FINAL_CONVOLUTION)}
    if difference := first_difference({key: value for key, value in own.items() if key not in new}, kept):
        raise WeightsError(
            f"{path} does not fit the segmenter: {difference}; give the segmenter the channels, num_res_blocks and "
            "attention_levels that the weights were trained with"
        )
    segmenter.load_state_dict({**own, **kept}, strict=True)
    _logger.info("took %d of %d tensors from %s; new: %s", len(kept), len(own), path, ", ".join(new))
    return new


def start_segmenter(
    segmenter: DiffusionSegmenter,
    pretrained: str | Path,
    ddpm_path: str | Path | None = None,
    init_weights: str | Path | None = None,
) -> DiffusionSegmenter:
    """Return the segmenter to fine-tune, in training mode, and log what it starts from; WeightsError if that is no fit.

    Args:
        segmenter: as it was initialised.
        pretrained: "ddpm" takes the weights of the bundle's denoiser at `ddpm_path`, "none" starts from nothing,
            anything else is a path of weights; see `take_pretrained`.
        ddpm_path: see there.
        init_weights: of a whole segmenter, the final convolution too, to train on; instead of `pretrained`.
    """
    if init_weights is not None:
        load_weights(segmenter, init_weights)
        _logger.info("took all %d tensors from %s", len(segmenter.state_dict()), init_weights)
    elif str(pretrained) == "none":
        _logger.info("took no pre-trained weights: all %d tensors are new", len(segmenter.state_dict()))
    else:
        take_pretrained(segmenter, ddpm_path if pretrained == "ddpm" and ddpm_path is not None else pretrained)
    return segmenter.train()
