"""The denoiser of the latent diffusion model: MONAI's U-Net and the encoder of its context, saved together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional as F

from .conditioning import ContextEncoder
from .weights import load_weights, recorded


@recorded
class LatentDenoiser(nn.Module):
    """DiffusionModelUNet (MONAI core) on latents, conditioned by cross-attention on DINO tokens.

    Args:
        latent_channels: C of the codec.
        channels: per level, full latent resolution first.
        attention_levels: self- and cross-attention per level.
        num_tokens: N tokens of the context.
        token_dim: D of the DINO encoder.
        context_dim: of the cross-attention.
        use_flash_attention: torch's fused attention; faster on GPUs, slower in bfloat16 training on CPUs.
        patch_size: latents, side of the squares that are folded into channels before the U-Net and unfolded after it
            (as the patches of DiT, arXiv 2212.09748): it works at 1 / patch_size of the resolution. The others as of
            MONAI's network.
    """

    def __init__(
        self,
        latent_channels: int,
        channels: Sequence[int],
        num_res_blocks: int | Sequence[int],
        attention_levels: Sequence[bool],
        num_head_channels: int | Sequence[int],
        num_tokens: int,
        token_dim: int,
        context_dim: int,
        transformer_num_layers: int = 1,
        norm_num_groups: int = 32,
        use_flash_attention: bool = False,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=latent_channels * patch_size**2,
            out_channels=latent_channels * patch_size**2,
            channels=channels,
            num_res_blocks=num_res_blocks,
            attention_levels=attention_levels,
            num_head_channels=num_head_channels,
            norm_num_groups=norm_num_groups,
            with_conditioning=True,
            cross_attention_dim=context_dim,
            transformer_num_layers=transformer_num_layers,
            use_flash_attention=use_flash_attention,
            include_fc=True,  # with conditioning it is the output projection of self-attention, as in Stable Diffusion
        )
        self.context_encoder = ContextEncoder(num_tokens, token_dim, context_dim)
        self.latent_channels = latent_channels
        self.patch_size = patch_size
        self.middle_channels = channels[-1]
        self.downsampling_factor = patch_size * 2 ** (len(channels) - 1)

    @property
    def null_context(self) -> Tensor:
        """What the network learned as "no context", [1, N, context_dim]."""
        return self.context_encoder.null_context

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """DINO tokens [B, N, D] to context [B, N, context_dim]."""
        return self.context_encoder(tokens)

    def forward(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Predict [B, C, h, w] of the noise schedule's prediction type.

        Args:
            noisy: latents z_t [B, C, h, w].
            timesteps: [B], as `NoiseSchedule` gives them.
            context: [B, N, context_dim], of `encode_tokens` or `null_context`.
        """
        output = self.unet(F.pixel_unshuffle(noisy, self.patch_size), timesteps, context=context)
        return F.pixel_shuffle(output, self.patch_size)


class DenoisingPass(nn.Module):
    """The training pass of a denoiser as one `forward`, which is what DistributedDataParallel can wrap.

    Args:
        denoiser: the network.
        alignment_dim: D of patch tokens that the features of the U-Net's middle are projected to (REPA, arXiv
            2410.06940; for U-Nets arXiv 2503.18414); the projection is not part of the denoiser. 0 goes without.
        is_compiled: by `torch.compile`; pays on GPUs. Weights keep their names.
    """

    def __init__(self, denoiser: LatentDenoiser, alignment_dim: int = 0, is_compiled: bool = False) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.projection: nn.Module | None = None
        if alignment_dim:
            width = 2 * alignment_dim
            self.projection = nn.Sequential(
                nn.Conv2d(denoiser.middle_channels, width, 1), nn.SiLU(), nn.Conv2d(width, alignment_dim, 1)
            )
        if is_compiled:
            self.compile()

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, drop: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode tokens [B, N, D], drop the context where `drop` [B] is true, predict.

        Returns:
            What the denoiser predicts, [B, C, h, w], and the projected features of its middle, [B, D, k, k], or None.
        """
        context = self.denoiser.context_encoder.with_drop(tokens, drop)
        if self.projection is None:
            return self.denoiser(noisy, timesteps, context), None
        middle: list[Tensor] = []
        hook = self.denoiser.unet.middle_block.register_forward_hook(lambda *call: middle.append(call[-1]))
        try:
            output = self.denoiser(noisy, timesteps, context)
        finally:
            hook.remove()
        return output, self.projection(middle[0])


def start_denoiser(denoiser: LatentDenoiser, path: str | Path | None, tokens: Tensor) -> LatentDenoiser:
    """The denoiser in training mode, ready for its first step; its weights and statistics are set in place.

    Args:
        denoiser: as built, on its device.
        path: of weights to train on from, with their statistics of tokens; None starts from nothing.
        tokens: of the training split, [num_images, N, D]; without a path their mean and deviation are measured.

    Raises:
        WeightsError: there is no such file, or it is of another network.
        SettingsError: the tokens do not fit the denoiser.
    """
    if path is not None:
        load_weights(denoiser, path)
    else:
        denoiser.context_encoder.scaler.fit(tokens)
    return denoiser.train()
