"""A bundle of tiny networks and a folder of labelled phantoms, to ask whether synthetic data helps."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from conftest import make_tiny_denoiser, randomise
from PIL import Image
from tiny_bundles import CODEC, DENOISER, measured_codec

from common.data.phantom import draw_chest_phantom
from common.experiments.benefit_pool import Generator, load_generator
from common.networks.embedding_prior import EmbeddingPrior

CLASSES = ("bright", "dark", "plain")
TOKEN_DIM = 16  # of the tiny DINO
PRIOR = {
    "_target_": "common.networks.embedding_prior.EmbeddingPrior",
    **{"num_components": 4, "num_tokens": 2, "token_dim": TOKEN_DIM, "hidden_dim": 16, "num_blocks": 2},
    **{"dropout": 0.0, "labels": []},
}


def benefit_bundle(root: Path, dino: Path) -> Path:
    """A bundle whose inference.yaml builds tiny networks for images of 32 px, with weights."""
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    torch.save(make_tiny_denoiser(token_dim=TOKEN_DIM).state_dict(), root / "models" / "model.pt")
    torch.save(measured_codec().state_dict(), root / "models" / "autoencoder.pt")
    torch.save(_prior().state_dict(), root / "models" / "prior.pt")
    config = {
        **{"bundle_root": ".", "num_inference_steps": 2, "guidance_scale": 1.5, "amp": True},
        **{"device": "$torch.device('cpu')", "cached_patch_grid": 2},
        "codec": _loaded(CODEC, "autoencoder.pt"),
        "network": _loaded({**DENOISER, "token_dim": TOKEN_DIM}, "model.pt"),
        "encoder": {"_target_": "common.networks.dino.DinoEncoder", "source": str(dino), "image_size": 56},
        "selection": {
            "_target_": "common.networks.conditioning.TokenSelection",
            "use_registers": False,
            "patch_grid": 1,
        },
        "image_sampler": {
            "_target_": "common.diffusion.image_sampler.ImageSampler",
            **{"denoiser": "@network", "codec": "@codec", "image_size": 32, "amp": "@amp", "device": "@device"},
            "sampler": _sampler("@num_inference_steps", "@guidance_scale"),
        },
        "token_sampler": {
            "_target_": "common.diffusion.token_sampler.load_token_sampler",
            "_mode_": "callable",
            **{"prior": PRIOR, "path": "$@bundle_root + '/models/prior.pt'", "sampler": _sampler(2, 1.0)},
            "device": "@device",
        },
    }
    (root / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return root


def tiny_generator(root: Path, dino: Path) -> Generator:
    """What such a bundle builds, at two steps in float32."""
    return load_generator(benefit_bundle(root, dino), 2, 1.0, amp=False, device="cpu")


def labelled_folder(root: Path, num_train: int, num_val: int, size: int = 32) -> Path:
    """So many phantoms of each class in train and val, all of different patients; classes differ in brightness."""
    (root / "images").mkdir(parents=True)
    rows = []
    for place, name in enumerate(CLASSES):
        for number in range(num_train + num_val):
            seed = 100 * place + number
            gamma = (0.5, 2.0, 1.0)[place]
            pixels = (draw_chest_phantom(size, size, seed=seed)[0] ** gamma * 255).round().to(torch.uint8).numpy()
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{seed}.png")
            split = "train" if number < num_train else "val"
            row = {"image": f"images/{seed}.png", "label": name, "patient_id": f"p{seed}", "split": split}
            rows.append({**row, "source": "clinic"})
    write_manifest(root, rows)
    return root


def write_manifest(root: Path, rows: list[dict[str, Any]]) -> None:
    """manifest.csv of a folder."""
    with (root / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _prior() -> EmbeddingPrior:
    arguments = {key: value for key, value in PRIOR.items() if key != "_target_"}
    prior = EmbeddingPrior(**arguments)
    randomise(prior, 0.1)
    prior.components.fit(torch.randn(40, 2, TOKEN_DIM, generator=torch.Generator().manual_seed(0)))
    return prior


def _sampler(steps: Any, guidance: Any) -> dict[str, Any]:
    schedule = {
        "_target_": "common.diffusion.noise_schedule.NoiseSchedule",
        **{"schedule": "rectified_flow", "prediction_type": "flow"},
    }
    rule = {"method": "dpm_solver++_2m", "num_inference_steps": steps, "guidance_scale": guidance}
    return {"_target_": "common.diffusion.samplers.Sampler", "schedule": schedule, **rule}


def _loaded(network: dict, weights: str) -> dict:
    path = f"$@bundle_root + '/models/{weights}'"
    return {"_target_": "common.networks.weights.load_weights", "network": network, "path": path}
