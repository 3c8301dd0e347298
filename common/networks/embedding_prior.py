"""The prior: a small diffusion model over DINO tokens, so that images can be drawn without a source image."""

from __future__ import annotations

import logging

import torch
from monai.networks.blocks import MLPBlock
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn

from ..errors import SettingsError
from .conditioning import TokenScaler
from .weights import recorded

_logger = logging.getLogger(__name__)

TIMESTEP_FEATURES = 128
SMALLEST_VARIANCE = 1e-6  # of a component, per that of the first


class TokenComponents(nn.Module):
    """Tokens [B, N, D] to a few principal components [B, K] and back, with statistics of the training split as buffers.

    Tokens of radiographs fill few of their dimensions; `fit` logs how much of the variance the components hold.
    Components are divided by the fourth root of their variance: as they are, the first few drown the others in the
    loss; with unit variance all are alike, though most are close to noise.
    """

    def __init__(self, num_components: int, num_tokens: int, token_dim: int) -> None:
        super().__init__()
        if num_components > num_tokens * token_dim:
            raise SettingsError(f"num_components: expected at most {num_tokens * token_dim}, found {num_components}")
        self.scaler = TokenScaler(num_tokens, token_dim)
        self.register_buffer("directions", torch.zeros(num_tokens * token_dim, num_components))
        self.register_buffer("components_scale", torch.ones(num_components))
        self.directions: Tensor
        self.components_scale: Tensor

    def fit(self, tokens: Tensor) -> None:
        """Measure over tokens [num_images, N, D]; SettingsError for a wrong shape, or fewer images than components."""
        number = len(self.components_scale)
        if len(tokens) <= number:
            raise SettingsError(
                f"num_components {number}: expected more training images, found {len(tokens)}; lower it"
            )
        self.scaler.fit(tokens)
        flat = self.scaler.scale(tokens.to(self.directions.device)).flatten(1).double()
        all_variances, directions = torch.linalg.eigh(flat.T @ flat / (len(flat) - 1))
        variances = all_variances.flip(0)[:number]
        share = float(variances.sum() / all_variances.sum())
        _logger.info("%d components hold %.1f %% of the tokens' variance", number, 100 * share)
        # Images that are in the data twice leave directions without variance, which would blow up in other images.
        variances = variances.clamp_min(max(float(SMALLEST_VARIANCE * variances[0]), 1e-12))
        scale = variances.pow(0.25)
        scale = scale * (variances / scale.square()).mean().sqrt()  # so that the mean variance becomes 1
        self.directions.copy_(directions.flip(1)[:, :number])
        self.components_scale.copy_(scale)

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens to components; what the K components do not span is lost."""
        return self.scaler.scale(tokens).flatten(1) @ self.directions / self.components_scale

    def decode(self, components: Tensor) -> Tensor:
        """Components to tokens as the encoder gives them."""
        flat = (components * self.components_scale) @ self.directions.T
        return self.scaler.unscale(flat.view(-1, *self.scaler.tokens_mean.shape))


@recorded
class EmbeddingPrior(nn.Module):
    """Residual MLP that denoises token components, after the representation diffusion model of RCG (arXiv 2312.03701).

    It works on K principal components of N tokens of D features, in `num_blocks` residual blocks of width `hidden_dim`
    with dropout, and can be conditioned on `labels` by name.
    """

    def __init__(
        self,
        num_components: int,
        num_tokens: int,
        token_dim: int,
        hidden_dim: int,
        num_blocks: int,
        dropout: float,
        labels: list[str],
    ) -> None:
        super().__init__()
        self.labels, self.num_components = list(labels), num_components
        self.components = TokenComponents(num_components, num_tokens, token_dim)
        self.label_embedding = nn.Embedding(len(labels) + 1, hidden_dim)  # the last one is "no label"
        self.timestep_embedding = nn.Sequential(
            nn.Linear(TIMESTEP_FEATURES, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.inlet = nn.Linear(num_components, hidden_dim)
        self.blocks = nn.ModuleList(_ModulatedBlock(hidden_dim, dropout) for _ in range(num_blocks))
        self.outlet = nn.Linear(hidden_dim, num_components)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)

    def label_indices(self, names: list[str]) -> Tensor:
        """Indices [B] for label names; what is not among `labels` becomes "no label"."""
        known = {name: index for index, name in enumerate(self.labels)}
        return torch.tensor([known.get(name, len(self.labels)) for name in names], dtype=torch.int64)

    def encode_labels(self, indices: Tensor) -> Tensor:
        """Label indices [B] to context [B, 1, hidden_dim]."""
        return self.label_embedding(indices)[:, None]

    @property
    def null_context(self) -> Tensor:
        """The context of "no label", [1, 1, hidden_dim]."""
        return self.label_embedding.weight[-1:][None]

    def forward(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Predict [B, K] of the noise schedule's prediction type.

        Args:
            noisy: components z_t [B, K].
            timesteps: [B], as `NoiseSchedule` gives them.
            context: [B, 1, hidden_dim], of `encode_labels` or `null_context`.
        """
        features = get_timestep_embedding(timesteps, TIMESTEP_FEATURES)
        condition = self.timestep_embedding(features.to(noisy.dtype)) + context[:, 0]
        hidden = self.inlet(noisy)
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.outlet(hidden)


class _ModulatedBlock(nn.Module):
    """Residual MLP block whose norm is scaled, shifted and gated by the condition (adaLN-zero, Peebles & Xie 2023)."""

    def __init__(self, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_dim, 3 * hidden_dim))
        self.mlp = MLPBlock(hidden_dim, 2 * hidden_dim, dropout)
        nn.init.zeros_(self.modulation[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.modulation[1].bias)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(condition).chunk(3, dim=-1)
        return hidden + gate * self.mlp(self.norm(hidden) * (1 + scale) + shift)


class PriorPass(nn.Module):
    """The training pass of the prior as one `forward`, which is what DistributedDataParallel can wrap."""

    def __init__(self, prior: EmbeddingPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Denoise components [B, K], given label indices [B]."""
        return self.prior(noisy, timesteps, self.prior.encode_labels(labels))


def start_prior(prior: EmbeddingPrior, tokens: Tensor) -> EmbeddingPrior:
    """Return the prior to train, with the components of these training tokens [num_images, N, D]."""
    prior.components.fit(tokens)
    return prior.train()
