"""The learning rate as a function of the step and of the present config alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ignite.engine import Engine, Events
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import SettingsError


class WarmupConstantDecay(LambdaLR):
    """Linear warm-up, a constant rate, then linear decay to zero (trapezoidal, "WSD": Hägele et al. 2024).

    Until the decay begins no step depends on how long the run will be, so a run can be given more steps by then.

    Args:
        optimizer: whose rate is its peak.
        warmup_steps: from zero; fewer where the decay begins earlier, as in a run of a few steps.
        total_steps: of the run.
        decay_share: of the steps, at the end.

    Raises:
        SettingsError: `decay_share` outside [0, 1], or a negative warm-up.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int, decay_share: float = 0.2) -> None:
        if not 0.0 <= decay_share <= 1.0 or warmup_steps < 0:
            raise SettingsError(
                f"expected a decay_share in [0, 1] and warmup_steps of at least 0, found {decay_share}, {warmup_steps}"
            )
        self.asked_warmup_steps, self.decay_share = warmup_steps, decay_share
        self.set_length(total_steps)
        super().__init__(optimizer, self.factor)

    def set_length(self, total_steps: int) -> None:
        """Plan for so many steps; in the course of a run only before it decays."""
        self.total_steps = total_steps
        self.decay_start = total_steps - round(self.decay_share * total_steps)
        self.warmup_steps = min(self.asked_warmup_steps, self.decay_start)

    def factor(self, step: int) -> float:
        """Share of the peak rate for the step after so many."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if step < self.decay_start:
            return 1.0
        return max(0.0, (self.total_steps - step) / max(1, self.total_steps - self.decay_start))

    def state_dict(self) -> dict[str, Any]:
        """Return the steps done, and where the decay was to begin."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count, "decay_start": self.decay_start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the steps done.

        Raises:
            SettingsError: the decay had begun, or the new one would have, at another step.
        """
        done, there = state_dict["last_epoch"], state_dict["decay_start"]
        if there != self.decay_start and done > min(there, self.decay_start):
            raise SettingsError(
                f"learning rate: {done} steps are done, the decay was to begin at step {there} and now at "
                f"{self.decay_start}; a run can be given another length only before it begins to decay"
            )
        self.last_epoch, self._step_count = done, state_dict["_step_count"]
        self._last_lr = [base * self.factor(done) for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


@dataclass(eq=False)
class TimedLength:
    """Handler of a trainer: as many steps as the time allows, by the seconds per step so far; it moves the rate, too.

    The length is settled when the decay begins. A run that slows down after that is ended in time all the same.

    Args:
        schedule: of the run.
        end: reading of the clock at which the last step is to be done.
        max_steps: more are never done.
        ignored_steps: first ones, slow while the hardware settles.
        clock: to read.
    """

    schedule: WarmupConstantDecay
    end: float
    max_steps: int
    ignored_steps: int = 20
    clock: Callable[[], float] = time.perf_counter

    since: float = field(default=0.0, init=False)
    seconds_per_step: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.schedule.set_length(self.max_steps)

    def attach(self, engine: Engine) -> None:
        """Follow this trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Plan, move the rate, and end the run after its last step."""
        step, now = engine.state.iteration, self.clock()
        if step <= self.ignored_steps:
            self.since = now
        elif step < self.schedule.decay_start:
            self.seconds_per_step = (now - self.since) / (step - self.ignored_steps)
            left = int((self.end - now) / self.seconds_per_step)
            self.schedule.set_length(max(step, min(self.max_steps, step + left)))
        self.schedule.step()
        if step >= self.schedule.total_steps or now >= self.end:
            engine.terminate()
