"""Whether synthetic radiographs help a classifier that has few labels: one training and score per trial.

Choices of the protocol, after DiNO-Diffusion (arXiv 2407.11594, section 2.4), and where it was changed:

- **Labels within one source.** Label and source are confounded in public collections, so a classifier could read the
  source; `where` picks one. Scores are macro averages of one-vs-rest AUC.
- **Subsets** are nested and balanced by class, one image a patient (`subsets.draw_order`). The test images are the
  validation split: other patients, which is checked, as is that no file is in both. The generator has seen the whole
  training split without labels, so also images outside of the subset; it has not seen the test patients. The prior's
  checkpoint was chosen by their loss, which can hardly matter here, and is said for completeness.
- **No label beyond the subset.** The shipped prior can be conditioned on labels, but learned them from the whole
  training split. Its samples are therefore drawn without label and labelled by a linear probe on DINO features of the
  subset, which keeps the candidates near to the subset and of those the most confident of each class.
- **The rival of a generator is the data that it was trained on.** Strategy "unlabelled" pseudo-labels *real* training
  images in the very same way. What it gains needs no generator; what the prior gains beyond it does.
- **Pooling.** Variation k of an image depends on its content and k alone, a pair's interpolation on both contents and
  k, a sample of the prior on its number; so subsets and seeds share images. The samples of the prior are the same for
  all seeds, which leaves the choice among them, but not themselves, to vary between seeds.
- **Interpolations** take pairs of one class; each image pairs with those drawn before it, so that pairs nest as well.
- **Mixing** is concatenation: at 1:10 a batch has one real image in eleven, as in the paper.
- **Plain augmentation** (flip, small affine, gamma and gain; for the network MixUp too) is on in every regime but
  "real_unaugmented", for synthetic images as for real ones. For the probe it means features of changed views of the
  real images; synthetic images are views already, and are not changed again.
- **Equal steps.** The network takes the same number of steps of the same batch size in every regime, with one
  schedule; pre-training takes half of them. Nothing is selected by validation, nothing was tuned on the test images.
- **Baseline** of every difference is "real", which is with plain augmentation, paired by seed (same subset, same
  weights to start from).
- **Pre-training a probe** is L2 towards the coefficients that were fitted on synthetic images instead of towards zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.datalists import assert_disjoint_patients, radiograph_items
from ..fingerprint import file_sha256, json_sha256
from .benefit_examples import Examples
from .benefit_features import ProbeFeatures
from .benefit_pool import Generator, SyntheticPool, token_features
from .benefit_recipes import Block
from .benefit_regimes import UNLABELLED, Example, Trial
from .benefit_scores import scores_of
from .benefit_subsets import Item, SubsetError, class_names
from .densenet import DenseNetClassifier, TrainingSettings
from .probe_classifier import ProbeClassifier

PROBE, DENSENET = "probe", "densenet"
CLASSIFIERS = (PROBE, DENSENET)


class Classifier(Protocol):
    """Trains on the images of a trial, and predicts the test images."""

    def __call__(
        self, real: Sequence[Example], synthetic: Sequence[Example], regime: str, seed: int
    ) -> tuple[NDArray[np.float64], dict[str, object]]:
        """Probabilities [N, C], and what else is worth keeping."""
        ...


def labelled_split(
    dataset_dir: str,
    where: Mapping[str, Any] | None,
    limit_per_class: int | None = None,
    train_limit_per_class: int | None = None,
) -> tuple[list[Item], list[Item], list[str]]:
    """Training images, test images (the validation split) and class names.

    Args:
        dataset_dir: with a manifest.csv that has labels.
        where: columns and the value that each must have.
        limit_per_class: test images of a class at most.
        train_limit_per_class: training images of a class at most.

    Raises:
        SubsetError: a file is in both, or labels are missing.
        DatasetError: a patient is in both, or the folder cannot be used.
    """
    train, test = ([*radiograph_items(dataset_dir, split, 0.1, 0, where=where)] for split in ("train", "val"))
    classes = class_names(train)
    train, test = ([item for item in items if item.get("label") in classes] for items in (train, test))
    assert_disjoint_patients(train=train, val=test)
    both = {file_sha256(item["image"]) for item in train} & {file_sha256(item["image"]) for item in test}
    if both:
        raise SubsetError(f"data: {len(both)} files are in train and in val under other names; remove them from one")
    shown = sorted(_first_of_each(test, limit_per_class), key=lambda item: classes.index(item["label"]))
    return _first_of_each(train, train_limit_per_class), shown, classes


def _first_of_each(items: Sequence[Item], limit_per_class: int | None) -> list[Item]:
    """Items in their order, of each class at most so many."""
    seen: Counter[str] = Counter()
    chosen = []
    for item in items:
        seen[item["label"]] += 1
        if limit_per_class is None or seen[item["label"]] <= limit_per_class:
            chosen.append(item)
    return chosen


class Study:
    """Trains and scores trials.

    Args:
        train: items to draw subsets from.
        test: items to score on.
        classes: names.
        generator: of synthetic images.
        work_dir: of the pool and of features.
        training: of the network.
        num_views: changed views of a real image for the probe.
        amp: bfloat16 for generating, where the hardware has it.
    """

    def __init__(
        self,
        train: Sequence[Item],
        test: Sequence[Item],
        classes: Sequence[str],
        generator: Generator,
        work_dir: str | Path,
        training: TrainingSettings,
        num_views: int,
        amp: bool,
    ) -> None:
        self.train, self.test, self.classes = list(train), list(test), list(classes)
        self.training, self.num_views = training, num_views
        self.device: torch.device = generator.sampler.device
        tokens = token_features(generator, Path(work_dir) / "features")
        self.pool = SyntheticPool(Path(work_dir) / "pool", generator, tokens, amp)
        self.test_labels = np.array([self.classes.index(item["label"]) for item in test])
        self.test_paths = [item["image"] for item in test]
        features = ProbeFeatures(tokens, generator.encoder.hidden_size, num_views)
        self.probe = ProbeClassifier(features, len(classes), self.test_paths)  # which also labels what has no label
        self.examples = Examples(train, classes, self.pool, self.probe)
        self._true_labels = {item["image"]: self.classes.index(item["label"]) for item in train}
        self._classifiers: dict[str, Classifier] = {PROBE: self.probe}

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """Train and score one trial."""
        real, synthetic = self.examples.real(trial), self.examples.synthetic(trial)
        probabilities, about = self._classifier(trial.classifier)(real, synthetic, trial.regime, trial.seed)
        result = {**scores_of(probabilities, self.test_labels), **about}
        if trial.strategy == UNLABELLED:  # the true labels are known: how good the pseudo-labels are
            right = [self._true_labels[each.path] == each.label for each in synthetic]
            result["pseudo_label_accuracy"] = float(np.mean(right))
        return {**result, "num_real": len(real), "num_synthetic": len(synthetic)}

    def make_images(self, trials: Sequence[Trial], share: tuple[int, int]) -> None:
        """Only make the synthetic images of some trials; the share is of these images."""
        unique: dict[Block, None] = {}
        for trial in trials:
            unique.update(dict.fromkeys(self.examples.blocks(trial)))
        self.pool.make(list(unique)[share[0] :: share[1]])

    def settings(self) -> dict[str, Any]:
        """What all trials of a folder share."""
        sampler = self.pool.generator.sampler
        return {
            "classes": self.classes,
            "num_train_images": len(self.train),
            "num_train_patients": len({item["patient_id"] for item in self.train}),
            "num_test_images": len(self.test),
            "num_test_patients": len({item["patient_id"] for item in self.test}),
            "data_sha256": data_sha256([*self.train, *self.test]),
            "pool": self.pool.folder.name,
            "num_inference_steps": len(sampler.sampler.timesteps),
            "guidance_scale": sampler.sampler.guidance_scale,
            "features_sha256": self.probe.features.encoder.extractor.fingerprint,
            "num_views": self.num_views,
            "training": self.training.plain(),
        }

    def new_classifier(self, name: str, paths: Sequence[str]) -> Classifier:
        """A classifier that predicts the images of `paths`, which it keeps in memory."""
        if name == PROBE:
            return ProbeClassifier(self.probe.features, len(self.classes), paths)
        if name == DENSENET:
            return DenseNetClassifier(len(self.classes), paths, self.training, self.device)
        raise ValueError(f"classifier: expected one of {', '.join(CLASSIFIERS)}, found {name!r}")

    def _classifier(self, name: str) -> Classifier:
        if name not in self._classifiers:
            self._classifiers[name] = self.new_classifier(name, self.test_paths)
        return self._classifiers[name]


def data_sha256(items: Sequence[Item]) -> str:
    """Which images, by file name, with which patients and labels; whatever folder they are in."""
    rows = [[Path(item["image"]).name, item["patient_id"], item["label"]] for item in items]
    return json_sha256(rows)
