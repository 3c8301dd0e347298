"""What a training has done, line by line: losses, seconds, validations; read by people, plots and `train_all`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..distributed import is_rank_zero
from ..files import atomic_path

LOG_NAME = "log.jsonl"
Line = dict[str, Any]


def scalars(output: Any) -> dict[str, float]:
    """The loss terms and norms in a step's output: everything that is a float."""
    found = output if isinstance(output, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, float)}


class StepLog:
    """`log.jsonl` of a run folder: a line for every so many steps, and one for each validation.

    A line of steps holds `step` (the last one), `seconds` (of all steps since the line before) and the means of the
    loss terms over them; one of a validation `step` and `validation`, its metrics. A resumed run takes back what lies
    beyond its checkpoint, so that the file reads like that of an uninterrupted one.

    Args:
        folder: of the run.
        every_steps: between two lines.
    """

    def __init__(self, folder: str | Path, every_steps: int = 20) -> None:
        self.path = Path(folder) / LOG_NAME
        self.every_steps = every_steps
        self.sums: dict[str, float] = {}
        self.since = time.perf_counter()

    def attach(self, trainer: Engine, validator: Engine) -> None:
        """Follow both; only rank 0 writes."""
        if is_rank_zero():
            trainer.add_event_handler(Events.STARTED, self._start)
            trainer.add_event_handler(Events.GET_BATCH_STARTED, self._begin_step)
            trainer.add_event_handler(Events.ITERATION_COMPLETED, self._end_step)
            validator.add_event_handler(Events.COMPLETED, self._write_validation, trainer)

    def state_dict(self) -> dict[str, float]:
        """Sums over the steps since the last line, for the checkpoint."""
        return dict(self.sums)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from `state_dict()`."""
        self.sums = dict(state)

    def _start(self, trainer: Engine) -> None:
        self.every_steps = min(self.every_steps, trainer.state.epoch_length or self.every_steps)
        kept = [line for line in read_log(self.path.parent) if line["step"] <= trainer.state.iteration]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def _begin_step(self) -> None:
        self.since = time.perf_counter()

    def _end_step(self, trainer: Engine) -> None:
        found = scalars(trainer.state.output)
        for name, value in {"steps": 1.0, "seconds": time.perf_counter() - self.since, **found}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if trainer.state.iteration % self.every_steps == 0:
            steps, seconds = self.sums.pop("steps"), self.sums.pop("seconds")
            means = {name: total / steps for name, total in self.sums.items()}
            self._append({"step": trainer.state.iteration, "seconds": round(seconds, 3), **means})
            self.sums = {}

    def _write_validation(self, validator: Engine, trainer: Engine) -> None:
        metrics = {name: float(value) for name, value in validator.state.metrics.items()}
        self._append({"step": trainer.state.iteration, "validation": metrics})

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(line)) + "\n")


def read_log(folder: str | Path) -> list[Line]:
    """The lines of a run folder's log, without a last one that a kill cut short; none where there is no log."""
    path = Path(folder) / LOG_NAME
    lines: list[Line] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def seconds_per_step(lines: list[Line], last: int = 20) -> float | None:
    """Mean over the last lines of steps; None before there are any."""
    steps = [line for line in lines if "seconds" in line]
    if not steps:
        return None
    before = [0, *(line["step"] for line in steps)][-last - 1 :]
    return sum(line["seconds"] for line in steps[-last:]) / (steps[-1]["step"] - before[0])
