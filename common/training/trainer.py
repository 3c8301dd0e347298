"""The trainer of every workflow: checkpoints and resuming, averages and best weights, progress, log and record.

All that a run needs beside the networks, data, step and numbers of a train.yaml is attached here.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.engines import Evaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.tensorboard import SummaryWriter

from ..checks import check_device, check_numbers
from ..data.dataset import StepBatchSampler
from ..distributed import is_rank_zero, wait_for_all
from ..files import locked_folder
from ..networks.weights import save_weights
from ..progress import ProgressBar, stopwatch
from .checkpoint import TrainingCheckpoint
from .run_record import bundle_command, run_settings, write_run_record
from .step_log import StepLog, scalars

STOPPED_BY_SIGTERM = 128 + signal.SIGTERM  # the exit code that shells and schedulers expect
SHOWN_TERMS = 2  # loss terms in the bar, which is to fit 80 columns
TENSORBOARD_STEPS = 10

_logger = logging.getLogger(__name__)


class Trainer(SupervisedTrainer):
    """SupervisedTrainer that resumes by itself: the same command again continues where the last checkpoint was.

    A checkpoint is written after every round (after its validation), every `checkpoint_every_steps`, and on SIGTERM,
    with which the process exits with code 143. As order, augmentation and noise are functions of the step, the resumed
    run equals the uninterrupted one; with other settings or data it is refused, see `run_settings`. With a
    CheckpointLoader among its handlers, as MONAI Label adds one, it starts from what that loads instead.

    Args:
        output_dir: of checkpoint, weights, log.jsonl, TensorBoard events and record; locked while it trains.
        lr_scheduler: stepped after every step.
        sampler: told at which step to go on.
        validator: run every `val_interval` rounds and after the last one; its network is the average.
        states: further objects to keep in checkpoints, such as a discriminator and its optimizer.
        best_metric: of the validator, by which weights of the average are kept; None keeps the last ones.
        higher_is_better: as of an IoU; else lower is, as of a loss.
        parts: what the description of the weights holds beside the network, see `save_weights`.
        weights_name: of their file.
        val_interval: rounds between validations.
        checkpoint_every_steps: a kill loses at most so many steps.
        milestone_every_steps: weights of both averages of every so many steps are kept; 0 keeps none.
        iteration_update: the step, with its average `ema`.
        next_use: of the weights, which the last line of the log spells out as a command: a config of the bundle and the
            option that takes them, such as "evaluate.yaml --weights_path".
        **kwargs: of `monai.engines.SupervisedTrainer`.

    Raises:
        SettingsError: numbers out of range, or a device that is not there.
    """

    def __init__(
        self,
        *,
        output_dir: str,
        lr_scheduler: LRScheduler,
        sampler: StepBatchSampler,
        validator: Evaluator,
        iteration_update: Any,
        states: Mapping[str, Any] | None = None,
        best_metric: str | None = None,
        higher_is_better: bool = False,
        parts: Mapping[str, Any] | None = None,
        weights_name: str = "model.pt",
        val_interval: int = 1,
        checkpoint_every_steps: int = 200,
        milestone_every_steps: int = 0,
        next_use: str = "",
        **kwargs: Any,
    ) -> None:
        counts = {"val_interval": val_interval, "checkpoint_every_steps": checkpoint_every_steps}
        check_numbers(max_epochs=kwargs["max_epochs"], **counts)
        check_device(kwargs["device"])
        super().__init__(iteration_update=iteration_update, **kwargs)
        self.folder = Path(output_dir)
        self.lr_scheduler, self.sampler, self.validator = lr_scheduler, sampler, validator
        self.ema = iteration_update.ema
        if parts and "image_size" in parts and hasattr(self.ema.network, "check_size"):
            self.ema.network.check_size(parts["image_size"])
        self.best_metric, self.sign = best_metric, -1.0 if higher_is_better else 1.0
        self.best = {"value": self.sign * float("inf"), "step": 0.0}
        self.parts, self.weights_path, self.next_use = parts, self.folder / weights_name, next_use
        self.val_interval = val_interval
        self.starts_anew = any(isinstance(one, CheckpointLoader) for one in kwargs.get("train_handlers") or ())
        objects = {"network": self.network, "optimizer": self.optimizer, "lr_scheduler": lr_scheduler, "ema": self.ema}
        self.checkpoint = TrainingCheckpoint(self.folder / "checkpoint_last.pt", {**objects, **(states or {})})
        self.log = StepLog(self.folder)
        self.is_stopping = False
        self.bar: ProgressBar | None = None
        self.writer: SummaryWriter | None = None
        for engine in (self, validator):
            engine.logger.setLevel(logging.WARNING)  # ignite tells of every run, "resuming from iteration 0"
        self.log.attach(self, validator)
        step = Events.ITERATION_COMPLETED
        self.add_event_handler(step, self._end_step)
        self.add_event_handler(step(every=checkpoint_every_steps), self._save_within_round)
        if milestone_every_steps:
            self.add_event_handler(step(every=milestone_every_steps), self._keep_milestone)
        self.add_event_handler(step, self._stop_if_asked)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._end_round)
        validator.add_event_handler(Events.COMPLETED, self._end_validation)

    def run(self) -> None:  # type: ignore[override]
        """Train to `max_epochs`, from the checkpoint if there is one; do nothing if that is already reached.

        Raises:
            RunError: another process trains in this folder, or it cannot be written to.
            CheckpointMismatchError: the checkpoint there is of another run.
            SystemExit: with code 143, after SIGTERM.
        """
        with locked_folder(self.folder) if is_rank_zero() else nullcontext(), self._asked_by_sigterm():
            self.checkpoint.settings = run_settings(self.data_loader)
            self._resume()
            elapsed, first = stopwatch(), self.state.iteration
            if self.state.epoch < self.state.max_epochs:
                write_run_record(str(self.folder))
                self._train()
            if is_rank_zero():
                command = bundle_command(self.next_use, self.weights_path)
                counts = self.state.iteration - first, elapsed(), self.state.iteration
                known = f"; next:\n{command}" if command else ""
                _logger.info("trained %d steps in %s, %d in all; weights: %s%s", *counts, self.weights_path, known)

    def _resume(self) -> None:
        if not self.checkpoint.exists() or self.starts_anew:
            return
        progress = self.checkpoint.load(self.state.device)
        self.state.iteration = progress["iteration"]
        self.state.epoch = progress["iteration"] // self.state.epoch_length
        self.sampler.start_step = progress["iteration"]
        self.log.load_state_dict(progress.get("log", {}))
        self.best = progress["best"]
        if is_rank_zero():
            _logger.info("resuming from %s at step %d", self.checkpoint.path, self.state.iteration)
        if progress["round_is_open"]:
            self.fire_event(Events.EPOCH_COMPLETED)  # stopped between a round's last step and its validation

    def _train(self) -> None:
        first, total = self.state.iteration, self.state.max_epochs * self.state.epoch_length
        if is_rank_zero():
            self.writer = SummaryWriter(self.folder / "tensorboard", purge_step=first or None)
        try:
            with ProgressBar(total=total, initial=first, desc="training", unit="step", mininterval=1.0) as self.bar:
                super().run()
        except KeyboardInterrupt:
            _logger.warning("stopped at step %d; the same command resumes from a checkpoint", self.state.iteration)
            raise
        finally:
            if self.writer is not None:
                self.writer.close()
        wait_for_all()
        if self.is_stopping:
            _logger.warning("SIGTERM: saved at step %d; the same command resumes there", self.state.iteration)
            raise SystemExit(STOPPED_BY_SIGTERM)

    # ---- steps, rounds, validations ----------------------------------------------------------------------------------

    def _end_step(self) -> None:
        self.lr_scheduler.step()
        terms = scalars(self.state.output)
        if self.writer is not None and self.state.iteration % TENSORBOARD_STEPS == 0:
            for name, value in terms.items():
                self.writer.add_scalar(f"train/{name}", value, self.state.iteration)
        if self.bar is not None:
            shown = list(terms.items())[:SHOWN_TERMS]
            self.bar.set_postfix_str(", ".join(f"{name} {value:.3f}" for name, value in shown), refresh=False)
            self.bar.update()

    def _end_round(self) -> None:
        if self.state.epoch % self.val_interval == 0 or self.state.epoch == self.state.max_epochs:
            self.validator.tensorboard = self.writer  # type: ignore[attr-defined]  # for handlers that draw
            self.validator.run(self.state.epoch)
        self._save()

    def _end_validation(self) -> None:
        metrics = {name: float(value) for name, value in self.validator.state.metrics.items()}
        step = self.state.iteration
        if is_rank_zero():
            _logger.info("validation at step %d: %s", step, ", ".join(f"{k} {v:.5g}" for k, v in metrics.items()))
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(f"val/{name}", value, step)
        if self.best_metric is not None:
            value = metrics[self.best_metric]
            if not self.sign * value < self.sign * self.best["value"]:
                return
            self.best = {"value": value, "step": float(step)}
        if is_rank_zero():
            save_weights(self.ema.network, self.weights_path, self.parts)

    def _keep_milestone(self) -> None:
        for name, network in (("ema", self.ema.network), ("long_ema", self.ema.long_network)):
            if network is not None and is_rank_zero():
                path = self.folder / "milestones" / f"step_{self.state.iteration:06d}_{name}.pt"
                save_weights(network, path, self.parts, half=True)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def _save_within_round(self) -> None:
        # At a round's last step the checkpoint must wait for the validation that follows, or resuming would skip it.
        if self.state.iteration % self.state.epoch_length:
            self._save()

    def _stop_if_asked(self) -> None:
        if self.is_stopping:
            self._save(self.state.iteration % self.state.epoch_length == 0)
            self.terminate()

    def _save(self, round_is_open: bool = False) -> None:
        progress = {"iteration": self.state.iteration, "round_is_open": round_is_open}
        self.checkpoint.save({**progress, "log": self.log.state_dict(), "best": self.best})

    @contextmanager
    def _asked_by_sigterm(self) -> Iterator[None]:
        """Let SIGTERM ask for a stop, where a handler can be set: in the main thread."""

        def ask(*_: object) -> None:
            self.is_stopping = True

        is_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, ask) if is_main else None
        try:
            yield
        finally:
            if is_main:
                signal.signal(signal.SIGTERM, before)
