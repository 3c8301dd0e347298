"""Measure what pre-training saves in labels: fine-tune the dental segmenter on a grid of starts, budgets and seeds.

python scripts/label_efficiency.py DATA --output_dir OUT --starts "{'none': 'none', 'ddpm': 'PATH'}"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SimpleInferer
from monai.transforms import Compose
from torch import nn

from common.command_line import run_command
from common.data.dataset import RadiographDataset
from common.data.label_budget import labelled_radiographs
from common.data.mask_transforms import LoadMaskd, LoadSpacedRadiographd, PadResized
from common.evaluation.segmentation_evaluation import segment_and_score
from common.evaluation.segmentation_metrics import summarise_scores
from common.experiments.experiment import Experiment, ExperimentError
from common.experiments.generated_labels import ENSEMBLE, GENERATED, GeneratedLabels
from common.experiments.knobs import chosen_cells
from common.experiments.label_efficiency import Cell, FineTuning, grid
from common.experiments.label_efficiency_report import write_report
from common.experiments.pixel_classifying import CLASSIFIER, PixelClassifying
from common.fingerprint import file_sha256
from common.io.segmentation_classes import ClassTable, class_table

BUNDLE = Path("bundles") / "dental_radiograph_segmentation"
NUMBERS = {"budgets": 1, "seeds": 0, "timesteps": 0}  # with the least of each
QUICK_LISTS = {"budgets": (1, 5), "seeds": (0,)}
QUICK_STEPS, QUICK_IMAGES = 5, 8
CLASSIFIER_STEPS, CLASSIFIER_QUICK_STEPS = 1000, 20  # of each member of the ensemble


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
    learning_rate: float = 1.0e-3,
    where: Mapping[str, str] | None = None,
    table: str = "grouped",
    mask_values: str = "periapical",
    image_size: Sequence[int] = (144, 192),
    share: Sequence[int] = (0, 1),
    generated: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    quick: bool = False,
) -> None:
    """Fine-tune and score every cell that OUT does not hold yet; then write the report of all that it holds.

    A cell is one run of the bundle's train.yaml on a nested subset of the training split, scored on the whole
    validation split at the images' own size. A killed run goes on with the cell it was at.

    Args:
        dataset_dir: with a manifest.csv of images and masks.
        output_dir: of cells, JSON, table and plot; small, and free of paths, to be kept.
        work_dir: of the trainings' records and networks; by default outputs/label_efficiency of the bundle.
        starts: by method what train.yaml's `pretrained` is, "none" or weights; "pixel_classifier" trains Baranchuk's
            classifier on the frozen features of those weights instead, and "ddpm_generated" takes generated
            radiographs too.
        bundle_root: of the dental bundle.
        budgets: labelled images.
        seeds: of subset and training.
        timesteps: that the network is told; more than one for the ablation.
        grids: YAML file that lists several grids, each a mapping of `methods` (some of the starts), budgets, seeds and
            timesteps, or of some of these.
        num_steps: of each fine-tuning.
        learning_rate: of each fine-tuning.
        where: manifest columns and the value that each must have.
        table: of the classes.
        mask_values: data set that the masks come from.
        image_size: H, W that images are made to fit.
        share: i, n: do every n-th cell from the i-th on; so n processes share the work.
        generated: folder that generate.yaml wrote, for the start "ddpm_generated": it is labelled by an ensemble of
            fine-tunings on the cell's own labels and trained on beside them.
        overrides: further ids of train.yaml, such as {batch_size: 8}.
        quick: two budgets, one seed, five steps, eight images, to see whether everything works; no figure of it means
            anything.
    """
    check_starts(starts, generated)
    knobs = {"methods": list(starts), "budgets": budgets, "seeds": seeds, "timesteps": timesteps}
    cells = chosen_cells(grids, knobs, grid, {"methods": list(starts)}, NUMBERS, QUICK_LISTS if quick else {})
    num_steps, limit = (QUICK_STEPS, QUICK_IMAGES) if quick else (num_steps, None)
    work_dir = work_dir or str(Path(bundle_root) / "outputs" / "label_efficiency")
    classes = class_table(table)
    overrides = {
        **(overrides or {}),
        "where": where,
        "class_table": table,
        "num_classes": classes.num_labels,
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
        "quick": quick,
    }
    fine_tuning = FineTuning(bundle_root, dataset_dir, work_dir, with_ensemble(starts), num_steps, overrides)
    trainings: dict[str, Callable[[Cell], nn.Module]] = dict.fromkeys(starts, fine_tuning)
    trainings[CLASSIFIER] = PixelClassifying(
        fine_tuning, max_steps=CLASSIFIER_QUICK_STEPS if quick else CLASSIFIER_STEPS
    )
    if generated is not None:
        trainings[GENERATED] = GeneratedLabels(fine_tuning, generated, (image_size[0], image_size[1]), classes)

    def do(cell: Cell) -> dict[str, Any]:
        network = trainings[cell.method](cell)
        scores = segment_and_score(network, SimpleInferer(), val_images, classes, "cpu", with_hd95=False)
        return summarise_scores(scores, classes)

    experiment = Experiment(output_dir, settings, do, describe=lambda cell: start_of(starts[cell.method]))
    experiment.run(cells, (share[0], share[1]))
    # train.yaml takes a GPU where there is one
    write_report(output_dir, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def check_starts(starts: Any, generated: str | None) -> None:
    """Refuse starts that cannot be used.

    Raises:
        ExperimentError: no mapping, weights that differ where they must not, or no folder for `ddpm_generated`.
    """
    if not isinstance(starts, Mapping):
        raise ExperimentError(
            f"--starts: found {starts!r}; expected \"{{'none': 'none', 'ddpm': 'PATH'}}\", quotes and all"
        )
    if GENERATED in starts and generated is None:
        raise ExperimentError(f"--starts names {GENERATED}; give the folder of generated radiographs by --generated")
    with_ensemble(starts)


def with_ensemble(starts: Mapping[str, str]) -> dict[str, str]:
    """Starts, and that of the ensemble which labels generated radiographs: the same weights.

    Raises:
        ExperimentError: the two are given and differ.
    """
    if GENERATED not in starts:
        return dict(starts)
    found = starts.get(ENSEMBLE, starts[GENERATED])
    if found != starts[GENERATED]:
        raise ExperimentError(
            f"--starts: {ENSEMBLE} is {found!r} and {GENERATED} {starts[GENERATED]!r}; give both the same weights"
        )
    return {**starts, ENSEMBLE: found}


def start_of(pretrained: str) -> dict[str, Any]:
    """What a result says of the weights that it started from."""
    is_file = Path(pretrained).is_file()
    return {"start": Path(pretrained).name, "start_sha256": file_sha256(pretrained) if is_file else None}


def load_all(
    items: Sequence[dict[str, str]], classes: ClassTable, mask_values: str, image_size: Sequence[int]
) -> list[dict]:
    """Held-out images as the network takes them, with masks at their own size, in memory."""
    transform = Compose(
        [
            LoadSpacedRadiographd(["image"]),
            LoadMaskd(["label"], classes, mask_values),
            PadResized(["image"], image_size),
        ]
    )
    dataset = RadiographDataset(items, transform)
    return [dataset[index] for index in range(len(dataset))]


if __name__ == "__main__":
    run_command(label_efficiency)
