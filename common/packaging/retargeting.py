"""Configs of a bundle that carries its own code: `_target_` says where it is now, and JSON says the same as YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..config_graph import iter_items
from ..errors import UserError

OWN_PACKAGE = "common"
VENDORED_PACKAGE = "scripts.common"
TARGET = re.compile(rf"^(\s*(?:- )?_target_:\s*[\"']?){OWN_PACKAGE}\.", re.MULTILINE)
INITIALIZE = re.compile(r"^initialize:[ \t]*\n(?P<indent>[ \t]*)", re.MULTILINE)
ON_PATH = (
    "$__import__('runpy').run_path(str([f.frame.f_locals['self'].config_root_path for f in "
    "__import__('inspect').stack(0) if f.function == '_run_expr'][0].parent / 'scripts' / 'on_path.py'))"
)
"""First item of a packaged config's `initialize`. Nothing in a config knows where the config is: the workflow does,
and it is up the stack (`ConfigWorkflow._run_expr`)."""


class RetargetingError(UserError, ValueError):
    """A config cannot be rewritten so that it means the same elsewhere."""


def own_targets(config: Any) -> Iterator[str]:
    """Every `_target_` that names our own package."""
    for item_id, value in iter_items(config):
        if item_id.endswith("_target_") and isinstance(value, str) and value.startswith(f"{OWN_PACKAGE}."):
            yield value


def retarget_yaml(text: str, name: str) -> str:
    """Rewrite our own `_target_`s in the text of a YAML config, and let its `initialize` put the bundle on the path.

    Comments and layout stay.

    Args:
        text: of the file.
        name: of the file, for messages.

    Raises:
        RetargetingError: the result would not be the same config with only that changed.
    """
    changed = TARGET.sub(rf"\g<1>{VENDORED_PACKAGE}.", text)
    changed = INITIALIZE.sub(lambda found: f'{found[0]}- "{ON_PATH}"\n{found["indent"]}', changed, count=1)
    wanted = retarget_tree(yaml.safe_load(text))
    if yaml.safe_load(changed) != wanted:
        raise RetargetingError(
            f"{name}: expected each own _target_ on a line of its own and `initialize` as a list in lines below it; "
            "found something else, which cannot be rewritten without touching more"
        )
    leftovers = [item_id for item_id, value in iter_items(wanted) if _mentions_own_code(item_id, value)]
    if leftovers:
        raise RetargetingError(f"{name}: {', '.join(leftovers)} mention {OWN_PACKAGE}. outside of a _target_")
    return changed


def retarget_tree(config: Any) -> Any:
    """What `retarget_yaml` does, to the parsed config."""
    tree = _retarget(config)
    if isinstance(tree, dict) and isinstance(tree.get("initialize"), list):
        tree["initialize"] = [ON_PATH, *tree["initialize"]]
    return tree


def _retarget(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {inner: _retarget(item, str(inner)) for inner, item in value.items()}
    if isinstance(value, list):
        return [_retarget(item) for item in value]
    if key == "_target_" and isinstance(value, str) and value.startswith(f"{OWN_PACKAGE}."):
        return f"{VENDORED_PACKAGE}{value.removeprefix(OWN_PACKAGE)}"
    return value


def _mentions_own_code(item_id: str, value: Any) -> bool:
    if not isinstance(value, str) or item_id.endswith("_target_"):
        return False
    return bool(re.search(rf"(?<![\w.@]){OWN_PACKAGE}\.", value))


def json_twin(text: str, name: str) -> str:
    """The JSON text that says what a YAML text says, in the model zoo's form: indent of 4, keys in their order.

    Raises:
        RetargetingError: JSON cannot say it, such as a number as key.
    """
    tree = yaml.safe_load(text)
    twin = json.dumps(tree, indent=4, ensure_ascii=False, allow_nan=False) + "\n"
    if json.loads(twin) != tree:
        raise RetargetingError(f"{name}: JSON cannot hold it: keys must be text")
    return twin


def is_workflow(path: Path) -> bool:
    """Whether a YAML config runs by itself; others are merged after one that does."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and "run" in content
