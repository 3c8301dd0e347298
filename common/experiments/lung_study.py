"""Zero-shot lungs measured: tuned on training patients, then fixed and scored on held-out ones, resumable."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import DatasetError
from ..files import atomic_path, read_json, write_json
from ..io import read_radiograph
from ..io.mask_files import read_mask
from ..pipelines.diffusion import DinoDiffusion
from ..progress import ProgressBar
from ..seeding import derive_seed
from .lung_choice import ChoiceSettings, choose_lungs, pick_by_dice, posed_prior, resized, tidied
from .lung_segments import DIFFSEG, KMEANS, METHODS, EncodedImage, SegmentSettings, at_size, encode_image, evidence
from .position_prior import EllipsePrior, dice, fit_ellipses

COLUMNS = ("image", "mask_file", "source", "split")
PRIOR_SIZE = (64, 64)  # that masks are reduced to for the fit of the ellipses
TIMESTEPS = (300.0, 500.0, 700.0)
SEGMENT_GRID: dict[str, dict[str, Sequence[float]]] = {
    DIFFSEG: {
        "timestep": TIMESTEPS,
        "threshold": (0.00625, 0.0125, 0.025, 0.05),
        "anchors": (8, 16, 32),
        "exponent": (1.0, 3.0, 9.0),
    },
    KMEANS: {"clusters": (4, 8, 16, 32, 64)},
}
CHOICE_GRID: dict[str, Sequence[float]] = {
    "pose_association": (0.0, 20.0, 40.0, 80.0, 160.0),
    "attention": (0.0, 0.5, 1.0, 1.5, 2.0),
    "bias": (-0.8, -0.4, 0.0, 0.4, 0.8),
    "position": (0.5, 1.0, 2.0),
    "softness": (0.05, 0.1, 0.2),
    "pose_deviation": (0.0, 0.1, 0.25),
    "pose_contrast": (0.0, 2.0, 5.0),
    "darkness": (-0.4, 0.0, 0.4, 0.8),
    "symmetry": (0.0, 1.0, 2.0),
    "border": (0.0, 1.0, 3.0),
    "min_area": (0.01, 0.02, 0.04),
}

Settings = TypeVar("Settings", SegmentSettings, ChoiceSettings)
Mask = NDArray[np.bool_]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LungCase:
    """One radiograph with its mask.

    Attributes:
        name: of its results.
        image, mask: files.
        source: data set that it comes from.
        definition: what the mask counts as lung, "" where the list does not say.
    """

    name: str
    image: Path
    mask: Path
    source: str
    definition: str

    def truth(self) -> Mask:
        """Lungs of reference at the mask's own size [H, W]."""
        return read_mask(self.mask) > 0


def lung_cases(data: str | Path, masks: str, split: str) -> list[LungCase]:
    """The cases of a split, in the order of the list.

    Args:
        data: folder that images and masks are relative to.
        masks: name of the CSV in it, with the columns image, mask_file, source, split, and optionally mask_definition.
        split: train or val.

    Raises:
        DatasetError: there is no such file, column or split.
    """
    path = Path(data) / masks
    if not path.is_file():
        raise DatasetError(f"{path}: found no such file; expected a CSV with the columns {', '.join(COLUMNS)}")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if missing := [column for column in COLUMNS if rows and column not in rows[0]]:
        raise DatasetError(f"{path}: found no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    chosen = [row for row in rows if row["split"] == split]
    if not chosen:
        raise DatasetError(f"{path}: found no row of split {split!r}; give a list that has one")
    return [
        LungCase(
            str(Path(row["image"]).with_suffix("")).replace("/", "__"),
            Path(data) / row["image"],
            Path(data) / row["mask_file"],
            row["source"],
            row.get("mask_definition") or "",
        )
        for row in chosen
    ]


# ---- hyperparameters, searched one after the other on training patients only -----------------------------------------


@dataclass(frozen=True)
class Tuned:
    """What is fixed before anything is measured on held-out patients.

    Attributes:
        prior: the ellipses.
        segments: by method.
        choice: by method.
    """

    prior: EllipsePrior
    segments: dict[str, SegmentSettings]
    choice: dict[str, ChoiceSettings]

    @staticmethod
    def from_plain(content: Mapping[str, Any]) -> Tuned:
        """From what `asdict` gave."""
        return Tuned(
            EllipsePrior(**content["prior"]),
            {method: SegmentSettings(**values) for method, values in content["segments"].items()},
            {method: ChoiceSettings(**values) for method, values in content["choice"].items()},
        )


def tune_method(
    method: str,
    encoded: Sequence[EncodedImage],
    truths: Sequence[Mask],
    prior: EllipsePrior,
    start: tuple[SegmentSettings, ChoiceSettings],
    rounds: int,
) -> tuple[SegmentSettings, ChoiceSettings, float]:
    """Coordinate search for the best mean Dice on training images: segments first, then rounds over the choice.

    Truths have the size of their encoded images. Returns both settings and their mean Dice on these images.
    """
    segment_settings, choice = start

    def of_segments(candidate: SegmentSettings) -> float:
        found = (evidence(item, method, candidate, prior)[0] for item in encoded)
        return float(np.mean([dice(choose_lungs(e, choice), t) for e, t in zip(found, truths, strict=True)]))

    grid = SEGMENT_GRID.get(method, {})
    segment_settings, _ = coordinate_search(segment_settings, grid, of_segments, f"{method}: segments")
    kept = [evidence(item, method, segment_settings, prior)[0] for item in encoded]

    def of_choice(candidate: ChoiceSettings) -> float:
        return float(np.mean([dice(choose_lungs(e, candidate), t) for e, t in zip(kept, truths, strict=True)]))

    best = of_choice(choice)
    for number in range(rounds):
        choice, best = coordinate_search(choice, CHOICE_GRID, of_choice, f"{method}: choice, round {number + 1}")
    return segment_settings, choice, best


def coordinate_search(
    start: Settings, grid: Mapping[str, Sequence[float]], objective: Callable[[Settings], float], title: str
) -> tuple[Settings, float]:
    """Set one field of a dataclass after the other to its best candidate of the grid; ties keep what is there.

    Higher is better; the title is that of the progress bar.
    """
    best, score = start, objective(start)
    with ProgressBar(grid.items(), desc=title, unit="setting") as bar:
        for name, candidates in bar:
            for value in candidates:
                candidate = replace(best, **{name: value})
                found = score if candidate == best else objective(candidate)
                if found > score:
                    best, score = candidate, found
            bar.set_postfix_str(f"{name} {getattr(best, name)}: {score:.4f}")
    _logger.info("%s: %s, Dice %.4f", title, best, score)
    return best, score


# ---- the study -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LungStudy:
    """A study, with a folder to work in.

    Attributes:
        pipe: of the bundle.
        work_dir: of what is read off and found in each image, which is data of patients.
        seed: of the training subset, noise and k-means.
    """

    pipe: DinoDiffusion
    work_dir: Path
    seed: int = 0

    def tune(self, cases: Sequence[LungCase], num_images: int, rounds: int) -> tuple[Tuned, dict[str, Any]]:
        """Search hyperparameters on a seeded subset of training cases; returns them and what is to be said of it."""
        order = np.random.default_rng(derive_seed(self.seed)).permutation(len(cases))[:num_images]
        chosen = [cases[index] for index in sorted(order)]
        bar = ProgressBar(chosen, desc="training images", unit="image")
        pixels = (read_radiograph(case.image).pixels for case in bar)
        encoded = [encode_image(self.pipe, image, TIMESTEPS, 1, self.seed) for image in pixels]
        truths = [at_size(case.truth(), each.size) for case, each in zip(chosen, encoded, strict=True)]
        prior = fit_ellipses([at_size(truth, PRIOR_SIZE) for truth in truths])
        segment_settings: dict[str, SegmentSettings] = {}
        choice: dict[str, ChoiceSettings] = {}
        train_dice = {"prior": float(np.mean([dice(prior.mask(truth.shape), truth) for truth in truths]))}
        for method in METHODS:
            # The baselines keep DiffSeg's place in the image: only what is theirs starts anew.
            start = segment_settings.get(DIFFSEG, SegmentSettings(seed=self.seed)), ChoiceSettings()
            found = tune_method(method, encoded, truths, prior, start, rounds)
            segment_settings[method], choice[method], train_dice[method] = found
        about = {"num_images": len(chosen), "rounds": rounds, "mean_dice_on_these": train_dice}
        return Tuned(prior, segment_settings, choice), about

    def score(self, cases: Sequence[LungCase], tuned: Tuned) -> list[dict[str, Any]]:
        """Dice of every method for every case, at the image's own size; what is done already is read."""
        results = []
        for case in ProgressBar(cases, desc="held-out images", unit="image"):
            path = self.work_dir / "images" / f"{case.name}.json"
            if not path.is_file():
                write_json(path, self._score_one(case, tuned))
            results.append(read_json(path))
        return results

    def mask_path(self, case: LungCase) -> Path:
        """Of the lungs that DiffSeg found without ground truth."""
        return self.work_dir / "masks" / f"{case.name}.png"

    def _score_one(self, case: LungCase, tuned: Tuned) -> dict[str, Any]:
        truth = case.truth()
        size = (truth.shape[0], truth.shape[1])
        encoded = _encoded_for(self.pipe, read_radiograph(case.image).pixels, tuned)
        masks, counts = {"prior": tuned.prior.mask(size)}, {}
        for method in METHODS:
            found, labels = evidence(encoded, method, tuned.segments[method], tuned.prior)
            choice = tuned.choice[method]
            masks[method] = at_size(choose_lungs(found, choice), size)
            counts[method] = len(np.unique(labels))
            if method == DIFFSEG:
                small = at_size(truth, encoded.size)
                masks["diffseg_picked_by_dice"] = at_size(pick_by_dice(labels, small), size)
                masks["posed_prior"] = tidied(resized(posed_prior(found, choice), size) > 0.5, choice.min_area)
        write_mask(masks[DIFFSEG], self.mask_path(case))
        scores = {name: dice(mask, truth) for name, mask in masks.items()}
        return {"name": case.name, "source": case.source, "dice": scores, "segments": counts}


def find_lungs(pipe: DinoDiffusion, tuned: Tuned, pixels: Tensor) -> Mask:
    """Lungs [H, W] of a radiograph [1, H, W] in [0, 1], by DiffSeg and the choice without ground truth."""
    found, _ = evidence(_encoded_for(pipe, pixels, tuned), DIFFSEG, tuned.segments[DIFFSEG], tuned.prior)
    return at_size(choose_lungs(found, tuned.choice[DIFFSEG]), (pixels.shape[1], pixels.shape[2]))


def _encoded_for(pipe: DinoDiffusion, pixels: Tensor, tuned: Tuned) -> EncodedImage:
    settings = tuned.segments[DIFFSEG]
    return encode_image(pipe, pixels, (settings.timestep,), settings.num_noises, settings.seed)


def write_mask(mask: Mask, path: Path) -> None:
    """Lungs as an 8-bit PNG, 255 inside, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, format="PNG")
