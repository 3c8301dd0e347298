import pytest
import torch

from common.errors import SettingsError
from common.training.lr_schedule import WarmupConstantDecay


def make_schedule(total_steps, lr=1.0, warmup_steps=5, decay_share=0.2):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)
    return WarmupConstantDecay(optimizer, warmup_steps, total_steps, decay_share)


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_it_warms_up_stays_and_decays_to_zero_over_the_last_fifth():
    found = rates(make_schedule(40), 41)
    assert 0 < found[0] < found[4] < 1.0
    assert found[5:33] == [1.0] * 28
    assert found[33:] == pytest.approx([1 - step / 8 for step in range(1, 9)])


def test_resumed_equals_uninterrupted_in_the_middle_of_the_decay():
    whole = rates(make_schedule(40), 40)
    first = make_schedule(40)
    rates(first, 35)
    second = make_schedule(40)
    second.load_state_dict(first.state_dict())
    assert rates(second, 5) == whole[35:]


@pytest.mark.parametrize("change", [{"total_steps": 80}, {"lr": 0.5, "total_steps": 40}])
def test_before_the_decay_a_run_takes_other_settings(change):
    first = make_schedule(40)
    rates(first, 20)
    second = make_schedule(**change)
    second.load_state_dict(first.state_dict())
    steps = change["total_steps"] - 20
    assert rates(second, steps) == pytest.approx(rates(make_schedule(**change), change["total_steps"])[20:])


@pytest.mark.parametrize("total_steps", [30, 80])
def test_once_it_decays_the_length_is_settled(total_steps):
    first = make_schedule(40)
    rates(first, 34)
    with pytest.raises(SettingsError):
        make_schedule(total_steps).load_state_dict(first.state_dict())


def test_a_run_of_a_few_steps_warms_up_for_fewer_and_may_have_no_decay():
    assert max(rates(make_schedule(3, warmup_steps=200), 3)) == 1.0
    assert rates(make_schedule(2, warmup_steps=0), 3) == [1.0, 1.0, 0.0]
