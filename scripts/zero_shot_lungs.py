"""Lungs from a denoiser that never saw a lung mask: tune on training patients, score on held-out ones, or pre-label.

python scripts/zero_shot_lungs.py DATA --masks lung_masks.csv --output_dir OUT --tune True
python scripts/zero_shot_lungs.py DIR --output_dir OUT --segment True
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from common.command_line import run_command
from common.data.readability import readable_radiographs
from common.errors import SettingsError
from common.experiments.lung_report import STEM, write_overlays, write_report
from common.experiments.lung_study import LungStudy, Tuned, find_lungs, lung_cases, write_mask
from common.experiments.trials import check_or_write_settings
from common.files import read_json, result_names, write_json
from common.fingerprint import file_sha256, network_sha256
from common.io import read_radiograph
from common.pipelines.diffusion import DinoDiffusion
from common.progress import ProgressBar

BUNDLE = Path("bundles") / "cxr_dino_latent_diffusion"
SHIPPED = Path("docs") / "zero_shot_lungs" / "tuned.json"  # of the bundle
TUNED = "tuned.json"
QUICK_TRAIN, QUICK_VAL = 6, 6
MAX_UNREADABLE_SHARE = 0.5  # of the files of a folder


def zero_shot_lungs(
    data: str,
    *,
    output_dir: str,
    work_dir: str | None = None,
    masks: str = "lung_masks.csv",
    tune: bool = False,
    segment: bool = False,
    num_tuning_images: int = 60,
    rounds: int = 2,
    limit: int | None = None,
    quick: bool = False,
    bundle_root: str = str(BUNDLE),
    device: str | None = None,
    seed: int = 0,
) -> None:
    """Score zero-shot lungs on the validation split, or write lung masks for a folder.

    The same command again goes on where it was stopped. Scoring writes zero_shot_lungs.json, .md and .png to OUT, and
    to WORK overlays.png (best, median and worst) and the masks, which show patients.

    Args:
        data: folder of radiographs; for scoring with the list of masks in it.
        output_dir: of JSON, table and plot, small, without names or images of patients, to be kept; with `segment` of
            the masks.
        work_dir: of overlays, masks and Dice of each image; by default outputs/zero_shot_lungs of the bundle.
        masks: CSV with the columns image, mask_file, source, split (train or val).
        tune: search hyperparameters on training masks, where OUT holds no tuned.json yet; without it those of OUT or
            else those that the bundle ships are taken.
        segment: write OUT/<image>.png (lungs 255, at the image's own rows and columns) for every radiograph in the
            folder instead; no mask is needed.
        num_tuning_images: seeded subset of the training masks.
        rounds: passes of the search over the hyperparameters of the choice.
        limit: images at most; None takes all.
        quick: few images and one pass, to see whether everything works; no figure of it means anything.
        bundle_root: of the latent diffusion bundle.
        device: such as cpu; None takes a GPU where there is one.
        seed: of subset, noise and k-means.
    """
    out = Path(output_dir)
    pipe = DinoDiffusion.from_bundle(bundle_root, device or "auto")
    if segment:
        segment_folder(data, out, find_tuned(out, bundle_root), pipe, limit)
        return
    if quick:
        num_tuning_images, limit, rounds = QUICK_TRAIN, QUICK_VAL, 1
    work = Path(work_dir or Path(bundle_root) / "outputs" / "zero_shot_lungs")
    study = LungStudy(pipe, work, seed)
    cases = lung_cases(data, masks, "val")[:limit]
    weights = {"network_sha256": network_sha256(pipe.network), "seed": seed, "quick": quick}
    if tune and not (out / TUNED).is_file():
        train = lung_cases(data, masks, "train")
        tuned, about = study.tune(train, num_tuning_images, rounds)
        write_json(out / TUNED, {"tuning": {**about, **weights}, **asdict(tuned)})
    tuned_path = find_tuned(out, bundle_root)
    content = read_json(tuned_path)
    tuning = content.pop("tuning")
    for folder in (out, work):
        check_or_write_settings(folder / f"{STEM}.json", {**weights, "tuned_sha256": file_sha256(tuned_path)})
    results = study.score(cases, Tuned.from_plain(content))
    write_report(out, results, cases, tuning, pipe.device)
    write_overlays(work / "overlays.png", results, cases, [study.mask_path(case) for case in cases])
    print((out / f"{STEM}.md").read_text(encoding="utf-8"))


def find_tuned(out: Path, bundle_root: str) -> Path:
    """The hyperparameters of the folder, or else those of the bundle.

    Raises:
        SettingsError: there are none.
    """
    for path in (out / TUNED, Path(bundle_root) / SHIPPED):
        if path.is_file():
            return path
    raise SettingsError(f"{out / TUNED}: found no such file, nor {SHIPPED} in the bundle; give --tune True")


def segment_folder(data: str, out: Path, tuned_path: Path, pipe: DinoDiffusion, limit: int | None) -> None:
    """Write lung masks of all radiographs in a folder; those that are there already stay."""
    content = read_json(tuned_path)
    del content["tuning"]
    tuned = Tuned.from_plain(content)
    items = readable_radiographs(data, "all", 0.1, 0, out, MAX_UNREADABLE_SHARE, limit=limit)
    names = result_names([item["image"] for item in items], data)
    for item, name in ProgressBar(zip(items, names, strict=True), "lungs", len(items), unit="image"):
        path = out / f"{name}.png"
        if not path.is_file():
            write_mask(find_lungs(pipe, tuned, read_radiograph(item["image"]).pixels), path)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_command(zero_shot_lungs)
