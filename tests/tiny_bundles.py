"""Folders of tiny bundles: a config, metadata and weights, as much as an export reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import make_tiny_codec, make_tiny_denoiser, randomise
from torch import nn

from common.diffusion.noise_schedule import NoiseSchedule
from common.networks.conditioning import TokenSelection
from common.networks.diffusion_segmenter import DiffusionSegmenter
from common.networks.embedding_prior import EmbeddingPrior
from common.networks.weights import half_precision, save_weights

CODEC = {
    "_target_": "common.networks.latent_codec.LatentCodec",
    **{"channels": [8, 8, 8, 8], "num_res_blocks": 1, "latent_channels": 2, "norm_num_groups": 4},
}
DENOISER = {
    "_target_": "common.networks.latent_denoiser.LatentDenoiser",
    **{"latent_channels": 2, "channels": [8, 16], "num_res_blocks": 1, "attention_levels": [False, True]},
    **{"num_head_channels": 8, "num_tokens": 2, "token_dim": 6, "context_dim": 8, "norm_num_groups": 4},
}
SEGMENTER = {
    "num_classes": 3,
    **{"channels": [8, 16], "num_res_blocks": 1, "attention_levels": [False, True], "num_head_channels": 8},
    **{"norm_num_groups": 4, "patch_size": 2, "timestep": 1},
}


def write_bundle(root: Path, networks: dict[str, Any], weights: dict[str, nn.Module], inputs: dict[str, Any]) -> Path:
    """Write configs/inference.yaml, configs/metadata.json and models/*.pt in half precision, and return the root."""
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    config = {"bundle_root": ".", **networks}
    (root / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    formats = {"inputs": inputs, "outputs": {"pred": inputs["image"]}}
    metadata = {"version": "0.1.0", "description": "tiny", "network_data_format": formats}
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    for name, network in weights.items():
        torch.save(half_precision(network.state_dict()), root / "models" / name)
    return root


def tensor(num_channels: int, spatial_shape: list[Any], value_range: tuple[float, ...] = (), kind: str = "image"):
    """A tensor as metadata.json declares it."""
    return {
        **{"type": kind, "format": "magnitude", "num_channels": num_channels, "dtype": "float32"},
        **{"spatial_shape": spatial_shape, "value_range": list(value_range)},
    }


def measured_codec(seed: int = 0) -> nn.Module:
    """A tiny codec with statistics that scaling would show."""
    codec = make_tiny_codec(seed)
    codec.set_statistics(torch.tensor([0.3, -0.2]), torch.tensor([0.5, 2.0]), 10)
    return codec


def codec_bundle(root: Path, codec: nn.Module | None = None, prefix: str = "") -> Path:
    """An autoencoder's bundle; `prefix` goes before its `_target_`."""
    network = {**CODEC, "_target_": prefix + CODEC["_target_"]}
    weights = {"model.pt": codec or measured_codec()}
    return write_bundle(root, {"network_def": network}, weights, {"image": tensor(1, ["8*n", "8*n"], (0, 1))})


def diffusion_bundle(root: Path) -> Path:
    """A latent diffusion model's bundle, with its codec."""
    inputs = {
        "image": tensor(2, ["2*n", "2*n"]),
        "timesteps": tensor(1, [1], (0, 1000), kind="timesteps"),
        "context": tensor(2, [8]),
    }
    write_bundle(root, {"network_def": DENOISER}, {"model.pt": make_tiny_denoiser()}, inputs)
    save_weights(measured_codec(), root / "models" / "autoencoder.pt", half=True)
    return root


def generator_models(root: Path, dino: Path) -> Path:
    """A generator's bundle as far as its pipeline reads it: weights of 32 px that describe themselves, and the DINO."""
    tokens = {"num_tokens": 2, "token_dim": 16}
    schedule, selection = NoiseSchedule("rectified_flow", "flow"), TokenSelection(use_registers=False, patch_grid=1)
    parts = {"schedule": schedule, "selection": selection, "cached_patch_grid": 2, "dino_image_size": 56}
    prior = EmbeddingPrior(4, **tokens, hidden_dim=16, num_blocks=2, dropout=0.0, labels=["a", "b"])
    randomise(prior, 0.1)
    components = torch.randn(40, 2, 16, generator=torch.Generator().manual_seed(0))
    prior.components.fit(components)
    denoiser = make_tiny_denoiser(**tokens)
    denoiser.context_encoder.scaler.fit(components)
    models = root / "models"
    models.mkdir(parents=True)
    save_weights(denoiser, models / "model.pt", {**parts, "image_size": 32})
    save_weights(measured_codec(), models / "autoencoder.pt", {"image_size": 32})
    save_weights(prior, models / "prior.pt", parts)
    shutil.copytree(dino, models / "dinov2_vits14")
    return root


def segmenter_bundle(root: Path) -> Path:
    """A segmenter's bundle."""
    segmenter = DiffusionSegmenter(**SEGMENTER)
    randomise(segmenter, 0.2)
    network = {"_target_": "common.networks.diffusion_segmenter.DiffusionSegmenter", **SEGMENTER}
    return write_bundle(root, {"network_def": network}, {"model.pt": segmenter}, {"image": tensor(1, ["4*n"] * 2)})


def bundle_of_code(root: Path, forward: str) -> Path:
    """A packaged bundle whose network is code of its own: `scripts.net.Net`, one weight, and a line of `forward`."""
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "__init__.py").touch()
    lines = [
        *("import torch", "class Net(torch.nn.Module):", "    def __init__(self):", "        super().__init__()"),
        "        self.weight = torch.nn.Parameter(torch.tensor([2.0]))",
        *("    def forward(self, image):", f"        return {forward}"),
    ]
    (root / "scripts" / "net.py").write_text("\n".join(lines) + "\n")
    network = nn.Module()
    network.weight = nn.Parameter(torch.tensor([2.0]))
    inputs = {"image": tensor(1, ["4*n", "4*n"])}
    return write_bundle(root, {"network_def": {"_target_": "scripts.net.Net"}}, {"model.pt": network}, inputs)
