"""Measure what pre-training saves in labels: fine-tune the dental segmenter on a grid of starts, budgets and seeds.

python scripts/label_efficiency.py DATA --output_dir OUT --starts "{'none': 'none', 'ddpm': 'PATH'}"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SimpleInferer
from monai.transforms import Compose

from common.command_line import run_command
from common.data.dataset import RadiographDataset
from common.data.label_budget import labelled_radiographs
from common.data.mask_transforms import LoadMaskd, PadResized
from common.data.transforms import LoadRadiographd
from common.errors import SettingsError
from common.evaluation.segmentation_evaluation import segment_and_score
from common.evaluation.segmentation_metrics import summarise_scores
from common.experiments.label_efficiency import STEM, FineTuning, Trial, grid, steps_of_equal_time, write_report
from common.experiments.trials import Experiment, choose_trials
from common.fingerprint import file_sha256
from common.io.segmentation_classes import ClassTable, class_table

BUNDLE = Path("bundles") / "dental_radiograph_segmentation"
QUICK_LISTS = {"budgets": (1, 5), "seeds": (0,)}
QUICK_STEPS, QUICK_IMAGES = 5, 8


def label_efficiency(
    dataset_dir: str,
    *,
    output_dir: str,
    work_dir: str | None = None,
    starts: Mapping[str, str],
    bundle_root: str = str(BUNDLE),
    budgets: Sequence[int] = (1, 2, 5, 10, 20, 50),
    seeds: Sequence[int] = (0, 1, 2),
    timesteps: Sequence[int] = (1,),
    grids: str | None = None,
    num_steps: int = 600,
    cpu_seconds: float | None = None,
    learning_rate: float = 1.0e-3,
    where: Mapping[str, str] | None = None,
    table: str = "grouped",
    mask_values: str = "periapical",
    image_size: Sequence[int] = (144, 192),
    share: Sequence[int] = (0, 1),
    overrides: Mapping[str, Any] | None = None,
    quick: bool = False,
) -> None:
    """Fine-tune and score every trial that OUT does not hold yet; then write the report of all that it holds.

    A trial is one run of the bundle's train.yaml on a nested subset of the training split, scored on the whole
    validation split at the images' own size. A killed run goes on with the trial it was at.

    Args:
        dataset_dir: with a manifest.csv of images and masks.
        output_dir: of CSV, JSON, table and plot; small, and free of paths, to be kept.
        work_dir: of the trainings' records and networks; by default outputs/label_efficiency of the bundle.
        starts: by method what train.yaml's `pretrained` is, "none" or weights. Two methods have a network of their own:
            efficientnet_lite0 with "imagenet" (extra `baselines`), dinov2 with the folder of its weights.
        bundle_root: of the dental bundle.
        budgets: labelled images.
        seeds: of subset and training.
        timesteps: fed to the U-Net; more than one to compare them.
        grids: YAML file that lists several grids, each a mapping of `methods` (some of the starts), budgets, seeds and
            timesteps, or of some of these.
        num_steps: of each fine-tuning.
        cpu_seconds: of each fine-tuning instead, so that a large network takes fewer steps; measured at the start.
        learning_rate: of each fine-tuning.
        where: manifest columns and the value that each must have.
        table: of the classes.
        mask_values: data set that the masks come from.
        image_size: H, W that images are made to fit.
        share: i, n: do every n-th trial from the i-th on; so n processes share the work.
        overrides: further ids of train.yaml, such as {batch_size: 8}.
        quick: two budgets, one seed, five steps, eight images, to see whether everything works; no figure of it means
            anything.
    """
    if not isinstance(starts, Mapping):
        raise SettingsError(f"--starts: found {starts!r}; expected \"{{'none': 'none', 'ddpm': 'PATH'}}\", quotes too")
    lists = {"methods": list(starts), "budgets": budgets, "seeds": seeds, "timesteps": timesteps}
    allowed: dict[str, Sequence[str] | int] = {"methods": list(starts), "budgets": 1, "seeds": 0, "timesteps": 0}
    trials = choose_trials(grid, lists, allowed, grids, QUICK_LISTS if quick else None)
    num_steps, limit = (QUICK_STEPS, QUICK_IMAGES) if quick else (num_steps, None)
    work_dir = work_dir or str(Path(bundle_root) / "outputs" / STEM)
    classes = class_table(table)
    overrides = {
        **(overrides or {}),
        "where": where,
        "class_table": table,
        "mask_values": mask_values,
        "image_size": list(image_size),
        "learning_rate": learning_rate,
        "limit": limit,
    }
    val_items = labelled_radiographs(dataset_dir, "val", 0.1, 0, work_dir, 0.5, where=where, limit=limit)
    val_images = load_all(val_items, classes, mask_values, image_size)
    settings = {
        "dataset_dir": str(dataset_dir),
        "num_steps": num_steps,
        "num_val_images": len(val_items),
        "overrides": overrides,
        "cpu_seconds": cpu_seconds,
        "quick": quick,
    }
    fine_tuning = FineTuning(bundle_root, dataset_dir, Path(work_dir), starts, num_steps, overrides)
    if cpu_seconds is not None:
        fine_tuning = replace(fine_tuning, num_steps=steps_of_equal_time(fine_tuning, cpu_seconds))

    def do(trial: Trial) -> dict[str, Any]:
        scored = segment_and_score(fine_tuning(trial), SimpleInferer(), val_images, classes, "cpu", with_hd95=False)
        return summarise_scores([score for _, score in scored], classes)

    experiment = Experiment(output_dir, STEM, settings, do, describe=lambda trial: start_of(starts[trial.method]))
    experiment.run(trials, (share[0], share[1]))
    # train.yaml takes a GPU where there is one
    write_report(output_dir, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def start_of(pretrained: str) -> dict[str, Any]:
    """What a row says of the weights that its trial started from."""
    is_file = Path(pretrained).is_file()
    return {"start": Path(pretrained).name, "start_sha256": file_sha256(pretrained) if is_file else None}


def load_all(
    items: Sequence[dict[str, str]], classes: ClassTable, mask_values: str, image_size: Sequence[int]
) -> list[dict]:
    """Held-out images as the network takes them, with masks at their own size, in memory."""
    transforms = [
        LoadRadiographd(["image"]),
        LoadMaskd(["label"], classes, mask_values),
        PadResized(["image"], image_size),
    ]
    dataset = RadiographDataset(items, Compose(transforms))
    return [dataset[index] for index in range(len(dataset))]


if __name__ == "__main__":
    run_command(label_efficiency)
