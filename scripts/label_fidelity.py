"""Do generated images keep the label of their source? Ask judges that were trained on real images.

python scripts/label_fidelity.py ../shared/data/cxr --output_dir OUT --where "{'source': 'kermany'}"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.command_line import run_command
from common.experiments.benefit_study import BenefitStudy
from common.experiments.benefit_trials import CLASSIFIERS, labelled_split
from common.experiments.densenet import TrainingSettings
from common.experiments.label_fidelity import STEM, LabelFidelity, grid, write_report
from common.experiments.trials import Experiment, choose_trials
from common.pipelines.diffusion import DinoDiffusion

BUNDLE = Path("bundles") / "cxr_dino_latent_diffusion"
QUICK_INFERENCE_STEPS, QUICK_STEPS, QUICK_IMAGE_SIZE = 2, 2, 32
QUICK_TRAIN_IMAGES, QUICK_TEST_IMAGES = 4, 3  # of a class


def label_fidelity(
    dataset_dir: str,
    *,
    output_dir: str,
    work_dir: str | None = None,
    where: Mapping[str, Any] | None = None,
    judges: Sequence[str] = CLASSIFIERS,
    seeds: Sequence[int] = (0, 1, 2),
    num_inference_steps: int = 10,
    guidance_scale: float = 1.0,
    image_size: int = 64,
    num_steps: int = 1000,
    batch_size: int = 16,
    learning_rate: float = 1.0e-3,
    amp: bool = True,
    quick: bool = False,
    bundle_root: str = str(BUNDLE),
    device: str | None = None,
) -> None:
    """Train every judge that OUT does not hold yet, show it the held-out images; then write the report of all in OUT.

    A killed run goes on with the judge it was at, and with the image its generator was at. What is compared and why:
    common/experiments/label_fidelity.py.

    Args:
        dataset_dir: with a manifest.csv that has labels.
        output_dir: of CSV, JSON, table and plot; small, and free of paths and images, to be kept.
        work_dir: of generated images and features; by default outputs/synthetic_benefit of the bundle.
        where: manifest columns and the value that each must have; take one source, as label and source are confounded.
        judges: probe, densenet.
        seeds: of a DenseNet's training; the probe has nothing random and takes the first.
        num_inference_steps: of the generator.
        guidance_scale: of the generator; 1 is none, and costs half.
        image_size: px that the DenseNet sees.
        num_steps: of its training.
        batch_size: of it.
        learning_rate: of it.
        amp: bfloat16 where the hardware has it; False for the same result on other hardware.
        quick: a few images, steps and one seed, to see whether everything works; no figure of it means anything.
        bundle_root: of the latent diffusion bundle.
        device: such as cpu; None takes a GPU where there is one.
    """
    allowed: dict[str, Sequence[str] | int] = {"judges": CLASSIFIERS, "seeds": 0}
    forced = {"seeds": (0,)} if quick else None
    trials = choose_trials(grid, {"judges": judges, "seeds": seeds}, allowed, forced=forced)
    if quick:
        image_size = QUICK_IMAGE_SIZE
        num_inference_steps, num_steps = QUICK_INFERENCE_STEPS, QUICK_STEPS
    limits = (QUICK_TEST_IMAGES, QUICK_TRAIN_IMAGES) if quick else (None, None)
    train, test, classes = labelled_split(dataset_dir, where, *limits)
    generating: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    pipe = DinoDiffusion.from_bundle(bundle_root, device or "auto", amp=amp, **generating)
    training = TrainingSettings(image_size, num_steps, batch_size, learning_rate, amp=amp)
    work_dir = work_dir or str(Path(bundle_root) / "outputs" / "synthetic_benefit")
    study = BenefitStudy(train, test, classes, pipe, work_dir, training, num_views=0)
    settings = {**study.settings(), "where": where, "quick": quick}
    Experiment(output_dir, STEM, settings, LabelFidelity(study, work_dir)).run(trials)
    write_report(output_dir, pipe.device)


if __name__ == "__main__":
    run_command(label_fidelity)
