"""The bundle's own train.yaml with networks so small that a training takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import REPOSITORY, draw_radiographs

from common.experiments.token_ablation import DenoiserTraining
from common.networks.latent_codec import LatentCodec

BUNDLE = REPOSITORY / "bundles" / "cxr_dino_latent_diffusion"
SIZE = 176  # px, the least that MS-SSIM takes
CODEC = {"channels": [8, 8, 8, 8], "num_res_blocks": 1, "norm_num_groups": 4}
NETWORK = {"attention_levels": [False, True], "num_head_channels": 8, "norm_num_groups": 4, "context_dim": 8}
CHANNELS = [8, 16]


def tiny_overrides(folder: Path) -> dict[str, Any]:
    """Ids of train.yaml; writes the weights of a codec into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    codec = LatentCodec(**CODEC, latent_channels=4)
    codec.set_statistics(torch.zeros(4), torch.ones(4), 10)
    torch.save(codec.state_dict(), folder / "codec.pt")
    small = {f"codec_def#{key}": value for key, value in CODEC.items()}
    small |= {f"network_def#{key}": value for key, value in NETWORK.items()}
    return {
        **small,
        "codec_path": str(folder / "codec.pt"),
        "dino_image_size": 56,
        "amp": False,
        "cache_num_workers": 0,
    }


def tiny_training(folder: Path, encoder: Path, count: int = 8, **changes: Any) -> DenoiserTraining:
    """Four steps on phantoms, of which the folder gets `count` where it has none."""
    if not (folder / "data").is_dir():
        draw_radiographs(folder / "data", count, SIZE)
    overrides = {
        **tiny_overrides(folder),
        **{"image_size": 32, "batch_size": 2, "max_epochs": 2, "val_interval": 2, "val_fraction": 0.4},
        **{"grid_sources": 1, "grid_steps": 1, "warmup_steps": 1, "learning_rate": 0.02},
        "network_def#channels": CHANNELS,
    }
    options: dict[str, Any] = {
        "work_dir": folder / "work",
        "encoders": {"tiny": str(encoder)},
        "patch_grids": (2, 4),
        "num_images": {"train": 4, "val": 3},
        "overrides": overrides,
        **changes,
    }
    return DenoiserTraining(BUNDLE, str(folder / "data"), **options)
