"""From a folder of radiographs to measured, packaged bundles: one chain of trainings, stage by stage, resumable.

python scripts/train_all.py plan DIR --work_dir WORK     # stages, steps, seconds per step measured here, hours to go
python scripts/train_all.py run DIR --work_dir WORK      # starts or resumes; Ctrl-C saves and stops
python scripts/train_all.py pause DIR --work_dir WORK    # asks a run elsewhere to save and stop
python scripts/train_all.py ship DIR --work_dir WORK     # finished weights into the bundles, with a record of how
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from common.command_line import run_command
from common.data.datalist_sources import MANIFEST_NAME
from common.data.datalists import radiograph_items
from common.errors import RunError
from common.files import atomic_path, read_json, write_json
from common.fingerprint import file_sha256, json_sha256
from common.training.shipping import loss_curve, set_defaults, ship_weights
from common.training.stages import DONE, PASSIVE_THREADS, Chain, hours_to_go
from common.training.step_log import LOG_NAME, read_log

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = REPOSITORY / "scripts" / "recipes"
FEW_IMAGES = 5000  # with fewer, a chain begins from the weights that ship
MEASURED_STEPS = 4
MEASURED_IMAGES = 40


def plan(
    dataset_dir: str,
    *,
    work_dir: str,
    chain: str = "cxr",
    from_scratch: bool | None = None,
    steps: Mapping[str, int] | None = None,
    where: Mapping[str, Any] | None = None,
    init_weights: Mapping[str, str] | None = None,
    measure: bool = True,
) -> None:
    """Print stages, steps, seconds per step measured here, hours to go and state.

    Args:
        dataset_dir: folder of radiographs, or of a manifest.csv.
        work_dir: of the chain.
        chain: cxr or dental; or the path of a recipe of your own.
        from_scratch: start from nothing; None does where there are 5,000 images or more.
        steps: stage to optimiser steps, instead of the recipe's.
        where: which labelled images to take, such as {'set': 'periapical'}, by columns of the manifest; None takes all.
        init_weights: stage to a weight file that its training starts from, as after a lost work folder, for the steps
            that are left.
        measure: run a few steps of the trainings that have no log yet; minutes, once.
    """
    made = open_chain(dataset_dir, work_dir, chain, from_scratch, steps, where, init_weights)
    rows, to_go, problems = [], [], []
    for name, stage in made.stages.items():
        taken = made.state(name).get("seconds", 0.0) / 3600
        state = made.status(name) + (f" after {taken:.2f} hours" if taken else "")
        if stage.steps is None:
            rows.append([name, "", "", "", state])
            continue
        logged = read_log(made.run_folder(name))
        if measure and not logged:
            logged, problem = measured(made, name)
            problems += [f"?: {name} failed when tried: {problem}"] if problem else []
        seconds, hours = hours_to_go(made, name, logged)
        done = made.steps_done(name)
        to_go.append(hours)
        rows.append([name, f"{done} of {stage.steps}", _number(seconds, 2), _number(hours, 1), state])
    heading = ["stage", "steps", "s/step", "hours to go", "state"]
    widths = [max(len(row[column]) for row in [heading, *rows]) for column in range(len(heading))]
    for row in [heading, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not made.trainings:
        done = sum(made.status(name) == DONE for name in made.stages)
        print(f"{made.recipe.name} trains nothing: {done} of {len(made.stages)} stages are done, in {made.work}")
        print("what the others take is not known before they have run")
        return
    known = [hours for hours in to_go if hours is not None]
    total = ("" if len(known) == len(to_go) else "at least ") + _number(sum(known), 1) if known else "?"
    print(f"{total} hours of training to go on this machine, recipe {made.recipe.name}, in {made.work}")
    if measure:
        print("\n".join(["measured as the machine is now; other work on it makes it longer", *problems]))
    elif len(known) < len(to_go):
        words = f"{made.source} --work_dir {made.work} --chain {chain}"
        print(f"?: not measured; this does it, once and in minutes: python scripts/train_all.py plan {words}")


def run(
    dataset_dir: str,
    *,
    work_dir: str,
    chain: str = "cxr",
    from_scratch: bool | None = None,
    steps: Mapping[str, int] | None = None,
    where: Mapping[str, Any] | None = None,
    init_weights: Mapping[str, str] | None = None,
    only: str | Sequence[str] | None = None,
    hours: float | None = None,
) -> None:
    """Start or resume the stages in their order; stages that are done are left alone.

    Args:
        dataset_dir: as of plan.
        work_dir: as of plan.
        chain: as of plan.
        from_scratch: as of plan.
        steps: as of plan; a training can be given more as long as its learning rate has not begun to decay.
        where: as of plan.
        init_weights: as of plan.
        only: names of stages.
        hours: save and stop after so many.
    """
    made = open_chain(dataset_dir, work_dir, chain, from_scratch, steps, where, init_weights)
    wanted = [only] if isinstance(only, str) else list(only or made.stages)
    unknown = set(wanted) - set(made.stages)
    if unknown:
        raise RunError(f"only: found {sorted(unknown)}; the stages are {list(made.stages)}")
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    with made.locked():
        for name in made.stages:
            if name not in wanted or made.status(name) == DONE:
                continue
            if not made.run(name, deadline):
                print(f"stopped in stage {name} after {hours} hours; the same command goes on")
                return
            print(f"{name}: done in {made.state(name)['seconds'] / 3600:.2f} hours, in {made.folder(name)}")
    print(f"all done: {', '.join(wanted)}, in {made.work}")


def pause(dataset_dir: str, *, work_dir: str, chain: str = "cxr") -> None:
    """Ask the process that runs stages in work_dir to save and stop, and wait until it has.

    Args:
        dataset_dir: as of plan.
        work_dir: as of plan.
        chain: as of plan.
    """
    made = open_chain(dataset_dir, work_dir, chain, False, None)
    print("saved and stopped" if made.pause() else f"nothing runs in {made.work}")


def ship(
    dataset_dir: str,
    *,
    work_dir: str,
    chain: str = "cxr",
    from_scratch: bool | None = None,
    only: str | Sequence[str] | None = None,
    milestone: str | None = None,
    bundles_dir: str | None = None,
) -> None:
    """Copy finished weights into the bundles, in half precision, with a record of how they were made.

    Beside the weights go docs/training/STAGE.json, STAGE.png (the loss curve) and STAGE.jsonl (the log), and what the
    recipe overrides becomes the default of the bundle's configs.

    Args:
        dataset_dir: as of plan.
        work_dir: as of plan.
        chain: as of plan.
        from_scratch: as of plan.
        only: names of stages; all finished trainings by default.
        milestone: ship these weights in the stage's run folder, though it is not finished; the record says so.
        bundles_dir: where the bundles are; made from this repository's where there are none.
    """
    made = open_chain(dataset_dir, work_dir, chain, from_scratch, None)
    begun = {name: made.state(name)["steps"] for name in made.trainings if made.state(name)}  # as --steps said then
    made = open_chain(dataset_dir, work_dir, chain, from_scratch, begun)
    bundles = REPOSITORY / "bundles" if bundles_dir is None else Path(bundles_dir)
    if not bundles.exists():
        shutil.copytree(REPOSITORY / "bundles", bundles, ignore=shutil.ignore_patterns("outputs", "eval"))
    wanted = [only] if isinstance(only, str) else list(only or made.trainings)
    for name in wanted:
        if name not in made.trainings:
            raise RunError(f"only: found {name}; the trainings of this chain are {made.trainings}")
        if milestone is None and made.status(name) != DONE:
            raise RunError(f"stage {name} is {made.status(name)}; finish it, or name a milestone of it")
        weights = made.weights(name) if milestone is None else made.run_folder(name) / milestone
        record = training_record(made, name, weights)
        for bundle_name, target in made.stages[name].ships.items():
            bundle = bundles / bundle_name
            command = made.stages[name].commands[0]
            configs = [bundles / command["bundle"] / "configs" / each for each in command["configs"]]
            record["file"] = ship_weights(weights, configs, bundle / target)
            folder = bundle / "docs" / "training"
            write_json(folder / f"{name}.json", record)
            if command["bundle"] == bundle_name:  # log and curve once, where the training is at home
                set_defaults(bundle, recipe_defaults(configs[1:], made.stages[name].defaults))
                with atomic_path(folder / f"{name}.jsonl") as temporary:
                    shutil.copyfile(made.run_folder(name) / LOG_NAME, temporary)
                loss_curve(read_log(made.run_folder(name)), folder / f"{name}.png", name)
            print(f"{bundle / target}: {record['file']['mebibytes']} MiB, {record['steps']} steps of stage {name}")


def training_record(made: Chain, name: str, weights: Path) -> dict[str, Any]:
    """How weights came about, in plain JSON types."""
    state, stage = made.state(name), made.stages[name]
    log = [line for line in read_log(made.run_folder(name)) if "seconds" in line]
    runs = read_json(made.run_folder(name) / "run_record.json")["runs"]
    resolved = yaml.safe_load((made.run_folder(name) / runs[0]["resolved_config"]).read_text(encoding="utf-8"))
    done = made.steps_done(name)
    given = f' --where "{resolved["where"]}"' if resolved.get("where") else ""
    started = state["commands"][0].get("settings", {}).get("init_weights")
    if started and started != stage.commands[0].get("settings", {}).get("init_weights"):
        given += f""" --steps "{{'{name}': {stage.steps}}}" --init_weights "{{'{name}': '{Path(started).name}'}}\""""
    return {
        "stage": name,
        "recipe": made.recipe.name,
        "weights": weights.name,
        "steps": done,
        "planned_steps": stage.steps or state.get("steps"),
        "batch_size": resolved["batch_size"],
        "images_seen": done * resolved["batch_size"],
        "hours": round(sum(line["seconds"] for line in log) / 3600, 3),
        "hardware": {"processor": platform.processor() or platform.machine(), "devices": runs[-1]["devices"]}
        | {"cores": os.cpu_count(), "threads": runs[-1]["torch_threads"], "torch": torch.__version__},
        "git": state.get("git"),
        "code_sha256": state["code"],
        "data_sha256": data_digest(made.work / "data"),
        "seed": resolved["seed"],
        "init_weights_sha256": file_sha256(Path(file)) if (file := resolved.get("init_weights")) else None,
        "resumed": len(runs) - 1,
        "command": f"python scripts/train_all.py run DIR --chain {made.recipe.stem} --only {name}{given}",
        "final": log[-1] if log else None,
    }


def recipe_defaults(overrides: Sequence[Path], keys: Sequence[str]) -> dict[str, Any]:
    """The values that override files give to some keys."""
    merged: dict[str, Any] = {}
    for path in overrides:
        merged |= yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key: merged[key] for key in keys}


def data_digest(folder: Path) -> str | None:
    """A digest of all images of a manifest and their splits, in any order; None where there is none."""
    if not (folder / MANIFEST_NAME).is_file():
        return None
    items = radiograph_items(folder, "all", 0.0, 0)
    return json_sha256(sorted(f"{file_sha256(item['image'])} {item.get('split', '')}" for item in items))


def open_chain(
    dataset_dir: str,
    work_dir: str,
    chain: str,
    from_scratch: bool | None,
    steps: Mapping[str, int] | None,
    where: Mapping[str, Any] | None = None,
    init_weights: Mapping[str, str] | None = None,
) -> Chain:
    """The chain of a recipe's name or path; RunError where there is no such recipe."""
    path = Path(chain) if str(chain).endswith((".yaml", ".yml")) else RECIPES / f"{chain}.yaml"
    scratch = path.with_name(f"{path.stem}_from_scratch.yaml")  # none where the recipe begins from nothing anyway
    if from_scratch is None and scratch.is_file():
        from_scratch = len(radiograph_items(dataset_dir, "all", 0.0, 0)) >= FEW_IMAGES
    if from_scratch and not scratch.is_file():
        raise RunError(f"from_scratch: found no {scratch.name} beside {path.name}; leave it out")
    path = scratch if from_scratch else path
    if not path.is_file():
        raise RunError(f"chain: found {chain}; expected the path of a recipe, or one of {_recipes()}")
    return Chain(path, dataset_dir, work_dir, REPOSITORY, steps, where, init_weights)


def measured(made: Chain, name: str) -> tuple[list[dict[str, Any]], str]:
    """The log of a few steps of a training, made once on a few images, and "" or why it cannot be run."""
    folder, problem = made.work / "measured" / name, ""
    if not read_log(folder):
        print(f"{name}: measured by a few steps, once; a minute or more", flush=True)
        command = made.stages[name].commands[0]
        short = {"output_dir": folder, "cache_dir": made.work / "measured" / "store", "limit": MEASURED_IMAGES}
        short |= {"max_epochs": 1, "epoch_length": MEASURED_STEPS, "dataset_dir": made.source}
        short |= {"num_components": MEASURED_IMAGES // 2}  # of the prior; cannot be more than images
        known = {key: value for key, value in short.items() if key in _settings(command)}
        known |= {key: None for key, value in command.get("settings", {}).items() if "{weights:" in str(value)}
        try:
            words = made.command(name, command, REPOSITORY, **known)
        except RunError as error:
            return [], str(error)
        environment = {**os.environ, **PASSIVE_THREADS, "PYTHONPATH": str(REPOSITORY)}
        folder.mkdir(parents=True, exist_ok=True)
        output = folder / "output.txt"
        with output.open("w") as stream:
            settings: dict[str, Any] = {"stdout": stream, "stderr": subprocess.STDOUT, "env": environment}
            done = subprocess.run(words, cwd=REPOSITORY, check=False, **settings)
        if done.returncode != 0:
            lines = output.read_text(encoding="utf-8", errors="replace").split("\n")
            said = next((line for line in reversed(lines) if line.strip()), f"exit code {done.returncode}")
            problem = f"{said.strip()} (all of it in {output})"
    return read_log(folder), problem


def _settings(command: Mapping[str, Any]) -> set[str]:
    path = REPOSITORY / "bundles" / command["bundle"] / "configs" / command["configs"][0]
    return set(yaml.safe_load(path.read_text(encoding="utf-8")))


def _recipes() -> str:
    return ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml") if "from_scratch" not in path.stem))


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    run_command({"plan": plan, "run": run, "pause": pause, "ship": ship})
