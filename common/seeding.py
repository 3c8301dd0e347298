"""Seeds as pure functions of what they are for, so that a resumed run draws what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

SEED_BITS = 32  # torch's CPU generator reads no more of a seed
SEED_STRIDE = 0x9E3779B9  # odd, so that 2^32 samples of a run have different seeds; golden ratio, so that none are near


class Purpose(IntEnum):
    """What a seed is for, so that no two purposes share a random stream."""

    ORDER = 1
    PATCH = 2
    POSTERIOR = 3
    VIEW = 4
    NOISE = 5
    TIMESTEP = 6
    CONTEXT_DROP = 7
    SAMPLING = 8
    PRIOR = 9
    STRATEGY = 10
    AUGMENTATION = 11
    DROPOUT = 12
    MASK = 13
    LABEL_BUDGET = 14


def derive_seed(*parts: int) -> int:
    """Mix non-negative integers (run seed, purpose, sample number ...) into one well-spread 63-bit seed."""
    low, high = np.random.SeedSequence(parts).generate_state(2, np.uint32)
    return int(low) | (int(high) & 0x7FFFFFFF) << 32


def torch_seed(*parts: int) -> int:
    """`derive_seed` within the bits that torch's CPU generator reads."""
    return derive_seed(*parts) % 2**SEED_BITS


def sample_seed(seed: int, number: int) -> int:
    """Seed of the noise of a run's sample; different for all samples of a run, and such that torch tells them apart."""
    return (derive_seed(seed, Purpose.SAMPLING) + number * SEED_STRIDE) % 2**SEED_BITS


def seeded_normal(seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise [B, *shape] on the CPU, sample i drawn from its own seed.

    A sample's noise then depends neither on the batch it is in nor on the process that computes it.
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@contextmanager
def seeded_dropout(device: torch.device, *parts: int) -> Iterator[None]:
    """Seed torch's global generators, from which dropout draws, within the block; they are left as they were.

    Args:
        device: where the network is.
        *parts: of the seed, as of `derive_seed`; dropout differs between processes only if the rank is among them.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(*parts))
        yield
