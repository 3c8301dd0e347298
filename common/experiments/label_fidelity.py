"""Do generated images keep the label of their source? A judge that was trained on real ones is shown them.

A judge learns from all labelled training images. It then classifies the held-out images as they are, what the codec
alone makes of them, and one variation of each. What it loses from the first to the second is the codec's part, from the
second to the third that of embedding and denoiser: a classifier that is trained on variations learns from labels that
are wrong to that extent. The generator has not seen these patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..data.transforms import load_square
from ..fingerprint import file_sha256, json_sha256, network_sha256
from ..io.image_writer import write_png
from .benefit_recipes import BLOCK, VARIATION, Recipe
from .benefit_regimes import REAL, Example
from .benefit_scores import scores_of
from .benefit_study import Study

ORIGINAL, RECONSTRUCTION = "original", "reconstruction"
KINDS = (ORIGINAL, RECONSTRUCTION, VARIATION)


@dataclass(frozen=True)
class Judge:
    """A classifier that knows the real images.

    Attributes:
        classifier: probe or densenet.
        seed: of its training; of no effect on the probe.
    """

    classifier: str
    seed: int


class LabelFidelity:
    """Trains judges and shows them the held-out images and what the generator makes of them.

    Args:
        study: has images, generator, features and the network's training.
        work_dir: of reconstructions; variations go to the study's pool.
    """

    def __init__(self, study: Study, work_dir: str | Path) -> None:
        self.study = study
        sampler = study.pool.generator.sampler
        made_with = json_sha256([network_sha256(sampler.codec), sampler.image_size])[:16]
        self.folder = Path(work_dir) / "reconstructions" / made_with

    def __call__(self, judge: Judge) -> dict[str, Any]:
        """AUC, accuracy and share of unchanged verdicts for each of `KINDS`."""
        study = self.study
        paths = {ORIGINAL: study.test_paths, RECONSTRUCTION: self._reconstructions(), VARIATION: self._variations()}
        shown = [path for kind in KINDS for path in paths[kind]]
        real = [Example(item["image"], study.classes.index(item["label"]), (item["image"],)) for item in study.train]
        probabilities, about = study.new_classifier(judge.classifier, shown)(real, [], REAL, judge.seed)
        parts = dict(zip(KINDS, probabilities.reshape(len(KINDS), len(study.test), -1), strict=True))
        verdicts = {kind: part.argmax(1) for kind, part in parts.items()}
        kinds = {
            kind: {
                **scores_of(part, study.test_labels),
                "same_verdict": float((verdicts[kind] == verdicts[ORIGINAL]).mean()),
            }
            for kind, part in parts.items()
        }
        return {**kinds, "num_train": len(real), "num_test": len(study.test), **about}

    def _variations(self) -> list[str]:
        """One of each held-out image, made where it is not there."""
        recipes = [
            Recipe(VARIATION, (item["image"],), (file_sha256(item["image"]),), 0, item["label"])
            for item in self.study.test
        ]
        pool = self.study.pool
        pool.make([tuple(recipes[first : first + BLOCK]) for first in range(0, len(recipes), BLOCK)])
        return [str(pool.path(recipe)) for recipe in recipes]

    @torch.inference_mode()
    def _reconstructions(self) -> list[str]:
        """What the codec alone makes of each held-out image."""
        sampler = self.study.pool.generator.sampler
        paths = []
        for source in tqdm(self.study.test_paths, desc="reconstructions", unit="image", dynamic_ncols=True):
            path = self.folder / f"{file_sha256(source)[:12]}.png"
            if not path.is_file():
                image = load_square(source, sampler.image_size).as_subclass(torch.Tensor)[None].to(sampler.device)
                decoded = sampler.codec.decode(sampler.codec.encode(image))[0].float().cpu()
                write_png(decoded, path, provenance={"codec": self.folder.name})
            paths.append(str(path))
        return paths
