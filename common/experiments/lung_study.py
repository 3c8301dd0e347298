"""Zero-shot lungs measured: learnt from training patients, then fixed and scored on held-out ones, resumable."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ..errors import DatasetError
from ..evaluation.report import Row
from ..files import atomic_path, read_json, write_json
from ..io import read_radiograph
from ..io.mask_files import read_mask
from ..pipelines.diffusion import DinoDiffusion
from ..progress import ProgressBar
from ..seeding import derive_seed
from .chest_atlas import make_atlas
from .lung_choice import (
    EXCLUDED,
    INCLUDED,
    ChoiceSettings,
    Tuned,
    choose_lungs,
    dice,
    fit_ellipses,
    laid_lungs,
    pick_by_dice,
    tune_method,
)
from .lung_segments import DIFFSEG, METHODS, Mask, SegmentSettings, at_size, encode_chest, gather, otsu_lungs, segments

COLUMNS = ("image", "mask_file", "source", "split")
PRIOR_SIZE = (64, 64)  # that masks are reduced to for the fit of the ellipses
MAX_FITTED = 60  # masks of a group that its ellipses are fitted to
# The framing drill: how a radiograph comes to lie in a picture of its own size, in which the same lungs must be found.
FRAMINGS: dict[str, dict[str, float]] = {
    "as it is": {},
    "80 %, black border": {"scale": 0.8},
    "60 %, black border": {"scale": 0.6},
    "80 %, white border": {"scale": 0.8, "border": 1.0},
    "60 %, white border": {"scale": 0.6, "border": 1.0},
    "15 % to the right": {"across": 0.15},
    "15 % down": {"down": 0.15},
    "15 % up": {"down": -0.15},
    "turned by 5°": {"angle": 5.0},
    "turned by -5°": {"angle": -5.0},
}


@dataclass(frozen=True)
class LungCase:
    """One radiograph with its mask."""

    name: str  # of its results
    image: Path
    mask: Path
    source: str  # data set that it comes from
    definition: str  # what the mask counts as lung, "" where the list does not say
    heart: str  # included or excluded, whether what lies behind the heart's shadow counts

    @property
    def group(self) -> str:
        """That it is reported with."""
        return f"{self.source}, heart {self.heart}"

    def pixels(self) -> Tensor:
        """The radiograph [1, H, W] in [0, 1]."""
        return read_radiograph(self.image).pixels

    def truth(self) -> Mask:
        """Lungs of reference at the mask's own size [H, W]."""
        return read_mask(self.mask) > 0


def lung_cases(data: str | Path, masks: str, split: str | None, heart: str | None = None) -> list[LungCase]:
    """The cases of a split, in the order of the list.

    Args:
        data: folder that images and masks are relative to.
        masks: name of the CSV in it, with the columns image, mask_file, source, split, and optionally mask_definition.
        split: train or val; None takes both.
        heart: included or excluded; None goes by the definition of each mask: included where it says "incl", else
            excluded, as in most published sets of adults.

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
    cases = []
    for row in rows:
        if split in (None, row["split"]):
            name = str(Path(row["image"]).with_suffix("")).replace("/", "__")
            definition = row.get("mask_definition") or ""
            own = heart or (INCLUDED if "incl" in definition.lower() else EXCLUDED)
            files = Path(data) / row["image"], Path(data) / row["mask_file"]
            cases.append(LungCase(name, *files, row["source"], definition, own))
    if not cases:
        raise DatasetError(f"{path}: found no row of split {split!r}; give a list that has one")
    return cases


def balanced(cases: Sequence[LungCase], count: int, seed: int) -> list[LungCase]:
    """At most so many cases, drawn in turn from each source, in their order."""
    drawn: Counter[str] = Counter()
    turns = []
    for index in np.random.default_rng(derive_seed(seed)).permutation(len(cases)):
        source = cases[index].source
        turns.append((drawn[source], int(index)))
        drawn[source] += 1
    return [cases[index] for index in sorted(index for _, index in sorted(turns)[:count])]


# ---- the study -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LungStudy:
    """A study, with a folder to work in."""

    pipe: DinoDiffusion  # of the bundle
    work_dir: Path  # of what is found in each image, which is data of patients
    seed: int = 0  # of the training subset, noise and k-means

    def tune(self, cases: Sequence[LungCase], num_images: int, rounds: int) -> tuple[Tuned, dict[str, Any]]:
        """Learn from a seeded subset of training cases, balanced by source; returns it and what is to be said of it.

        The atlas counts as lung what masks with the heart included do, where there are any.
        """
        chosen = balanced(cases, num_images, self.seed)
        pixels, masks = [case.pixels() for case in chosen], [case.truth() for case in chosen]
        counted = [case.heart == INCLUDED for case in chosen]
        atlas = make_atlas([image[0].numpy() for image in pixels], masks, counted if any(counted) else None)
        start = SegmentSettings(seed=self.seed), ChoiceSettings()
        bar = ProgressBar(pixels, desc="training images", unit="image")
        encoded = [encode_chest(self.pipe, image, start[0], atlas) for image in bar]
        truths = [(e.part(mask), case.heart) for case, mask, e in zip(chosen, masks, encoded, strict=True)]
        found = {method: tune_method(method, encoded, truths, atlas, start, rounds) for method in METHODS}
        sources = dict(sorted(Counter(case.source for case in chosen).items()))
        about: dict[str, Any] = {"num_images": len(chosen), "sources": sources, "rounds": rounds}
        about["mean_dice_on_these"] = {method: mean for method, (_, _, mean) in found.items()}
        segment_settings = {method: own for method, (own, _, _) in found.items()}
        return Tuned(atlas, segment_settings, {method: own for method, (_, own, _) in found.items()}), about

    def score(self, cases: Sequence[LungCase], tuned: Tuned, framings: bool = False) -> list[Row]:
        """Dice of every method for every case, at the image's own size; what is done already is read.

        With `framings` it is the Dice of DiffSeg's lungs in each of `FRAMINGS` instead.
        """
        results = []
        for case in ProgressBar(cases, desc="framings" if framings else "held-out images", unit="image"):
            path = self.work_dir / ("framings" if framings else "images") / f"{case.name}.json"
            if not path.is_file():
                found = self._in_framings(case, tuned) if framings else self._of_methods(case, tuned)
                write_json(path, {"name": case.name, "group": case.group, **found})
            results.append(read_json(path))
        return results

    def mask_path(self, case: LungCase) -> Path:
        """Of the lungs that DiffSeg found without ground truth."""
        return self.work_dir / "masks" / f"{case.name}.png"

    def _of_methods(self, case: LungCase, tuned: Tuned) -> Row:
        truth, pixels = case.truth(), case.pixels()
        encoded = encode_chest(self.pipe, pixels, tuned.segments[DIFFSEG], tuned.atlas)
        masks: dict[str, Mask] = {}
        counts: dict[str, int] = {}
        for method in METHODS:
            labels, affinity = segments(encoded, method, tuned.segments[method])
            found = gather(encoded, labels, affinity, tuned.atlas)
            masks[method] = choose_lungs(found, tuned.choice[method], case.heart)
            counts[method] = len(np.unique(labels))
            if method == DIFFSEG:
                masks["diffseg_picked_by_dice"] = pick_by_dice(labels, encoded.part(truth))
                masks["atlas"] = laid_lungs(found, tuned.choice[method], case.heart)
        masks = {method: at_size(encoded.whole_mask(mask), truth.shape) for method, mask in masks.items()}
        masks["otsu_alone"] = at_size(otsu_lungs(pixels[0].numpy()), truth.shape)
        write_mask(masks[DIFFSEG], self.mask_path(case))
        return {"dice": {name: dice(mask, truth) for name, mask in masks.items()}, "segments": counts}

    def _in_framings(self, case: LungCase, tuned: Tuned) -> Row:
        image, truth = case.pixels()[0].numpy(), case.truth()
        scores = {}
        for name, framing in FRAMINGS.items():
            found = find_lungs(self.pipe, tuned, torch.from_numpy(framed(image, **framing))[None], case.heart)
            scores[name] = dice(found, framed_mask(truth, **framing))
        return {"dice": scores}


def framed(
    image: NDArray, scale: float = 1.0, down: float = 0.0, across: float = 0.0, angle: float = 0.0, border: float = 0.0
) -> NDArray[np.float32]:
    """An image [H, W] scaled, shifted by shares of its sides, turned by degrees, within a border, at the same size."""
    size, turn = np.array(image.shape), math.radians(angle)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) / scale
    centre = (size - 1) / 2
    offset = centre - matrix @ (centre + size * (down, across))
    values = image.astype(np.float32)
    return ndimage.affine_transform(values, matrix, offset, order=1, mode="constant", cval=border)


def framed_mask(mask: Mask, **framing: float) -> Mask:
    """A mask [H, W], framed as `framed` does its image; what no longer lies in the picture is lost."""
    return framed(mask, **{**framing, "border": 0.0}) > 0.5


def add_ellipses(results: Sequence[Row], cases: Sequence[LungCase]) -> None:
    """Add to the Dice of each case that of two ellipses which were fitted to the masks of its own group.

    They see the truth: what framing alone would give at its best.
    """
    truths = [case.truth() for case in cases]
    for group in {case.group for case in cases}:
        places = [place for place, case in enumerate(cases) if case.group == group]
        ellipses = fit_ellipses([at_size(truths[place], PRIOR_SIZE) for place in places[:MAX_FITTED]])
        for place in places:
            results[place]["dice"]["ellipses"] = dice(ellipses.mask(truths[place].shape), truths[place])


def find_lungs(pipe: DinoDiffusion, tuned: Tuned, pixels: Tensor, heart: str) -> Mask:
    """Lungs [H, W] of a radiograph [1, H, W] in [0, 1], by DiffSeg and the choice without ground truth."""
    encoded = encode_chest(pipe, pixels, tuned.segments[DIFFSEG], tuned.atlas)
    found = gather(encoded, *segments(encoded, DIFFSEG, tuned.segments[DIFFSEG]), tuned.atlas)
    return encoded.whole_mask(choose_lungs(found, tuned.choice[DIFFSEG], heart))


def write_mask(mask: Mask, path: Path) -> None:
    """Lungs as an 8-bit PNG, 255 inside, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, format="PNG")
