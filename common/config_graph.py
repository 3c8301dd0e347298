"""Which parts of a bundle config are used: ids, references between them, and what a run id reaches."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.bundle.config_item import ConfigComponent, ConfigExpression
from monai.bundle.utils import ID_SEP_KEY, MACRO_KEY, MERGE_KEY

RUN_IDS = ("initialize", "run", "training", "finalize")
"""The ids that MONAI, MONAI Label and our commands evaluate; everything else is there to serve them."""


def join_id(parent: str, key: object) -> str:
    """The id of a child, in MONAI's own spelling (`train::trainer`)."""
    return f"{parent}{ID_SEP_KEY}{key}" if parent else str(key)


def top_level(config_id: str) -> str:
    """The top-level key that an id belongs to."""
    return config_id.split(ID_SEP_KEY, 1)[0]


def iter_items(config: Any, parent: str = "") -> Iterator[tuple[str, Any]]:
    """Every (id, value) below `config`, containers before what they hold."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(config, dict):
        pairs = config.items()
    elif isinstance(config, list):
        pairs = enumerate(config)
    for key, value in pairs:
        child = join_id(parent, key)
        yield child, value
        yield from iter_items(value, child)


def get_item(config: Any, config_id: str) -> Any:
    """The raw value at an id.

    Raises:
        KeyError: when there is none.
    """
    value = config
    for key in ReferenceResolver.split_id(config_id):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise KeyError(f"no config item '{config_id}'")
    return value


def has_item(config: Any, config_id: str) -> bool:
    """Whether there is a value at an id."""
    try:
        get_item(config, config_id)
    except KeyError:
        return False
    return True


def is_import(value: Any) -> bool:
    """Whether a value is `$import x`; MONAI's own test raises on `$@importance`, because of its letters."""
    try:
        return ConfigExpression.is_import_statement(value)
    except SyntaxError:
        return False


def references(config_id: str, value: Any) -> list[str]:
    """The ids that one value names: `@id`, `%id`, and every `@id` inside a `$` expression."""
    if not isinstance(value, str):
        return []
    text = ConfigParser.resolve_relative_ids(config_id, value)
    if text.startswith(MACRO_KEY):
        path, macro_id = ConfigParser.split_path_id(text[len(MACRO_KEY) :])
        return [] if path else [macro_id]
    return list(ReferenceResolver.match_refs_pattern(text))


def reachable_ids(config: Any, roots: Iterable[str]) -> set[str]:
    """Every id used when `roots` are evaluated.

    Naming a component, list or dict uses all of it; naming `train::trainer` uses nothing else of `train`. MONAI
    evaluates every `$import` before the first item, so those are roots as well.
    """
    imports = [item_id for item_id, value in iter_items(config) if is_import(value)]
    waiting = [*roots, *imports]
    reached: set[str] = set()
    while waiting:
        config_id = waiting.pop()
        if config_id in reached or not has_item(config, config_id):
            continue
        value = get_item(config, config_id)
        for item_id, item in [(config_id, value), *iter_items(value, config_id)]:
            reached.add(item_id)
            waiting.extend(references(item_id, item))
    return reached


def unused_ids(config: Any, reached: set[str], declared: Collection[str] = ()) -> list[str]:
    """The outermost ids of `config` that are neither reached nor declared.

    Keys with a leading underscore are exempt. What is declared but not reached (it serves another run id) is searched
    for undeclared keys when it is a plain dict; lists and the arguments of components are values, taken whole.
    """
    used = {parent for config_id in reached for parent in _parents(config_id)}
    unused: list[str] = []
    waiting = [("", config)]
    while waiting:
        parent, value = waiting.pop()
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            config_id = join_id(parent, key)
            if str(key).startswith("_") or config_id in reached:
                continue
            is_declared = config_id in declared
            is_plain = isinstance(child, dict) and not ConfigComponent.is_instantiable(child)
            is_partly_used = isinstance(child, (dict, list)) and config_id in used
            if is_partly_used or (is_declared and is_plain):
                waiting.append((config_id, child))
            elif not is_declared:
                unused.append(config_id)
    return sorted(unused)


def _parents(config_id: str) -> Iterator[str]:
    """Every id above this one: `a` and `a::b` for `a::b::c`."""
    parts = config_id.split(ID_SEP_KEY)
    yield from (ID_SEP_KEY.join(parts[:n]) for n in range(1, len(parts)))


def written_ids(config: dict[str, Any]) -> list[str]:
    """The ids that the top-level entries of a config file set: `+train#handlers` sets `train::handlers`."""
    return [ReferenceResolver.normalize_id(key.removeprefix(MERGE_KEY)) for key in config]


def declared_ids(config: dict[str, Any]) -> set[str]:
    """Every id that a config file declares, with the parents of its nested `a#b` entries."""
    declared: set[str] = set()
    for config_id, value in zip(written_ids(config), config.values(), strict=True):
        declared |= {config_id, *_parents(config_id)}
        declared |= {item_id for item_id, _ in iter_items(value, config_id)}
    return declared


def load_file(path: Path) -> dict[str, Any]:
    """The entries of one config file as written: nested `a#b` ids stay keys, since their parent is in another file."""
    return ConfigParser.load_config_file(str(path)) or {}


def merge_files(paths: Sequence[Path]) -> dict[str, Any]:
    """The merged content of config files, macros and references kept as text."""
    return ConfigParser.load_config_files([str(path) for path in paths])


def find_workflow() -> ConfigWorkflow | None:
    """The `ConfigWorkflow` that is evaluating the calling component, or None outside of one.

    MONAI hands a component its own arguments only: neither the parser nor the overrides of the command line. The
    workflow is however always further up the call stack, as the `self` of `ConfigWorkflow._run_expr`. None means that
    a `ConfigParser` alone is at work (MONAI Label's inference, `monai.bundle.load`, tests).
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back
    return None


def run_roots(workflow: ConfigWorkflow) -> list[str]:
    """The ids that this workflow evaluates."""
    return [workflow.init_id, workflow.run_id, workflow.final_id]
