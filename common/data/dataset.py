"""Which sample comes at which step, a pure function of seed and step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..distributed import rank, world_size
from ..seeding import Purpose, derive_seed


class RadiographDataset(Dataset):
    """Items of a data list as `radiograph_items` makes them, loaded and transformed, each with the number of its draw.

    With `in_memory` each item is kept once it was transformed; nobody may change its tensors in place.
    """

    def __init__(self, data: Sequence[dict], transform: Callable[[dict], dict], in_memory: bool = False) -> None:
        self.data = data
        self.transform = transform
        self.kept: dict[int, dict] | None = {} if in_memory else None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        """Load one item; `key` is its index, or (index, number of the draw) as `StepBatchSampler` gives them."""
        index, draw = key if isinstance(key, tuple) else (key, key)
        item = (self.kept or {}).get(index) or self.transform(dict(self.data[index]))
        if self.kept is not None:
            self.kept[index] = item
        return {**item, "draw": draw}


class StepBatchSampler(Sampler):
    """An endless stream of batches that can start at any step.

    The stream is one seeded permutation of the data after the other, cut into global batches of `batch_size × world
    size`; a process takes its slice. So two processes see together what one process with the doubled batch sees,
    nothing is dropped at an epoch's end, and resuming at step n costs nothing: `start_step`, the steps already done, is
    to be set before iterating.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int, start_step: int = 0) -> None:
        if num_items < 1 or batch_size < 1:
            raise ValueError(f"expected at least one item and a batch of one, found {num_items}, {batch_size}")
        self.num_items, self.batch_size, self.seed, self.start_step = num_items, batch_size, seed, start_step
        self.rank, self.world_size = rank(), world_size()

    @property
    def global_batch_size(self) -> int:
        """Samples per optimiser step over all processes."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Steps per epoch: as many as see every item at least once."""
        return -(-self.num_items // self.global_batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of (index, number of the draw), for ever."""

        @lru_cache(maxsize=2)
        def order(number: int) -> NDArray[np.integer]:
            return np.random.default_rng(derive_seed(self.seed, Purpose.ORDER, number)).permutation(self.num_items)

        for step in count(self.start_step):
            first = step * self.global_batch_size + self.rank * self.batch_size
            passes = (divmod(draw, self.num_items) for draw in range(first, first + self.batch_size))
            yield [(int(order(number)[place]), number * self.num_items + place) for number, place in passes]


class TensorBatches:
    """Batches of tensors [n, ...] that are in memory already, on whatever device: picked there, without a process.

    The sampler gives batches of (index, number of the draw), as `StepBatchSampler` does.
    """

    def __init__(self, tensors: Mapping[str, Tensor], sampler: Iterable[list[tuple[int, int]]]) -> None:
        self.tensors, self.sampler = tensors, sampler

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors' rows, with "draw" and "index" [B] on the CPU."""
        for batch in self.sampler:
            index, draw = torch.tensor(batch).T
            picked = {name: tensor[index.to(tensor.device)] for name, tensor in self.tensors.items()}
            yield {**picked, "draw": draw, "index": index}
