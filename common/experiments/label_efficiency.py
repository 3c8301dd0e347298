"""How many labels a segmenter needs, by what it started from: one fine-tuning per cell of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from torch import nn

from ..fingerprint import file_sha256, json_sha256
from ..networks.weights import load_weights, save_atomically
from ..seeding import derive_seed

MAX_SEED = 2**31  # set_determinism takes no more


@dataclass(frozen=True)
class Cell:
    """One fine-tuning.

    Attributes:
        method: what it starts from.
        label_budget: labelled images.
        seed: of the subset, and of everything else that is random, alike for all methods.
        timestep: that the network is told.
        member: of an ensemble on the same subset; another one differs in all else that is random.
    """

    method: str
    label_budget: int
    seed: int
    timestep: int = 1
    member: int = 0

    @property
    def name(self) -> str:
        """Of its files."""
        member = f"_member{self.member}" if self.member else ""
        return f"{self.method}_n{self.label_budget}_seed{self.seed}_t{self.timestep}{member}"

    @property
    def training_seed(self) -> int:
        """Of all that is random but the subset."""
        return self.seed if self.member == 0 else derive_seed(self.seed, self.member) % MAX_SEED


def grid(
    methods: Sequence[str], budgets: Sequence[int], seeds: Sequence[int], timesteps: Sequence[int] = (1,)
) -> list[Cell]:
    """All cells, seed by seed, so that what a stopped experiment leaves compares all methods."""
    return [Cell(method, n, seed, t) for seed in seeds for n in budgets for t in timesteps for method in methods]


class FineTuning:
    """Run the bundle's own train.yaml for a cell and return the averaged network.

    Args:
        bundle_root: of the dental bundle.
        dataset_dir: with a manifest.csv of images and masks.
        output_dir: a folder per cell is made there, for its record and its network.
        pretrained: for each method what train.yaml's `pretrained` is: "none" or a path.
        num_steps: of every fine-tuning, whatever its budget.
        overrides: further ids of train.yaml.
    """

    def __init__(
        self,
        bundle_root: str | Path,
        dataset_dir: str,
        output_dir: str | Path,
        pretrained: Mapping[str, str],
        num_steps: int,
        overrides: Mapping[str, Any],
    ) -> None:
        self.bundle_root = Path(bundle_root)
        self.dataset_dir = dataset_dir
        self.output_dir = Path(output_dir)
        self.pretrained = dict(pretrained)
        self.num_steps = num_steps
        self.overrides = dict(overrides)

    def __call__(self, cell: Cell, extra: Sequence[Mapping[str, str]] = ()) -> nn.Module:
        """Fine-tune; `extra` items (image, label) are drawn as often as the labelled ones, each kind in equal parts.

        The network is kept as `network.pt` in `run_dir(cell)`, and taken from there if it is there.

        Raises:
            ValueError: a method that `pretrained` does not name.
        """
        if cell.method not in self.pretrained:
            raise ValueError(f"method: expected one of {', '.join(self.pretrained)}, found {cell.method!r}")
        run_dir = self.run_dir(cell)
        kept = run_dir / "network.pt"
        workflow = self.workflow(cell, self.pretrained[cell.method], run_dir)
        if kept.is_file():
            return load_weights(workflow.parser.get_parsed_content("network_def"), kept)
        labelled = workflow.parser["train::dataset::data"]
        workflow.parser["train::dataset::data"] = {
            "_target_": "common.experiments.label_efficiency.mixed",
            "labelled": labelled,
            "extra": [dict(item) for item in extra],
        }
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

    def run_dir(self, cell: Cell) -> Path:
        """Folder of a cell's training; another one for other settings or other weights to start from."""
        start = self.pretrained[cell.method]
        start = file_sha256(start) if Path(start).is_file() else start
        settings = [self.dataset_dir, self.num_steps, self.overrides, start]
        return self.output_dir / "runs" / f"{cell.name}_{json_sha256(settings)[:8]}"

    def workflow(self, cell: Cell, pretrained: str, run_dir: Path) -> ConfigWorkflow:
        """The bundle's train.yaml for a cell, not yet initialised."""
        return ConfigWorkflow(
            config_file=str(self.bundle_root / "configs" / "train.yaml"),
            workflow_type="train",
            bundle_root=str(self.bundle_root),
            logging_file=False,
            dataset_dir=self.dataset_dir,
            output_dir=str(run_dir),
            pretrained=pretrained,
            label_budget=cell.label_budget,
            budget_seed=cell.seed,
            seed=cell.training_seed,
            timestep=cell.timestep,
            max_epochs=1,
            epoch_length=self.num_steps,
            val_interval=1,
            checkpoint_every_steps=self.num_steps,
            **self.overrides,
        )


def mixed(labelled: Sequence[Mapping[str, str]], extra: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Items of which half are labelled ones, repeated as need be, and half extra ones; without extra as given.

    Args:
        labelled: items of the data set, with "image", "label" and "mask_values", see `LoadMaskd`.
        extra: the same of another one.
    """
    if not extra:
        return [dict(item) for item in labelled]
    pairs = [(labelled[index % len(labelled)], item) for index, item in enumerate(extra)]
    # A batch may hold both kinds, and so has only what both have.
    return [{key: item[key] for key in ("image", "label", "mask_values")} for pair in pairs for item in pair]
