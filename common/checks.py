"""Settings that are refused before any work: numbers by their names, devices, sizes, folders to write to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import SettingsError

LEAST = {
    **dict.fromkeys(("seed", "budget_seed", "num_workers", "warmup_steps", "milestone_every_steps"), 0),
    **dict.fromkeys(("sheet_images", "sheet_rows", "grid_images", "num_examples"), 0),
    **dict.fromkeys(("max_epochs", "epoch_length", "batch_size", "val_interval", "checkpoint_every_steps"), 1),
    **dict.fromkeys(("label_budget", "limit", "num_views", "num_samples", "num_inference_steps", "prior_steps"), 1),
    **dict.fromkeys(("image_size", "patch_size", "num_train_timesteps"), 1),
}
"""The least whole number that settings of these names may have, in whatever config or class they are."""
POSITIVE = ("max_grad_norm", "learning_rate", "discriminator_learning_rate")
FOLDERS = ("output_dir", "cache_dir", "report_dir")


def check_numbers(**numbers: Any) -> None:
    """Refuse numbers that settings of these names cannot have, by SettingsError; unknown names need 1 at least."""
    for name, number in numbers.items():
        if name in POSITIVE:
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not number > 0:
                raise SettingsError(f"{name}: expected a positive number, found {number!r}")
            continue
        least = LEAST.get(name, 1)
        for one in number if isinstance(number, (list, tuple)) and name == "image_size" else (number,):
            if isinstance(one, bool) or not isinstance(one, int) or one < least:
                raise SettingsError(f"{name}: expected a whole number of at least {least}, found {number!r}")


def check_device(device: torch.device | str) -> torch.device:
    """The device, if it is there, else SettingsError."""
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device: found {device}, which is not there ({str(error).splitlines()[0]})") from None
    return chosen


def check_multiple(image_size: int | Sequence[int], factor: int) -> None:
    """Refuse image sizes that a network cannot halve as often as it has to: SettingsError, which says what would do."""
    sides = (image_size,) if isinstance(image_size, int) else tuple(image_size)
    if any(side < 1 or side % factor for side in sides):
        near = [max(1, round(side / factor)) * factor for side in sides]
        raise SettingsError(f"image_size: expected multiples of {factor}, found {image_size}; {near} would do")


def check_image(image: torch.Tensor, factor: int = 1) -> None:
    """Refuse what is no batch of images [B, 1, H, W] with H and W multiples of `factor`: ValueError."""
    if image.ndim != 4 or image.shape[1] != 1 or image.shape[2] % factor or image.shape[3] % factor:
        raise ValueError(
            f"found an image {tuple(image.shape)}, expected [B, 1, H, W] with H and W multiples of {factor}; "
            "resize or pad it first"
        )


def check_folder(name: str, path: str | os.PathLike[str]) -> None:
    """Refuse a file where a folder is to be written: SettingsError."""
    here = Path(path).absolute()
    file = next((each for each in (here, *here.parents) if each.exists() and not each.is_dir()), None)
    if file is not None:
        raise SettingsError(f"{name}: {file} is a file; expected a folder to write to")


def check_apart(name: str, path: str | os.PathLike[str], dataset_dir: str | os.PathLike[str]) -> None:
    """Refuse the folder of the data as that of results, which the next run would take for data: SettingsError."""
    if os.path.realpath(path) == os.path.realpath(dataset_dir):
        raise SettingsError(f"{name}: found {path}, which is the folder of the data; give results their own")
