"""What a run was, written beside its checkpoints: resolved config, commit, seed, packages and devices."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigWorkflow

from .. import __version__
from ..config_graph import find_workflow
from ..distributed import is_rank_zero, world_size
from ..files import atomic_path
from ..provenance import command_line, git_state

RECORD_NAME = "run_record.json"
CONFIG_STEM = "resolved_config"


def write_run_record(output_dir: str, seed: int | None = None) -> None:
    """Add this run to `<output_dir>/run_record.json` and its config as `resolved_config.yaml`; for the run list.

    A resumed run appends to the record. Its config gets a file of its own (`resolved_config_2.yaml`) when it differs
    from all those already there, so the first one always stands. Only rank 0 writes, and a file is either the old or
    the new one, never half of it. Outside of a `ConfigWorkflow` there is no run, and nothing is written.

    Args:
        output_dir: where the checkpoints of this run go; made if need be.
        seed: the seed of this run; None when it has none.

    Raises:
        ValueError: when the record there is not one of ours.
    """
    workflow = find_workflow()
    if workflow is None or not is_rank_zero():
        return
    folder = Path(output_dir)
    record_path = folder / RECORD_NAME
    runs = _previous_runs(record_path)
    entry = describe_run(workflow, seed)
    entry["resolved_config"] = _write_config(folder, workflow)
    with atomic_path(record_path) as temporary:
        temporary.write_text(json.dumps({"runs": [*runs, entry]}, indent=2) + "\n", encoding="utf-8")


def describe_run(workflow: ConfigWorkflow, seed: int | None) -> dict[str, Any]:
    """One entry of the record, in plain JSON types."""
    meta = workflow.parser.get("_meta_") or {}
    return {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config_dir": str(Path(workflow.config_root_path).resolve()),
        "run_id": workflow.run_id,
        "bundle_version": meta.get("version"),
        "command": command_line(),
        "seed": seed,
        "common_version": __version__,
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
        "world_size": world_size(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
        "cuda": torch.version.cuda,
        "packages": _package_versions(),
    }


def _package_versions() -> dict[str, str]:
    """Every installed distribution, like `pip freeze`: a difference may come from any of them."""
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _previous_runs(path: Path) -> list[Any]:
    """The runs recorded so far in this folder."""
    if not path.exists():
        return []
    problem = f"{path}: expected a record with a list 'runs'; move this file away or choose another output_dir"
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(problem) from error
    if not isinstance(runs, list):
        raise ValueError(problem)
    return runs


def _write_config(folder: Path, workflow: ConfigWorkflow) -> str:
    """Write the merged config, unless it is there already; return the name of the file that holds it."""
    config = {key: _plain(value) for key, value in workflow.parser.get().items() if key != "_meta_"}
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
    path, number = folder / f"{CONFIG_STEM}.yaml", 1
    while path.exists():
        if path.read_text(encoding="utf-8") == text:
            return path.name
        number += 1
        path = folder / f"{CONFIG_STEM}_{number}.yaml"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path.name


def _plain(value: Any) -> Any:
    """A value as YAML can hold it; objects passed from Python (a device, a path) become their text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or type(value) in (bool, int, float, str) else str(value)
