"""What every config in bundles/ keeps to; each check yields its problems as text.

A workflow file (`train.yaml`) stands alone; an override file (`smoke.yaml`) is looked at merged after its base.
"""

from __future__ import annotations

import ast
import inspect
import json
import pydoc
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ComponentLocator, ReferenceResolver
from monai.bundle.config_item import ConfigComponent, ConfigExpression
from monai.utils import CompInitMode
from torch.utils.data import DataLoader

from common.config_graph import (
    RUN_IDS,
    declared_ids,
    iter_items,
    load_file,
    merged,
    reachable_ids,
    references,
    unused_ids,
)

OVERRIDE_CHECK = "common.override_check.check_overrides"
BASE_HINT = re.compile(r"^#\s*base:\s*(\S+)", re.MULTILINE)
ASKED_FOR = ("network_def", "inferer")  # by MONAI's checks of an evaluation, which needs neither
PRIVATE_KEYS = {
    *(*RUN_IDS, "imports", "dataset_dir", "output_dir", "dataset", "datalist", "dataloader", "sampler", "batch_size"),
    *("network", "amp", "inferer", "postprocessing", "handlers", "evaluator", "key_metric", "additional_metrics"),
    *("split", "max_unreadable_share", "train", "validate", "max_epochs", "epoch_length", "learning_rate"),
    *("warmup_steps", "ema_decay", "val_interval", "augmentation"),
}
"""Keys that two workflows of a bundle may fill differently: how they run, on what, and how they learn. (`network` is
`network_def` on its device.) Every other key that two share describes the model or its images, and must agree."""
MOST_CHARACTERS = 80  # of an expression
MOST_SETTINGS = 25
OWN_NAME = re.compile(r"(?<![\w.@])(common|scripts)\.|^\$\s*(import|from)\s+(common|scripts)\b")
FORBIDDEN = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
KEYS_THAT_TAKE_NONE_AS_TEXT = {"reduction", "pretrained"}  # their option is called "none"
SETTING_LINE = re.compile(r"^([A-Za-z]\w*):\s+(\S.*)$")


@dataclass(frozen=True)
class Config:
    """A file, the workflow file that it is merged after, what it says itself, and what both say together."""

    path: Path
    base: Path | None
    content: dict[str, Any]
    merged: dict[str, Any]


def read(path: Path) -> Config:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # how MONAI reports repeated keys and a merge into nothing
        content, base = load_file(path), base_file(path)
        return Config(path, base, content, merged(*filter(None, (base, path))))


def base_file(path: Path) -> Path | None:
    """The workflow that `path` is merged after; None when it is one.

    A comment `# base: other.yaml` decides; otherwise an override belongs to the workflow with the longest name that its
    own name contains (`multi_gpu_pretrain` to `pretrain`), or to `train`.
    """
    if hint := BASE_HINT.search(path.read_text()):
        return path.with_name(hint[1])
    workflows = [other for other in path.parent.glob("*.yaml") if "run" in load_file(other)]
    named = [other for other in workflows if other.stem in path.stem]
    return None if path in workflows else max(named, key=lambda o: len(o.stem), default=path.with_name("train.yaml"))


def references_lead_somewhere(config: Config) -> Iterator[str]:
    there = {item_id for item_id, _ in iter_items(config.merged)}
    for item_id, value in iter_items(config.merged):
        yield from (f"{item_id}: '{target}' does not exist" for target in references(value) if target not in there)
    for item_id, value in iter_items(config.content):
        if re.match(r"%.*\.(ya?ml|json)", str(value)):
            yield f"{item_id}: MONAI opens the file of '{value}' relative to the current directory"


def every_key_is_used(config: Config) -> Iterator[str]:
    """Reached from a run id, or by a macro; an override file answers for the keys that it sets."""
    files = [load_file(path) for path in (config.base, config.path) if path]
    macros = {str(value)[1:] for file in files for _, value in iter_items(file) if str(value).startswith("%")}
    for item_id in unused_ids(config.merged, reachable_ids(config.merged, (*RUN_IDS, *macros))):
        if item_id not in (*RUN_IDS, *ASKED_FOR) and (config.base is None or item_id in declared_ids(config.content)):
            yield f"{item_id}: is not reached from any run id"


def runs_begin_with_the_override_check(config: Config) -> Iterator[str]:
    wanted = ("run", "training") if config.path.stem == "train" else ("run",)
    yield from (f"{run_id}: is missing" for run_id in wanted if run_id not in config.merged)
    if config.base is None or "run" in config.content:
        wanted_first = {"_target_": OVERRIDE_CHECK, "config_name": (config.base or config.path).stem}
        if not isinstance(config.merged.get("run"), list) or config.merged["run"][:1] != [wanted_first]:
            yield f"run: expected {wanted_first} first"


def text_is_no_number_and_no_boolean(config: Config) -> Iterator[str]:
    """YAML reads `1e-4`, and Python's `None`, as text."""
    for item_id, value in iter_items(config.content):
        word = str(value).lower() in {"true", "false", "none", "null"}
        takes_none = re.split("::|#", item_id)[-1] in KEYS_THAT_TAKE_NONE_AS_TEXT
        if isinstance(value, str) and ((word and not takes_none) or _is_number(value)):
            yield f"{item_id}: '{value}' is text; write true, null or 1.0e-4, unquoted"


def _is_number(text: str) -> bool:
    try:
        return bool(float(text)) or True
    except ValueError:
        return False


def expressions_are_short_and_call_no_own_code(config: Config) -> Iterator[str]:
    for item_id, value in iter_items(config.content):
        if not ConfigExpression.is_expression(value):
            continue
        if len(value) > MOST_CHARACTERS:
            yield f"{item_id}: {len(value)} characters; at most {MOST_CHARACTERS}"
        if OWN_NAME.search(value):
            yield f"{item_id}: own code in an expression; use _target_, which packaging can rewrite"
        if "import" in value and "@" in value:
            yield f"{item_id}: MONAI takes 'import' and '@' in an expression for an import, and fails; rename"
        text = ReferenceResolver.id_matcher.sub("reference", ReferenceResolver.normalize_id(value[1:])).strip()
        try:
            tree = ast.parse(text, mode="exec" if re.match(r"import |from ", text) else "eval")
        except SyntaxError as error:
            yield f"{item_id}: no expression: {error.msg}"
            continue
        if any(isinstance(node, FORBIDDEN) for node in ast.walk(tree)):
            yield f"{item_id}: a lambda or comprehension in an expression; write a function"


def initialize_needs_no_own_code(config: Config) -> Iterator[str]:
    """A packaged bundle is put on the path only by it."""
    reached = reachable_ids(config.merged, ["initialize"])
    for item_id, value in iter_items(config.merged):
        if item_id in reached and ConfigComponent.is_instantiable(value) and OWN_NAME.match(str(value["_target_"])):
            yield f"{item_id}: 'initialize' needs {value['_target_']}"


def targets_take_their_arguments(config: Config) -> Iterator[str]:
    for item_id, value in iter_items(config.merged):
        if ConfigComponent.is_instantiable(value) and not str(value["_target_"]).startswith(("$", "@")):
            try:
                _bind(value)
            except (TypeError, pydoc.ErrorDuringImport) as error:
                yield f"{item_id}: {value['_target_']}: {error}"


def _bind(component: dict[str, Any]) -> None:
    mode = component.get("_mode_", CompInitMode.DEFAULT)
    arguments = {key: item for key, item in component.items() if key not in ConfigComponent.non_arg_keys}
    if mode not in (CompInitMode.DEFAULT, CompInitMode.CALLABLE) or any(key.startswith("_") for key in arguments):
        raise TypeError("keys that only debug, or that MONAI does not know")
    function = pydoc.locate(str(ConfigComponent(component, locator=_locator()).resolve_module_name()))
    if not callable(function):
        raise TypeError(f"found {function}; expected something to call")
    try:
        signature = inspect.signature(function)
    except ValueError:  # built-ins that do not tell
        return
    if inspect.isclass(function) and issubclass(function, DataLoader):  # MONAI's hands everything on
        arguments = {key: item for key, item in arguments.items() if key not in signature.parameters}
        signature = inspect.signature(DataLoader)
        arguments.setdefault("dataset", None)
    (signature.bind if mode == CompInitMode.DEFAULT else signature.bind_partial)(**arguments)


@cache
def _locator() -> ComponentLocator:
    """MONAI's table of short names; it is built by a walk over all of MONAI, so once."""
    return ComponentLocator()


def settings_have_comments(config: Config) -> Iterator[str]:
    """The file says what it is for, and every scalar that it introduces at its top level has its unit or reason."""
    lines = config.path.read_text().splitlines()
    if not lines[0].startswith("# "):
        yield "no header comment"
    header_end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    known = {"bundle_root", *(load_file(config.base) if config.base else ())}
    for number, line in enumerate(lines):
        match = SETTING_LINE.match(line)
        if match is None or match[1] in known or match[2][0] in "|>[{&*":
            continue
        above = lines[number - 1] if number > header_end else ""
        explained = " # " in line or (above.startswith("# ") and not above.startswith("# --"))
        if not explained and not str(yaml.safe_load(line)[match[1]]).startswith(("$", "@", "%")):
            yield f"{match[1]}: has no comment with its unit or reason"


def settings_are_few(config: Config) -> Iterator[str]:
    """What a user may change stands between the first two headings; bundle_root is MONAI's."""
    block = config.path.read_text().split("\n# ---- ")[1:2]
    found = [line for text in block for line in text.splitlines() if re.match(r"[A-Za-z]\w*:", line)]
    if len(found) > MOST_SETTINGS + 1:
        yield f"{len(found) - 1} settings, expected at most {MOST_SETTINGS}"


CHECKS = (
    references_lead_somewhere,
    every_key_is_used,
    runs_begin_with_the_override_check,
    text_is_no_number_and_no_boolean,
    expressions_are_short_and_call_no_own_code,
    initialize_needs_no_own_code,
    targets_take_their_arguments,
    settings_have_comments,
    settings_are_few,
)


def problems_of(path: Path) -> list[str]:
    """All problems of one file."""
    try:
        config = read(path)
    except (yaml.YAMLError, KeyError, ValueError, AttributeError, TypeError, OSError, UserWarning) as error:
        return [f"{path.name}: cannot be read: {error}"]
    return [f"{path.name}: {problem}" for check in CHECKS for problem in check(config)]


def disagreements(folder: Path) -> list[str]:
    """Settings of workflow files in a folder that differ, apart from `PRIVATE_KEYS`; as JSON, because 1 equals true.

    Components may differ: a training says of what it builds a network, other workflows what weights are of.
    """
    workflows = {path.name: load_file(path) for path in sorted(folder.glob("*.yaml")) if base_file(path) is None}
    return [
        f"'{key}' differs between {one} and {other}"
        for one, other in combinations(workflows, 2)
        for key in sorted(workflows[one].keys() & workflows[other].keys() - PRIVATE_KEYS)
        if not any(isinstance(workflows[each][key], dict) for each in (one, other))
        and json.dumps(workflows[one][key], sort_keys=True) != json.dumps(workflows[other][key], sort_keys=True)
    ]
