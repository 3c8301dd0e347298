"""One image to make: what all ways to choose its embedding have in common."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from ..seeding import sample_seed


class StrategyError(UserError, ValueError):
    """The sources or knobs do not allow this strategy."""


@dataclass(frozen=True)
class SampleRequest:
    """One image to make.

    Attributes:
        name: unique in its run; the file's stem.
        seed: of the sample's noise.
        sources: rows of the source table.
        mix: weight in [0, 1] of the second source; None where nothing is mixed.
        label: that the image may keep; "" for none.
    """

    name: str
    seed: int
    sources: tuple[int, ...] = ()
    mix: float | None = None
    label: str = ""


def numbered_request(
    strategy: str, number: int, seed: int, sources: tuple[int, ...] = (), mix: float | None = None, label: str = ""
) -> SampleRequest:
    """The request of a run's sample, whose name and seed follow from its number."""
    return SampleRequest(f"{strategy}_{number:06d}", sample_seed(seed, number), sources, mix, label)


def at_least_one(name: str, value: int) -> int:
    """The value of a knob that counts something.

    Raises:
        StrategyError: less than 1.
    """
    if value < 1:
        raise StrategyError(f"{name}: expected at least 1, found {value}")
    return value
