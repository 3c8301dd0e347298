"""The code that a packaged bundle brings along as `scripts/common`, and its configs pointed to it."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ..config_graph import iter_items
from ..errors import RunError
from ..files import read_json

PACKAGE_DIR = Path(__file__).resolve().parents[1]
OWN_PACKAGE = PACKAGE_DIR.name
CODE_FOLDER = "scripts"
VENDORED_PACKAGE = f"{CODE_FOLDER}.{OWN_PACKAGE}"
ON_PATH_FILE = Path(__file__).with_name("on_path.py")
TARGET = re.compile(rf"((?:^\s*(?:- )?|[{{,]\s*)_target_:\s*[\"']?){OWN_PACKAGE}\.", re.MULTILINE)
INITIALIZE = re.compile(r"^initialize:[ \t]*\n(?P<indent>[ \t]*)", re.MULTILINE)
OWN_CODE = re.compile(rf"(?<![\w.@]){OWN_PACKAGE}\.\w|(import|from) {OWN_PACKAGE}\b")
ON_PATH = (
    "$__import__('runpy').run_path(str([f.frame.f_locals['self'].config_root_path for f in "
    "__import__('inspect').stack(0) if f.function == '_run_expr'][0].parent / 'scripts' / 'on_path.py'))"
)
"""First item of a packaged config's `initialize`. MONAI's `load` tells a config neither its place nor a `bundle_root`:
only the workflow that evaluates it knows, and it is up the stack."""


def vendor(bundle_dir: Path) -> None:
    """Copy what the bundle's configs and the descriptions of its weights need of the package to `scripts/common`.

    Raises:
        RunError: the bundle has `scripts` of its own, or something named is not there.
    """
    code = bundle_dir / CODE_FOLDER
    if code.exists():
        raise RunError(f"{code}: found code of the bundle's own; expected all of it in {OWN_PACKAGE}")
    for file in needed_files(PACKAGE_DIR, named_code(bundle_dir)):
        target = code / OWN_PACKAGE / file.relative_to(PACKAGE_DIR)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    (code / "__init__.py").write_text('"""The code that this bundle brings along."""\n', encoding="utf-8")
    shutil.copyfile(ON_PATH_FILE, code / ON_PATH_FILE.name)


def named_code(bundle_dir: Path) -> Iterator[str]:
    """Dotted names below the package: every own `_target_` of the configs, and of what weights say they are."""
    trees = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in bundle_dir.glob("configs/*.yaml")]
    for tree in (*trees, *map(read_json, bundle_dir.glob("models/*.json"))):
        for item_id, value in iter_items(tree):
            if item_id.endswith("_target_") and isinstance(value, str):
                package, _, name = value.partition(".")
                if package in (OWN_PACKAGE, ""):  # `.networks.x.Net` in descriptions
                    yield name


def needed_files(package_dir: Path, names: Iterable[str]) -> list[Path]:
    """The package's files that importing these would load, sorted; imports inside of functions count too.

    Raises:
        RunError: a name of nothing.
    """
    waiting: list[tuple[str, ...]] = []
    for name in names:
        words = tuple(name.split("."))
        waiting += [words[:length] for length in range(1, len(words) + 1)]  # what is no module is a class or a function
        if not _file_of(package_dir / words[0]):
            raise RunError(f"{package_dir.name}.{name}: no such module in {package_dir}")
    found: dict[tuple[str, ...], Path] = {}
    while waiting:
        words = waiting.pop()
        file = _file_of(package_dir.joinpath(*words))
        if words in found or file is None:
            continue
        found[words] = file
        package = words if file.name == "__init__.py" else words[:-1]
        waiting += [words[:length] for length in range(len(words))]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                inside = package[: len(package) + 1 - node.level]
                module = (*inside, *node.module.split(".")) if node.module else inside
                waiting += [module, *((*module, alias.name) for alias in node.names)]
    return sorted(found.values())


def _file_of(path: Path) -> Path | None:
    """What `import` would read for a path without suffix."""
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def rewrite_configs(folder: Path) -> None:
    """Point the configs to the code beside them, and give each workflow its JSON twin, in the model zoo's form."""
    for path in sorted(folder.glob("*.yaml")):
        text = retargeted(path.read_text(encoding="utf-8"), path.name)
        path.write_text(text, encoding="utf-8")
        tree = yaml.safe_load(text)
        if "run" in tree:
            twin = json.dumps(tree, indent=4, allow_nan=False) + "\n"
            path.with_suffix(".json").write_text(twin, encoding="utf-8")


def retargeted(text: str, name: str) -> str:
    """A YAML config with its own `_target_`s rewritten, and `initialize` putting the bundle on the path; comments stay.

    Raises:
        RunError: the result would not be the same config with only that changed; or JSON could not say the same.
    """
    changed = TARGET.sub(rf"\g<1>{VENDORED_PACKAGE}.", text)
    changed = INITIALIZE.sub(lambda found: f'{found[0]}- "{ON_PATH}"\n{found["indent"]}', changed, count=1)
    tree = yaml.safe_load(changed)
    if tree != retargeted_tree(yaml.safe_load(text)):
        raise RunError(
            f"{name}: expected each own _target_ on a line of its own, `initialize` as a list in lines below it, and "
            "keys that are text; found something else, which cannot be rewritten without touching more"
        )
    if mentions := [i for i, value in iter_items(tree) if isinstance(value, str) and OWN_CODE.search(value)]:
        raise RunError(f"{name}: {', '.join(mentions)} mention {OWN_PACKAGE} outside of a _target_")
    return changed


def retargeted_tree(config: dict[str, Any]) -> dict[str, Any]:
    """What `retargeted` does, to the parsed config."""
    tree = json.loads(json.dumps(config).replace(f'"_target_": "{OWN_PACKAGE}.', f'"_target_": "{VENDORED_PACKAGE}.'))
    if isinstance(tree.get("initialize"), list):
        tree["initialize"].insert(0, ON_PATH)
    return tree
