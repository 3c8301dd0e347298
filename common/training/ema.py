"""Exponential moving average of a network's weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class ExponentialMovingAverage(Generic[Network]):
    """A shadow copy of `network` whose weights follow it slowly; `.network` is what to evaluate and ship.

    The decay of the n-th update is min(ema_decay, n / (n + 9)), so that the random start is forgotten at once.
    Buffers are copied, not averaged.

    Args:
        network: the network to follow, already on its device and not wrapped for distribution.
        ema_decay: share of the old average kept per update, in [0, 1).

    Raises:
        ValueError: `ema_decay` outside [0, 1).
    """

    def __init__(self, network: Network, ema_decay: float) -> None:
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay: expected a number in [0, 1), found {ema_decay}")
        self.source = network
        self.network: Network = deepcopy(network)
        self.network.eval().requires_grad_(False)
        self.ema_decay = ema_decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average one step towards the source's present weights."""
        self.num_updates += 1
        decay = min(self.ema_decay, self.num_updates / (self.num_updates + 9))
        average: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = list(self.source.parameters())
        torch._foreach_lerp_(average, current, 1.0 - decay)
        for kept, buffer in zip(self.network.buffers(), self.source.buffers(), strict=True):
            kept.copy_(buffer)

    def state_dict(self) -> dict:
        """Everything a resumed run needs."""
        return {"network": self.network.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`."""
        self.network.load_state_dict(state["network"], strict=True)
        self.num_updates = state["num_updates"]
