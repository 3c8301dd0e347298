"""A MONAI trainer that resumes by itself: the same command again continues where the last checkpoint was."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader
from torch import nn

from ..data.dataset import StepBatchSampler
from ..distributed import is_rank_zero
from ..networks.weights import save_weights
from .checkpoint import TrainingCheckpoint
from .step_log import StepLog

STOPPED_BY_SIGTERM = 128 + signal.SIGTERM  # the exit code that shells and schedulers expect

_logger = logging.getLogger(__name__)


class ResumableTrainer(SupervisedTrainer):
    """SupervisedTrainer that writes a checkpoint every so many steps and starts from it if there is one.

    A checkpoint is written after every epoch (after that epoch's validation) and every `checkpoint_every_steps`.
    Because order, augmentation and noise are functions of the step, the resumed run equals the uninterrupted one.
    What it did is in `log.jsonl` beside the checkpoint, see `StepLog`.
    SIGTERM, with which schedulers announce the end, saves after the step at hand and exits with code 143.
    With a CheckpointLoader among its handlers, as MONAI Label adds one, a run starts from what that loads instead.

    Args:
        checkpoint: what to save and where.
        checkpoint_every_steps: steps between two checkpoints within an epoch.
        sampler: told at which step to go on.
        validator: run after the last epoch too, if the ValidationHandler's interval left it out.
        **kwargs: of `monai.engines.SupervisedTrainer`.
    """

    def __init__(
        self,
        *,
        checkpoint: TrainingCheckpoint,
        checkpoint_every_steps: int,
        sampler: StepBatchSampler,
        validator: Evaluator,
        **kwargs: Any,
    ) -> None:
        if checkpoint_every_steps < 1:
            raise ValueError(f"checkpoint_every_steps: expected at least 1, found {checkpoint_every_steps}")
        super().__init__(**kwargs)
        self.checkpoint = checkpoint
        self.sampler = sampler
        self.validator = validator
        self.starts_anew = any(isinstance(one, CheckpointLoader) for one in kwargs.get("train_handlers") or ())
        self.is_stopping = False
        self.log = StepLog(checkpoint.path.parent)
        self.log.attach(self, validator)
        self.add_event_handler(Events.ITERATION_COMPLETED(every=checkpoint_every_steps), self._save_within_epoch)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_asked)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._validate_last)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._save_epoch)

    def run(self) -> None:  # type: ignore[override]
        """Train to `max_epochs`, from the checkpoint if there is one; do nothing if that is already reached."""
        if self.checkpoint.exists() and not self.starts_anew:
            progress = self.checkpoint.load(self.state.device)
            self.state.iteration = progress["iteration"]
            self.state.epoch = progress["iteration"] // self.state.epoch_length
            self.sampler.start_step = progress["iteration"]
            self.log.load_state_dict(progress.get("log", {}))
            if is_rank_zero():
                _logger.info("resuming from %s at step %d", self.checkpoint.path, self.state.iteration)
            if progress.get("epoch_is_open"):
                self.fire_event(Events.EPOCH_COMPLETED)  # stopped between an epoch's last step and its validation
        if self.state.epoch >= self.state.max_epochs:
            _logger.info("already trained for %d epochs: nothing to do", self.state.epoch)
            return
        try:
            with self._asked_by_sigterm():
                super().run()
        except KeyboardInterrupt:
            _logger.warning(
                "stopped at step %d; the same command resumes from the last checkpoint", self.state.iteration
            )
            raise
        if self.is_stopping:
            _logger.warning("SIGTERM: saved at step %d; the same command resumes there", self.state.iteration)
            raise SystemExit(STOPPED_BY_SIGTERM)

    @contextmanager
    def _asked_by_sigterm(self) -> Iterator[None]:
        """Let SIGTERM ask for a stop, where a handler can be set: in the main thread."""

        def ask(number: int, frame: object) -> None:
            self.is_stopping = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _stop_if_asked(self) -> None:
        if self.is_stopping:
            self._save(self.state.iteration % self.state.epoch_length == 0)
            self.terminate()

    def _validate_last(self) -> None:
        if self.state.epoch == self.state.max_epochs and self.validator.state.epoch != self.state.epoch:
            self.validator.run(self.state.epoch)

    def _save_within_epoch(self) -> None:
        # At an epoch's last step the checkpoint must wait for the validation that follows, or resuming would skip it.
        if self.state.iteration % self.state.epoch_length:
            self._save(False)

    def _save_epoch(self) -> None:
        self._save(False)

    def _save(self, epoch_is_open: bool) -> None:
        log = self.log.state_dict()
        self.checkpoint.save({"iteration": self.state.iteration, "epoch_is_open": epoch_is_open, "log": log})


class KeepBest:
    """Handler of the evaluator: keep the weights with the best value of one metric, in a file of their own.

    Part of the training checkpoint, so that a resumed run knows the best value so far.

    Args:
        metric_name: of the evaluator's metrics; None keeps the last weights, where no metric says what is best (with a
            discriminator).
        network: whose weights to keep (the EMA).
        path: of the weights, see `save_weights`.
        higher_is_better: as of an IoU; else lower is, as of a loss.
        parts: what their description holds beside the network.
    """

    def __init__(
        self,
        metric_name: str | None,
        network: nn.Module,
        path: str,
        higher_is_better: bool = False,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        self.metric_name = metric_name
        self.network = network
        self.path = path
        self.parts = parts
        self.sign = -1.0 if higher_is_better else 1.0
        self.best_value = self.sign * float("inf")

    def attach(self, engine: Engine) -> None:
        """Run after each validation."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the weights if this validation was the best one."""
        if self.metric_name is None:
            if is_rank_zero():
                save_weights(self.network, self.path, self.parts)
            return
        value = float(engine.state.metrics[self.metric_name])
        if self.sign * value < self.sign * self.best_value:
            self.best_value = value
            if is_rank_zero():
                save_weights(self.network, self.path, self.parts)
                _logger.info("%s %.5f is the best so far: wrote %s", self.metric_name, value, self.path)

    def state_dict(self) -> dict[str, float]:
        """Return the best value so far."""
        return {"best_value": self.best_value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from `state_dict()`."""
        self.best_value = state["best_value"]


class Milestones:
    """Handler of the trainer: keep the weights of every so many steps, in half precision, to choose among later.

    Args:
        every_steps: between two; 0 keeps none.
        networks: name to network, such as the averages of two lengths.
        folder: of the files, `step_<number>_<name>.pt`.
        parts: as of `KeepBest`.
    """

    def __init__(
        self,
        every_steps: int,
        networks: Mapping[str, nn.Module | None],
        folder: str,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        if every_steps < 0:
            raise ValueError(f"every_steps: expected 0 or more, found {every_steps}")
        self.every_steps = every_steps
        self.networks = networks
        self.folder = Path(folder)
        self.parts = parts

    def attach(self, engine: Engine) -> None:
        """Write after the steps; only rank 0 does."""
        if self.every_steps and is_rank_zero():
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every_steps), self)

    def __call__(self, engine: Engine) -> None:
        """Write the weights of this step."""
        for name, network in self.networks.items():
            if network is not None:
                path = self.folder / f"step_{engine.state.iteration:06d}_{name}.pt"
                save_weights(network, path, self.parts, half=True)
