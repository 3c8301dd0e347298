"""Measure what the tokens of an encoder are worth: CLS, registers, patch grids, at equal training budget.

python scripts/token_ablation.py DATA --output_dir OUT
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.command_line import run_command
from common.experiments.experiment import Experiment, ExperimentError
from common.experiments.token_ablation import DenoiserTraining, grid, token_variants
from common.experiments.token_ablation_report import MAX_ENCODERS, write_report
from common.experiments.token_ablation_trial import Sampling, Trial
from common.fingerprint import file_sha256

BUNDLE = Path("bundles") / "cxr_dino_latent_diffusion"
ENCODER = "dinov2_vits14"  # of the bundle's models
JUDGE = "judge"  # its name beside the encoders'
QUICK_IMAGES, QUICK_SAMPLING_STEPS = 24, 4


def token_ablation(
    dataset_dir: str,
    *,
    output_dir: str,
    work_dir: str | None = None,
    encoders: Mapping[str, str] | None = None,
    patch_grids: Sequence[int] = (2, 4),
    seeds: Sequence[int] = (0,),
    unconditional: bool = True,
    max_epochs: int = 4,
    batch_size: int = 16,
    learning_rate: float = 1.0e-3,
    channels: Sequence[int] = (32, 64, 96),
    num_train: int | None = 1536,
    num_val: int | None = 256,
    image_size: int = 192,
    num_inference_steps: int = 10,
    guidance_scale: float = 1.5,
    num_diverse_sources: int = 32,
    num_diverse: int = 2,
    judge: str | None = None,
    inception_path: str | None = None,
    bundle_root: str = str(BUNDLE),
    share: Sequence[int] = (0, 1),
    overrides: Mapping[str, Any] | None = None,
    quick: bool = False,
) -> None:
    """Train and score every cell that OUT does not hold yet; then write the report of all that it holds.

    A cell is one run of the bundle's train.yaml on a store of latents and tokens that all variants of an encoder share,
    scored on images made from the validation split. A killed run goes on with the cell it was at, within its training.

    Args:
        dataset_dir: of the radiographs, with or without a manifest.csv.
        output_dir: of cells, JSON, table and plot; small, and without images or names of patients, to be kept.
        work_dir: of stores, features and networks, which are data of patients; by default outputs/token_ablation of
            the bundle.
        encoders: by name a Hugging Face folder or hub id (DINO v1, DINOv2, with or without registers); by default the
            bundle's own. Conditioning on registers is measured for those that have some.
        patch_grids: k of the k × k grids of averaged patch tokens beside the CLS token.
        seeds: of training and sampling.
        unconditional: train a denoiser that never sees a token, too.
        max_epochs: passes over the training images, of each training.
        batch_size: images of a step.
        learning_rate: peak.
        channels: of the denoiser, per level.
        num_train: training images, a seeded subset; None takes all.
        num_val: held-out images, likewise; with fewer than 199 the check for copies says little.
        image_size: px; at least 176.
        num_inference_steps: of the sampler.
        guidance_scale: of the sampler.
        num_diverse_sources: sources of which several variations are compared with each other.
        num_diverse: variations of each.
        judge: encoder of FD-DINO, cosines and the check for copies, the same for all; None takes the first of
            `encoders`, whose store has the tokens of the real images already.
        inception_path: weights for FD-Inception; None leaves it out.
        bundle_root: of the latent diffusion bundle.
        share: i, n: do every n-th cell from the i-th on; so n processes share the work once the stores are made.
        overrides: further ids of train.yaml, such as {amp: False}.
        quick: a few images, one pass and one seed, to see whether everything works; no figure of it means anything.
    """
    if quick:
        seeds, max_epochs, num_inference_steps = seeds[:1], 1, QUICK_SAMPLING_STEPS
        num_train = num_val = QUICK_IMAGES
    named = checked_encoders(encoders, bundle_root)
    judge_name = next(iter(named)) if judge is None else JUDGE
    training = DenoiserTraining(
        bundle_root,
        dataset_dir,
        work_dir or str(Path(bundle_root) / "outputs" / "token_ablation"),
        named if judge is None else {**named, JUDGE: judge},
        patch_grids,
        {"train": num_train, "val": num_val},
        {
            **training_overrides(max_epochs, batch_size, learning_rate, channels),
            **(overrides or {}),
            "image_size": image_size,
        },
    )
    sampling = Sampling(
        num_inference_steps, guidance_scale, num_diverse_sources, num_diverse, amp=training.overrides.get("amp", True)
    )
    settings = {
        "dataset": Path(dataset_dir).name,
        "num_images": training.num_images,
        "overrides": {key: value for key, value in training.overrides.items() if not key.endswith("_path")},
        **sampling.settings(),
        "judge_sha256": training.facts(judge_name).sha256,
        "inception_sha256": file_sha256(inception_path) if inception_path else None,
        "quick": quick,
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    experiment = Experiment(
        output_dir,
        settings,
        Trial(training, judge_name, inception_path, sampling, device),
        describe=lambda cell: {"encoder_sha256": training.facts(cell.encoder).sha256},
    )
    variants = {name: token_variants(training.facts(name).num_register_tokens, patch_grids) for name in named}
    experiment.run(grid(variants, seeds, unconditional), (share[0], share[1]))
    write_report(output_dir, device)


def checked_encoders(encoders: Mapping[str, str] | None, bundle_root: str) -> dict[str, str]:
    """The encoders to condition on, by default the bundle's own.

    Raises:
        ExperimentError: not a mapping, as fire makes of unquoted text, or too many to be drawn.
    """
    if encoders is None:
        return {ENCODER: f"{bundle_root}/models/{ENCODER}"}
    if not isinstance(encoders, Mapping) or not 1 <= len(encoders) <= MAX_ENCODERS or JUDGE in encoders:
        raise ExperimentError(
            f"--encoders: found {encoders!r}; expected \"{{'name': 'PATH'}}\", quotes and all, 1 to {MAX_ENCODERS} of "
            f"them, none called {JUDGE}"
        )
    return dict(encoders)


def training_overrides(
    max_epochs: int, batch_size: int, learning_rate: float, channels: Sequence[int]
) -> dict[str, Any]:
    """Ids of train.yaml for a short training: one validation at its end, an average over its last part, no pictures."""
    return {
        "max_epochs": max_epochs,
        "val_interval": max_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": 50,
        "ema_decay": 0.99,
        "checkpoint_every_steps": 100,
        "cache_num_workers": 0,
        "grid_sources": 1,
        "grid_steps": 1,
        "network_def#channels": list(channels),
    }


if __name__ == "__main__":
    run_command(token_ablation)
