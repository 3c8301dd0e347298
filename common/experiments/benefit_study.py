"""Whether synthetic radiographs help a classifier that has few labels: one training and score per trial.

Choices of the protocol, after DiNO-Diffusion (arXiv 2407.11594, section 2.4), and where it was changed:

- **Labels within one source.** Label and source are confounded in public collections, so a classifier could read the
  source; `where` picks one. Scores are macro averages of one-vs-rest AUC.
- **Subsets** are nested and balanced by class, one image a patient (`draw_order`). The test images are the validation
  split: other patients, which is checked, as is that no file is in both. The generator has seen the whole training
  split without labels, so also images outside of the subset; it has not seen the test patients. The prior's checkpoint
  was chosen by their loss, which can hardly matter here, and is said for completeness.
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
- **Equal epochs**, the paper's protocol, where a regime says so: "mixed_epochs" takes 1 + ratio times the steps: every
  image is seen as often as in "real"; "real_longer" takes as many steps on real images alone. The first
  minus the second is what images are worth, the second minus "real" what steps are.
- **A rare class**: 10 labelled images of the first class, `size` of the others together. Variations of the 10 are added
  to it ("rare_mixed"), against the same 10 repeated as often ("rare_repeated") and as they are ("rare", the baseline);
  the score is the AUC of that class. Batches take images as they come, so that the class is as rare there.
- **Baseline** of every difference is "real", which is with plain augmentation, paired by seed (same subset, same
  weights to start from).
- **Pre-training a probe** is L2 towards the coefficients that were fitted on synthetic images instead of towards zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_roc_auc
from numpy.typing import NDArray

from ..errors import DatasetError, NonFiniteLossError, SettingsError
from ..fingerprint import json_sha256
from ..pipelines.diffusion import DinoDiffusion
from ..seeding import Purpose, derive_seed
from .benefit_pool import Recipe, SyntheticPool, in_blocks, prior_recipes, source_recipes, token_features
from .benefit_trials import (
    NO_STRATEGY,
    NUM_RARE,
    PRIOR,
    PROBE,
    RARE_REGIMES,
    RARE_REPEATED,
    REAL,
    UNLABELLED,
    Example,
    Item,
    Trial,
    draw_order,
    rare_subset,
    subset,
)
from .densenet import DenseNetClassifier, TrainingSettings
from .probe_classifier import ProbeClassifier, ProbeFeatures, choose_confident

OVERSAMPLING = 3  # candidates per pseudo-labelled image that is taken

# Trained on real and synthetic images in a regime with a seed, for so many times the usual steps: probabilities [N, C]
# of the test images, and what else is worth keeping.
Scored = tuple[NDArray[np.float64], dict[str, object]]
Classifier = Callable[[Sequence[Example], Sequence[Example], str, int, int], Scored]


@dataclass
class BenefitStudy:
    """Trains and scores trials."""

    train: Sequence[Item]  # items with "image", "patient_id" and "label", to draw subsets from
    test: Sequence[Item]  # to score on
    classes: Sequence[str]  # names, in the order of the class numbers
    pipe: DinoDiffusion  # the generator of synthetic images
    work_dir: str | Path  # of the pool and of features
    training: TrainingSettings  # of the network
    num_views: int  # changed views of a real image for the probe

    def __post_init__(self) -> None:
        tokens = token_features(self.pipe, Path(self.work_dir) / "features")
        self.pool = SyntheticPool(Path(self.work_dir) / "pool", self.pipe, tokens)
        self.test_labels = np.array([self.classes.index(item["label"]) for item in self.test])
        self.test_paths = [item["image"] for item in self.test]
        self.features = ProbeFeatures(tokens, self.pipe.encoder.hidden_size, self.num_views)
        self._orders: dict[int, list[Item]] = {}
        self._classifiers: dict[str, Classifier] = {}

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """Train and score one trial."""
        real, synthetic = self.real(trial), self.synthetic(trial)
        if trial.classifier not in self._classifiers:
            self._classifiers[trial.classifier] = self.new_classifier(trial.classifier, self.test_paths)
        train = self._classifiers[trial.classifier]
        probabilities, about = train(real, synthetic, trial.regime, trial.seed, trial.times_steps)
        result = {**scores_of(probabilities, self.test_labels), **about}
        if trial.regime in RARE_REGIMES:
            result["auc"] = auc_by_class(probabilities, self.test_labels)[0]
        if trial.strategy == UNLABELLED:  # the true labels are known: how good the pseudo-labels are
            true = {item["image"]: self.classes.index(item["label"]) for item in self.train}
            result["pseudo_label_accuracy"] = float(np.mean([true[each.path] == each.label for each in synthetic]))
        return {**result, "num_real": len(real), "num_synthetic": len(synthetic)}

    def make_images(self, trials: Sequence[Trial], share: tuple[int, int]) -> None:
        """Only make the synthetic images of some trials; the share is of these images."""
        blocks = in_blocks(recipe for trial in trials for own in self._recipes(trial) for recipe in own)
        self.pool.make(blocks[share[0] :: share[1]])

    def settings(self) -> dict[str, Any]:
        """What all trials of a folder share."""
        items = [*self.train, *self.test]
        rows = [[Path(item["image"]).name, item["patient_id"], item["label"]] for item in items]
        return {
            "classes": list(self.classes),
            "num_train_images": len(self.train),
            "num_train_patients": len({item["patient_id"] for item in self.train}),
            "num_test_images": len(self.test),
            "num_test_patients": len({item["patient_id"] for item in self.test}),
            "data_sha256": json_sha256(rows),  # whatever folder they are in
            "pool": self.pool.folder.name,
            "num_inference_steps": len(self.pipe.sampler.timesteps),
            "guidance_scale": self.pipe.sampler.guidance_scale,
            "features_sha256": self.features.encoder.extractor.fingerprint,
            "num_views": self.num_views,
            "training": asdict(self.training),
        }

    def new_classifier(self, name: str, paths: Sequence[str]) -> Classifier:
        """One of `CLASSIFIERS`, which predicts the images of `paths`; a DenseNet keeps them in memory."""
        if name == PROBE:
            return ProbeClassifier(self.features, len(self.classes), paths)
        return DenseNetClassifier(len(self.classes), paths, self.training, self.pipe.device)

    # ---- images of a trial -------------------------------------------------------------------------------------------

    def examples(self, items: Sequence[Item]) -> list[Example]:
        """Labelled images to train on."""
        return [Example(item["image"], self.classes.index(item["label"]), (item["image"],)) for item in items]

    def real(self, trial: Trial) -> list[Example]:
        """The trial's labelled images as they were drawn; SettingsError where there are not so many."""
        return self.examples(self._subset(trial))

    def synthetic(self, trial: Trial) -> list[Example]:
        """`ratio` synthetic images per real one, made where they are not there yet; or the rare ones, repeated."""
        if trial.regime == RARE_REPEATED:
            return self.real(trial)[:NUM_RARE] * trial.ratio
        if trial.strategy == NO_STRATEGY:
            return []
        candidates = OVERSAMPLING * trial.size * trial.ratio
        if trial.strategy == UNLABELLED:
            return self._pseudo_labelled(trial, self._unlabelled(trial)[:candidates])
        by_source = self._recipes(trial)
        self.pool.make(in_blocks(recipe for own in by_source for recipe in own))
        if trial.strategy == PRIOR:
            drawn = [str(self.pool.path(recipe)) for recipe in by_source[0][:candidates]]
            return self._pseudo_labelled(trial, drawn)
        chosen = [recipe for own in by_source for recipe in own[: trial.ratio]]
        return [Example(str(self.pool.path(each)), self.classes.index(each.label), each.sources) for each in chosen]

    def _subset(self, trial: Trial) -> list[Item]:
        if trial.seed not in self._orders:
            self._orders[trial.seed] = draw_order(self.train, self.classes, trial.seed)
        if trial.regime in RARE_REGIMES:
            return rare_subset(self._orders[trial.seed], self.classes[0], trial.size)
        return subset(self._orders[trial.seed], trial.size)

    def _recipes(self, trial: Trial) -> list[list[Recipe]]:
        """What has to be in the pool for it: a list for each source; one list for the prior, which has none."""
        if trial.strategy in (NO_STRATEGY, UNLABELLED):
            return []
        if trial.strategy == PRIOR:
            return [prior_recipes(OVERSAMPLING * trial.size * trial.ratio)]
        size = NUM_RARE if trial.regime in RARE_REGIMES else trial.size  # the rare ones come first
        return source_recipes(self._subset(trial)[:size], trial.seed, trial.strategy, size, trial.ratio)

    def _unlabelled(self, trial: Trial) -> list[str]:
        """Real images of patients outside the trial's subset, alike for all seeds but for those patients."""
        known = {item["patient_id"] for item in self._subset(trial)}
        order = np.random.default_rng(derive_seed(0, Purpose.ORDER)).permutation(len(self.train))
        others = [self.train[place]["image"] for place in order if self.train[place]["patient_id"] not in known]
        if len(others) < trial.size * trial.ratio:
            raise SettingsError(
                f"strategy {UNLABELLED}: found {len(others)} real images beside the subset of {trial.size}; expected "
                f"{trial.size * trial.ratio} for ratio {trial.ratio}. Leave that ratio out for it"
            )
        return others

    def _pseudo_labelled(self, trial: Trial, paths: Sequence[str]) -> list[Example]:
        """The most confident of them by a probe on the trial's own real images."""
        real = self.real(trial)
        teacher, _ = ProbeClassifier(self.features, len(self.classes), []).fit(real, [], REAL)
        features, known = self.features.of(paths), self.features.of([each.path for each in real])
        counts = trial.ratio * np.bincount([each.label for each in real], minlength=len(self.classes))
        chosen = choose_confident(features, known, teacher.probabilities(features), counts)
        return [Example(paths[row], label) for row, label in chosen]


# ---- scores ----------------------------------------------------------------------------------------------------------


def auc_by_class(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> list[float]:
    """One-vs-rest AUC of every class; equal probabilities count half, as in the Mann-Whitney U statistic.

    Probabilities are [N, C], or any score that grows with them; labels [N], classes 0 to C - 1.

    Raises:
        DatasetError: a class is missing among the labels.
        NonFiniteLossError: a probability is not finite.
    """
    one_hot = np.eye(probabilities.shape[1])[labels]
    if missing := np.flatnonzero(one_hot.sum(0) == 0).tolist():
        raise DatasetError(f"AUC: found no image of class {missing} among {len(labels)}; expected some of each")
    if not np.isfinite(probabilities).all():
        raise NonFiniteLossError("AUC: found probabilities that are not finite; training diverged, lower learning_rate")
    columns = zip(torch.from_numpy(probabilities.T.astype(np.float64)), torch.from_numpy(one_hot.T), strict=True)
    return [float(np.asarray(compute_roc_auc(score, is_class))) for score, is_class in columns]


def scores_of(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, object]:
    """What a trial keeps: "auc", the mean over the classes (macro), "auc_by_class" and "accuracy"."""
    by_class = auc_by_class(probabilities, labels)
    accuracy = float((probabilities.argmax(1) == labels).mean())
    return {"auc": float(np.mean(by_class)), "auc_by_class": by_class, "accuracy": accuracy}
