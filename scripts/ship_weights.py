"""Put a training's weights into a bundle, in half precision, after checking that this loses nothing.

python scripts/ship_weights.py --weights RUN/model.pt --bundle_root bundles/cxr_autoencoder
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import fire
import torch
from monai.bundle import ConfigParser

from common.checkpoint import half_precision, save_atomically
from common.networks.latent_codec import LatentCodec
from common.phantom import draw_chest_phantom

MAX_CHANGE = 1 / 255  # of a pixel in [0, 1], by rounding the weights


def ship_weights(weights: str, bundle_root: str, image_size: int = 256) -> None:
    """Write `<bundle_root>/models/model.pt` and print its SHA-256.

    Args:
        weights: model.pt of a finished training (it carries the latent statistics).
        bundle_root: the bundle; its inference.yaml says what the network is.
        image_size: px of the phantom that both precisions reconstruct.
    """
    parser = ConfigParser()
    parser.read_config(str(Path(bundle_root) / "configs" / "inference.yaml"))
    codec: LatentCodec = parser.get_parsed_content("network_def")
    codec.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    if codec.latents_num_images.item() == 0:
        sys.exit(f"{weights}: found no latent statistics; expected weights of a finished training")
    image = draw_chest_phantom(image_size, image_size, seed=0)[None]
    with torch.inference_mode():
        full = codec.eval()(image)
        halved = half_precision(codec.state_dict())
        codec.load_state_dict(halved, strict=True)
        change = (codec(image) - full).abs().max().item()
    if change > MAX_CHANGE:
        sys.exit(f"{weights}: half precision changes a pixel by {change:.4f}; expected at most {MAX_CHANGE:.4f}")
    target = Path(bundle_root) / "models" / "model.pt"
    save_atomically(halved, target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB, sha256 {digest}, largest change of a pixel {change:.5f}")


if __name__ == "__main__":
    fire.Fire(ship_weights)
