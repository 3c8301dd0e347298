"""How many labels a segmenter needs, by what it started from: one fine-tuning per trial of a grid, and the report."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from torch import nn

from ..errors import SettingsError
from ..evaluation.report import Point, Row, cell, markdown_table, mean_sd, write_error_bar_plot
from ..files import read_json, write_json
from ..fingerprint import file_sha256, json_sha256
from ..networks.weights import load_weights, save_atomically
from .dental_rivals import RIVALS
from .trials import Trials, by_seed, grouped, paired_difference, read_trials, write_experiment_report

STEM = "label_efficiency"
BASELINE = "none"
HEADLINE = "mean_pooled_iou"  # mIoU as the segmentation literature has it
LABELS = {
    "none": "random initialisation",
    "ddpm": "DDPM",
    "ddpm_short": "DDPM, steps as the baselines",
    "denoising_autoencoder": "denoising autoencoder",
    "masked_images": "masked images",
    "efficientnet_lite0": "EfficientNet-Lite0 (ImageNet), U-Net decoder",
    "dinov2": "frozen DINOv2, light decoder",
}
CLASS_FIGURE = re.compile(r"classes\.[^.]+\.pooled_iou")
STEPS_NAME = "steps.json"
TIMED_STEPS = 2, 8  # of two short fine-tunings, whose difference is the time of a step


@dataclass(frozen=True)
class Trial:
    """One fine-tuning."""

    method: str  # what it starts from
    label_budget: int  # labelled images
    seed: int  # of the subset, and of everything else that is random, alike for all methods
    timestep: int = 1  # fed to the U-Net


def grid(
    methods: Sequence[str], budgets: Sequence[int], seeds: Sequence[int], timesteps: Sequence[int] = (1,)
) -> list[Trial]:
    """All trials, seed by seed, so that what a stopped experiment leaves compares all methods."""
    return [Trial(method, n, seed, t) for seed in seeds for n in budgets for t in timesteps for method in methods]


@dataclass(frozen=True)
class FineTuning:
    """Run the bundle's own train.yaml for a trial and return the averaged network."""

    bundle_root: str  # of the dental bundle
    dataset_dir: str  # with a manifest.csv of images and masks
    output_dir: Path  # a folder per trial is made there, for its record and its network
    # for each method what train.yaml's `pretrained` is: "none" or a path; for one of `RIVALS`, which bring a network
    # of their own, its source
    pretrained: Mapping[str, str]
    num_steps: int | Mapping[str, int]  # of every fine-tuning, whatever its budget; or by method
    overrides: Mapping[str, Any]  # further ids of train.yaml; those of its network are not for the rivals

    def __call__(self, trial: Trial) -> nn.Module:
        """Fine-tune; the network is kept as `network.pt` in `run_dir(trial)`, and taken from there if it is there."""
        if trial.method not in self.pretrained:
            raise SettingsError(f"method: expected one of {', '.join(self.pretrained)}, found {trial.method!r}")
        run_dir = self.run_dir(trial)
        kept = run_dir / "network.pt"
        workflow = self.workflow(trial, run_dir)
        if kept.is_file():
            return load_weights(workflow.parser.get_parsed_content("network_def"), kept)
        # Scoring at the images' own size follows; the one validation at the end selects nothing.
        workflow.parser["validate::dataset::data"] = "$@train::dataset::data[:1]"
        try:
            workflow.initialize()
            workflow.run()
            network = workflow.parser.get_parsed_content("train::ema").network
        finally:
            workflow.finalize()
        for leftover in ("checkpoint_last.pt", "model.pt"):
            (run_dir / leftover).unlink(missing_ok=True)
        save_atomically(network.state_dict(), kept)
        return network.eval()

    def run_dir(self, trial: Trial) -> Path:
        """Folder of a trial's training; another one for other settings or other weights to start from."""
        start = self.pretrained[trial.method]
        start = file_sha256(start) if Path(start).is_file() else start
        settings = [self.dataset_dir, self.steps(trial.method), self.overrides, start]
        name = f"{trial.method}_n{trial.label_budget}_seed{trial.seed}_t{trial.timestep}"
        return self.output_dir / "runs" / f"{name}_{json_sha256(settings)[:8]}"

    def workflow(self, trial: Trial, run_dir: Path) -> ConfigWorkflow:
        """The bundle's train.yaml for a trial, not yet initialised."""
        start, num_steps = self.pretrained[trial.method], self.steps(trial.method)
        deep = {**self.overrides, "network_def#timestep": trial.timestep}
        if rival := RIVALS.get(trial.method):
            deep = {name: value for name, value in deep.items() if not name.startswith("network_def#")}
            target = f"{rival.__module__}.{rival.__qualname__}"
            deep["network_def"] = {"_target_": target, "num_classes": "$@classes.num_labels", "source": start}
            start = "none"
        deep["train#trainer#checkpoint_every_steps"] = num_steps
        shallow: dict[str, Any] = {
            "bundle_root": self.bundle_root,
            "dataset_dir": self.dataset_dir,
            "output_dir": str(run_dir),
        }
        shallow |= {"pretrained": start, "label_budget": trial.label_budget, "budget_seed": trial.seed}
        shallow |= {"seed": trial.seed, "max_epochs": 1, "epoch_length": num_steps, "val_interval": 1}
        config = f"{self.bundle_root}/configs/train.yaml"
        return ConfigWorkflow(config_file=config, workflow_type="train", logging_file=False, **shallow, **deep)

    def steps(self, method: str) -> int:
        """Of a fine-tuning."""
        return self.num_steps if isinstance(self.num_steps, int) else self.num_steps[method]


def steps_of_equal_time(fine_tuning: FineTuning, cpu_seconds: float) -> dict[str, int]:
    """How many steps of each method take so many seconds of CPU time; measured once, then as `steps.json` says.

    CPU time of this process does not count what others do on the machine.
    """
    path = fine_tuning.output_dir / STEPS_NAME
    known = read_json(path) if path.is_file() else {}
    for method in (method for method in fine_tuning.pretrained if method not in known):
        took = []
        for number in TIMED_STEPS:
            with TemporaryDirectory() as folder:
                short, start = replace(fine_tuning, output_dir=Path(folder), num_steps=number), time.process_time()
                short(Trial(method, 1, 0))
            took.append(time.process_time() - start)
        step = max(took[1] - took[0], 1e-3) / (TIMED_STEPS[1] - TIMED_STEPS[0])
        known[method] = {"seconds_per_step": step}
        write_json(path, known)
    return {method: max(1, round(cpu_seconds / known[method]["seconds_per_step"])) for method in fine_tuning.pretrained}


# ---- the report ------------------------------------------------------------------------------------------------------


def write_report(output_dir: str | Path, device: torch.device) -> dict[str, Any]:
    """Write label_efficiency.json, .md and .png of all trials that a folder holds; return the JSON."""
    trials = read_trials(Path(output_dir) / f"{STEM}.csv", Trial)
    usual = min(trial.timestep for trial, _ in trials)
    found = rows([(trial, row) for trial, row in trials if trial.timestep == usual])
    tables = {"rows": found, "timesteps": timestep_rows(trials), "classes": class_rows(trials)}
    report = write_experiment_report(output_dir, STEM, markdown, device, **tables)
    series: dict[str, list[Point]] = defaultdict(list)
    for row in found:
        series[_label(row["method"])].append((row["label_budget"], 100 * row["mean"], 100 * (row["sd"] or 0.0)))
    titles = "labelled radiographs", "mIoU on held-out images, %"
    write_error_bar_plot(Path(output_dir) / f"{STEM}.png", series, titles)
    return report


def rows(trials: Trials[Trial]) -> list[Row]:
    """One row per method and budget: mIoU mean, sd and n over seeds, by seed, and the gain over `BASELINE`.

    The gain is paired: the mean over the seeds that both have of the difference on the same subset.
    """
    ious, dices = (grouped(trials, ("method", "label_budget"), figure) for figure in (HEADLINE, "mean_dice"))
    order = {name: place for place, name in enumerate(LABELS)}
    found: list[Row] = []
    for method, budget in sorted(ious, key=lambda key: (order.get(key[0], len(order)), key)):
        values, row = ious[method, budget], {"method": method, "label_budget": budget}
        row |= {**mean_sd(values.values()), "by_seed": by_seed(values)}
        row["mean_dice"] = statistics.fmean(dices[method, budget].values())
        found.append({**row, "gain": paired_difference(values, ious.get((BASELINE, budget), {}))})
    return found


def timestep_rows(trials: Trials[Trial]) -> list[Row]:
    """Rows of every method and budget that was trained at several timesteps."""
    ious = grouped(trials, ("method", "label_budget", "timestep"), HEADLINE)
    num_timesteps = Counter(key[:2] for key in ious)
    return [
        {"method": method, "label_budget": budget, "timestep": timestep, **mean_sd(values.values())}
        for (method, budget, timestep), values in sorted(ious.items())
        if num_timesteps[method, budget] > 1
    ]


def class_rows(trials: Trials[Trial]) -> list[Row]:
    """Rows of every class, method and budget: pooled IoU over seeds."""
    names = [name for name in next((row for _, row in trials), {}) if CLASS_FIGURE.fullmatch(name)]
    return [
        {"class": name.split(".")[1], "method": method, "label_budget": budget, **mean_sd(values.values())}
        for name in names
        for (method, budget), values in sorted(grouped(trials, ("method", "label_budget"), name).items())
    ]


def crossings(report_rows: Sequence[Row], method: str, rival: str) -> list[float]:
    """Numbers of labels at which the means of two methods cross, interpolated linearly in log(budget)."""
    means = {(row["method"], row["label_budget"]): row["mean"] for row in report_rows}
    budgets = sorted(n for name, n in means if name == method and (rival, n) in means)
    ahead = [(n, means[method, n] - means[rival, n]) for n in budgets]
    steps = [(low, high, x / (x - y)) for (low, x), (high, y) in pairwise(ahead) if x * y < 0]
    return [low * (high / low) ** share for low, high, share in steps]


def labels_needed(report_rows: Sequence[Row], method: str) -> list[tuple[int, float | None]]:
    """For each budget of a method, how many labels `BASELINE` needs for the same mean mIoU, None where none reaches it.

    Between budgets interpolated linearly in log(budget).
    """
    own, baseline = (
        sorted((row["label_budget"], row["mean"]) for row in report_rows if row["method"] == name)
        for name in (method, BASELINE)
    )
    budgets, reached = np.array(baseline or [(1.0, -math.inf)]).T
    reached = np.maximum.accumulate(reached)
    needed = np.exp([np.interp(value, reached, np.log(budgets), right=math.nan) for _, value in own])
    return [(n, None if math.isnan(x) else float(x)) for (n, _), x in zip(own, needed, strict=True)]


def markdown(report: Mapping[str, Any]) -> str:
    """The tables: mIoU in percent by method and budget, paired gains, labels needed, classes, timesteps."""
    found = {(row["method"], row["label_budget"]): row for row in report["rows"]}
    methods = list(dict.fromkeys(method for method, _ in found))
    budgets = sorted({budget for _, budget in found})
    means, gains = [], []
    for method in methods:
        own = [found.get((method, budget), {}) for budget in budgets]
        means.append([_label(method), *(cell(row or None, 1, factor=100) for row in own)])
        gains.append([_label(method), *(cell(row.get("gain"), 1, "+", factor=100) for row in own)])
    gains = [line for method, line in zip(methods, gains, strict=True) if method != BASELINE]
    headings = ["start", *map(str, budgets)]
    text = "mIoU in %, mean ± sd over seeds, by number of labelled radiographs\n\n" + markdown_table(headings, means)
    text += f"\nDifference to {LABELS[BASELINE]}, in points, paired by seed\n\n" + markdown_table(headings, gains)
    text += f"\nLabels that {LABELS[BASELINE]} needs for what DDPM reaches with n\n\n"
    for budget, needed in labels_needed(report["rows"], "ddpm"):
        text += f"- {budget}: {'more than measured' if needed is None else f'{needed:.1f} ({needed / budget:.1f} ×)'}\n"
    for rival in (method for method in methods if method in RIVALS):
        found_at = ", ".join(f"{labels:.1f}" for labels in crossings(report["rows"], "ddpm", rival))
        text += f"- DDPM and {_label(rival)} cross at {found_at or 'no number of'} labels\n"
    if report.get("classes"):
        lines = [
            [row["class"], _label(row["method"]), str(row["label_budget"]), cell(row, 1, factor=100)]
            for row in report["classes"]
        ]
        text += "\nPooled IoU in % by class\n\n" + markdown_table(["class", "start", "labels", "IoU"], lines, "llr")
    if report["timesteps"]:
        lines = [
            [_label(row["method"]), str(row["label_budget"]), str(row["timestep"]), cell(row, 1, factor=100)]
            for row in report["timesteps"]
        ]
        headings = ["start", "labels", "timestep", "mIoU"]
        text += "\nmIoU in % by the timestep that the network is told\n\n" + markdown_table(headings, lines)
    return text


def _label(method: str) -> str:
    return LABELS.get(method, method)
