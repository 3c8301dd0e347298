"""Lungs from a denoiser that never saw a lung mask: tune on training patients, score on held-out ones, or pre-label.

python scripts/zero_shot_lungs.py DATA --output_dir OUT --tune True
python scripts/zero_shot_lungs.py DATA --output_dir OUT --leave_one_out True --framings 12
python scripts/zero_shot_lungs.py DIR --output_dir OUT --segment True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common.command_line import run_command
from common.data.readability import readable_radiographs
from common.errors import DatasetError, SettingsError
from common.evaluation.report import Row
from common.experiments.lung_choice import EXCLUDED, INCLUDED, Tuned
from common.experiments.lung_report import STEM, write_overlays, write_report
from common.experiments.lung_segments import DIFFSEG
from common.experiments.lung_study import (
    LungCase,
    LungStudy,
    add_ellipses,
    balanced,
    find_lungs,
    lung_cases,
    write_mask,
)
from common.experiments.trials import check_or_write_settings
from common.files import TUNED, read_json, result_names, write_json
from common.fingerprint import file_sha256, network_sha256
from common.io import read_radiograph
from common.pipelines.diffusion import DinoDiffusion
from common.progress import ProgressBar

BUNDLE = Path("bundles") / "cxr_dino_latent_diffusion"
SHIPPED = Path("docs") / "zero_shot_lungs" / TUNED  # of the bundle
QUICK_TRAIN, QUICK_VAL = 6, 6
MAX_UNREADABLE_SHARE = 0.5  # of the files of a folder
Fold = tuple[str, Sequence[LungCase], Sequence[LungCase]]  # what is left out, cases to learn from, cases to score


def zero_shot_lungs(
    data: str,
    *,
    output_dir: str,
    work_dir: str | None = None,
    masks: str = "lung_masks.csv",
    heart: str | None = None,
    tune: bool = False,
    leave_one_out: bool = False,
    framings: int = 0,
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
        masks: CSV with the columns image, mask_file, source, split (train or val), and optionally mask_definition.
        heart: included or excluded, whether what lies behind the heart's shadow is lung. None goes by the definition
            of each mask: included where it says "incl", else excluded; excluded with `segment`.
        tune: learn from training masks, where OUT holds no tuned.json yet; without it that of OUT or else that which
            the bundle ships is taken.
        leave_one_out: score each source, both splits, with what was learnt from the training masks of the others;
            at most `limit` images of a source, by default `num_tuning_images`.
        framings: so many images, in turn of each source, go through the framing drill, too; 0 for none.
        segment: write OUT/<image>.png (lungs 255, at the image's own rows and columns) for every radiograph in the
            folder instead; no mask is needed.
        num_tuning_images: seeded subset of the training masks, balanced by source.
        rounds: passes of the search over the hyperparameters of the choice.
        limit: images at most; None takes all.
        quick: few images and one pass, to see whether everything works; no figure of it means anything.
        bundle_root: of the latent diffusion bundle.
        device: such as cpu; None takes a GPU where there is one.
        seed: of subset, noise and k-means.
    """
    if heart not in (None, INCLUDED, EXCLUDED):
        raise SettingsError(f"heart: found {heart!r}; expected {INCLUDED} or {EXCLUDED}")
    out = Path(output_dir)
    pipe = DinoDiffusion.from_bundle(bundle_root, device or "auto")
    if segment:
        segment_folder(data, out, read_tuned(find_tuned(out, bundle_root))[0], pipe, heart or EXCLUDED, limit)
        return
    if quick:
        num_tuning_images, limit, rounds = QUICK_TRAIN, QUICK_VAL, 1
    work = Path(work_dir or Path(bundle_root) / "outputs" / "zero_shot_lungs")
    weights = {"network_sha256": network_sha256(pipe.network), "seed": seed, "quick": quick}
    train = lung_cases(data, masks, "train", heart) if tune or leave_one_out else []
    if leave_one_out:
        folds = folds_by_source(train, lung_cases(data, masks, None, heart), limit or num_tuning_images, seed)
    else:
        folds = [("", train, lung_cases(data, masks, "val", heart)[:limit])]
    tuned: list[Path] = []
    for left_out, learnt_from, _ in folds:
        path = work / left_out / TUNED if left_out else out / TUNED
        if learnt_from and not path.is_file():
            learnt, about = LungStudy(pipe, work, seed).tune(learnt_from, num_tuning_images, rounds)
            write_json(path, {"tuning": {**about, **weights}, **asdict(learnt)})
        tuned.append(path if left_out else find_tuned(out, bundle_root))
    settings = {**weights, "heart": heart, "tuned_sha256": [file_sha256(path) for path in tuned]}
    for folder in (out, work):
        check_or_write_settings(folder / f"{STEM}.json", settings)
    score(folds, tuned, pipe, out, work, framings)


def folds_by_source(train: Sequence[LungCase], cases: Sequence[LungCase], count: int, seed: int) -> list[Fold]:
    """For each source the training cases of all others, and at most so many of its own to score.

    Raises:
        DatasetError: there is but one source.
    """
    of_source: dict[str, list[LungCase]] = {}
    for case in cases:
        of_source.setdefault(case.source, []).append(case)
    if len(of_source) < 2:
        raise DatasetError(f"leave_one_out: found the sources {list(of_source)}; expected masks of two or more")
    return [
        (s, [c for c in train if c.source != s], balanced(own, count, seed)) for s, own in sorted(of_source.items())
    ]


def score(
    folds: Sequence[Fold], tuned: Sequence[Path], pipe: DinoDiffusion, out: Path, work: Path, framings: int
) -> None:
    """Score each fold with what was learnt for it, which the files `tuned` hold, and write the report."""
    cases: list[LungCase] = []
    results: list[Row] = []
    framed: list[Row] = []
    found: list[Path] = []
    tuning: dict[str, Any] = {}
    for (left_out, _, held), path in zip(folds, tuned, strict=True):
        learnt, tuning[left_out] = read_tuned(path)
        study = LungStudy(pipe, work / left_out, learnt.segments[DIFFSEG].seed)
        results += study.score(held, learnt)
        framed += study.score(balanced(held, -(-framings // len(folds)), study.seed), learnt, framings=True)
        cases += held
        found += [study.mask_path(case) for case in held]
    add_ellipses(results, cases)
    write_report(out, results, framed, cases, tuning, pipe.device)
    write_overlays(work / "overlays.png", results, cases, found)
    print((out / f"{STEM}.md").read_text(encoding="utf-8"))


def find_tuned(out: Path, bundle_root: str) -> Path:
    """The hyperparameters of the folder, or else those of the bundle; SettingsError where there are none."""
    found = [path for path in (out / TUNED, Path(bundle_root) / SHIPPED) if path.is_file()]
    if not found:
        raise SettingsError(f"{out / TUNED}: found no such file, nor {SHIPPED} in the bundle; give --tune True")
    return found[0]


def read_tuned(path: Path) -> tuple[Tuned, dict[str, Any]]:
    """What was learnt, and what is to be said of how."""
    content = read_json(path)
    about = content.pop("tuning")
    return Tuned.from_plain(content), about


def segment_folder(data: str, out: Path, tuned: Tuned, pipe: DinoDiffusion, heart: str, limit: int | None) -> None:
    """Write lung masks of all radiographs in a folder; those that are there already stay."""
    items = readable_radiographs(data, "all", 0.1, 0, out, MAX_UNREADABLE_SHARE, limit=limit)
    names = result_names([item["image"] for item in items], data)
    for item, name in ProgressBar(zip(items, names, strict=True), "lungs", len(items), unit="image"):
        path = out / f"{name}.png"
        if not path.is_file():
            write_mask(find_lungs(pipe, tuned, read_radiograph(item["image"]).pixels, heart), path)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_command(zero_shot_lungs)
