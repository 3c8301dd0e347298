"""A bundle of tiny networks and a folder of labelled phantoms, to ask whether synthetic data helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_bundles import generator_models

from common.data.phantom import draw_chest_phantom
from common.evaluation.report import write_rows
from common.experiments.benefit_study import BenefitStudy
from common.experiments.benefit_trials import labelled_split
from common.experiments.densenet import TrainingSettings
from common.pipelines.diffusion import DinoDiffusion

CLASSES = ("bright", "dark", "plain")


def tiny_pipe(root: Path, dino: Path, amp: bool = False) -> DinoDiffusion:
    """Such a bundle's generator, of two steps."""
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0, "amp": amp}
    return DinoDiffusion.from_bundle(generator_models(root, dino), "cpu", **settings)


def tiny_study(root: Path, dino: Path, num_train: int, num_val: int, num_views: int) -> BenefitStudy:
    """A study of `labelled_folder` with an untrained generator."""
    train, test, classes = labelled_split(str(labelled_folder(root / "data", num_train, num_val)), None)
    training = TrainingSettings(image_size=32, num_steps=2, batch_size=4, amp=False)
    return BenefitStudy(train, test, classes, tiny_pipe(root / "bundle", dino), root / "work", training, num_views)


def labelled_folder(root: Path, num_train: int, num_val: int, size: int = 32) -> Path:
    """So many phantoms of each class in train and val, all of different patients; classes differ in brightness."""
    (root / "images").mkdir(parents=True)
    rows = []
    for place, (name, gamma) in enumerate(zip(CLASSES, (0.5, 2.0, 1.0), strict=True)):
        for number in range(num_train + num_val):
            seed = 100 * place + number
            pixels = (draw_chest_phantom(size, size, seed=seed)[0] ** gamma * 255).round().to(torch.uint8).numpy()
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{seed}.png")
            split = "train" if number < num_train else "val"
            row = {"image": f"images/{seed}.png", "label": name, "patient_id": f"p{seed}", "split": split}
            rows.append({**row, "source": "clinic"})
    write_rows(root / "manifest.csv", rows)
    return root
