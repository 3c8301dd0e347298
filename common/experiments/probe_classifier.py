"""The cheap classifier: multinomial logistic regression on frozen DINO features of whatever a regime trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from ..data.augmentation import RandomAugmentation
from ..data.transforms import load_square
from ..errors import DatasetError, SettingsError
from ..evaluation.image_features import ImageFeatures
from ..files import atomic_path
from ..fingerprint import file_sha256
from ..progress import ProgressBar
from ..seeding import Purpose, derive_seed
from .benefit_trials import PRETRAINED, RARE, REAL, REAL_REGIMES, SYNTHETIC, UNAUGMENTED, Example

Array = NDArray[np.float64]
L2_STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of standardised features; strong first, each starts the next
MAX_ITERATIONS = 200
SMALLEST_SD = 1e-6
FOLDS = 4
VIEWS_VERSION = "views_1"  # changes with `plain_augmentation`
NEAR_SHARE = 0.5  # of the candidates for pseudo-labels, nearest to the labelled images


@dataclass(frozen=True)
class Probe:
    """A linear classifier."""

    coefficients: Array  # [D + 1, C] of standardised features; the last row is the bias
    mean: Array  # [D] that features are standardised with
    sd: Array  # [D] likewise

    def log_probabilities(self, features: Array) -> Array:
        """[N, D] to [N, C]."""
        return log_softmax(_with_bias((features - self.mean) / self.sd) @ self.coefficients, axis=1)

    def probabilities(self, features: Array) -> Array:
        """[N, D] to [N, C]."""
        return np.exp(self.log_probabilities(features))


def standardisation(features: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted mean and standard deviation [D] of every feature of [N, D]."""
    share = weights / weights.sum()
    mean = share @ features
    return mean, np.sqrt(share @ (features - mean) ** 2).clip(SMALLEST_SD)


def fit_path(
    features: Array,
    labels: NDArray[np.int64],
    weights: Array,
    num_classes: int,
    strengths: Sequence[float] = L2_STRENGTHS,
    start: Probe | None = None,
) -> list[Probe]:
    """A probe for every strength of L2, the minimum of mean cross-entropy + strength / 2 · |W - centre|².

    Args:
        features: [N, D].
        labels: [N], classes from 0 on.
        weights: [N] of the samples, any positive scale.
        num_classes: C.
        strengths: strong ones first.
        start: pulls the coefficients to its own instead of to zero, and lends its standardisation (fine-tuning).
    """
    mean, sd = standardisation(features, weights) if start is None else (start.mean, start.sd)
    inputs = _with_bias((features - mean) / sd)
    centre = np.zeros((inputs.shape[1], num_classes)) if start is None else start.coefficients
    targets = np.eye(num_classes)[labels]
    share = (weights / weights.sum())[:, None]
    penalised = np.ones((inputs.shape[1], 1))
    penalised[-1] = 1e-3  # the bias: just enough to make the minimum unique

    def loss(flat: Array, strength: float) -> tuple[float, Array]:
        moved = flat.reshape(centre.shape)
        logits = inputs @ moved
        away = penalised * (moved - centre)
        value = -(share * targets * log_softmax(logits, axis=1)).sum() + strength / 2 * (away * (moved - centre)).sum()
        slope = inputs.T @ (share * (softmax(logits, axis=1) - targets)) + strength * away
        return float(value), slope.ravel()

    found, current = [], centre
    for strength in strengths:
        options = {"maxiter": MAX_ITERATIONS}
        fitted = minimize(loss, current.ravel(), (strength,), "L-BFGS-B", jac=True, options=options)
        current = fitted.x.reshape(centre.shape)
        found.append(Probe(current, mean, sd))
    return found


def choose_strength(
    fit: Callable[[int], Sequence[Probe]], held_out: Sequence[tuple[Array, NDArray[np.int64]]]
) -> tuple[int, float]:
    """The place of the strength whose probes give held-out images the highest likelihood, and its mean loss, nats.

    `fit` makes of the number of a fold the probes of all strengths, fitted without it; held out are its features and
    labels.
    """
    losses = [
        [-each.log_probabilities(features)[np.arange(len(labels)), labels].sum() for each in fit(fold)]
        for fold, (features, labels) in enumerate(held_out)
    ]
    totals = np.sum(losses, axis=0)
    best = int(totals.argmin())
    return best, float(totals[best] / sum(len(labels) for _, labels in held_out))


def _with_bias(features: Array) -> Array:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


# ---- what is classified ----------------------------------------------------------------------------------------------


def plain_augmentation() -> RandomAugmentation:
    """Flips left to right, small affine changes, gamma and gain: the usual ones for chest radiographs."""
    return RandomAugmentation(
        mirrored_labels=[0],
        flip_horizontal=True,
        flip_vertical=False,
        max_rotation_degrees=10.0,
        max_translation=0.05,
        max_scale=1.15,
        max_gamma=1.2,
        max_gain=1.1,
    )


class ProbeFeatures:
    """CLS tokens [D] of images, and of `num_views` randomly changed views of them, each encoded once.

    The encoder gives tokens, of which the CLS token comes first, and keeps them by content.
    """

    def __init__(self, encoder: ImageFeatures, num_features: int, num_views: int) -> None:
        self.encoder, self.num_features, self.num_views = encoder, num_features, num_views
        about = encoder.extractor, None, encoder.image_size
        self.view_encoder = ImageFeatures(*about, device=encoder.device, progress=False)
        self._known: dict[str, Array] = {}
        self._views: dict[str, Array] = {}

    def of(self, paths: Sequence[str]) -> Array:
        """Features [N, D] of files; DatasetError where one cannot be read."""
        unknown = [path for path in dict.fromkeys(paths) if path not in self._known]
        if unknown:
            found = self.encoder.of_files(unknown)
            if found.problems:
                path, problem = found.problems[0]
                raise DatasetError(f"{path}: {problem}; expected readable images, {len(found.problems)} are not")
            self._known.update(zip(unknown, found.features[:, : self.num_features].astype(np.float64), strict=True))
        return np.stack([self._known[path] for path in paths]) if paths else np.zeros((0, self.num_features))

    def of_views(self, paths: Sequence[str]) -> Array:
        """Features [N, V, D] of changed views; those of a file depend on its content alone."""
        unknown = [path for path in dict.fromkeys(paths) if path not in self._views]
        for path in ProgressBar(unknown, desc="features of changed views", unit="image", disable=not unknown):
            self._views[path] = self._views_of(path).astype(np.float64)
        return np.stack([self._views[path] for path in paths])

    def _views_of(self, path: str) -> NDArray[np.float32]:
        digest, folder = file_sha256(path), self.encoder.folder
        kept = None if folder is None else folder / VIEWS_VERSION / f"{digest}_{self.num_views}.npy"
        if kept is not None and kept.is_file():
            return np.load(kept, allow_pickle=False)
        image = load_square(path, self.encoder.image_size).as_subclass(torch.Tensor)[None]
        seeds = [derive_seed(int(digest[:8], 16), Purpose.AUGMENTATION, view) for view in range(self.num_views)]
        views = image.expand(self.num_views, -1, -1, -1)
        changed, _ = plain_augmentation()(views, torch.zeros_like(views, dtype=torch.int64), seeds)
        found = self.view_encoder.of_batches([changed])[:, : self.num_features]
        if kept is not None:
            with atomic_path(kept) as temporary, temporary.open("wb") as file:
                np.save(file, found)
        return found


@dataclass
class ProbeClassifier:
    """Fit a probe on a regime's images and predict the test images.

    A real image and its changed views together weigh as much as one synthetic image. The strength of L2 is chosen by
    folds over the real images; a fold's training has neither its real images nor what was made from them. Where the
    regime shows no real image, they choose the strength all the same: somebody has to, and they are what is labelled.
    """

    features: ProbeFeatures  # of files and views
    num_classes: int
    test_paths: Sequence[str]  # of the images to predict

    def __call__(
        self, real: Sequence[Example], synthetic: Sequence[Example], regime: str, seed: int, times_steps: int = 1
    ) -> tuple[Array, dict[str, object]]:
        """Probabilities [N, C] of the test images, and the strengths that were chosen; nothing in it is random."""
        probe, about = self.fit(real, synthetic, regime)
        return probe.probabilities(self.features.of(self.test_paths)), about

    def fit(
        self, real: Sequence[Example], synthetic: Sequence[Example], regime: str
    ) -> tuple[Probe, dict[str, object]]:
        """The probe of a regime, and the strengths chosen; SettingsError below two real images a class: no folds."""
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
            raise SettingsError(
                f"sizes: found {len(real)} images of {self.num_classes} classes; expected at least two a class"
            )
        # Real images take turns by class, so that every fold has all classes.
        turns = [
            [each for rank, each in enumerate(real) if rank // self.num_classes % folds == n] for n in range(folds)
        ]

        def path_without(held_out: Sequence[Example]) -> list[Probe]:
            hidden = {each.path for each in held_out}
            shown = [[e for e in kind if hidden.isdisjoint((e.path, *e.sources))] for kind in (real, synthetic)]
            return fit_path(*self._samples(shown[0], shown[1], regime), self.num_classes, start=start)

        targets = [(self.features.of([each.path for each in fold]), _labels(fold)) for fold in turns]
        place, loss = choose_strength(lambda fold: path_without(turns[fold]), targets)
        return path_without(())[place], L2_STRENGTHS[place], loss

    def _samples(
        self, real: Sequence[Example], synthetic: Sequence[Example], regime: str
    ) -> tuple[Array, NDArray[np.int64], Array]:
        """Features, labels and weights of what a regime trains on."""
        parts: list[tuple[Array, NDArray[np.int64], float]] = []
        if regime != SYNTHETIC:
            views = 0 if regime == UNAUGMENTED else self.features.num_views
            paths, labels = [each.path for each in real], _labels(real)
            parts.append((self.features.of(paths), labels, 1 / (1 + views)))
            if views:
                changed = self.features.of_views(paths).reshape(len(real) * views, -1)
                parts.append((changed, labels.repeat(views), 1 / (1 + views)))
        if regime not in (*REAL_REGIMES, RARE):
            parts.append((self.features.of([each.path for each in synthetic]), _labels(synthetic), 1.0))
        features, numbers, weights = zip(*((x, y, np.full(len(y), weight)) for x, y, weight in parts), strict=True)
        return np.concatenate(features), np.concatenate(numbers), np.concatenate(weights)


def _labels(examples: Sequence[Example]) -> NDArray[np.int64]:
    return np.array([each.label for each in examples], dtype=np.int64)


def choose_confident(
    candidates: Array, known: Array, probabilities: Array, counts: Sequence[int] | NDArray[np.integer]
) -> list[tuple[int, int]]:
    """Pseudo-labels: of the candidates near to known images the most probable of every class.

    Nearness is the cosine to the nearest known image; it keeps out samples of other kinds of radiographs than the
    labelled ones (the prior knows adults and children), about which a classifier can be confident and wrong.

    Candidates have features [M, D] and probabilities [M, C], known images features [n, D]; of each class counts [C] are
    taken. Returns (row, class) of those taken, no row twice, sorted.
    """
    counts = np.asarray(counts)
    units = [each / np.linalg.norm(each, axis=1, keepdims=True).clip(1e-12) for each in (candidates, known)]
    nearness = (units[0] @ units[1].T).max(1)
    num_near = max(int(counts.sum()), round(NEAR_SHARE * len(candidates)))
    near = np.sort(np.argsort(-nearness, kind="stable")[:num_near])
    left, taken = counts.copy(), {}
    for place in np.argsort(-probabilities[near].ravel(), kind="stable"):
        row, label = int(near[place // len(counts)]), int(place % len(counts))
        if row not in taken and left[label] > 0:
            taken[row] = label
            left[label] -= 1
    return sorted(taken.items())
