"""How many labels a segmenter needs, by what it started from: one fine-tuning per trial of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from torch import nn

from ..errors import SettingsError
from ..fingerprint import file_sha256, json_sha256
from ..networks.weights import load_weights, save_atomically


@dataclass(frozen=True)
class Trial:
    """One fine-tuning.

    Attributes:
        method: what it starts from.
        label_budget: labelled images.
        seed: of the subset, and of everything else that is random, alike for all methods.
        timestep: fed to the U-Net.
    """

    method: str
    label_budget: int
    seed: int
    timestep: int = 1


def grid(
    methods: Sequence[str], budgets: Sequence[int], seeds: Sequence[int], timesteps: Sequence[int] = (1,)
) -> list[Trial]:
    """All trials, seed by seed, so that what a stopped experiment leaves compares all methods."""
    return [Trial(method, n, seed, t) for seed in seeds for n in budgets for t in timesteps for method in methods]


@dataclass(frozen=True)
class FineTuning:
    """Run the bundle's own train.yaml for a trial and return the averaged network.

    Attributes:
        bundle_root: of the dental bundle.
        dataset_dir: with a manifest.csv of images and masks.
        output_dir: a folder per trial is made there, for its record and its network.
        pretrained: for each method what train.yaml's `pretrained` is: "none" or a path.
        num_steps: of every fine-tuning, whatever its budget.
        overrides: further ids of train.yaml.
    """

    bundle_root: str
    dataset_dir: str
    output_dir: Path
    pretrained: Mapping[str, str]
    num_steps: int
    overrides: Mapping[str, Any]

    def __call__(self, trial: Trial) -> nn.Module:
        """Fine-tune; the network is kept as `network.pt` in `run_dir(trial)`, and taken from there if it is there.

        Raises:
            SettingsError: a method that `pretrained` does not name.
        """
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
        settings = [self.dataset_dir, self.num_steps, self.overrides, start]
        name = f"{trial.method}_n{trial.label_budget}_seed{trial.seed}_t{trial.timestep}"
        return self.output_dir / "runs" / f"{name}_{json_sha256(settings)[:8]}"

    def workflow(self, trial: Trial, run_dir: Path) -> ConfigWorkflow:
        """The bundle's train.yaml for a trial, not yet initialised."""
        deep: dict[str, Any] = {
            "train#trainer#checkpoint_every_steps": self.num_steps,
            "network_def#timestep": trial.timestep,
        }
        return ConfigWorkflow(
            config_file=f"{self.bundle_root}/configs/train.yaml",
            workflow_type="train",
            bundle_root=self.bundle_root,
            logging_file=False,
            dataset_dir=self.dataset_dir,
            output_dir=str(run_dir),
            pretrained=self.pretrained[trial.method],
            label_budget=trial.label_budget,
            budget_seed=trial.seed,
            seed=trial.seed,
            max_epochs=1,
            epoch_length=self.num_steps,
            val_interval=1,
            **deep,
            **self.overrides,
        )
