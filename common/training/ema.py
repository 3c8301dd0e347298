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
    Buffers are copied, not averaged. A second average of another length tells whether the first has the right one.

    Args:
        network: the network to follow, already on its device and not wrapped for distribution.
        ema_decay: share of the old average kept per update, in [0, 1).
        long_decay: the same of the second average, `.long_network`; None goes without.

    Raises:
        ValueError: a decay outside [0, 1).
    """

    def __init__(self, network: Network, ema_decay: float, long_decay: float | None = None) -> None:
        for name, decay in (("ema_decay", ema_decay), ("long_decay", long_decay)):
            if decay is not None and not 0.0 <= decay < 1.0:
                raise ValueError(f"{name}: expected a number in [0, 1), found {decay}")
        self.source = network
        self.network: Network = deepcopy(network).eval().requires_grad_(False)
        self.ema_decay = ema_decay
        self.long_decay = long_decay
        self.long_network: Network | None = None if long_decay is None else deepcopy(self.network)
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages one step towards the source's present weights."""
        self.num_updates += 1
        self._follow(self.network, self.ema_decay)
        if self.long_network is not None and self.long_decay is not None:
            self._follow(self.long_network, self.long_decay)

    def _follow(self, network: Network, ema_decay: float) -> None:
        decay = min(ema_decay, self.num_updates / (self.num_updates + 9))
        average: list[Tensor] = list(network.parameters())
        current: list[Tensor] = list(self.source.parameters())
        torch._foreach_lerp_(average, current, 1.0 - decay)
        for kept, buffer in zip(network.buffers(), self.source.buffers(), strict=True):
            kept.copy_(buffer)

    def state_dict(self) -> dict:
        """Everything a resumed run needs."""
        state = {"network": self.network.state_dict(), "num_updates": self.num_updates}
        return state if self.long_network is None else {**state, "long_network": self.long_network.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`."""
        self.network.load_state_dict(state["network"], strict=True)
        if self.long_network is not None:
            self.long_network.load_state_dict(state["long_network"], strict=True)
        self.num_updates = state["num_updates"]
