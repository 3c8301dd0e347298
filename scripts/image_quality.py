"""Measure how close generated radiographs come to real ones.

python scripts/image_quality.py REAL FAKE --output_dir OUT --inception_weights default_1.pt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.command_line import run_command
from common.data.datalists import radiograph_items
from common.errors import DatasetError, counted
from common.evaluation.image_features import ImageFeatures, build_extractor
from common.evaluation.image_quality import ImageQuality, markdown
from common.evaluation.report import COLOURS, plot_file, write_report
from common.provenance import provenance

QUICK_IMAGES, QUICK_RESAMPLES = 100, 10
SHIPPED_DINO = (
    Path(__file__).resolve().parents[1] / "bundles" / "cxr_dino_latent_diffusion" / "models" / "dinov2_vits14"
)


def image_quality(
    real: str,
    fake: str,
    *,
    output_dir: str,
    extractors: str | Sequence[str] | None = None,
    inception_weights: str | None = None,
    dino_source: str | None = None,
    num_resamples: int = 100,
    seed: int = 0,
    real_split: str = "all",
    image_size: int = 256,
    cache_dir: str | None = None,
    device: str = "cpu",
    quick: bool = False,
) -> None:
    """Write quality.json, quality.md and quality.png: distances between two sets of radiographs, with their noise.

    Images of both sets are read and resized alike. Features are kept in cache_dir, so a killed run goes on where it
    was and a second one with the same images takes seconds.

    Args:
        real: folder of radiographs, folder with manifest.csv, or text file with one path a line (relative to it).
        fake: the same, for the generated ones.
        output_dir: folder for the files, made when missing; those of an earlier run are replaced.
        extractors: inception, dino, xrv, rad_dino (by dino_source); several with commas. None takes dino, and inception
            where its file is given.
        inception_weights: FID Inception weights; a path that is wrong brings up where to get them.
        dino_source: Hugging Face folder of a DINO encoder, or an id such as facebook/dinov2-small; None takes the one
            that ships with the repository.
        num_resamples: of the bootstrap for the Frechet distance.
        seed: of all that is drawn.
        real_split: train, val or test of the real set's manifest; "all" takes every image.
        image_size: pixels per side at which the sets are compared.
        cache_dir: folder of the features; by default "features" in output_dir.
        device: where the networks run, such as cuda.
        quick: at most 100 images of each set and 10 resamples, to see whether everything works.
    """
    quality = ImageQuality(QUICK_RESAMPLES if quick else num_resamples, seed=seed)
    if extractors is None:
        extractors = ("inception", "dino") if inception_weights else ("dino",)
        if not inception_weights:
            print("without inception: give --inception_weights FILE to have its distances, too")
    names = [each.strip() for each in (extractors.split(",") if isinstance(extractors, str) else extractors)]
    if dino_source is None and "rad_dino" not in names and SHIPPED_DINO.is_dir():
        dino_source = str(SHIPPED_DINO)
    built = [build_extractor(name, inception_weights, dino_source) for name in names]
    items = {"real": list_images(real, real_split), "fake": list_images(fake, "all")}
    if quick:
        items = {side: draw_some(found, QUICK_IMAGES, seed) for side, found in items.items()}
    quality.check_counts(len(items["real"]), len(items["fake"]))
    folder = Path(output_dir)
    features: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    skipped: dict[str, str] = {}
    patients: list[str] = []
    for extractor in built:
        encoder = ImageFeatures(extractor, cache_dir or folder / "features", image_size, device=device)
        found = {side: encoder.of_files([item["image"] for item in items[side]]) for side in items}
        features[extractor.name] = found["real"].features, found["fake"].features
        skipped |= dict(found["real"].problems + found["fake"].problems)
        patients = [items["real"][i]["patient_id"] for i in found["real"].indices]
    report = quality.report(features, patients)
    report["skipped"] = [{"path": path, "problem": problem} for path, problem in skipped.items()]
    report["provenance"] = {
        **provenance(torch.device(device)),
        **{"seed": seed, "real": str(real), "fake": str(fake), "real_split": real_split, "image_size": image_size},
        **{"quick": quick, "extractors": {extractor.name: extractor.fingerprint for extractor in built}},
    }
    write_report(folder, report, markdown(report), ("quality.json", "quality.md"))
    draw_distances(folder / "quality.png", report["extractors"])
    print(f"{markdown(report)}\n{folder / 'quality.json'}, quality.md, quality.png")
    if skipped:
        raise DatasetError(
            f"{counted(len(skipped), 'file')} could not be read, see {folder / 'quality.json'}; all others are done"
        )


def list_images(source: str, split: str) -> list[dict[str, str]]:
    """Items with `image` and `patient_id` of a folder, a folder with manifest.csv, or a text file of paths.

    Raises:
        DatasetError: it is none of them, or holds no images.
    """
    path = Path(str(source)).expanduser()
    if not path.is_file():
        return radiograph_items(path, split, val_fraction=0.0, seed=0)
    if split != "all":
        raise DatasetError(f"{path} is a list of files and has no split {split}; leave real_split out")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: found no text; expected a folder, or a text file with one path a line") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DatasetError(f"{path}: found no paths; expected one a line")
    return [{"image": str(path.parent / name), "patient_id": name} for name in names]


def draw_some(items: list[dict[str, str]], count: int, seed: int) -> list[dict[str, str]]:
    """At most so many of the items, in their order."""
    chosen = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[i] for i in sorted(chosen)]


def draw_distances(path: Path, extractors: Mapping[str, Mapping[str, Any]]) -> None:
    """One panel per extractor: Fréchet distances as bars from 0, the interval as a whisker."""
    with plot_file(path, panels=len(extractors), columns=len(extractors)) as panels:
        for axes, (name, found) in zip(panels, extractors.items(), strict=True):
            bars = {"real, fake": found, "half, fake": found["fake_at_floor_n"], "half, half": found["real_real_floor"]}
            shown = {label: row for label, row in bars.items() if row is not None}
            labels = [f"{label}\nn = {row['num_real']}, {row['num_fake']}" for label, row in shown.items()]
            drawn = axes.bar(labels, [row["fd"] for row in shown.values()], color=COLOURS[: len(shown)])
            axes.bar_label(drawn, fmt="%.3g", padding=12)
            fd, (low, high) = found["fd"], found["fd_ci"]
            axes.errorbar([0], [fd], [[max(0.0, fd - low)], [max(0.0, high - fd)]], color="black", capsize=4)
            axes.set_title(f"Fréchet distance, {name}")


if __name__ == "__main__":
    run_command(image_quality)
