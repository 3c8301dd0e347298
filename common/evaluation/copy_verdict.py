"""The judgement on a generated set: from flags and p-values of its samples to one sentence."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .held_out_ratios import Floats, HeldOutRatios


class Judged(Protocol):
    """What the judgement reads of one space: arrays [M], see `copy_detection.SpaceCheck`."""

    @property
    def is_flagged(self) -> NDArray[np.bool_]:
        """Flagged in this space."""
        ...

    @property
    def tail_p_value(self) -> Floats:
        """Extrapolated p-values."""
        ...


@dataclass(frozen=True)
class CopyVerdict:
    """The judgement on a set.

    Attributes:
        level: "copies", "more_near_copies", "no_sign", or "undecided" where too few images were held out.
        text: the same as a sentence, with its figures.
        num_samples: how many were checked.
        num_groups: how many of them count as independent.
        num_flagged: samples flagged.
        num_copies: those of them that are nearer than chance explains, one by one.
        expected_flagged: at most so many flags on average, if samples were as real images of new patients.
        count_p_value: of so many flags or more, given that.
        copy_p_value: of the nearest sample, given that, times the number of samples and spaces (Bonferroni).
        p_value: of both together (Bonferroni).
    """

    level: str
    text: str
    num_samples: int
    num_groups: int
    num_flagged: int
    num_copies: int
    expected_flagged: float
    count_p_value: float
    copy_p_value: float
    p_value: float


def judge(
    held_out: Mapping[str, HeldOutRatios],
    spaces: Mapping[str, Judged],
    is_flagged: NDArray[np.bool_],
    is_copy: NDArray[np.bool_],
    groups: Sequence[Hashable],
    false_flag_rate: float,
    significance: float,
) -> CopyVerdict:
    """Judge M samples.

    Args:
        held_out: space -> ratios of the held-out images.
        spaces: space -> what was found there.
        is_flagged: [M], in any space.
        is_copy: [M], nearer than chance explains.
        groups: [M], samples of the same group are not independent.
        false_flag_rate: that the flags were set for.
        significance: of the verdict, half of it for the number of flags, half for single copies.
    """
    total, flagged, copies = len(groups), int(is_flagged.sum()), int(is_copy.sum())
    counts = [held_out[name].count_p_value(space.is_flagged, groups) for name, space in spaces.items()]
    count_p = min(1.0, len(held_out) * min(counts))
    nearest = min(float(space.tail_p_value.min()) for space in spaces.values())
    copy_p = min(1.0, len(held_out) * total * nearest)
    n, num_groups = len(next(iter(held_out.values())).sorted), len(set(groups))
    expected = total * sum(held_out[name].rank for name in held_out) / (n + 1)
    figures = (
        f"{flagged} of {total} samples are flagged as near-copies of a training image; among images of new "
        f"patients at most {expected:.1f} would be, on average"
    )
    chance = f"p = {count_p:.2g}" + (f", by {num_groups} groups of the same source" if num_groups < total else "")
    if copies:
        level = "copies"
        text = (
            f"Copies: {copies} of {total} samples are nearer to a training image than chance explains "
            f"(p = {copy_p:.2g} for the nearest, corrected for {total} samples). {figures}."
        )
    elif count_p <= significance / 2:
        level = "more_near_copies"
        text = f"More near-copies than among held-out real patients: {figures} ({chance})."
    elif not next(iter(held_out.values())).rank:
        level = "undecided"
        needed = math.ceil(len(held_out) / false_flag_rate) - 1
        text = (
            f"Undecided: no single copy stands out, but {n} held-out images are too few to flag near-copies, "
            f"{needed} are needed."
        )
    else:
        level, text = "no_sign", f"No sign of copying: {figures} ({chance})."
    p_value = min(1.0, 2 * min(count_p, copy_p))
    return CopyVerdict(level, text, total, num_groups, flagged, copies, expected, count_p, copy_p, p_value)
