"""Which parts of a bundle config are used: ids, references between them, and what a run id reaches."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.bundle.config_item import ConfigComponent, ConfigExpression
from monai.bundle.utils import ID_SEP_KEY, MERGE_KEY

from .errors import SettingsError

RUN_IDS = ("initialize", "run", "training", "finalize")
"""The ids that MONAI, MONAI Label and our commands evaluate; everything else is there to serve them."""


NETWORK_IDS = ("prior_def", "denoiser_def", "network_def")  # as the configs name what is trained


def network_id(parser: ConfigParser) -> str:
    """Where the config says what network is trained; SettingsError if nowhere that is known here."""
    found = next((each for each in NETWORK_IDS if each in parser), None)
    if found is None:
        raise SettingsError(f"config: expected one of {NETWORK_IDS} in it; give that of a training")
    return found


def iter_items(config: Any, parent: str = "") -> Iterator[tuple[str, Any]]:
    """Every (id, value) below `config`, containers before what they hold; ids in MONAI's spelling, `train::trainer`."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(config, dict):
        pairs = config.items()
    elif isinstance(config, list):
        pairs = enumerate(config)
    for key, value in pairs:
        child = f"{parent}{ID_SEP_KEY}{key}" if parent else str(key)
        yield child, value
        yield from iter_items(value, child)


def references(value: Any) -> list[str]:
    """The ids that a value names: `@id`, and every `@id` inside of a `$` expression."""
    return list(ReferenceResolver.match_refs_pattern(value)) if isinstance(value, str) else []


def load_file(path: Path) -> dict[str, Any]:
    """The entries of one config file as written: nested `a#b` ids stay keys, since their parent is in another file."""
    return ConfigParser.load_config_file(str(path)) or {}


def merged(*paths: Path) -> dict[str, Any]:
    """The content of config files together, macros (`%id`) and relative ids resolved, references still text."""
    parser = ConfigParser(ConfigParser.load_config_files([str(path) for path in paths]))
    parser.resolve_macro_and_relative_ids()
    return parser.get()


def reachable_ids(config: Any, roots: Iterable[str]) -> set[str]:
    """Every id used when `roots` are evaluated; macros are resolved before.

    Naming a component, list or dict uses all of it; naming `train::trainer` uses nothing else of `train`. MONAI
    evaluates every `$import` before the first item, so those are roots as well.
    """
    items = dict(iter_items(config))
    waiting = [*roots, *(item_id for item_id, value in items.items() if _is_import(value))]
    reached: set[str] = set()
    while waiting:
        config_id = waiting.pop()
        if config_id in reached or config_id not in items:
            continue
        for item_id, item in [(config_id, items[config_id]), *iter_items(items[config_id], config_id)]:
            reached.add(item_id)
            waiting += references(item)
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
            config_id = f"{parent}{ID_SEP_KEY}{key}" if parent else str(key)
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


def _is_import(value: Any) -> bool:
    """Whether a value is `$import x`; MONAI's own test raises on `$@importance`, because of its letters."""
    try:
        return ConfigExpression.is_import_statement(value)
    except SyntaxError:
        return False


def _parents(config_id: str) -> Iterator[str]:
    """Every id above this one: `a` and `a::b` for `a::b::c`."""
    parts = config_id.split(ID_SEP_KEY)
    yield from (ID_SEP_KEY.join(parts[:n]) for n in range(1, len(parts)))
