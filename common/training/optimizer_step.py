"""One step of an optimiser along a sum of named loss terms, which stops at numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from ..amp import autocast
from ..data.augmentation import Augmentation
from ..distributed import rank
from ..errors import NonFiniteLossError, SettingsError
from ..seeding import Purpose, seeded_dropout
from .ema import ExponentialMovingAverage


def optimizer_step(
    network: nn.Module, optimizer: Optimizer, terms: dict[str, Tensor], max_grad_norm: float, step: int
) -> tuple[dict[str, float], float]:
    """Backpropagate the sum of `terms`, clip, and step.

    Args:
        network: whose gradients are clipped.
        optimizer: of its parameters.
        terms: scalar loss terms by name.
        max_grad_norm: gradients are clipped to this norm.
        step: for the message.

    Returns:
        The terms as floats, and the norm of the gradient before clipping.

    Raises:
        NonFiniteLossError: names the step and the terms.
    """
    if not max_grad_norm > 0:
        raise SettingsError(f"max_grad_norm: expected a positive number, found {max_grad_norm}")
    loss = sum(terms.values(), start=next(iter(terms.values())).new_zeros(()))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    grad_norm = clip_grad_norm_(network.parameters(), max_grad_norm)
    logged = {name: term.item() for name, term in terms.items()}
    if not (loss.isfinite() and grad_norm.isfinite()):
        raise NonFiniteLossError(
            f"step {step}: expected finite losses and gradients, found {logged}, gradient norm {grad_norm.item()}; the "
            "step was not taken. Resume from the last checkpoint with a lower learning_rate, or with amp off"
        )
    optimizer.step()
    return logged, grad_norm.item()


@dataclass(kw_only=True, eq=False)
class TrainingStep:
    """What the steps of all workflows have in common; a subclass is MONAI's `iteration_update`.

    Args:
        ema: updated after each step.
        max_grad_norm: gradients are clipped to this norm.
        amp: bfloat16 autocast where the hardware has it.
        seed: of everything random, which is a function of the number of the draw; dropout of the step.
        augmentation: of images and masks, by draw; None for none.
    """

    ema: ExponentialMovingAverage[Any]
    max_grad_norm: float = 1.0
    amp: bool = True
    seed: int = 0
    augmentation: Augmentation | None = None

    @contextmanager
    def forward_pass(self, engine: SupervisedTrainer) -> Iterator[None]:
        """In training mode, with seeded dropout, in the precision that is wanted."""
        device, step = engine.state.device, engine.state.iteration
        engine.network.train()
        with seeded_dropout(device, self.seed, Purpose.DROPOUT, step, rank()), autocast(device, self.amp):
            yield

    def update(self, engine: SupervisedTrainer, terms: dict[str, Tensor]) -> dict[str, float]:
        """Do what ends every step of one network: `optimizer_step`, then update the average.

        Args:
            engine: with the network and its optimiser.
            terms: scalar loss terms by name.

        Returns:
            The terms, grad_norm, and the learning_rate that the step was taken with.

        Raises:
            NonFiniteLossError: names the step; neither weights nor average have changed.
        """
        rate, step = float(engine.optimizer.param_groups[0]["lr"]), engine.state.iteration
        logged, grad_norm = optimizer_step(engine.network, engine.optimizer, terms, self.max_grad_norm, step)
        self.ema.update()
        return {**logged, "grad_norm": grad_norm, "learning_rate": rate}
