"""Put a training's weights into a bundle, in half precision, after checking that this loses nothing.

python scripts/ship_weights.py --weights RUN/model.pt --config bundles/cxr_autoencoder/configs/train.yaml \
    --target bundles/cxr_autoencoder/models/model.pt
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from common.command_line import run_command
from common.data.phantom import draw_chest_phantom
from common.networks.diffusion_segmenter import DiffusionSegmenter
from common.networks.embedding_prior import EmbeddingPrior
from common.networks.latent_codec import LatentCodec
from common.networks.latent_denoiser import LatentDenoiser
from common.networks.pixel_denoiser import PixelDenoiser
from common.training.checkpoint import half_precision, save_atomically

TIMESTEPS = (100.0, 500.0, 900.0)


def ship_weights(weights: str, config: str, target: str, network_id: str = "network_def") -> None:
    """Write `target` in half precision and print its SHA-256.

    Args:
        weights: what a finished training wrote, with its statistics.
        config: YAML of the training.
        target: file to write.
        network_id: where the config says what the network is.
    """
    parser = ConfigParser()
    parser.read_config(config)
    parser["bundle_root"] = str(Path(config).resolve().parents[1])
    network: nn.Module = parser.get_parsed_content(network_id)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    network.eval()
    output, limit, what = _probe(network)
    with torch.inference_mode():
        full = output()
        halved = half_precision(network.state_dict())
        network.load_state_dict(halved, strict=True)
        change = (output() - full).abs().max().item()
    if not change <= limit:
        sys.exit(f"{weights}: half precision changes {what} by {change:.4f}; expected at most {limit:.4f}")
    path = Path(target)
    save_atomically(halved, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size / 2**20
    print(f"{path}: {size:.1f} MiB, sha256 {digest}, largest change of {what} {change:.5f}")


def _probe(network: nn.Module) -> tuple[Callable[[], Tensor], float, str]:
    """What the network makes of a fixed input, how far rounded weights may change it, and what it is."""
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.tensor(TIMESTEPS)
    if isinstance(network, LatentCodec):
        _require(network.latents_num_images, "latent")
        image = draw_chest_phantom(256, 256, seed=0)[None]
        return lambda: network(image), 1 / 255, "a pixel in [0, 1]"
    if isinstance(network, LatentDenoiser):
        _require(network.context_encoder.scaler.tokens_num_images, "token")
        scaler = network.context_encoder.scaler
        noisy = torch.randn(len(timesteps), network.latent_channels, 32, 32, generator=generator)
        tokens = scaler.unscale(torch.randn(len(timesteps), *scaler.tokens_mean.shape, generator=generator))
        return lambda: network(noisy, timesteps, network.encode_tokens(tokens)), 0.05, "an output of unit variance"
    if isinstance(network, EmbeddingPrior):
        _require(network.components.scaler.tokens_num_images, "token")
        components = torch.randn(len(timesteps), network.num_components, generator=generator)
        context = network.null_context.expand(len(timesteps), -1, -1)
        return lambda: network(components, timesteps, context), 0.05, "an output of unit variance"
    if isinstance(network, PixelDenoiser):
        side = 4 * network.downsampling_factor
        noisy = torch.randn(len(timesteps), 1, side, side, generator=generator)
        return lambda: network(noisy, timesteps), 0.05, "an output of unit variance"
    if isinstance(network, DiffusionSegmenter):
        image = draw_chest_phantom(144, 192, seed=0)[None]
        return lambda: network(image).softmax(1), 0.02, "a probability"
    sys.exit(f"found a {type(network).__name__}; expected a codec, a denoiser, a prior or a segmenter")


def _require(num_images: Tensor, kind: str) -> None:
    if num_images.item() == 0:
        sys.exit(f"found no {kind} statistics in the weights; expected those of a finished training")


if __name__ == "__main__":
    run_command(ship_weights)
