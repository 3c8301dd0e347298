"""Trainings that are killed between two steps and resumed: what the tests of all steps share."""

import pytest
import torch
from monai.handlers import LrScheduleHandler, ValidationHandler

from common.training.checkpoint import TrainingCheckpoint
from common.training.engines import ResumableTrainer


class Killed(BaseException):
    """Stands for a kill -9 between two steps."""


def killable_trainer(
    folder, network, part, optimizer, scheduler, step, sampler, loader, evaluator, keep_best, max_epochs, every, kill_at
):
    """A trainer with checkpoints as the configs put it together, and the losses that it will have had by step.

    `network` is what the step trains, `part` of it what is saved; `kill_at` is the step that it dies before, or None.
    """
    losses = {}

    def update(engine, batch):
        if engine.state.iteration == kill_at:
            raise Killed
        output = step(engine, batch)
        losses[engine.state.iteration] = output["loss"]
        return output

    objects = {"network": part, "optimizer": optimizer, "lr_scheduler": scheduler, "ema": step.ema}
    trainer = ResumableTrainer(
        checkpoint=TrainingCheckpoint(folder / "last.pt", {**objects, "keep_best": keep_best}, {}),
        checkpoint_every_steps=every,
        sampler=sampler,
        validator=evaluator,
        device=torch.device("cpu"),
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),  # asked for by MONAI, not used: the step has its own
        iteration_update=update,
        decollate=False,
        train_handlers=[
            LrScheduleHandler(scheduler, epoch_level=False, print_lr=False),
            ValidationHandler(1, evaluator),
        ],
    )
    return trainer, losses


def state_of(trainer):
    return {name: item.state_dict() for name, item in trainer.checkpoint.objects.items()}


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
