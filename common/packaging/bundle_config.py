"""Static checks of a bundle's config files: each returns its problems as text, and an empty list when all is well.

Nothing is built or run here, apart from importing what `_target_` names. A workflow file (`train.yaml`) stands alone;
an override file (`smoke.yaml`) is looked at merged after its base, which is what a user runs.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from monai.bundle.utils import MACRO_KEY

from ..config_graph import (
    RUN_IDS,
    declared_ids,
    has_item,
    iter_items,
    load_file,
    merge_files,
    reachable_ids,
    references,
    unused_ids,
)
from ..config_values import check_comments, check_expressions, check_initialize, check_targets, check_text_values

CONFIG_SUFFIXES = (".yaml", ".yml")
OVERRIDE_CHECK = "override_check.check_overrides"
BASE_HINT = re.compile(r"^#\s*base:\s*(\S+)", re.MULTILINE)

PRIVATE_KEYS = frozenset(
    {*RUN_IDS, "imports"}
    | {"dataset_dir", "output_dir", "dataset", "datalist", "dataloader", "sampler", "batch_size"}
    | {"network", "amp", "inferer", "postprocessing", "handlers", "evaluator", "key_metric", "additional_metrics"}
    | {
        "split",
        "max_unreadable_share",
        "train",
        "validate",
        "max_epochs",
        "epoch_length",
        "learning_rate",
        "warmup_steps",
    }
    | {"ema_decay", "val_interval", "augmentation"}
)
"""Top-level keys that two workflow files of a bundle may fill differently: how a file runs, what it runs on, and how
long, how fast and from what changed images a training of its own learns. (`network` is `network_def` on its device,
with weights or without.) Every other key that two files share describes the model or its images, and must agree."""


class ConfigLoadError(ValueError):
    """A config file, or its merge with its base, cannot be read."""


@dataclass(frozen=True)
class BundleConfig:
    """A config file as it is used.

    Attributes:
        path: the file.
        base: the workflow file that it is merged after; None for a workflow file.
        content: what this file says itself.
        merged: base and file together; macros and references are still text.
    """

    path: Path
    base: Path | None
    content: dict[str, Any]
    merged: dict[str, Any]


def config_files(folder: Path) -> list[Path]:
    """The YAML configs of a bundle's `configs` folder."""
    return sorted(path for path in folder.iterdir() if path.suffix in CONFIG_SUFFIXES)


def base_file(path: Path) -> Path | None:
    """The workflow file that `path` is merged after, or None when it is a workflow itself.

    A comment `# base: other.yaml` decides; otherwise a file with a `run` id is a workflow, and an override belongs to
    the workflow with the longest name that its own name contains (`multi_gpu_pretrain` to `pretrain`), or to `train`.
    """
    hint = BASE_HINT.search(path.read_text(encoding="utf-8"))
    if hint:
        return path.with_name(hint.group(1))
    if "run" in load_file(path):
        return None
    others = [other for other in config_files(path.parent) if other != path and "run" in load_file(other)]
    named = [other for other in others if other.stem in path.stem]
    return max(named, key=lambda other: len(other.stem), default=path.with_name("train.yaml"))


def read_config(path: Path) -> BundleConfig:
    """Read a config file as it is used.

    Raises:
        ConfigLoadError: for bad YAML, a repeated key, or a nested override whose parent is not in the base.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # how MONAI reports repeated keys and a merge into nothing
            content = load_file(path)
            base = base_file(path)
            merged = merge_files([base, path] if base else [path])
    except (yaml.YAMLError, KeyError, ValueError, AttributeError, TypeError, OSError, UserWarning) as error:
        raise ConfigLoadError(f"{path.name}: cannot be read: {error}") from error
    return BundleConfig(path, base, content, merged)


def check_macros(config: BundleConfig) -> list[str]:
    """No macro names a file: MONAI opens it relative to the current directory, not to the config."""
    return [
        f"{config.path.name}: {item_id}: '{value}' is opened relative to the current directory"
        for item_id, value in iter_items(config.content)
        if isinstance(value, str) and value.startswith(MACRO_KEY) and ConfigParser.split_path_id(value[1:])[0]
    ]


def check_references(config: BundleConfig) -> list[str]:
    """Every `@id` and `%id` exists."""
    return [
        f"{config.path.name}: {item_id}: refers to '{target}', which does not exist"
        for item_id, value in iter_items(config.merged)
        for target in references(item_id, value)
        if not has_item(config.merged, target)
    ]


def check_used(config: BundleConfig) -> list[str]:
    """No dead knobs: every key is reached from a run id. An override file answers for the keys that it sets."""
    unused = unused_ids(config.merged, reachable_ids(config.merged, RUN_IDS))
    if config.base:
        declared = declared_ids(config.content)
        unused = [item_id for item_id in unused if item_id in declared]
    unused = [item_id for item_id in unused if item_id not in RUN_IDS]
    return [f"{config.path.name}: '{item_id}' is not reached from any run id" for item_id in unused]


def check_run_ids(config: BundleConfig) -> list[str]:
    """A workflow has `run` (train also `training`), a list that starts with the override check of this very file."""
    wanted = ["run", "training"] if config.path.stem == "train" else ["run"]
    problems = [f"{config.path.name}: run id '{run_id}' is missing" for run_id in wanted if run_id not in config.merged]
    if config.base and "run" not in config.content:
        return problems
    items = config.merged.get("run")
    first = items[0] if isinstance(items, list) and items else None
    if not isinstance(first, dict) or not str(first.get("_target_", "")).endswith(OVERRIDE_CHECK):
        return [*problems, f"{config.path.name}: the first item of 'run' must be common.{OVERRIDE_CHECK}"]
    own_name = (config.base or config.path).stem
    if first.get("config_name") != own_name:
        problems.append(
            f"{config.path.name}: check_overrides has config_name {first.get('config_name')!r}, not {own_name!r}"
        )
    return problems


def check_shared_keys(configs: list[BundleConfig]) -> list[str]:
    """Keys that workflow files share have the same value in all of them, apart from `PRIVATE_KEYS`."""
    problems = []
    for one, other in combinations([config for config in configs if config.base is None], 2):
        for key in sorted(one.content.keys() & other.content.keys() - PRIVATE_KEYS):
            # As JSON, because Python finds 1 equal to true.
            if json.dumps(one.content[key], sort_keys=True) != json.dumps(other.content[key], sort_keys=True):
                problems.append(f"'{key}' differs between {one.path.name} and {other.path.name}")
    return problems


FILE_CHECKS: tuple[Callable[[BundleConfig], list[str]], ...] = (
    check_macros,
    check_references,
    check_used,
    check_run_ids,
    lambda config: check_text_values(config.path.name, config.content),
    lambda config: check_expressions(config.path.name, config.content),
    lambda config: check_initialize(config.path.name, config.merged),
    lambda config: check_targets(config.path.name, config.merged),
    lambda config: check_comments(config.path, load_file(config.base).keys() if config.base else ()),
)


def check_file(path: Path) -> list[str]:
    """All checks of one config file."""
    try:
        config = read_config(path)
    except ConfigLoadError as error:
        return [str(error)]
    return [problem for check in FILE_CHECKS for problem in check(config)]


def check_configs(bundle_dir: Path) -> list[str]:
    """All checks of all configs of a bundle."""
    folder = bundle_dir / "configs"
    if not (folder / "train.yaml").is_file():
        return [f"{bundle_dir.name}: configs/train.yaml is missing"]
    problems, readable = [], []
    for path in config_files(folder):
        problems += check_file(path)
        try:
            readable.append(read_config(path))
        except ConfigLoadError:
            continue  # check_file reported it
    return problems + check_shared_keys(readable)
