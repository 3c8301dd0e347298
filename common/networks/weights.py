"""Weights from a file into a network, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import UserError

Network = TypeVar("Network", bound=nn.Module)


class MissingWeightsError(UserError, FileNotFoundError):
    """There is no weights file where one was expected."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict on the CPU.

    Raises:
        MissingWeightsError: there is no such file; says how to get one.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeightsError(
            f"{path}: no weights there; expected the file that training writes or the bundle ships"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def load_weights(network: Network, path: str | Path) -> Network:
    """Load weights strictly and return the network in eval mode; half precision files become the network's dtype.

    Raises:
        MissingWeightsError: there is no such file.
        RuntimeError: keys or shapes differ from the network's (torch's own message).
    """
    network.load_state_dict(read_weights(path), strict=True)
    return network.eval()


def trainable_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser is to have: those that are not frozen."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
