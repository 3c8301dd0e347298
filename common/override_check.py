"""Mistyped config keys and values out of range stop the run before any work.

MONAI alone takes `--max_epoch 5` and trains with the old `max_epochs`.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.utils import ID_SEP_KEY

from .checks import FOLDERS, LEAST, POSITIVE, check_apart, check_device, check_folder, check_numbers
from .config_graph import (
    declared_ids,
    find_workflow,
    iter_items,
    load_file,
    merged,
    reachable_ids,
    unused_ids,
    written_ids,
)
from .errors import SettingsError, end_with_user_errors

SUFFIXES = (".yaml", ".yml", ".json")
PATHS = ("_dir", "_path", "_root", "init_weights", "dino_source")
"""How the names of settings end that are paths."""
MONAI_COMMAND = "monai.bundle.__main__"
BASE = re.compile(r"^# base: (\w+)", re.MULTILINE)  # how an override file says whose it is
SAMPLES = "$@bundle_root + '/samples'"  # how configs name the images that ship
WITHOUT_DATA = {
    "train": "this trains on the few synthetic images that ship, good for a trial",
    "evaluate": "this measures on the few synthetic images that ship, which the models of the bundles drew, masks "
    "included; the figures say nothing, so give a folder of your own",
}

_logger = logging.getLogger(__name__)


def check_overrides(config_name: str) -> None:
    """Refuse keys that nothing reads, and values that cannot be; the first item of every run list.

    A key is fine when the workflow's own file declares it, when an override file beside it that takes part in this run
    declares it, or when the executed run id reaches it, so that a file of your own may bring helpers for what it
    replaces. The rule holds at every depth outside of components, where MONAI itself is silent too
    (`--train#learning_rate 1`). A wrong argument of a component is left to its constructor.

    Outside of a `ConfigWorkflow` nothing is overridden, and nothing is checked.

    Args:
        config_name: name of the workflow's own file, without suffix, for instance `train`.

    As the first of our components to run it also lets `python -m monai.bundle` end with our messages, see `errors`.

    Raises:
        SettingsError: a key that nothing reads, with the nearest known names; "true" or "false" as text, which would
            count as true; a number, device or folder that `checks` refuses; a bundle_root that is no bundle. MONAI
            wraps it as the cause of its own RuntimeError.
    """
    if _is_monai_command():
        end_with_user_errors()
    workflow = find_workflow()
    if workflow is None:
        return
    restore_paths(workflow.parser, sys.argv if _is_monai_command() else ())
    config, folder = workflow.parser.get(), Path(workflow.config_root_path)
    root = config.get("bundle_root")
    if isinstance(root, str) and not root.startswith("$") and not (Path(root) / "configs").is_dir():
        hint = f" {shlex.quote(str(folder.parent))}" if folder.name == "configs" else ""
        raise SettingsError(
            f"bundle_root: {Path(root).resolve()} has no folder configs, as a bundle has; give --bundle_root{hint}"
        )
    _check_values(config)
    _check_keys(config, [workflow.init_id, workflow.run_id, workflow.final_id], folder, config_name)
    warning = WITHOUT_DATA.get("train" if "train" in config else config_name)
    if config.get("dataset_dir") == SAMPLES and warning:
        _logger.warning("no --dataset_dir: %s", warning)


def restore_paths(parser: ConfigParser, words: Sequence[str]) -> None:
    """Make settings that are paths the text that was typed: of a folder `2024` fire makes a number, of `a,b` a tuple.

    Args:
        parser: of the config, overrides included.
        words: of the command line.

    Raises:
        SettingsError: a path that is empty, or no text; a setting that was given as None, which MONAI passes over.
    """
    typed: dict[str, str] = {}
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("-"):
            name, equals, text = word.lstrip("-").partition("=")
            typed[ReferenceResolver.normalize_id(name.replace("-", "_"))] = text if equals else after
    for config_id, value in list(iter_items(parser.get())):
        given = typed.get(config_id)
        if given == "None" and value is not None:
            raise SettingsError(f"{config_id}: found None, which would be passed over; expected a value")
        is_path = isinstance(value, (str, os.PathLike)) and str(value)
        if not config_id.endswith(PATHS) or value is None or is_path:
            continue
        if not given or isinstance(value, (str, bool)):
            raise SettingsError(f"{config_id}: found {value!r}; expected a path, in quotes")
        parser[config_id] = given


def _check_values(config: dict[str, Any]) -> None:
    """Refuse what no setting of its name can be; expressions are left to those who get their value.

    And what `--amp false` becomes: MONAI's command line reads Python, where it is a text, and a text is true.
    """
    dataset_dir = config.get("dataset_dir")
    for config_id, value in iter_items(config):
        name = config_id.rpartition(ID_SEP_KEY)[2]
        if value is None or isinstance(value, dict) or _is_expression(value):
            continue
        if isinstance(value, str) and value.lower() in ("true", "false"):
            word = value.capitalize()
            raise SettingsError(
                f"{config_id}: found the text {value!r}, which would count as true; expected {word}, as in "
                f"--{config_id} {word}"
            )
        if name in LEAST or name in POSITIVE:
            check_numbers(**{name: value})
        elif name == "device":
            check_device(value)
        elif name in FOLDERS:
            check_folder(name, value)
            if dataset_dir is not None and not _is_expression(dataset_dir):
                check_apart(name, value, dataset_dir)


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def _check_keys(config: dict[str, Any], roots: Sequence[str], folder: Path, config_name: str) -> None:
    """Refuse keys that neither are reached nor declared by the workflow's file or by an override file of this run.

    Of a copy kept elsewhere there is no workflow's file, and being reached is the only way to be known.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.stem != "metadata")
    files = {path: content for path in paths if isinstance(content := load_file(path), dict)}
    own = next((path for suffix in SUFFIXES if (path := folder / f"{config_name}{suffix}").is_file()), None)
    known = declared_ids(merged(own)) if own is not None else set()
    for content in files.values():
        if "run" not in content and _took_part(content, config):
            known |= declared_ids(content)
    unused = unused_ids(config, reachable_ids(config, roots), declared=known)
    if not unused:
        return
    lines = []
    for config_id in unused:
        siblings = sorted(each for each in known if each.count(ID_SEP_KEY) == config_id.count(ID_SEP_KEY))
        near = difflib.get_close_matches(config_id, siblings, n=3)  # not `train::lr` for `lr`
        hint = f"; did you mean {' or '.join(repr(n.replace(ID_SEP_KEY, '#')) for n in near)}?" if near else ""
        lines.append(f"unknown config key '{config_id.replace(ID_SEP_KEY, '#')}'{hint}")
    declaring = {path: content for path, content in files.items() if declared_ids(content) & {*unused}}
    others = [path.name for path, content in declaring.items() if "run" in content]
    overrides = [path.name for path in declaring if path.name not in others and _is_for(path, config_name)]
    if overrides:
        lines.append(f"declared in {', '.join(overrides)}: add this file to --config_file to use it")
    elif others:
        lines.append(f"a setting of {', '.join(others)}, not of {config_name}")
    listed = own or f"the config file in {folder}"
    lines.append(f"the valid names are the keys of {listed}; a helper key that nothing refers to starts with '_'")
    raise SettingsError("\n".join(lines))


def _took_part(content: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether an override file was merged, as far as the result shows; MONAI does not keep the list of files.

    All its ids must be there, and one of them with the value that it sets: otherwise a file with one new key would
    make this key known to runs that do not use the file.
    """
    there = dict(iter_items(config))
    entries = dict(zip(written_ids(content), content.values(), strict=True))
    return entries.keys() <= there.keys() and any(there[config_id] == value for config_id, value in entries.items())


def _is_for(override: Path, config_name: str) -> bool:
    """Whether an override file is for a workflow, as it says, or may be."""
    found = BASE.search(override.read_text(encoding="utf-8"))
    return found is None or found[1] == config_name


def _is_monai_command() -> bool:
    """Whether this process is `python -m monai.bundle`, alone or under torchrun."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == MONAI_COMMAND
