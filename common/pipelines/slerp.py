"""Interpolation along great circles."""

from __future__ import annotations

import torch
from torch import Tensor


def slerp(first: Tensor, second: Tensor, mix: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) over the last axis; directions turn evenly, norms go along linearly.

    Args:
        first: [..., D].
        second: [..., D].
        mix: weight of `second`, broadcast; 0 gives `first`.

    Returns:
        [..., D]; the straight line where the two directions are (nearly) the same or opposite.
    """
    norms = first.norm(dim=-1, keepdim=True), second.norm(dim=-1, keepdim=True)
    units = first / norms[0], second / norms[1]
    # Kahan's angle; the arccosine loses half its digits where directions are nearly the same or opposite.
    distance, sum_length = ((units[0] + sign * units[1]).norm(dim=-1, keepdim=True) for sign in (-1, 1))
    angle = 2.0 * torch.atan2(distance, sum_length)
    sine = angle.sin()
    weights = ((1.0 - mix) * angle).sin() / sine, (mix * angle).sin() / sine
    turned = weights[0] * units[0] + weights[1] * units[1]
    round_way = turned * torch.lerp(norms[0], norms[1], mix.expand_as(norms[0]))
    return torch.where(sine.abs() > 1e-4, round_way, torch.lerp(first, second, mix.expand_as(first)))
