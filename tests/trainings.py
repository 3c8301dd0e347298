"""Steps outside of a training, and trainings that are killed between two steps and resumed."""

import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.data.phantom import draw_chest_phantom
from common.training.trainer import Trainer

CPU = torch.device("cpu")


def make_engine(network, lr=0.0, iteration=1):
    """As much of an engine as a step or a validation reads."""
    optimizer = torch.optim.Adam(network.parameters(), lr)
    state = SimpleNamespace(device=CPU, iteration=iteration)
    return SimpleNamespace(state=state, network=network, optimizer=optimizer, non_blocking=False)


def phantoms(count, size=16):
    """Chest phantoms [count, 1, size, size]."""
    return torch.stack([draw_chest_phantom(size, size, seed=seed) for seed in range(count)])


def roll(image, mask, seeds):
    """Shift each image and its mask by as much as its seed says."""
    shifts = [seed % 5 for seed in seeds]
    return tuple(
        torch.stack([one.roll(by, -1) for one, by in zip(both, shifts, strict=True)]) for both in (image, mask)
    )


def perfect(schedule, x0):
    """The prediction of whoever knows that every image is x0."""

    def predict(noisy, timesteps):
        alpha, sigma = (part.view(-1, *[1] * (noisy.ndim - 1)) for part in schedule.alpha_sigma(timesteps))
        return schedule.target(x0.expand_as(noisy), (noisy - alpha * x0) / sigma, timesteps)

    return predict


class Known(nn.Module):
    """Predicts by a function of (noisy, timesteps), and keeps what it was given; stands for pass and denoiser."""

    def __init__(self, predict=lambda noisy, timesteps: torch.zeros_like(noisy)):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.predict = predict
        self.given = []

    def encode_tokens(self, tokens):
        return tokens

    def forward(self, noisy, timesteps, tokens=None, drop=None):
        self.given.append(SimpleNamespace(noisy=noisy, timesteps=timesteps, tokens=tokens, drop=drop))
        output = self.predict(noisy, timesteps) + 0.0 * self.weight
        return output if drop is None else (output, None)


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
        loss_function=nn.MSELoss(),  # asked for by MONAI, not used: the step has its own
        iteration_update=Update(),
        **{"device": CPU, **kwargs},
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
