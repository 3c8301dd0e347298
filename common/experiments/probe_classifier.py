"""The cheap classifier: a linear probe on frozen DINO features of whatever a regime trains on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .benefit_features import ProbeFeatures
from .benefit_regimes import MIXED, PRETRAINED, REAL, REAL_REGIMES, SYNTHETIC, UNAUGMENTED, Example
from .benefit_subsets import SubsetError
from .probe import L2_STRENGTHS, Probe, Samples, choose_strength, fit_path

FOLDS = 4


class ProbeClassifier:
    """Fit a probe on a regime's images and predict the test images.

    A real image and its changed views together weigh as much as one synthetic image. The strength of L2 is chosen by
    folds over the real images; a fold's training has neither its real images nor what was made from them. Where the
    regime shows no real image, they choose the strength all the same: somebody has to, and they are what is labelled.

    Args:
        features: of files and views.
        num_classes: C.
        test_paths: of the test images.
    """

    def __init__(self, features: ProbeFeatures, num_classes: int, test_paths: Sequence[str]) -> None:
        self.features = features
        self.num_classes = num_classes
        self.test_paths = list(test_paths)

    def __call__(
        self, real: Sequence[Example], synthetic: Sequence[Example], regime: str, seed: int
    ) -> tuple[NDArray[np.float64], dict[str, object]]:
        """Probabilities [N, C] of the test images, and the strengths that were chosen; nothing in it is random."""
        probe, about = self.fit(real, synthetic, regime)
        return probe.probabilities(self.features.of(self.test_paths)), about

    def fit(
        self, real: Sequence[Example], synthetic: Sequence[Example], regime: str
    ) -> tuple[Probe, dict[str, object]]:
        """The probe of a regime, and the strengths chosen.

        Raises:
            SubsetError: less than two real images a class, so that there are no folds.
        """
        if regime != PRETRAINED:
            probe, strength, loss = self._fit(real, synthetic, regime, None)
            return probe, {"l2": strength, "held_out_loss": loss}
        start, first, _ = self._fit(real, synthetic, SYNTHETIC, None)
        probe, strength, loss = self._fit(real, synthetic, REAL, start)
        return probe, {"l2": strength, "l2_synthetic": first, "held_out_loss": loss}

    def _fit(
        self, real: Sequence[Example], synthetic: Sequence[Example], regime: str, start: Probe | None
    ) -> tuple[Probe, float, float]:
        folds = min(FOLDS, len(real) // self.num_classes)
        if folds < 2:
            raise SubsetError(
                f"sizes: found {len(real)} images of {self.num_classes} classes; expected at least two a class"
            )
        # Real images take turns by class, so that every fold has all classes.
        members = [
            [each for rank, each in enumerate(real) if rank // self.num_classes % folds == fold]
            for fold in range(folds)
        ]

        def path_without(held_out: Sequence[Example]) -> list[Probe]:
            hidden = {each.path for each in held_out}
            shown = [
                [each for each in kind if hidden.isdisjoint((each.path, *each.sources))] for kind in (real, synthetic)
            ]
            return fit_path(self._samples(shown[0], shown[1], regime), self.num_classes, start=start)

        targets = [(self.features.of([each.path for each in fold]), _labels(fold)) for fold in members]
        place, loss = choose_strength(lambda fold: path_without(members[fold]), targets)
        return path_without(())[place], L2_STRENGTHS[place], loss

    def _samples(self, real: Sequence[Example], synthetic: Sequence[Example], regime: str) -> Samples:
        parts: list[tuple[NDArray[np.float64], NDArray[np.int64], float]] = []
        if regime in (*REAL_REGIMES, MIXED):
            views = 0 if regime == UNAUGMENTED else self.features.num_views
            paths, labels = [each.path for each in real], _labels(real)
            parts.append((self.features.of(paths), labels, 1 / (1 + views)))
            if views:
                changed = self.features.of_views(paths).reshape(len(real) * views, -1)
                parts.append((changed, labels.repeat(views), 1 / (1 + views)))
        if regime in (SYNTHETIC, MIXED):
            labels = _labels(synthetic)
            parts.append((self.features.of([each.path for each in synthetic]), labels, 1.0))
        return Samples(
            np.concatenate([features for features, _, _ in parts]),
            np.concatenate([labels for _, labels, _ in parts]),
            np.concatenate([np.full(len(labels), weight) for _, labels, weight in parts]),
        )


def _labels(examples: Sequence[Example]) -> NDArray[np.int64]:
    return np.array([each.label for each in examples], dtype=np.int64)
