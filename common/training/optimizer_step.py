"""One step of an optimiser along a sum of named loss terms, which stops at numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from ..amp import autocast, fused_attention
from ..checks import check_numbers
from ..data.augmentation import Augmentation
from ..distributed import rank
from ..errors import NonFiniteLossError
from ..seeding import Purpose, seeded_dropout
from .ema import ExponentialMovingAverage


def optimizer_step(
    network: nn.Module, optimizer: Optimizer, parts: Iterable[dict[str, Tensor]], max_grad_norm: float, step: int
) -> tuple[dict[str, float], float]:
    """Backpropagate the sum of the terms of each part in turn, clip, and step.

    Args:
        network: whose gradients are clipped.
        optimizer: of its parameters.
        parts: scalar loss terms by name, of each part of a batch; a generator holds the graph of one part at a time.
        max_grad_norm: gradients are clipped to this norm.
        step: for the message.

    Returns:
        The terms as floats, summed over the parts, and the norm of the gradient before clipping.

    Raises:
        NonFiniteLossError: names the step and the terms.
        SettingsError: no positive norm.
    """
    check_numbers(max_grad_norm=max_grad_norm)
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for terms in parts:
        torch.stack([*terms.values()]).sum().backward()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach()
    grad_norm = clip_grad_norm_(network.parameters(), max_grad_norm)
    logged = {name: term.item() for name, term in sums.items()}
    if not (math.isfinite(sum(logged.values())) and grad_norm.isfinite()):
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
        accumulation_steps: parts that a batch is cut into, whose gradients add up: the memory of a part, and the step
            of the whole batch (but for terms that compare the samples of a batch, as `alignment_loss` does).
    """

    ema: ExponentialMovingAverage[Any]
    max_grad_norm: float = 1.0
    amp: bool = True
    seed: int = 0
    augmentation: Augmentation | None = None
    accumulation_steps: int = 1
    part: int = field(default=0, init=False)

    def terms(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Scalar loss terms of a batch by name, each a mean over its samples."""
        raise NotImplementedError

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, float]:
        """Do one step; return the loss terms, learning rate and gradient norm.

        Raises:
            SettingsError: accumulation over fewer than one part.
            NonFiniteLossError: names the step.
        """
        if self.accumulation_steps == 1:
            return self.update(engine, [self.terms(engine, batch)])
        check_numbers(accumulation_steps=self.accumulation_steps)
        return self.update(engine, self._parts(engine, batch))

    def _parts(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
        """Terms of each part, weighted so that their sums are those of the batch."""
        total = len(batch["draw"])
        size = -(-total // self.accumulation_steps)
        for self.part, start in enumerate(range(0, total, size)):
            part = {name: values[start : start + size] for name, values in batch.items()}  # tensors, lists of names
            share = len(part["draw"]) / total
            yield {name: share * term for name, term in self.terms(engine, part).items()}
        self.part = 0

    @contextmanager
    def forward_pass(self, engine: SupervisedTrainer) -> Iterator[None]:
        """In training mode, with seeded dropout, in the precision that is wanted."""
        device = engine.state.device
        engine.network.train()
        seeds = self.seed, Purpose.DROPOUT, engine.state.iteration, rank(), *([self.part] if self.part else [])
        attention = fused_attention(engine.network, device, self.amp)
        with seeded_dropout(device, *seeds), autocast(device, self.amp), attention:
            yield

    def update(self, engine: SupervisedTrainer, parts: Iterable[dict[str, Tensor]]) -> dict[str, float]:
        """Do what ends every step of one network: `optimizer_step` with these parts, then update the average.

        Returns:
            The terms, grad_norm, and the learning_rate that the step was taken with.

        Raises:
            NonFiniteLossError: names the step; neither weights nor average have changed.
        """
        rate, step = float(engine.optimizer.param_groups[0]["lr"]), engine.state.iteration
        logged, grad_norm = optimizer_step(engine.network, engine.optimizer, parts, self.max_grad_norm, step)
        self.ema.update()
        return {**logged, "grad_norm": grad_norm, "learning_rate": rate}
