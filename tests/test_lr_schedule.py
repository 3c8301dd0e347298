import pytest
import torch

from common.training.lr_schedule import ResumableWarmupCosine


def make_schedule(t_total, lr=1.0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)
    return ResumableWarmupCosine(optimizer, warmup_steps=5, t_total=t_total)


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_it_warms_up_peaks_and_ends_at_zero():
    found = rates(make_schedule(20), 21)
    assert found[0] == 0 and found[5] == pytest.approx(1.0) and found[20] == pytest.approx(0.0, abs=1e-9)
    assert found[5:] == sorted(found[5:], reverse=True)


def test_resumed_equals_uninterrupted():
    whole = rates(make_schedule(20), 20)
    first = make_schedule(20)
    rates(first, 8)
    second = make_schedule(20)
    second.load_state_dict(first.state_dict())
    assert rates(second, 12) == whole[8:]


@pytest.mark.parametrize("change", [{"t_total": 40}, {"lr": 0.5, "t_total": 20}])
def test_a_run_continued_with_other_settings_follows_the_new_ones(change):
    first = make_schedule(20)
    rates(first, 8)
    second = make_schedule(**change)
    second.load_state_dict(first.state_dict())
    steps = change["t_total"] - 8
    assert rates(second, steps) == pytest.approx(rates(make_schedule(**change), change["t_total"])[8:])
