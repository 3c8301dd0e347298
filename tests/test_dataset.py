from collections import Counter
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from common.data.dataset import RadiographDataset, StepBatchSampler, TensorBatches


def batches(sampler, count):
    return list(islice(iter(sampler), count))


def test_every_item_comes_once_per_pass_and_batches_cross_passes():
    sampler = StepBatchSampler(num_items=10, batch_size=4, seed=0)
    assert len(sampler) == 3
    drawn = [index for batch in batches(sampler, 5) for index, _ in batch]
    assert Counter(drawn) == Counter(dict.fromkeys(range(10), 2))
    assert sorted(drawn[:10]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    for nothing in ((0, 1), (1, 0)):
        with pytest.raises(ValueError):
            StepBatchSampler(*nothing, seed=0)


def test_the_stream_is_the_seeds_and_starting_at_a_step_is_its_tail():
    whole = batches(StepBatchSampler(7, 3, seed=4), 12)
    assert batches(StepBatchSampler(7, 3, seed=4, start_step=5), 7) == whole[5:]
    assert batches(StepBatchSampler(7, 3, seed=5), 12) != whole


def test_two_processes_share_what_one_with_the_doubled_batch_sees():
    shares = []
    for rank in range(2):
        sampler = StepBatchSampler(9, 2, seed=3)
        sampler.rank, sampler.world_size = rank, 2
        shares.append(batches(sampler, 6))
    together = [first + second for first, second in zip(*shares, strict=True)]
    assert together == batches(StepBatchSampler(9, 4, seed=3), 6)


def test_items_keep_their_columns_and_carry_the_number_of_the_draw():
    data = [{"image": number, "source": "a"} for number in range(3)]
    dataset = RadiographDataset(data, transform=lambda item: {**item, "image": torch.full((1, 2, 2), item["image"])})
    loader = DataLoader(dataset, batch_sampler=StepBatchSampler(3, 2, seed=0))
    first, second = islice(iter(loader), 2)
    assert first["image"].shape == (2, 1, 2, 2)
    assert torch.cat([first["draw"], second["draw"]]).tolist() == [0, 1, 2, 3]
    assert first["source"] == ["a", "a"]
    assert data[0] == {"image": 0, "source": "a"}


def test_items_in_memory_are_transformed_once_and_have_the_number_of_their_draw():
    calls = []

    def transform(item):
        calls.append(item["image"])
        return item

    dataset = RadiographDataset([{"image": "a"}, {"image": "b"}], transform, in_memory=True)
    drawn = [dataset[key] for key in [(0, 0), (1, 1), (0, 2), (0, 3)]]
    assert calls == ["a", "b"] and [item["draw"] for item in drawn] == [0, 1, 2, 3]
    assert [item["image"] for item in drawn] == ["a", "b", "a", "a"]


def test_batches_of_what_is_in_memory_are_those_of_a_loader():
    dataset = RadiographDataset([{"image": torch.tensor([float(number)])} for number in range(5)], transform=dict)
    tensors = {"image": torch.arange(5.0)[:, None]}
    loader = DataLoader(dataset, batch_sampler=StepBatchSampler(5, 3, seed=0))
    batches = TensorBatches(tensors, StepBatchSampler(5, 3, seed=0))
    for expected, found in islice(zip(loader, batches, strict=False), 4):
        assert torch.equal(found["image"], expected["image"]) and torch.equal(found["draw"], expected["draw"])
        assert torch.equal(found["index"], found["image"][:, 0].long())
