"""The segmenter: the denoiser's U-Net with a final convolution of its own, at one fixed timestep (arXiv 2307.14066)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..intensity import to_signed
from .pixel_denoiser import adm_unet, checked_patch_size
from .weights import load_weights, read_weights, recorded

FINAL_CONVOLUTION = "unet.out.2.conv."  # prefix of its keys, in the denoiser and in the segmenter
FROM_NOTHING = "none"
FROM_DDPM = "ddpm"
NAMED_KEYS = 4  # in a message

_logger = logging.getLogger(__name__)


class PretrainedWeightsError(UserError, ValueError):
    """Pre-trained weights belong to another U-Net than the segmenter's."""


@recorded
class DiffusionSegmenter(nn.Module):
    """Image to logits by a denoiser's U-Net, which is told that the image is almost free of noise.

    Args:
        num_classes: K, background included.
        channels: per level; this and the next six as of `adm_unet`, and as the pre-trained denoiser has them.
        num_res_blocks: per level, or one number for all.
        attention_levels: self-attention per level.
        num_head_channels: channels of an attention head.
        norm_num_groups: of every GroupNorm.
        dropout: probability; may differ from the denoiser's.
        use_flash_attention: torch's fused attention; may differ too.
        patch_size: px, as the pre-trained denoiser has it; see `PixelDenoiser`.
        timestep: that the U-Net is told, of the schedule that it was pre-trained with; 0 is the cleanest.

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
                f"expected at least two classes and a timestep of at least 0, found {num_classes}, {timestep}"
            )
        super().__init__()
        self.patch_size = checked_patch_size(patch_size)
        self.unet = adm_unet(
            patch_size**2,
            num_classes * patch_size**2,
            channels,
            num_res_blocks,
            attention_levels,
            num_head_channels,
            norm_num_groups,
            dropout,
            use_flash_attention,
        )
        # Core starts it at zero, as a denoiser needs it; here that would keep the first step from all other weights.
        cast(nn.Conv2d, self.unet.out[2].conv).reset_parameters()
        self.num_classes = num_classes
        self.timestep = timestep
        self.downsampling_factor = patch_size * 2 ** (len(channels) - 1)

    def forward(self, image: Tensor) -> Tensor:
        """Segment.

        Args:
            image: [B, 1, H, W] in [0, 1]. Sizes that the U-Net cannot halve often enough are padded, by repeating the
                last row and column, and the logits cut to size.

        Returns:
            Logits [B, K, H, W].

        Raises:
            ValueError: not a batch of images of one channel.
        """
        if not torch.jit.is_tracing() and (image.ndim != 4 or image.shape[1] != 1):
            raise ValueError(f"expected an image [B, 1, H, W], found {tuple(image.shape)}")
        height, width = image.shape[2], image.shape[3]
        factor = self.downsampling_factor
        padded = F.pad(image, (0, -width % factor, 0, -height % factor), mode="replicate")
        timesteps = torch.full((image.shape[0],), self.timestep, dtype=torch.int64, device=image.device)
        logits = self.unet(F.pixel_unshuffle(to_signed(padded), self.patch_size), timesteps)
        return F.pixel_shuffle(logits, self.patch_size)[:, :, :height, :width]


@dataclass(frozen=True)
class TakenWeights:
    """What a segmenter took over from pre-training, and what it did not: names of its tensors."""

    taken: tuple[str, ...]
    new: tuple[str, ...]


def take_pretrained(segmenter: DiffusionSegmenter, path: str | Path) -> TakenWeights:
    """Load every tensor but those of the final convolution, from a denoiser's weights or from another segmenter's.

    Raises:
        MissingWeightsError: there is no such file.
        PretrainedWeightsError: a tensor is missing, unknown or of another shape; nothing was loaded.
    """
    wanted = segmenter.state_dict()
    found = {key: value for key, value in read_weights(path).items() if not key.startswith(FINAL_CONVOLUTION)}
    taken = {key for key in wanted if not key.startswith(FINAL_CONVOLUTION)}
    reshaped = {
        f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in taken & found.keys()
        if found[key].shape != wanted[key].shape
    }
    if taken != found.keys() or reshaped:
        raise PretrainedWeightsError(
            f"{path} does not fit the segmenter. Found but not expected: {_named(found.keys() - taken)}. Expected but "
            f"not found: {_named(taken - found.keys())}. Of another shape: {_named(reshaped)}. Give the segmenter the "
            "channels, num_res_blocks and attention_levels that the weights were trained with"
        )
    segmenter.load_state_dict({**wanted, **found}, strict=True)  # the final convolution as it is
    new = tuple(key for key in wanted if key not in taken)
    numbers = sum(value.numel() for value in found.values())
    _logger.info(
        "took %d of %d tensors (%d numbers) from %s; new: %s", len(taken), len(wanted), numbers, path, ", ".join(new)
    )
    return TakenWeights(tuple(key for key in wanted if key in taken), new)


def start_segmenter(
    segmenter: DiffusionSegmenter,
    pretrained: str | Path,
    ddpm_path: str | Path | None = None,
    init_weights: str | Path | None = None,
) -> DiffusionSegmenter:
    """Return the segmenter to fine-tune, in training mode, and log what it starts from.

    Args:
        segmenter: as it was initialised.
        pretrained: "ddpm" takes the weights at `ddpm_path`, "none" starts from nothing, anything else is a path of
            weights; see `take_pretrained`.
        ddpm_path: of the bundle's pre-trained denoiser.
        init_weights: of a whole segmenter, the final convolution too, to train on; instead of `pretrained`.

    Raises:
        MissingWeightsError: there is no such file.
        PretrainedWeightsError: the weights do not fit.
        RuntimeError: `init_weights` do not fit.
    """
    if init_weights is not None:
        load_weights(segmenter, init_weights)
        _logger.info("took all %d tensors from %s", len(segmenter.state_dict()), init_weights)
    elif str(pretrained) == FROM_NOTHING:
        _logger.info("took no pre-trained weights: all %d tensors are new", len(segmenter.state_dict()))
    else:
        source = ddpm_path if str(pretrained) == FROM_DDPM else None
        take_pretrained(segmenter, pretrained if source is None else source)
    return segmenter.train()


def _named(keys: Collection[str]) -> str:
    ordered = sorted(keys)
    more = f" and {len(ordered) - NAMED_KEYS} more" if len(ordered) > NAMED_KEYS else ""
    return (", ".join(ordered[:NAMED_KEYS]) or "none") + more
