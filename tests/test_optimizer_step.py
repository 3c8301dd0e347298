import pytest
import torch
from torch import nn

from common.errors import NonFiniteLossError, SettingsError, UserError
from common.training.optimizer_step import optimizer_step


def make_line(weight=2.0):
    """A line y = w·x, and an optimiser that steps by just the gradient."""
    line = nn.Linear(1, 1, bias=False)
    nn.init.constant_(line.weight, weight)
    return line, torch.optim.SGD(line.parameters(), lr=1.0)


def test_the_step_goes_down_the_sum_of_all_terms():
    line, optimizer = make_line()
    output = line(torch.ones(1, 1)).squeeze()
    logged, norm = optimizer_step(
        line, optimizer, [{"a": 3.0 * output, "b": 0.25 * output}], max_grad_norm=10.0, step=1
    )
    assert logged == {"a": 6.0, "b": 0.5}
    assert norm == 3.25
    assert line.weight.item() == 2.0 - 3.25


def test_a_long_gradient_is_clipped_and_its_own_norm_logged():
    line, optimizer = make_line()
    _, norm = optimizer_step(
        line, optimizer, [{"a": 4.0 * line(torch.ones(1, 1)).squeeze()}], max_grad_norm=0.5, step=1
    )
    assert norm == 4.0
    assert line.weight.item() == pytest.approx(1.5, abs=1e-4)


def test_gradients_of_the_step_before_are_forgotten():
    line, optimizer = make_line()
    for _ in range(3):
        _, norm = optimizer_step(line, optimizer, [{"a": line(torch.ones(1, 1)).squeeze()}], max_grad_norm=10.0, step=1)
        assert norm == 1.0
    assert line.weight.item() == -1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_stops_before_the_step(bad):
    line, _ = make_line()
    optimizer = torch.optim.Adam(line.parameters(), lr=1.0)
    terms = {"good": line(torch.ones(1, 1)).squeeze(), "bad": bad * line(torch.ones(1, 1)).squeeze()}
    with pytest.raises(NonFiniteLossError, match=rf"step 9: .*'good': 2\.0, 'bad': {bad}.*lower learning_rate"):
        optimizer_step(line, optimizer, [terms], max_grad_norm=1.0, step=9)
    assert line.weight.item() == 2.0 and not optimizer.state
    assert issubclass(NonFiniteLossError, UserError)


def test_a_gradient_that_is_not_finite_stops_too():
    line, optimizer = make_line(weight=0.0)
    loss = line(torch.ones(1, 1)).squeeze().abs().sqrt()  # 0, with an infinite slope
    with pytest.raises(NonFiniteLossError, match=r"'a': 0\.0.*gradient norm"):
        optimizer_step(line, optimizer, [{"a": loss}], max_grad_norm=1.0, step=1)
    assert line.weight.item() == 0.0


@pytest.mark.parametrize("max_grad_norm", [-1.0, 0, float("nan")])
def test_a_norm_that_would_invert_or_stop_the_training_is_refused(max_grad_norm):
    line, optimizer = make_line()
    with pytest.raises(SettingsError, match="max_grad_norm"):
        optimizer_step(line, optimizer, [{"a": line(torch.ones(1, 1)).squeeze()}], max_grad_norm, step=1)
    assert line.weight.item() == 2.0
