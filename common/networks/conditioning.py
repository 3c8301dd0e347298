"""What the denoiser sees of a DINO encoder: which tokens, their scaling, the context they become, and "no context"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SettingsError
from .dino import DinoEncoder, DinoTokens
from .weights import recorded


def pooled_patch_grid(tokens: DinoTokens, size: tuple[int, int], patch_grid: int) -> Tensor:
    """Average the patch tokens over a k × k grid of the image: [B, k, k, D]; k = 0 gives [B, 0, 0, D].

    `size` are (rows, columns) of patches that the encoder saw; ValueError where there are not so many.
    """
    patches = tokens.patch_tokens
    if patch_grid == 0:
        return patches.new_zeros(len(patches), 0, 0, patches.shape[2])
    if size[0] * size[1] != patches.shape[1]:
        raise ValueError(f"patch tokens: expected {size[0]} × {size[1]}, found {patches.shape[1]}")
    return F.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, size), patch_grid).permute(0, 2, 3, 1)


def named_tokens(encoder: DinoEncoder, image: Tensor, patch_grid: int) -> dict[str, Tensor]:
    """What a store keeps of images [B, 1, H, W] in [0, 1], and what `TokenSelection.select` takes.

    Returns:
        `cls_token` [B, D], `register_tokens` [B, R, D], `patch_grid` [B, k, k, D].
    """
    tokens = encoder(image)
    height, width = encoder.resized_size(*image.shape[-2:])
    size = height // encoder.patch_size, width // encoder.patch_size
    grid = pooled_patch_grid(tokens, size, patch_grid)
    return {"cls_token": tokens.cls_token, "register_tokens": tokens.register_tokens, "patch_grid": grid}


@recorded
@dataclass(eq=False)
class TokenSelection:
    """Which tokens condition the denoiser: the CLS token, optionally registers, optionally a k × k patch grid.

    DiNO-Diffusion (arXiv 2407.11594, section 2.3) takes the global ones only; with all patch tokens the model became a
    reconstruction of its input. A small grid is between the two.

    Args:
        use_registers: the encoder's register tokens too, where it has them.
        patch_grid: k of the grid, 0 for none; must divide the k of the cached grid.
    """

    use_registers: bool
    patch_grid: int

    def __post_init__(self) -> None:
        if self.patch_grid < 0:
            raise SettingsError(f"patch_grid: expected 0 or more, found {self.patch_grid}")

    def num_tokens(self, num_register_tokens: int) -> int:
        """Tokens N per image, for an encoder with so many registers."""
        return 1 + (num_register_tokens if self.use_registers else 0) + self.patch_grid**2

    def select(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Put the chosen tokens into one tensor [B, N, D]: CLS, registers, grid row by row.

        Args:
            tokens: `cls_token` [B, D], `register_tokens` [B, R, D], `patch_grid` [B, K, K, D] with K a multiple of k.

        Raises:
            SettingsError: the cached grid cannot be pooled to this one.
        """
        chosen = [tokens["cls_token"][:, None]]
        if self.use_registers:
            chosen.append(tokens["register_tokens"])
        if self.patch_grid:
            grid = tokens["patch_grid"]
            cached = grid.shape[1]
            if cached == 0 or cached % self.patch_grid:
                raise SettingsError(
                    f"patch_grid {self.patch_grid}: expected a divisor of the cached grid's {cached}; choose another, "
                    "or make the cache with a finer one"
                )
            pooled = F.avg_pool2d(grid.permute(0, 3, 1, 2).float(), cached // self.patch_grid)
            chosen.append(pooled.flatten(2).transpose(1, 2))
        return torch.cat([part.float() for part in chosen], dim=1)


class TokenScaler(nn.Module):
    """Standardise tokens [B, N, D] per position and feature, with statistics of the training split as buffers.

    Tokens of radiographs lie close together in a space made for photographs: without this their common part drowns
    what tells one radiograph from another.
    """

    def __init__(self, num_tokens: int, token_dim: int) -> None:
        super().__init__()
        self.register_buffer("tokens_mean", torch.zeros(num_tokens, token_dim))
        self.register_buffer("tokens_std", torch.ones(num_tokens, token_dim))
        self.register_buffer("tokens_num_images", torch.zeros((), dtype=torch.int64))
        self.tokens_mean: Tensor
        self.tokens_std: Tensor
        self.tokens_num_images: Tensor

    def fit(self, tokens: Tensor) -> None:
        """Measure over tokens [num_images, N, D]; SettingsError for a wrong shape, or fewer than two images."""
        if tokens.shape[1:] != self.tokens_mean.shape or len(tokens) < 2:
            raise SettingsError(
                f"tokens: expected at least 2 × {tuple(self.tokens_mean.shape)}, found {tuple(tokens.shape)}"
            )
        self.tokens_mean.copy_(tokens.double().mean(0))
        self.tokens_std.copy_(tokens.double().std(0).clamp_min(1e-6))
        self.tokens_num_images.fill_(len(tokens))

    def scale(self, tokens: Tensor) -> Tensor:
        """Tokens as the encoder gives them to zero mean and unit standard deviation; the inverse of `unscale`."""
        return (tokens - self.tokens_mean) / self.tokens_std

    def unscale(self, tokens: Tensor) -> Tensor:
        """Standardised tokens to tokens as the encoder gives them."""
        return tokens * self.tokens_std + self.tokens_mean


class ContextEncoder(nn.Module):
    """Tokens [B, N, D] to the context [B, N, context_dim] of cross-attention, and the learned null context."""

    def __init__(self, num_tokens: int, token_dim: int, context_dim: int) -> None:
        super().__init__()
        self.scaler = TokenScaler(num_tokens, token_dim)
        self.projection = nn.Linear(token_dim, context_dim)
        self.position = nn.Parameter(torch.randn(num_tokens, context_dim) * 0.02)
        self.null_context = nn.Parameter(torch.randn(1, num_tokens, context_dim) * 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens [B, N, D] as the DINO encoder gives them.

        Raises:
            SettingsError: other number or size of tokens than this was made for.
        """
        expected = tuple(self.scaler.tokens_mean.shape)
        if not torch.jit.is_tracing() and tuple(tokens.shape[1:]) != expected:
            raise SettingsError(
                f"tokens: expected [B, {expected[0]}, {expected[1]}], found {tuple(tokens.shape)}; "
                "the weights were trained with other tokens or another encoder"
            )
        return self.projection(self.scaler.scale(tokens)) + self.position

    def with_drop(self, tokens: Tensor, drop: Tensor) -> Tensor:
        """Encode, and put the null context where `drop` [B] is true (classifier-free guidance, Ho & Salimans 2022)."""
        context = self(tokens)
        return torch.where(drop.view(-1, 1, 1), self.null_context.to(context.dtype), context)
