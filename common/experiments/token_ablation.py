"""What the tokens of an encoder are worth to the generator: one training of the bundle's denoiser per cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from ..data.latent_store import LatentStore
from ..data.readability import readable_radiographs
from ..diffusion.noise_schedule import NoiseSchedule
from ..fingerprint import json_sha256, network_sha256
from ..networks.conditioning import TokenSelection
from ..networks.dino import DinoEncoder
from ..networks.latent_codec import LatentCodec
from ..networks.latent_denoiser import LatentDenoiser
from ..networks.weights import save_atomically
from ..seeding import Purpose, derive_seed
from .experiment import ExperimentError

REAL, RECONSTRUCTION, UNCONDITIONAL = "real", "reconstruction", "unconditional"
CLS, CLS_REGISTERS, CLS_GRID = "cls", "cls_registers", "cls_grid"
BASELINES = (REAL, RECONSTRUCTION)  # of which nothing is trained
EVERY_SAMPLE = math.nextafter(1.0, 0.0)  # as `uncond_prob`, which has to be below 1: no context is ever seen
STORE_SEED = 0  # of the store's split, the same for all seeds of training


@dataclass(frozen=True)
class Cell:
    """One row of the table under one seed.

    Attributes:
        variant: what conditions the denoiser: "cls", "cls_registers", "cls_grid<k>" or "unconditional"; or "real" or
            "reconstruction", for which nothing is trained.
        encoder: by name; of the baselines the one whose store is read.
        seed: of everything random in training and sampling, alike for all variants.
    """

    variant: str
    encoder: str
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.encoder}_{self.variant}_seed{self.seed}"


def token_variants(num_register_tokens: int, patch_grids: Sequence[int]) -> list[str]:
    """The variants of an encoder, fewest tokens first; registers only where it has them."""
    registers = [CLS_REGISTERS] if num_register_tokens else []
    return [CLS, *registers, *(f"{CLS_GRID}{k}" for k in sorted(patch_grids))]


def token_selection(variant: str) -> TokenSelection:
    """Which tokens a variant conditions on; the unconditional denoiser has the place of a CLS token and sees none.

    Raises:
        ExperimentError: no such variant.
    """
    if variant in (CLS, UNCONDITIONAL):
        return TokenSelection(use_registers=False, patch_grid=0)
    if variant == CLS_REGISTERS:
        return TokenSelection(use_registers=True, patch_grid=0)
    size = variant.removeprefix(CLS_GRID)
    if variant.startswith(CLS_GRID) and size.isdigit() and int(size) > 0:
        return TokenSelection(use_registers=False, patch_grid=int(size))
    raise ExperimentError(f"variant: found {variant!r}; expected {CLS}, {CLS_REGISTERS}, {CLS_GRID}2 or the like")


def grid(variants: Mapping[str, Sequence[str]], seeds: Sequence[int], unconditional: bool = True) -> list[Cell]:
    """All cells, baselines first, then seed by seed, so that what a stopped experiment leaves compares all variants.

    Args:
        variants: by encoder, of `token_variants`.
        seeds: of training.
        unconditional: train a denoiser without context too, once per seed, with the first encoder's store.
    """
    first = next(iter(variants))
    found = [Cell(name, first) for name in BASELINES]
    for seed in seeds:
        found += [Cell(variant, encoder, seed) for encoder, names in variants.items() for variant in names]
        if unconditional:
            found.append(Cell(UNCONDITIONAL, first, seed))
    return found


@dataclass(frozen=True)
class EncoderFacts:
    """What has to be known of an encoder.

    Attributes:
        token_dim: features of a token.
        num_register_tokens: 0 for most.
        sha256: of its weights.
    """

    token_dim: int
    num_register_tokens: int
    sha256: str


@dataclass(frozen=True)
class TrainedDenoiser:
    """A cell's denoiser and what goes with it.

    Attributes:
        denoiser: with averaged weights, in evaluation mode.
        selection: of its tokens.
        schedule: that it was trained with.
        about: plain numbers: val_loss, num_steps, num_tokens, num_parameters.
    """

    denoiser: LatentDenoiser
    selection: TokenSelection
    schedule: NoiseSchedule
    about: dict[str, float]


def some_radiographs(split: str, num_images: Mapping[str, int | None], seed: int, **knobs: Any) -> list[dict[str, str]]:
    """A seeded subset of a split's readable radiographs, in the data set's order; a larger one holds a smaller one.

    Args:
        split: "train" or "val".
        num_images: of each split at most; None for all.
        seed: of the subset, and of the split where the data set brings none.
        **knobs: further arguments of `readable_radiographs`.
    """
    items = readable_radiographs(split=split, seed=seed, **knobs)
    order = np.random.default_rng(derive_seed(seed, Purpose.ORDER)).permutation(len(items))
    return [items[index] for index in sorted(order[: num_images[split]])]


class DenoiserTraining:
    """Run the bundle's own train.yaml for a cell; every cell has the same steps, batches, noise and network.

    Args:
        bundle_root: of the latent diffusion bundle.
        dataset_dir: of the radiographs.
        work_dir: of the stores, one per encoder, and a folder per training.
        encoders: name to Hugging Face folder or hub id.
        patch_grids: of the variants; the store keeps a grid that all of them can be pooled from.
        num_images: of the splits "train" and "val", see `some_radiographs`.
        overrides: ids of train.yaml, the same for all cells.

    Raises:
        ExperimentError: a patch grid below 1.
    """

    def __init__(
        self,
        bundle_root: str | Path,
        dataset_dir: str,
        work_dir: str | Path,
        encoders: Mapping[str, str],
        patch_grids: Sequence[int],
        num_images: Mapping[str, int | None],
        overrides: Mapping[str, Any],
    ) -> None:
        if any(k < 1 for k in patch_grids):
            raise ExperimentError(f"patch_grids: found {list(patch_grids)}; expected numbers of at least 1")
        self.bundle_root = Path(bundle_root)
        self.dataset_dir = dataset_dir
        self.work_dir = Path(work_dir)
        self.encoders = dict(encoders)
        self.cached_patch_grid = math.lcm(*patch_grids)
        self.num_images = dict(num_images)
        self.overrides = dict(overrides)
        self._facts: dict[str, EncoderFacts] = {}

    def facts(self, encoder: str) -> EncoderFacts:
        """Of an encoder, which is loaded once for it.

        Raises:
            ExperimentError: an encoder that was not named.
        """
        if encoder not in self.encoders:
            raise ExperimentError(f"encoder: found {encoder!r}; expected one of {', '.join(self.encoders)}")
        if encoder not in self._facts:
            network = DinoEncoder(self.encoders[encoder])
            sha256 = network_sha256(network)
            self._facts[encoder] = EncoderFacts(network.hidden_size, network.num_register_tokens, sha256)
        return self._facts[encoder]

    def __call__(self, cell: Cell) -> TrainedDenoiser:
        """Train, or take what an earlier run left: the trained weights, or the checkpoint to go on from."""
        run_dir = self.run_dir(cell)
        kept = run_dir / "network.pt"
        workflow = self.workflow(cell, run_dir)
        if not kept.is_file():
            self._train(workflow, kept)
        content = torch.load(kept, map_location="cpu", weights_only=True)
        network, selection, schedule = (
            workflow.parser.get_parsed_content(name) for name in ("network_def", "selection", "schedule")
        )
        network.load_state_dict(content["network"])
        about = {**content["about"], "num_tokens": self.num_tokens(cell)}
        about["num_parameters"] = sum(parameter.numel() for parameter in network.parameters())
        return TrainedDenoiser(network.eval(), selection, schedule, about)

    def _train(self, workflow: ConfigWorkflow, kept: Path) -> None:
        """Keep the averaged weights and what is to be said of the training; remove what was there to resume."""
        try:
            workflow.initialize()
            workflow.run()
            trainer, evaluator, ema = (
                workflow.parser.get_parsed_content(name)
                for name in ("train::trainer", "validate::evaluator", "train::ema")
            )
            if "val_loss" not in evaluator.state.metrics:  # resumed after its last step
                evaluator.run()
            about = {"val_loss": evaluator.state.metrics["val_loss"], "num_steps": trainer.state.iteration}
        finally:
            workflow.finalize()
        save_atomically({"network": ema.network.state_dict(), "about": about}, kept)
        for leftover in ("checkpoint_last.pt", "model.pt"):
            (kept.parent / leftover).unlink(missing_ok=True)

    def store_and_codec(self, encoder: str) -> tuple[LatentStore, LatentCodec]:
        """An encoder's store of latents and tokens, made or completed where needed, and the codec."""
        cell = Cell(CLS, encoder, STORE_SEED)
        parser = self.workflow(cell, self.run_dir(cell)).parser
        return parser.get_parsed_content("store"), parser.get_parsed_content("codec").eval()

    def num_tokens(self, cell: Cell) -> int:
        """Tokens that a cell's denoiser is given."""
        if cell.variant == UNCONDITIONAL:
            return 0
        return token_selection(cell.variant).num_tokens(self.facts(cell.encoder).num_register_tokens)

    def run_dir(self, cell: Cell) -> Path:
        """Folder of a cell's training; another one for other settings."""
        return (
            self.work_dir
            / "runs"
            / f"{cell.name}_{json_sha256([*self._store_settings(cell.encoder), self.overrides])[:8]}"
        )

    def store_dir(self, encoder: str) -> Path:
        """Folder of an encoder's store; another one for other images."""
        return self.work_dir / "stores" / f"{encoder}_{json_sha256(self._store_settings(encoder))[:8]}"

    def _store_settings(self, encoder: str) -> list[Any]:
        size = self.overrides.get("image_size")
        return [self.dataset_dir, self.encoders[encoder], self.cached_patch_grid, self.num_images, size]

    def workflow(self, cell: Cell, run_dir: Path) -> ConfigWorkflow:
        """The bundle's train.yaml for a cell, not yet initialised."""
        facts = self.facts(cell.encoder)
        selection = token_selection(cell.variant)
        own: dict[str, Any] = {
            "dataset_dir": self.dataset_dir,
            "output_dir": str(run_dir),
            "cache_dir": str(self.store_dir(cell.encoder)),
            "cache::seed": STORE_SEED,
            "cache::items::seed": STORE_SEED,
            "cached_patch_grid": self.cached_patch_grid,
            "dino_source": self.encoders[cell.encoder],
            "token_dim": facts.token_dim,
            "use_registers": selection.use_registers,
            "patch_grid": selection.patch_grid,
            "num_tokens": selection.num_tokens(facts.num_register_tokens),
            "seed": cell.seed,
        }
        if cell.variant == UNCONDITIONAL:
            own["uncond_prob"] = EVERY_SAMPLE
        workflow = ConfigWorkflow(
            config_file=str(self.bundle_root / "configs" / "train.yaml"),
            workflow_type="train",
            bundle_root=str(self.bundle_root),
            logging_file=False,
            **{**self.overrides, **own},
        )
        workflow.parser["cache::items::_target_"] = "common.experiments.token_ablation.some_radiographs"
        workflow.parser["cache::items::num_images"] = self.num_images
        workflow.parser["cache::settings::num_images"] = self.num_images
        return workflow
