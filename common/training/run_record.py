"""What a run was, written beside its checkpoints: resolved config, commit, seed, packages and devices."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shlex
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigWorkflow

from .. import __version__
from ..config_graph import find_workflow, iter_items
from ..distributed import is_rank_zero, world_size
from ..files import atomic_path, write_json
from ..fingerprint import file_sha256, json_sha256
from ..io.scaling import reading_settings
from ..provenance import command_line, git_state

RECORD_NAME = "run_record.json"
CONFIG_STEM = "resolved_config"
IN_BUNDLE = "$@bundle_root + '"  # how configs name files that ship
HARMLESS = frozenset(
    {"bundle_root", "dataset_dir", "output_dir", "cache_dir", "report_dir", "device", "use_flash_attention"}
    | {"is_compiled", "accumulation_steps", "num_workers", "in_memory", "max_unreadable_share"}
    | {"max_epochs", "epoch_length", "checkpoint_every_steps", "milestone_every_steps", "val_interval", "next_use"}
    | {"validate", "initialize", "run", "training", "finalize", "_meta_"}
)
"""Top-level keys that may differ where a run is resumed: where things are, how far and how fast it goes, and what it
shows. All others make another run, and so do other data."""


def write_run_record(output_dir: str) -> None:
    """Add this run to `<output_dir>/run_record.json` and its config as `resolved_config.yaml`.

    A resumed run appends to the record. Its config gets a file of its own (`resolved_config_2.yaml`) when it differs
    from all those already there. Only rank 0 writes. Outside of a `ConfigWorkflow` there is no run to write of.

    Raises:
        ValueError: when the record there is not one of ours.
    """
    workflow = find_workflow()
    if workflow is None or not is_rank_zero():
        return
    path, runs = Path(output_dir) / RECORD_NAME, []
    if path.exists():
        try:
            runs = list.copy(json.loads(path.read_text(encoding="utf-8"))["runs"])  # TypeError for another type
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected a record with a list 'runs'; move this file away or choose another output_dir"
            ) from error
    meta = workflow.parser.get("_meta_") or {}
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    entry = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config_dir": str(Path(workflow.config_root_path).resolve()),
        "run_id": workflow.run_id,
        "bundle_version": meta.get("version"),
        "command": command_line(),
        "seed": workflow.parser.get("seed", None),
        "common_version": __version__,
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
        "world_size": world_size(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
        "cuda": torch.version.cuda,
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
        "resolved_config": _write_config(path.parent, workflow),
    }
    write_json(path, {"runs": [*runs, entry]})


def bundle_command(use: str, weights: Path) -> str:
    """A command for the bundle and the data of this run; "" outside of a `ConfigWorkflow`.

    Args:
        use: a config of the bundle and options, the last one for the weights, as "evaluate.yaml --weights_path".
        weights: their file.
    """
    workflow = find_workflow()
    if workflow is None or not use:
        return ""
    config, *options = use.split()
    words = ["python", "-m", "monai.bundle", "run", "--bundle_root", str(workflow.parser.get("bundle_root"))]
    words += ["--config_file", str(Path(workflow.config_root_path) / config), *options, str(weights)]
    folder = str(workflow.parser.get("dataset_dir", "$"))
    return shlex.join(words if folder.startswith("$") else [*words, "--dataset_dir", folder])


def run_settings(loader: Any) -> dict[str, Any]:
    """What makes a training this run and no other: every number of its config but `HARMLESS` ones, and its data.

    Args:
        loader: of the training data; the data list counts by the names of files, so that a folder may move.
    """
    workflow = find_workflow()
    config: dict[str, Any] = {} if workflow is None else workflow.parser.get()
    settings: dict[str, Any] = {}
    for key, value in iter_items({key: value for key, value in config.items() if key not in HARMLESS}):
        if isinstance(value, (dict, list)) or key.split("::")[-1] in HARMLESS:
            continue
        if isinstance(value, str) and value.startswith(IN_BUNDLE) and workflow is not None:
            value = workflow.parser.get_parsed_content(key)
        settings[key] = _content(_plain(value))
    return {**settings, **reading_settings(), "data": data_digest(loader.dataset)}


def data_digest(dataset: Any) -> str:
    """A digest of a data set's list: file names with their folder, splits, masks and labels, in order.

    Of a store it is what that was made with, of tokens in memory they and their labels.
    """
    if hasattr(dataset, "store"):
        return json_sha256([len(dataset), {**dataset.store.made_with, "dataset_dir": None}])
    if hasattr(dataset, "tokens"):
        content = (dataset.tokens, dataset.labels)
        return hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in content)).hexdigest()
    data = getattr(dataset, "dataset", dataset)
    items = getattr(getattr(data, "data", None), "items", getattr(data, "data", None))
    rows = items if isinstance(items, list) else [len(dataset)]
    return json_sha256([_item_text(row) for row in rows])


def _item_text(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    plain = {key: _without_place(value) for key, value in item.items() if isinstance(value, (str, int, float))}
    return json.dumps(plain)


def _write_config(folder: Path, workflow: ConfigWorkflow) -> str:
    """Write the merged config, unless it is there already; return the name of the file that holds it."""
    config = {key: _plain(value) for key, value in workflow.parser.get().items() if key != "_meta_"}
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
    names = (f"{CONFIG_STEM}{f'_{number}' if number > 1 else ''}.yaml" for number in count(1))
    path = next(path for name in names if not (path := folder / name).exists() or path.read_text("utf-8") == text)
    if not path.exists():
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


def _content(value: Any) -> Any:
    """A file, such as weights to start from, as the digest of what it holds."""
    is_file = isinstance(value, str) and "/" in value and Path(value).is_file()
    return file_sha256(value) if is_file else _without_place(value)


def _without_place(value: Any) -> Any:
    """A path as the name of its file and folder: what was moved is the same."""
    is_path = isinstance(value, str) and "/" in value and not value.startswith("$")
    return "/".join(Path(value).parts[-2:]) if is_path else value
