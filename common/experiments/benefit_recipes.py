"""Which synthetic images belong to which real ones; every one is named by its sources' content and its number alone.

So an image that two seeds, subset sizes or ratios ask for is made once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..fingerprint import file_sha256
from ..seeding import Purpose, derive_seed, torch_seed
from .benefit_subsets import Item, SubsetError

VARIATION, INTERPOLATION, PRIOR = "variation", "interpolation", "prior"
BLOCK = 5  # images that are made together: what a killed run has made of one is made again to the bit
MIX_RANGE = (0.25, 0.75)  # weight of the second source, as in the bundle's inference.yaml
MIN_PARTNERS = 8  # first images of a class among which each has its partners; later ones pair with all before them


@dataclass(frozen=True)
class Recipe:
    """One synthetic image.

    Attributes:
        strategy: variation, interpolation or prior.
        sources: paths of none, one or two real images.
        digests: of their contents.
        number: tells images of the same sources apart.
        label: of the sources; "" for those of the prior.
    """

    strategy: str
    sources: tuple[str, ...]
    digests: tuple[str, ...]
    number: int
    label: str = ""

    @property
    def name(self) -> str:
        """Relative path without suffix; says nothing of whom the sources show."""
        stem = "_".join([*(digest[:12] for digest in self.digests), f"{self.number:05d}"])
        folder = self.digests[0][:2] if self.digests else f"{self.number // 1000:03d}"
        return f"{self.strategy}/{folder}/{stem}"

    @property
    def seed(self) -> int:
        """Of the sample's noise."""
        return torch_seed(*(int(digest[:8], 16) for digest in self.digests), self.number)

    @property
    def mix(self) -> float | None:
        """Weight of the second source."""
        if len(self.sources) < 2:
            return None
        return round(float(np.random.default_rng(derive_seed(self.seed, Purpose.STRATEGY)).uniform(*MIX_RANGE)), 6)


Block = tuple[Recipe, ...]


class Recipes:
    """Blocks of recipes for the images of one draw order.

    Args:
        order: of `draw_order`.
        seed: of the partners of interpolation.
    """

    def __init__(self, order: Sequence[Item], seed: int) -> None:
        self.order = order
        self.seed = seed
        self._digests: dict[str, str] = {}

    def blocks(self, strategy: str, size: int, count: int) -> list[list[Block]]:
        """For each of the first `size` images the blocks that hold its first `count` synthetic ones.

        Args:
            strategy: variation or interpolation.
            size: of the subset.
            count: synthetic images per real one.

        Raises:
            ValueError: another strategy.
            SubsetError: a class with a single image.
        """
        numbers = range(0, -(-count // BLOCK) * BLOCK, BLOCK)
        if strategy not in (VARIATION, INTERPOLATION):
            raise ValueError(f"strategy: expected {VARIATION} or {INTERPOLATION}, found {strategy!r}")
        make = self._variation if strategy == VARIATION else self._interpolation
        return [
            [tuple(make(rank, number, size) for number in range(first, first + BLOCK)) for first in numbers]
            for rank in range(size)
        ]

    def _variation(self, rank: int, number: int, size: int) -> Recipe:
        item = self.order[rank]
        return Recipe(VARIATION, (item["image"],), (self._digest(item),), number, item["label"])

    def _interpolation(self, rank: int, number: int, size: int) -> Recipe:
        """With an image of its class that comes before it, so that a subset's pairs are pairs of every larger one."""
        item = self.order[rank]
        mates = [place for place in range(size) if self.order[place]["label"] == item["label"]]
        mates = [place for place in mates[: max(mates.index(rank), MIN_PARTNERS)] if place != rank]
        if not mates:
            raise SubsetError(
                f"interpolation: found a single image of {item['label']} among {size}; expected two or more, take "
                "larger sizes"
            )
        draw = np.random.default_rng(derive_seed(self.seed, Purpose.STRATEGY, rank, number))
        other = self.order[mates[int(draw.integers(len(mates)))]]
        digests = (self._digest(item), self._digest(other))
        return Recipe(INTERPOLATION, (item["image"], other["image"]), digests, number, item["label"])

    def _digest(self, item: Item) -> str:
        path = item["image"]
        if path not in self._digests:
            self._digests[path] = file_sha256(path)
        return self._digests[path]


def prior_blocks(count: int) -> list[Block]:
    """Blocks that hold the first `count` samples of the prior, which belong to no real image."""
    return [
        tuple(Recipe(PRIOR, (), (), number) for number in range(first, first + BLOCK))
        for first in range(0, count, BLOCK)
    ]


def first_recipes(blocks: Sequence[Block], count: int) -> Iterator[Recipe]:
    """The first `count` recipes of some blocks."""
    flat = [recipe for block in blocks for recipe in block]
    return iter(flat[:count])
