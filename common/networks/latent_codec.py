"""Images to latents and back: the KL autoencoder, its intensity range and its latent statistics in one place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from ..checks import check_image, check_multiple
from ..intensity import to_signed, to_unit
from .weights import load_weights, recorded

DECODER = ("autoencoder.decoder.", "autoencoder.post_quant_conv.")  # prefixes of the weights that only decoding reads


@recorded
class LatentCodec(nn.Module):
    """KL autoencoder (Rombach et al. 2022, section 3.1) that owns the scaling of its latents.

    MONAI core's `AutoencoderKL` gives raw latents of arbitrary scale; a diffusion model wants zero mean and unit
    standard deviation. The statistics per channel, measured over the whole training split by `LatentStatistics`, are
    buffers saved with the weights, and `decode` undoes exactly what `encode` did.

    Args:
        channels: feature channels per resolution level, full resolution first; each further level halves H and W.
        num_res_blocks: residual blocks per level.
        latent_channels: channels of the latents.
        attention_levels: self-attention per level; None for none anywhere.
        mid_attention: self-attention at the lowest resolution of encoder and decoder.
        norm_num_groups: groups of every GroupNorm; divides all of `channels`.
        use_checkpoint: recompute activations in the backward pass to save memory.
        initial_log_variance: bias of the posterior's log variance before training. At 0 (a posterior as wide as the
            prior) an almost unregularised autoencoder first spends thousands of steps on out-shouting its own noise.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_res_blocks: int | Sequence[int],
        latent_channels: int = 4,
        attention_levels: Sequence[bool] | None = None,
        mid_attention: bool = False,
        norm_num_groups: int = 8,
        use_checkpoint: bool = False,
        initial_log_variance: float = -6.0,
    ) -> None:
        super().__init__()
        self.autoencoder = AutoencoderKL(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=channels,
            num_res_blocks=num_res_blocks,
            attention_levels=attention_levels or (False,) * len(channels),
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            with_encoder_nonlocal_attn=mid_attention,
            with_decoder_nonlocal_attn=mid_attention,
            use_checkpoint=use_checkpoint,
            include_fc=False,  # core's extra projection is never used and would break DDP
        )
        log_variance_bias = self.autoencoder.quant_conv_log_sigma.get_parameter("conv.bias")
        nn.init.constant_(log_variance_bias, initial_log_variance)
        self.latent_channels = latent_channels
        self.downsampling_factor = 2 ** (len(channels) - 1)
        self.register_buffer("latents_mean", torch.zeros(latent_channels))
        self.register_buffer("latents_std", torch.ones(latent_channels))
        self.register_buffer("latents_num_images", torch.zeros((), dtype=torch.int64))
        self.latents_mean: Tensor
        self.latents_std: Tensor
        self.latents_num_images: Tensor

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the raw latents, each [B, C, H/f, W/f], of images [B, 1, H, W] in [0, 1].

        Raises:
            ValueError: channels or size do not fit; says which.
        """
        if not torch.jit.is_tracing():
            check_image(image, self.downsampling_factor)
        return self.autoencoder.encode(to_signed(image))

    def reconstruct(self, raw_latents: Tensor) -> Tensor:
        """Decode raw latents [B, C, h, w] to an image [B, 1, h·f, w·f], nominally in [0, 1], not clipped."""
        return to_unit(self.autoencoder.decode(raw_latents))

    def encode(self, image: Tensor) -> Tensor:
        """The posterior's mean of images [B, 1, H, W] in [0, 1] as scaled latents [B, C, H/f, W/f].

        Raises:
            RuntimeError: the weights carry no latent statistics yet.
        """
        return self.scale(self.posterior(image)[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [B, C, h, w] to an image [B, 1, h·f, w·f] clipped to [0, 1]."""
        return self.reconstruct(self.unscale(latents)).clamp(0.0, 1.0)

    def scale(self, raw_latents: Tensor) -> Tensor:
        """Raw latents to scaled latents; the inverse of `unscale`."""
        mean, std = self._statistics()
        return (raw_latents - mean) / std

    def unscale(self, latents: Tensor) -> Tensor:
        """Scaled latents to raw latents; the inverse of `scale`."""
        mean, std = self._statistics()
        return latents * std + mean

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct an image [B, 1, H, W] in [0, 1] from the posterior's mean, clipped to [0, 1]."""
        mean, _ = self.posterior(image)
        return self.reconstruct(mean).clamp(0.0, 1.0)

    def set_statistics(self, mean: Tensor, std: Tensor, num_images: int) -> None:
        """Write measured statistics [C] of the raw latents into the buffers.

        Raises:
            ValueError: wrong shape, not finite, a zero standard deviation, or no images.
        """
        is_shaped = mean.shape == std.shape == self.latents_mean.shape
        if num_images < 1 or not is_shaped or not (mean.isfinite() & std.isfinite() & (std > 0)).all():
            raise ValueError(
                f"latent statistics: expected finite means and positive deviations of {self.latent_channels} channels, "
                f"found {mean}, {std} over {num_images} images"
            )
        self.latents_mean.copy_(mean)
        self.latents_std.copy_(std)
        self.latents_num_images.fill_(num_images)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        if not torch.jit.is_tracing() and self.latents_num_images.item() == 0:
            raise RuntimeError(
                "the autoencoder's weights hold no latent statistics (latents_num_images is 0); "
                "finish the training, which measures them over the training split at its end"
            )
        return self.latents_mean.view(1, -1, 1, 1), self.latents_std.view(1, -1, 1, 1)

    def check_size(self, image_size: int) -> None:
        """Refuse a size of images, px, that cannot be encoded: SettingsError."""
        check_multiple(image_size, self.downsampling_factor)


class VariationalPass(nn.Module):
    """The training pass of a codec as one `forward`, which is what DistributedDataParallel can wrap."""

    def __init__(self, codec: LatentCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(
        self, image: Tensor, noise: Tensor | None, latent_noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images [B, 1, H, W] in [0, 1], draw with noise [B, C, H/f, W/f] (None: the mean), decode.

        `latent_noise` of the same shape is added to the scaled latents before decoding; it needs their statistics.

        Returns:
            Reconstruction (unclipped, nominally [0, 1]), posterior mean and standard deviation of the raw latents.
        """
        mean, std = self.codec.posterior(image)
        raw_latents = mean if noise is None else mean + std * noise.to(mean)
        if latent_noise is not None:
            raw_latents = self.codec.unscale(self.codec.scale(raw_latents) + latent_noise.to(mean))
        return self.codec.reconstruct(raw_latents), mean, std


def start_codec(codec: LatentCodec, path: str | Path | None, trained_part: str = "all") -> LatentCodec:
    """Return the codec to train: as it was initialised, or from weights at `path`.

    Args:
        codec: on its device.
        path: of weights to start from; None starts from nothing.
        trained_part: "all", whose latent statistics are forgotten and measured again at the end, or "decoder": encoder
            and statistics stay as they are, so that latents made before remain valid.

    Raises:
        WeightsError: there is no such file, or it is of another network.
        ValueError: another part, or a decoder to train without weights to start from.
    """
    if trained_part not in ("all", "decoder") or (trained_part == "decoder" and path is None):
        raise ValueError(f"trained_part: expected all, or decoder with init_weights, found {trained_part!r}, {path}")
    if path is not None:
        load_weights(codec, path)
    if trained_part == "decoder":
        for name, parameter in codec.named_parameters():
            parameter.requires_grad_(name.startswith(DECODER))
    else:
        codec.latents_num_images.zero_()
    return codec.train()
