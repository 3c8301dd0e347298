"""A chain of trainings from a folder of radiographs to bundles: stages in a work folder, begun once and resumed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import RunError
from ..files import TUNED, read_json, write_json
from ..progress import ProgressBar
from ..provenance import git_state
from .recipe import Stage, read_recipe
from .step_log import read_log, seconds_per_step

STATE_NAME = "state.json"
LOCK_NAME = "lock"
PAUSE_GRACE_SECONDS = 600  # a step, and the writing of a checkpoint, on a slow machine
WAITING, RUNNING, STOPPED, DONE = "waiting", "running", "stopped", "done"
LOWEST_PRIORITY = 19
PASSIVE_THREADS = {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "passive"}  # else whoever shares the machine is starved
CODE_FOLDERS = ("common", "scripts")


class Chain:
    """The stages of a recipe in a work folder.

    A stage runs from a copy of code and bundles that is made when it is begun, so that neither an edit nor a new
    version changes it. Texts of the recipe may name {source}, {data}, {work}, {bundles} (of that copy), {stage}, the
    folder of all stages, and {weights:NAME}, what another stage made.

    Args:
        recipe: YAML with `stages`; see `scripts/recipes`.
        source: folder of radiographs.
        work_dir: of all that the chain makes; one folder is one chain.
        repository: whose code and bundles are used.
        steps: stage to optimiser steps, instead of the recipe's.
        where: columns of the manifest to the value that labelled images must have there; None takes all.
        init_weights: stage to a weight file that its training starts from, such as the last of a work folder that was
            lost; give fewer `steps` then.
    """

    def __init__(
        self,
        recipe: str | Path,
        source: str | Path,
        work_dir: str | Path,
        repository: Path,
        steps: Mapping[str, int] | None = None,
        where: Mapping[str, Any] | None = None,
        init_weights: Mapping[str, str] | None = None,
    ) -> None:
        self.recipe = Path(recipe)
        self.source = Path(source).resolve()
        self.work = Path(work_dir).resolve()
        self.repository = repository
        self.stages = read_recipe(self.recipe)
        starts = {name: Path(path).resolve() for name, path in (init_weights or {}).items()}
        if unknown := {*(steps or {}), *starts} - set(self.trainings):
            raise RunError(f"steps, init_weights: found {sorted(unknown)}; this chain trains {self.trainings}")
        if missing := [str(path) for path in starts.values() if not path.is_file()]:
            raise RunError(f"init_weights: found no file {', '.join(missing)}; expected weights that a training wrote")
        if where and not any(stage.labelled for stage in self.stages.values()):
            raise RunError(f"where: found {where}; no stage of {self.recipe.name} takes labels, so leave it out")
        for name, stage in self.stages.items():
            chosen: dict[str, Any] = {"where": where} if where and stage.labelled else {}
            chosen |= {"init_weights": str(starts[name])} if name in starts else {}
            commands = [{**each, "settings": {**each.get("settings", {}), **chosen}} for each in stage.commands]
            number = (steps or {}).get(name, stage.steps)
            self.stages[name] = replace(stage, steps=number, commands=commands if chosen else stage.commands)

    @property
    def trainings(self) -> list[str]:
        """Names of the stages that train."""
        return [name for name, stage in self.stages.items() if stage.steps]

    def folder(self, name: str) -> Path:
        """Of a stage."""
        return self.work / "stages" / name

    def run_folder(self, name: str) -> Path:
        """Where a stage's workflow writes."""
        return self.folder(name) / "run"

    def state(self, name: str) -> dict[str, Any]:
        """What is known of a stage; empty before it was begun."""
        path = self.folder(name) / STATE_NAME
        return read_json(path) if path.is_file() else {}

    def status(self, name: str) -> str:
        """waiting, running, stopped or done; not done where more steps are asked for, or no weights were chosen."""
        state, stage = self.state(name), self.stages[name]
        status = state.get("status", WAITING)
        is_short = (state.get("steps") or 0) < (stage.steps or 0)
        if status == DONE and (is_short or (stage.weights and "chosen" not in state)):
            return STOPPED
        return STOPPED if status == RUNNING and not self.is_locked() else status

    def steps_done(self, name: str) -> int:
        """Optimiser steps that the stage's log tells of."""
        return max((line["step"] for line in read_log(self.run_folder(name))), default=0)

    def weights(self, name: str) -> Path:
        """The chosen weights of a finished stage.

        Raises:
            RunError: it is not finished.
        """
        chosen = self.state(name).get("chosen")
        if chosen is None:
            raise RunError(f"stage {name} is {self.status(name)} and has no weights yet; run it to its end first")
        return self.run_folder(name) / chosen

    # ---- lock --------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the work folder; one process at a time runs stages in it.

        Raises:
            RunError: another one does; says which.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.work / LOCK_NAME)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{self.work} is in use by process {self.holder()}; wait for it, or pause it") from None
        try:
            write_json(self.work / "holder.json", {"pid": os.getpid()})
            yield
        finally:
            (self.work / "holder.json").unlink(missing_ok=True)
            lock.release()

    def holder(self) -> int | None:
        """Process that holds the work folder, if it said so."""
        path = self.work / "holder.json"
        return read_json(path)["pid"] if path.is_file() else None

    def is_locked(self) -> bool:
        """Whether a process holds the work folder."""
        if not self.work.is_dir():
            return False
        try:
            with FileLock(self.work / LOCK_NAME, timeout=0):
                return False
        except Timeout:
            return True

    def pause(self) -> bool:
        """Ask the process that runs stages to save and stop, and wait for it; False where there is none.

        Raises:
            RunError: it is still there after ten minutes.
        """
        pid = self.holder()
        if pid is None or not self.is_locked():
            return False
        os.kill(pid, signal.SIGTERM)
        for _ in range(PAUSE_GRACE_SECONDS):
            if not self.is_locked():
                return True
            time.sleep(1)
        raise RunError(f"process {pid} was asked to stop {PAUSE_GRACE_SECONDS} s ago and still holds {self.work}")

    # ---- running -----------------------------------------------------------------------------------------------------

    def run(self, name: str, deadline: float | None = None) -> bool:
        """Begin or resume a stage and wait for it; the caller holds the lock.

        Args:
            name: of the stage.
            deadline: `time.monotonic()` at which to save and stop; None for none.

        Returns:
            Whether it is done; else the deadline came.

        Raises:
            RunError: it was begun with other settings, or a command failed; says where its output is.
            SystemExit: with the signal's code, after SIGTERM or Ctrl-C.
        """
        stage, state = self.stages[name], self.state(name)
        described = json.loads(json.dumps([dict(command) for command in stage.commands]))
        if state and state["commands"] != described:
            raise RunError(
                f"stage {name} in {self.work} was begun with other settings than {self.recipe} has now; give another "
                f"work_dir, or delete {self.folder(name)} to begin it anew"
            )
        state = state or {"commands": described, "code": self._freeze(), "git": git_state(), "seconds": 0.0}
        state |= {"status": RUNNING, "steps": stage.steps}
        write_json(self.folder(name) / STATE_NAME, state)
        began, is_done = time.monotonic(), False
        try:
            ran = all(self._command(name, command, state, deadline) for command in stage.commands)
            chosen = self._choose(stage, stage.weights, state, deadline) if ran and stage.weights else None
            state |= {"chosen": chosen} if chosen else {}
            is_done = ran and bool(chosen or not stage.weights)
        finally:
            state["seconds"] += time.monotonic() - began
            state["status"] = DONE if is_done else STOPPED
            write_json(self.folder(name) / STATE_NAME, state)
        return is_done

    def command(self, name: str, command: Mapping[str, Any], code: Path, **more: Any) -> list[str]:
        """Words of a command line, the interpreter first; `more` are settings that replace or add; null drops one."""
        settings = {"output_dir": "{stage}/" + name + "/run", **command.get("settings", {})}
        steps = self.stages[name].steps
        if steps and "bundle" in command:  # rounds of 250 steps where they fit, so that a run can be given more of them
            length = next((size for size in (250, 100, 50, 10) if steps % size == 0), steps)
            settings |= {"epoch_length": length, "max_epochs": steps // length}
        settings = {key: self._fill(value, code) for key, value in {**settings, **more}.items() if value is not None}
        if "script" in command:
            words = [sys.executable, str(code / "scripts" / command["script"])]
            words += [str(self._fill(word, code)) for word in command.get("arguments", ())]
        else:
            bundle = code / "bundles" / command["bundle"]
            configs = [str(bundle / "configs" / each) for each in command["configs"]]
            words = [sys.executable, "-m", "monai.bundle", "run", command.get("run_id", "run")]
            words += ["--bundle_root", str(bundle), "--config_file", str(configs)]
        return words + [word for key, value in settings.items() for word in (f"--{key}", str(value))]

    def _command(self, name: str, command: Mapping[str, Any], state: Mapping[str, Any], deadline: float | None) -> bool:
        code = self.work / "code" / state["code"]
        words = self.command(name, command, code)
        output = self.folder(name) / "output.txt"
        with output.open("a", encoding="utf-8") as stream:
            stream.write("$ " + " ".join(words) + "\n")
            stream.flush()
            child = subprocess.Popen(
                words,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=code,
                env={**os.environ, **PASSIVE_THREADS, "PYTHONPATH": str(code)},
                start_new_session=True,  # Ctrl-C reaches this process alone, which lets the child save
            )
        lower_priority(child.pid)
        stopped_by = self._watch(name, child, deadline)
        if stopped_by is not None:
            raise SystemExit(128 + stopped_by)
        if child.returncode == 0:
            return True
        if child.returncode in (128 + signal.SIGTERM, -signal.SIGTERM):  # the latter before it was ready to save
            return False
        tail = output.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
        raise RunError(f"stage {name} failed with code {child.returncode}; {output} ends:\n" + "\n".join(tail))

    def _watch(self, name: str, child: subprocess.Popen, deadline: float | None) -> int | None:
        """Show progress until the child ends; the signal that this process got meanwhile, or None."""
        received: list[int] = []

        def stop(number: int, frame: object) -> None:
            received.append(number)
            child.terminate()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        total = self.stages[name].steps
        try:
            with ProgressBar(total=total, desc=name, unit="step" if total else "s") as bar:
                while child.poll() is None:
                    if deadline is not None and time.monotonic() > deadline:
                        child.terminate()
                        deadline = None
                    time.sleep(1)
                    bar.update(self.steps_done(name) - bar.n if total else 1)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return received[0] if received else None

    def _choose(self, stage: Stage, weights: str, state: Mapping[str, Any], deadline: float | None) -> str | None:
        """The weights, or the last ones of the longer average where those score better; None where time was up."""
        folder = self.run_folder(stage.name)
        longer = folder / "milestones" / f"step_{stage.steps or 0:06d}_long_ema.pt"
        if stage.choose is None or not longer.is_file():
            return weights
        settings = dict(stage.choose)
        by, kind = settings.pop("by"), settings.pop("kind")
        scores: dict[str, float] = {}
        for path in (folder / weights, longer):
            command = {"script": "score_weights.py", "arguments": [kind, str(path)]}
            if not self._command(stage.name, {**command, "settings": {**settings, "name": path.stem}}, state, deadline):
                return None
            with (folder / "scores.csv").open(encoding="utf-8", newline="") as table:
                row = next(row for row in csv.DictReader(table) if row["name"] == path.stem)
            scores[str(path.relative_to(folder))] = float(row[by])
        return min(scores, key=lambda each: scores[each])

    def _freeze(self) -> str:
        """Copy code and bundles into the work folder, under a digest of them; return it."""
        files = list(frozen_files(self.repository))
        digest = hashlib.sha256()
        for file in files:
            digest.update(str(file.relative_to(self.repository)).encode() + b"\0" + file.read_bytes())
        folder = self.work / "code" / digest.hexdigest()[:16]
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            for file in files:
                target = partial / file.relative_to(self.repository)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target)
            partial.rename(folder)
        return folder.name

    def _fill(self, value: Any, code: Path) -> Any:
        """A value of a recipe with its names filled in; {weights:NAME} is the chosen file of a stage."""
        if not isinstance(value, str) or "{" not in value or value.startswith(("{'", '{"')):
            return value
        if value.startswith("{weights:") and value.endswith("}"):
            return str(self.weights(value[len("{weights:") : -1]))
        places = {"data": self.work / "data", "bundles": code / "bundles", "stage": self.work / "stages"}
        return value.format(source=self.source, work=self.work, **places)


def frozen_files(repository: Path) -> Iterator[Path]:
    """Code, configs, weights, grids and tuned values that a stage may use; no texts, outputs or caches."""
    for folder in CODE_FOLDERS:
        yield from sorted(path for path in (repository / folder).rglob("*") if path.suffix in {".py", ".yaml"})
    for bundle in sorted((repository / "bundles").iterdir()):
        for part in ("configs", "models", "samples"):
            yield from sorted(path for path in (bundle / part).rglob("*") if path.is_file())
        yield from sorted(path for path in (bundle / "docs").rglob("*") if path.suffix == ".yaml" or path.name == TUNED)


def lower_priority(pid: int) -> None:
    """Let everybody else go first: by `nice`, and on Linux by the autogroup, without which nice counts for nothing.

    Only for a process with a session of its own: an autogroup is the whole session, the user's shell included.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, pid, LOWEST_PRIORITY)
        Path(f"/proc/{pid}/autogroup").write_text(str(LOWEST_PRIORITY))
    except (OSError, AttributeError):  # no such file, or another system
        pass


def hours_to_go(chain: Chain, name: str, measured: Sequence[dict[str, Any]] = ()) -> tuple[float | None, float | None]:
    """Seconds per step here, and hours until a training is done; None where nothing was measured."""
    stage = chain.stages[name]
    seconds = seconds_per_step(read_log(chain.run_folder(name)) or list(measured))
    if seconds is None or stage.steps is None:
        return seconds, None
    return seconds, max(0, stage.steps - chain.steps_done(name)) * seconds / 3600
