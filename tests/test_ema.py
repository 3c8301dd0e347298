import pytest
import torch
from torch import nn

from common.training.ema import ExponentialMovingAverage


def test_average_follows_the_stated_formula():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    ema = ExponentialMovingAverage(network, ema_decay=0.5)
    expected = 0.0
    for number, value in enumerate([1.0, 2.0, 4.0], start=1):
        nn.init.constant_(network.weight, value)
        ema.update()
        decay = min(0.5, number / (number + 9))
        expected = decay * expected + (1 - decay) * value
    assert ema.network.weight.item() == pytest.approx(expected, rel=1e-6)


def test_average_is_frozen_and_apart_from_its_source():
    network = nn.BatchNorm1d(2)
    ema = ExponentialMovingAverage(network, ema_decay=0.9)
    assert not ema.network.training
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
    network(torch.randn(8, 2))
    ema.update()
    assert torch.equal(ema.network.running_mean, network.running_mean)
    assert ema.network.weight.data_ptr() != network.weight.data_ptr()


def test_state_round_trip_continues_the_same():
    network = nn.Linear(3, 3)
    first = ExponentialMovingAverage(network, ema_decay=0.99)
    for _ in range(3):
        nn.init.normal_(network.weight)
        first.update()
    second = ExponentialMovingAverage(network, ema_decay=0.99)
    second.load_state_dict(first.state_dict())
    nn.init.normal_(network.weight)
    first.update()
    second.update()
    assert torch.equal(first.network.weight, second.network.weight)


@pytest.mark.parametrize("ema_decay", [-0.1, 1.0])
def test_decay_outside_its_range_is_refused(ema_decay):
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\)"):
        ExponentialMovingAverage(nn.Linear(1, 1), ema_decay)


def test_a_second_average_is_what_one_of_its_length_alone_would_be():
    network = nn.Linear(1, 1)
    both, long = ExponentialMovingAverage(network, 0.5, long_decay=0.95), ExponentialMovingAverage(network, 0.95)
    for value in range(40):
        nn.init.constant_(network.weight, float(value))
        both.update(), long.update()
    assert both.long_network.weight.item() == long.network.weight.item() != both.network.weight.item()
    restored = ExponentialMovingAverage(nn.Linear(1, 1), 0.5, long_decay=0.95)
    restored.load_state_dict(both.state_dict())
    assert torch.equal(restored.long_network.weight, both.long_network.weight)
