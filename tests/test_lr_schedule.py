import pytest
import torch
from ignite.engine import Engine

from common.errors import SettingsError
from common.training.lr_schedule import TimedLength, WarmupConstantDecay


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


def timed_run(seconds, end, max_steps=10**6):
    """Rates of the steps that were done, and the time at the end, where the n-th step takes seconds(n)."""
    schedule, found, now = make_schedule(10), [], [0.0]

    def step(engine, batch):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        now[0] += seconds(engine.state.iteration)

    engine = Engine(step)
    TimedLength(schedule, end, max_steps, ignored_steps=3, clock=lambda: now[0]).attach(engine)
    engine.run(range(max_steps), max_epochs=1)
    return found, now[0]


def test_a_timed_run_takes_as_many_steps_as_fit_and_decays_over_the_last_fifth():
    found, ended = timed_run(lambda step: 10.0 if step <= 3 else 0.5, end=100.0)
    assert 99.0 <= ended <= 100.0 and len(found) == pytest.approx(143, abs=1)
    assert found[5:113] == [1.0] * 108
    assert found[116:] == pytest.approx([1 - (step - 114.4) / 28.6 for step in range(116, len(found))], abs=0.03)


def test_a_timed_run_adapts_while_the_rate_is_constant_and_ends_in_time_when_the_decay_is_slow():
    found, ended = timed_run(lambda step: 1.0 if step <= 20 else 0.5, end=60.0)
    assert 56.0 <= ended <= 60.0 and found[-1] < 0.1
    found, ended = timed_run(lambda step: 1.0 if step <= 90 else 3.0, end=100.0)
    assert ended <= 103.0 and 85 < len(found) < 100


def test_a_timed_run_has_no_more_steps_than_allowed():
    found, _ = timed_run(lambda step: 0.5, end=1000.0, max_steps=40)
    assert found == rates(make_schedule(40), 40)
