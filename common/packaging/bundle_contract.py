"""What MONAI, MONAI Label and the zoo's reviewers look for in a bundle's configs; nothing of the bundle is run here.

Each check takes the bundle's folder and returns its problems as text, an empty list when all is well.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigWorkflow
from monai.bundle.utils import ID_SEP_KEY
from monai.utils import BundleProperty, BundlePropertyConfig

from ..config_graph import has_item, iter_items, references, top_level, written_ids
from .bundle_files import config_paths, workflow_file

REVIEWED_KEYS = {
    "inference": ("bundle_root", "device", "network_def", "inferer"),
    "train": (
        *("bundle_root", "device", "dataset_dir", "train::trainer", "train::trainer::max_epochs", "train::dataset"),
        *("train::dataset::data", "train::handlers"),
    ),
}
WORKFLOW_TYPES = {"inference": "infer", "train": "train"}


def read_tree(path: Path) -> Any:
    """A config as it stands in its file.

    Raises:
        ValueError: it is not what its suffix says (YAML's errors are made one).
    """
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def readable_trees(bundle_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Configs that can be read; `check_configs` reports the others."""
    for path in config_paths(bundle_dir):
        try:
            tree = read_tree(path)
        except ValueError:
            continue
        if isinstance(tree, dict):
            yield path, tree


def check_configs(bundle_dir: Path) -> list[str]:
    """Every config can be read, and every reference inside a workflow leads somewhere.

    A workflow without `bundle_root` is run on top of others, as multi_gpu_train.json on train.json; which, no file
    says, so its references may lead into any.
    """
    problems = []
    trees = [tree for _, tree in readable_trees(bundle_dir)]
    for path in config_paths(bundle_dir):
        try:
            tree = read_tree(path)
        except ValueError as error:
            problems.append(f"{path.name}: cannot be read: {error}")
            continue
        if isinstance(tree, dict) and "run" in tree:
            problems += [
                f"{path.name}: {item_id}: refers to '{target}', which does not exist"
                for item_id, value in iter_items(tree)
                for target in references(item_id, value)
                if not target.startswith("_meta_")
                and not _leads_somewhere(target, [tree] if "bundle_root" in tree else trees)
            ]
    return problems


def _leads_somewhere(target: str, trees: Iterable[dict[str, Any]]) -> bool:
    """Whether one of the configs has an item of this id, also by a key such as `train#sampler`."""
    return any(has_item(tree, target) or target in written_ids(tree) for tree in trees) or target == "bundle_root"


def check_twins(bundle_dir: Path) -> list[str]:
    """A YAML and a JSON config of the same name say the same; MONAI Label and `load` read the JSON."""
    trees = dict(readable_trees(bundle_dir))
    return [
        f"{path.name} and {path.with_suffix('.json').name} differ"
        for path, tree in trees.items()
        if path.suffix != ".json" and path.with_suffix(".json") in trees and tree != trees[path.with_suffix(".json")]
    ]


def check_run_ids(bundle_dir: Path) -> list[str]:
    """Inference and training have the run id `run`, which MONAI Label and the zoo use."""
    problems = []
    trees = dict(readable_trees(bundle_dir))
    for stem in REVIEWED_KEYS:
        path = workflow_file(bundle_dir, stem)
        if path is not None and "run" not in trees.get(path, {"run": []}):
            problems.append(f"{path.name}: no run id 'run'")
    return problems


def check_keys(bundle_dir: Path) -> list[str]:
    """The keys that reviewers ask for; those inside `train` only of a bundle that has one (the zoo's CONTRIBUTING)."""
    trees = dict(readable_trees(bundle_dir))
    problems = []
    for stem, keys in REVIEWED_KEYS.items():
        path = workflow_file(bundle_dir, stem)
        if path in trees and path is not None:
            tree = {key.replace("#", ID_SEP_KEY): value for key, value in trees[path].items()}
            asked = [key for key in keys if ID_SEP_KEY not in key or _has_section(tree, top_level(key))]
            missing = [key for key in asked if key not in tree and not has_item(tree, key)]
            problems += [f"{path.name}: no key {key.replace(ID_SEP_KEY, '#')}" for key in missing]
    return problems


def _has_section(tree: dict[str, Any], section: str) -> bool:
    return any(top_level(key) == section for key in tree)


def check_properties(bundle_dir: Path) -> list[str]:
    """MONAI's standard properties are where it looks for them, without building anything."""
    problems = []
    for stem, workflow_type in WORKFLOW_TYPES.items():
        path = workflow_file(bundle_dir, stem)
        if path is not None and (bundle_dir / "configs" / "metadata.json").is_file():
            problems += [f"{path.name}: {problem}" for problem in _property_problems(path, workflow_type)]
    return problems


def _property_problems(path: Path, workflow_type: str) -> Iterator[str]:
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it would tell that it skips logging.conf
    try:
        workflow = ConfigWorkflow(str(path), workflow_type=workflow_type, logging_file=False)
        workflow.parser.resolve_macro_and_relative_ids()  # MONAI compares `@train#dataset` only as `@train::dataset`
    except (ValueError, KeyError, TypeError, AttributeError, OSError, yaml.YAMLError) as error:
        yield f"cannot be read as a workflow: {error}"
        return
    for name, wanted in workflow.properties.items():
        config_id = wanted[BundlePropertyConfig.ID]
        if wanted[BundleProperty.REQUIRED]:
            if config_id not in workflow.parser:
                yield f"required property {name} is not at {config_id}"
        elif not workflow._check_optional_id(name=name, property=wanted):  # MONAI's rule has no public name
            yield f"property {name} is used, but not at {config_id}"
