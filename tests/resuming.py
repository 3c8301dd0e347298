"""Trainings that are killed between two steps and resumed: what the tests of all steps share."""

import signal

import pytest
import torch

from common.training.trainer import Trainer


class Killed(BaseException):
    """Stands for a kill -9 between two lines."""


def killable_trainer(folder, step, kill_at=None, sigterm_at=None, **kwargs):
    """A trainer as the configs put it together, and the losses that it will have had by step.

    Args:
        folder: of the run.
        step: what is done each step.
        kill_at: the step that it dies before, or None.
        sigterm_at: the step before which it gets SIGTERM, or None.
        **kwargs: of `Trainer`.
    """
    losses = {}

    class Update:
        ema = step.ema

        def __call__(self, engine, batch):
            if engine.state.iteration == kill_at:
                raise Killed
            if engine.state.iteration == sigterm_at:
                signal.raise_signal(signal.SIGTERM)
            output = step(engine, batch)
            losses[engine.state.iteration] = output["loss"] if "loss" in output else output["l1"]
            return output

    trainer = Trainer(
        output_dir=str(folder),
        device=torch.device("cpu"),
        loss_function=torch.nn.MSELoss(),  # asked for by MONAI, not used: the step has its own
        iteration_update=Update(),
        **kwargs,
    )
    return trainer, losses


def state_of(trainer):
    return {name: item.state_dict() for name, item in trainer.checkpoint.objects.items()} | {"best": trainer.best}


def assert_equal_states(first, second):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal_states(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal_states(one, other)
    else:
        assert first == second


def whole_run(trainer, losses):
    """States, losses and last validation of a run that nobody kills."""
    trainer.run()
    return state_of(trainer), losses, trainer.validator.state.metrics


def assert_resumes(make_trainer, kill_at, expected):
    """Kill, make everything anew, go on: all equals `whole_run` to the bit.

    `make_trainer(kill_at)` gives a new trainer of the same folder, and its losses.
    """
    trainer, losses = make_trainer(kill_at)
    with pytest.raises(Killed):
        trainer.run()
    resumed, more_losses = make_trainer(None)
    torch.manual_seed(999)  # the global generator must not matter
    states, _, metrics = whole_run(resumed, more_losses)
    assert losses | more_losses == expected[1]
    assert_equal_states(states, expected[0])
    assert metrics == expected[2]
