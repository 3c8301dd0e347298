"""Does synthetic data help? Train classifiers on few real radiographs, with and without synthetic ones, and compare.

python scripts/synthetic_benefit.py ../shared/data/cxr --output_dir OUT --where "{'source': 'kermany'}"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.command_line import run_command
from common.experiments.benefit_report import STEM, write_report
from common.experiments.benefit_study import BenefitStudy
from common.experiments.benefit_trials import ALL_REGIMES, CLASSIFIERS, REGIMES, STRATEGIES, grid, labelled_split
from common.experiments.densenet import TrainingSettings
from common.experiments.trials import Experiment, choose_trials
from common.pipelines.diffusion import DinoDiffusion

BUNDLE = Path("bundles") / "cxr_dino_latent_diffusion"
ALLOWED: dict[str, Sequence[str] | int] = {
    **{"strategies": STRATEGIES, "regimes": ALL_REGIMES, "classifiers": CLASSIFIERS},
    **{"sizes": 1, "ratios": 1, "seeds": 0},
}
QUICK_LISTS = {"sizes": (6,), "ratios": (1,), "seeds": (0,)}
QUICK_INFERENCE_STEPS, QUICK_STEPS = 2, 2
QUICK_IMAGE_SIZE, QUICK_VIEWS, QUICK_TEST_IMAGES = 32, 1, 3  # px; of an image; of a class


def synthetic_benefit(
    dataset_dir: str,
    *,
    output_dir: str,
    work_dir: str | None = None,
    where: Mapping[str, Any] | None = None,
    sizes: Sequence[int] = (50, 100, 500, 1000),
    ratios: Sequence[int] = (1, 5, 10, 50),
    strategies: Sequence[str] = STRATEGIES,
    regimes: Sequence[str] = REGIMES,
    classifiers: Sequence[str] = CLASSIFIERS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    grids: str | None = None,
    share: Sequence[int] = (0, 1),
    num_inference_steps: int = 10,
    guidance_scale: float = 1.0,
    num_views: int = 4,
    image_size: int = 64,
    num_steps: int = 300,
    batch_size: int = 16,
    learning_rate: float = 1.0e-3,
    amp: bool = True,
    generate_only: bool = False,
    quick: bool = False,
    bundle_root: str = str(BUNDLE),
    device: str | None = None,
) -> None:
    """Train and score every trial that OUT does not hold yet; then write the report of all that it holds.

    A trial is one training on a nested, balanced subset of the training split, scored on the whole validation split.
    A killed run goes on with the trial it was at, and with the image its generator was at. The protocol and its
    reasons: common/experiments/benefit_study.py.

    Args:
        dataset_dir: with a manifest.csv that has labels.
        output_dir: of CSV, JSON, table and plots; small, and free of paths and images, to be kept.
        work_dir: of synthetic images and features; by default outputs/synthetic_benefit of the bundle.
        where: manifest columns and the value that each must have; take one source, as label and source are confounded.
        sizes: real images with labels, of all classes together.
        ratios: synthetic images per real one.
        strategies: variation, interpolation, prior, unlabelled.
        regimes: real_unaugmented, real, mixed, synthetic, pretrained; on request equal epochs as in the paper
            (mixed_epochs, real_longer) and a rare class (rare, rare_repeated, rare_mixed).
        classifiers: probe, densenet.
        seeds: of subset and training.
        grids: YAML file that lists several grids, each a mapping of the six lists above, or of some of them.
        share: i, n: do every n-th trial from the i-th on; so n processes share the work.
        num_inference_steps: of the generator.
        guidance_scale: of the generator; 1 is none, and costs half.
        num_views: changed views of a real image for the probe.
        image_size: px that the DenseNet sees.
        num_steps: of a DenseNet's training, whatever it is trained on.
        batch_size: of it.
        learning_rate: of it.
        amp: bfloat16 where the hardware has it; False for the same result on other hardware.
        generate_only: make the images that the trials need, and stop; the share is then of the images.
        quick: one small subset, one ratio, one seed and a few steps, to see whether everything works; no figure of it
            means anything.
        bundle_root: of the latent diffusion bundle.
        device: such as cpu; None takes a GPU where there is one.
    """
    lists: dict[str, Sequence[Any]] = {"classifiers": classifiers, "regimes": regimes, "strategies": strategies}
    lists |= {"ratios": ratios, "sizes": sizes, "seeds": seeds}
    trials = choose_trials(grid, lists, ALLOWED, grids, QUICK_LISTS if quick else None)
    if quick:
        num_inference_steps, num_steps = QUICK_INFERENCE_STEPS, QUICK_STEPS
        image_size, num_views = QUICK_IMAGE_SIZE, QUICK_VIEWS
    train, test, classes = labelled_split(dataset_dir, where, QUICK_TEST_IMAGES if quick else None)
    generating: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    pipe = DinoDiffusion.from_bundle(bundle_root, device or "auto", amp=amp, **generating)
    training = TrainingSettings(image_size, num_steps, batch_size, learning_rate, amp=amp)
    work_dir = work_dir or str(Path(bundle_root) / "outputs" / "synthetic_benefit")
    study = BenefitStudy(train, test, classes, pipe, work_dir, training, num_views)
    if generate_only:
        study.make_images(trials, (share[0], share[1]))
        return
    settings = {**study.settings(), "where": where, "quick": quick}
    Experiment(output_dir, STEM, settings, study).run(trials, (share[0], share[1]))
    write_report(output_dir, pipe.device)


if __name__ == "__main__":
    run_command(synthetic_benefit)
