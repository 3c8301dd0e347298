"""Zero-shot lungs measured: tuned on training patients, then fixed and scored on held-out ones, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..files import atomic_path, read_json, write_json
from ..io import read_radiograph
from ..seeding import derive_seed
from .attention_segmenter import DIFFSEG, METHODS, Networks, Seen, SegmentSettings, at_size, evidence, look
from .lung_choice import ChoiceSettings, choose_lungs, pick_by_dice, posed_prior, resized, tidied
from .lung_masks import LungCase
from .lung_tuning import TIMESTEPS, Tuned, tune_method
from .position_prior import dice, fit_ellipses

PRIOR_SIZE = (64, 64)  # that masks are reduced to for the fit of the ellipses
SCORED = ("diffseg", "diffseg_picked_by_dice", "posed_prior", "kmeans", "otsu", "prior")


@dataclass(frozen=True)
class Study:
    """A study, with a folder to work in.

    Attributes:
        networks: of the bundle.
        work_dir: of what is read off and found in each image, which is data of patients.
        seed: of the training subset, noise and k-means.
    """

    networks: Networks
    work_dir: Path
    seed: int = 0

    def tune(self, cases: Sequence[LungCase], num_images: int, rounds: int) -> tuple[Tuned, dict[str, Any]]:
        """Search hyperparameters on a seeded subset of training cases; returns them and what is to be said of it."""
        order = np.random.default_rng(derive_seed(self.seed)).permutation(len(cases))[:num_images]
        chosen = [cases[index] for index in sorted(order)]
        seen, truths = [], []
        for case in tqdm(chosen, desc="training images", unit="image", dynamic_ncols=True):
            seen.append(self._look_cached(case))
            truths.append(at_size(case.truth(), (seen[-1].image.shape[1], seen[-1].image.shape[2])))
        prior = fit_ellipses([at_size(truth, PRIOR_SIZE) for truth in truths])
        segment_settings: dict[str, SegmentSettings] = {}
        choice: dict[str, ChoiceSettings] = {}
        train_dice = {"prior": float(np.mean([dice(prior.mask(truth.shape), truth) for truth in truths]))}
        for method in METHODS:
            # The baselines keep DiffSeg's place in the image: only what is theirs starts anew.
            start = segment_settings.get(DIFFSEG, SegmentSettings(seed=self.seed)), ChoiceSettings()
            segment_settings[method], choice[method], train_dice[method] = tune_method(
                method, seen, truths, prior, start, rounds
            )
        about = {"num_images": len(chosen), "rounds": rounds, "mean_dice_on_these": train_dice}
        return Tuned(prior, segment_settings, choice), about

    def score(self, cases: Sequence[LungCase], tuned: Tuned) -> list[dict[str, Any]]:
        """Dice of every method for every case, at the image's own size; what is done already is read."""
        results = []
        for case in tqdm(cases, desc="held-out images", unit="image", dynamic_ncols=True):
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
        settings = tuned.segments[DIFFSEG]
        seen = look(
            self.networks, read_radiograph(case.image).pixels, (settings.timestep,), settings.num_noises, settings.seed
        )
        masks = {"prior": tuned.prior.mask(size)}
        counts = {}
        for method in METHODS:
            found, labels = evidence(seen, method, tuned.segments[method], tuned.prior)
            masks[method] = at_size(choose_lungs(found, tuned.choice[method]), size)
            counts[method] = len(np.unique(labels))
            if method == DIFFSEG:
                small = at_size(truth, (labels.shape[0], labels.shape[1]))
                masks["diffseg_picked_by_dice"] = at_size(pick_by_dice(labels, small), size)
                choice = tuned.choice[method]
                masks["posed_prior"] = tidied(resized(posed_prior(found, choice), size) > 0.5, choice.min_area)
        write_mask(masks[DIFFSEG], self.mask_path(case))
        scores = {name: dice(masks[name], truth) for name in SCORED}
        return {"name": case.name, "source": case.source, "dice": scores, "segments": counts}

    def _look_cached(self, case: LungCase) -> Seen:
        path = self.work_dir / "cache" / f"{case.name}.pt"
        if path.is_file():
            kept = torch.load(path, map_location="cpu", weights_only=True)
            layers = {timestep: [layer.float() for layer in kept["layers"][timestep]] for timestep in kept["layers"]}
            return Seen(kept["image"], kept["patch_tokens"], tuple(kept["patch_size"]), layers)
        seen = look(self.networks, read_radiograph(case.image).pixels, TIMESTEPS, 1, self.seed)
        kept = {"image": seen.image.clone(), "patch_tokens": seen.patch_tokens.clone(), "patch_size": seen.patch_size}
        kept["layers"] = {timestep: [layer.half() for layer in layers] for timestep, layers in seen.layers.items()}
        with atomic_path(path) as temporary:
            torch.save(kept, temporary)
        return seen


def write_mask(mask: NDArray[np.bool_], path: Path) -> None:
    """Lungs as an 8-bit PNG, 255 inside, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, format="PNG")
