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
    _check_bundle_root(config.get("bundle_root"), folder)
    _check_booleans(config)
    _check_values(config)
    known = _known_ids(folder, config_name, config)
    evaluated = reachable_ids(config, [workflow.init_id, workflow.run_id, workflow.final_id])
    if unused := unused_ids(config, evaluated, declared=known):
        raise SettingsError(_message(unused, known, folder, config_name))
    if config.get("dataset_dir") == SAMPLES and (
        warning := WITHOUT_DATA.get("train" if "train" in config else config_name)
    ):
        _logger.warning("no --dataset_dir: %s", warning)


def _check_bundle_root(root: Any, folder: Path) -> None:
    """Refuse what is not the folder of a bundle: the default "." elsewhere than in one."""
    if isinstance(root, str) and not root.startswith("$") and not (Path(root) / "configs").is_dir():
        hint = f" {shlex.quote(str(folder.parent))}" if folder.name == "configs" else ""
        raise SettingsError(
            f"bundle_root: {Path(root).resolve()} has no folder configs, as a bundle has; give --bundle_root{hint}"
        )


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


def _check_booleans(config: dict[str, Any]) -> None:
    """Refuse what `--amp false` becomes: MONAI's command line reads Python, where it is a text, and a text is true."""
    for config_id, value in iter_items(config):
        if isinstance(value, str) and value.lower() in ("true", "false"):
            word = value.capitalize()
            raise SettingsError(
                f"{config_id}: found the text {value!r}, which would count as true; expected {word}, as in "
                f"--{config_id} {word}"
            )


def _check_values(config: dict[str, Any]) -> None:
    """Refuse what no setting of its name can be; expressions are left to those who get their value."""
    dataset_dir = config.get("dataset_dir")
    for config_id, value in iter_items(config):
        name = config_id.rpartition(ID_SEP_KEY)[2]
        if value is None or isinstance(value, dict) or _is_expression(value):
            continue
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


def _known_ids(folder: Path, config_name: str, config: dict[str, Any]) -> set[str]:
    """The ids declared by the workflow's file and by the override files that are part of the merged config."""
    own = _own_file(folder, config_name)
    known = declared_ids(merged(own)) if own is not None else set()
    for file in _override_files(folder):
        content = load_file(file)
        if _took_part(content, config):
            known |= declared_ids(content)
    return known


def _took_part(content: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether an override file was merged, as far as the result shows; MONAI does not keep the list of files.

    All its ids must be there, and one of them with the value that it sets: otherwise a file with one new key would
    make this key known to runs that do not use the file.
    """
    there = dict(iter_items(config))
    entries = dict(zip(written_ids(content), content.values(), strict=True))
    return entries.keys() <= there.keys() and any(there[config_id] == value for config_id, value in entries.items())


def _own_file(folder: Path, config_name: str) -> Path | None:
    """The workflow's file; None for a copy kept elsewhere, where being reached is the only way to be known."""
    return next((path for s in SUFFIXES if (path := folder / f"{config_name}{s}").is_file()), None)


def _override_files(folder: Path) -> list[Path]:
    """The config files of a folder that run nothing by themselves."""
    return [file for file in _config_files(folder) if "run" not in load_file(file)]


def _config_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.stem != "metadata")
    return [file for file in files if isinstance(load_file(file), dict)]


def _message(unused: list[str], known: set[str], folder: Path, config_name: str) -> str:
    """What was found, what was probably meant, and where the valid names stand."""
    lines = []
    for config_id in unused:
        near = difflib.get_close_matches(config_id, _siblings(config_id, known), n=3)
        hint = f"; did you mean {' or '.join(repr(n.replace(ID_SEP_KEY, '#')) for n in near)}?" if near else ""
        lines.append(f"unknown config key '{config_id.replace(ID_SEP_KEY, '#')}'{hint}")
    listed = _own_file(folder, config_name) or f"the config file in {folder}"
    declaring = [file for file in _config_files(folder) if any(i in declared_ids(load_file(file)) for i in unused)]
    overrides = [file for file in declaring if file in _override_files(folder) and _base(file) in (config_name, None)]
    others = [file.name for file in declaring if "run" in load_file(file)]
    if overrides:
        names = ", ".join(file.name for file in overrides)
        lines.append(f"declared in {names}: add this file to --config_file to use it")
    elif others:
        lines.append(f"a setting of {', '.join(others)}, not of {config_name}")
    lines.append(f"the valid names are the keys of {listed}; a helper key that nothing refers to starts with '_'")
    return "\n".join(lines)


def _base(file: Path) -> str | None:
    """The workflow that an override file is for, if it says so."""
    found = BASE.search(file.read_text(encoding="utf-8"))
    return found[1] if found else None


def _siblings(config_id: str, known: set[str]) -> list[str]:
    """Known ids of the same depth, so that `train::lr` is not offered for `lr`."""
    return sorted(i for i in known if i.count(ID_SEP_KEY) == config_id.count(ID_SEP_KEY))


def _is_monai_command() -> bool:
    """Whether this process is `python -m monai.bundle`, alone or under torchrun."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == MONAI_COMMAND
