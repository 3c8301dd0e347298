"""What a trial is trained on: its real images, and the synthetic ones that their strategy and ratio give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..seeding import Purpose, derive_seed
from .benefit_pool import SyntheticPool
from .benefit_recipes import PRIOR, Block, Recipes, first_recipes, prior_blocks
from .benefit_regimes import REAL, UNLABELLED, Example, Trial
from .benefit_subsets import Item, SubsetError, draw_order, subset
from .probe_classifier import ProbeClassifier

OVERSAMPLING = 3  # candidates per pseudo-labelled image that is taken
NEAR_SHARE = 0.5  # of the candidates, nearest to the labelled images


class Examples:
    """The images of trials.

    Args:
        items: of the training split.
        classes: names, in the order of the class numbers.
        pool: of synthetic images.
        probe: labels what comes without label, trained on the trial's own real images.
    """

    def __init__(
        self, items: Sequence[Item], classes: Sequence[str], pool: SyntheticPool, probe: ProbeClassifier
    ) -> None:
        self.items = list(items)
        self.classes = list(classes)
        self.pool = pool
        self.probe = probe
        self._recipes: dict[int, Recipes] = {}

    def real(self, trial: Trial) -> list[Example]:
        """The trial's labelled images, in the order in which they were drawn.

        Raises:
            SubsetError: there are not so many.
        """
        chosen = subset(self.recipes(trial.seed).order, trial.size)
        return [Example(item["image"], self.classes.index(item["label"]), (item["image"],)) for item in chosen]

    def blocks(self, trial: Trial) -> list[Block]:
        """What has to be in the pool for it."""
        if trial.ratio == 0 or trial.strategy == UNLABELLED:
            return []
        if trial.strategy == PRIOR:
            return prior_blocks(self._num_candidates(trial))
        return [block for blocks in self._blocks_by_source(trial) for block in blocks]

    def synthetic(self, trial: Trial) -> list[Example]:
        """`ratio` synthetic images per real one, made where they are not there yet."""
        if trial.ratio == 0:
            return []
        self.pool.make(self.blocks(trial))
        if trial.strategy == PRIOR:
            recipes = first_recipes(prior_blocks(self._num_candidates(trial)), self._num_candidates(trial))
            return self._pseudo_labelled(trial, [str(self.pool.path(recipe)) for recipe in recipes])
        if trial.strategy == UNLABELLED:
            return self._pseudo_labelled(trial, self._unlabelled(trial))
        chosen = [recipe for blocks in self._blocks_by_source(trial) for recipe in first_recipes(blocks, trial.ratio)]
        return [Example(str(self.pool.path(each)), self.classes.index(each.label), each.sources) for each in chosen]

    def recipes(self, seed: int) -> Recipes:
        """Of a seed's draw order."""
        if seed not in self._recipes:
            self._recipes[seed] = Recipes(draw_order(self.items, self.classes, seed), seed)
        return self._recipes[seed]

    def _blocks_by_source(self, trial: Trial) -> list[list[Block]]:
        subset(self.recipes(trial.seed).order, trial.size)  # refuses sizes that cannot be drawn
        return self.recipes(trial.seed).blocks(trial.strategy, trial.size, trial.ratio)

    @staticmethod
    def _num_candidates(trial: Trial) -> int:
        return OVERSAMPLING * trial.size * trial.ratio

    def _unlabelled(self, trial: Trial) -> list[str]:
        """Real images of patients outside the trial's subset, alike for all seeds but for those patients.

        Raises:
            SubsetError: there are fewer than the ratio asks for.
        """
        known = {item["patient_id"] for item in subset(self.recipes(trial.seed).order, trial.size)}
        order = np.random.default_rng(derive_seed(0, Purpose.ORDER)).permutation(len(self.items))
        others = [self.items[place] for place in order if self.items[place]["patient_id"] not in known]
        if len(others) < trial.size * trial.ratio:
            raise SubsetError(
                f"strategy {UNLABELLED}: found {len(others)} real images beside the subset of {trial.size}; expected "
                f"{trial.size * trial.ratio} for ratio {trial.ratio}. Leave that ratio out for it"
            )
        return [item["image"] for item in others[: self._num_candidates(trial)]]

    def _pseudo_labelled(self, trial: Trial, paths: Sequence[str]) -> list[Example]:
        real = self.real(trial)
        teacher, _ = self.probe.fit(real, [], REAL)
        features = self.probe.features.of(paths)
        known = self.probe.features.of([each.path for each in real])
        counts = trial.ratio * np.bincount([each.label for each in real], minlength=len(self.classes))
        chosen = choose_confident(features, known, teacher.probabilities(features), counts)
        return [Example(paths[row], label) for row, label in chosen]


def choose_confident(
    candidates: NDArray[np.float64],
    known: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    counts: Sequence[int] | NDArray[np.integer],
) -> list[tuple[int, int]]:
    """Pseudo-labels: of the candidates near to known images the most probable of every class.

    Nearness is the cosine to the nearest known image; it keeps out samples of other kinds of radiographs than the
    labelled ones (the prior knows adults and children), about which a classifier can be confident and wrong.

    Args:
        candidates: features [M, D].
        known: features [n, D] of the labelled images.
        probabilities: [M, C] of the candidates.
        counts: [C], how many to take; at most M together.

    Returns:
        (row, class) of those taken, no row twice, sorted.
    """
    counts = np.asarray(counts)
    if counts.sum() > len(candidates):
        raise SubsetError(f"pseudo-labels: found {len(candidates)} candidates; expected at least {counts.sum()}")
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
