"""A bundle and a folder of phantoms with lung masks, as zero-shot lungs take them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
import yaml
from conftest import make_tiny_denoiser
from PIL import Image
from tiny_bundles import CODEC, DENOISER, measured_codec

from common.data.phantom import draw_chest_phantom, draw_lung_mask


def zero_shot_bundle(root: Path, dino: Path) -> Path:
    """A bundle whose evaluate.yaml builds tiny networks, with weights."""
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    torch.save(make_tiny_denoiser(token_dim=16).state_dict(), root / "models" / "model.pt")
    torch.save(measured_codec().state_dict(), root / "models" / "autoencoder.pt")
    config = {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "cached_patch_grid": 2,
        "codec": _loaded(CODEC, "autoencoder.pt"),
        "network": _loaded({**DENOISER, "token_dim": 16}, "model.pt"),
        "encoder": {"_target_": "common.networks.dino.DinoEncoder", "source": str(dino), "image_size": 56},
        "selection": {
            "_target_": "common.networks.conditioning.TokenSelection",
            "use_registers": False,
            "patch_grid": 1,
        },
        "schedule": {
            "_target_": "common.diffusion.noise_schedule.NoiseSchedule",
            **{"schedule": "rectified_flow", "prediction_type": "flow"},
        },
    }
    (root / "configs" / "evaluate.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return root


def lung_folder(root: Path, num_train: int, num_val: int, size: tuple[int, int] = (72, 80)) -> Path:
    """Phantoms with their lungs as masks, 0 and 255, listed in lung_masks.csv; validation images of two sources."""
    for folder in ("images", "lung_masks"):
        (root / folder).mkdir(parents=True)
    rows = []
    for number in range(num_train + num_val):
        pixels = (draw_chest_phantom(*size, seed=number)[0] * 255).round().to(torch.uint8).numpy()
        lungs = draw_lung_mask(*size, seed=number)[0].numpy().astype(np.uint8) * 255
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        Image.fromarray(lungs).save(root / "lung_masks" / f"{number}.png")
        row = {
            "image": f"images/{number}.png",
            "mask_file": f"lung_masks/{number}.png",
            "source": f"clinic{number % 2}",
        }
        row |= {"mask_definition": "drawn", "split": "train" if number < num_train else "val"}
        rows.append(row)
    with (root / "lung_masks.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def _loaded(network: dict, weights: str) -> dict:
    path = f"$@bundle_root + '/models/{weights}'"
    return {"_target_": "common.networks.weights.load_weights", "network": network, "path": path}
