"""Checks of single values in a bundle config: text that should be a number, expressions, targets, comments."""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ComponentLocator, ReferenceResolver
from monai.bundle.config_item import ConfigComponent, ConfigExpression
from monai.utils import CompInitMode
from torch.utils.data import DataLoader

from .config_graph import is_import, iter_items, reachable_ids

MAX_EXPRESSION_LENGTH = 80
OWN_PACKAGES = ("common", "scripts")
OWN_NAME = re.compile(rf"(?<![\w.@])({'|'.join(OWN_PACKAGES)})\.")
FORBIDDEN_SYNTAX = {
    ast.Lambda: "a lambda",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
}
WORDS_READ_AS_TEXT = {"true", "false", "none", "null"}
KEYS_THAT_TAKE_NONE_AS_TEXT = {"reduction", "pretrained"}  # their option is called "none"
KNOB_LINE = re.compile(r"^([A-Za-z]\w*):\s+(\S.*)$")
KNOBS_THAT_EXPLAIN_THEMSELVES = {"bundle_root"}  # MONAI's contract gives it


def check_text_values(name: str, content: dict[str, Any]) -> list[str]:
    """No text that was meant as a number, boolean or null: YAML reads `1e-4`, and Python's `None`, as text."""
    problems = []
    for item_id, value in iter_items(content):
        if not isinstance(value, str):
            continue
        key = re.split(r"::|#", item_id)[-1]
        if value.lower() in WORDS_READ_AS_TEXT and key not in KEYS_THAT_TAKE_NONE_AS_TEXT:
            problems.append(f"{name}: {item_id}: '{value}' is text; write it the YAML way, unquoted")
        elif _is_number(value):
            problems.append(f"{name}: {item_id}: '{value}' is text, not a number; write 1.0e-4, unquoted")
    return problems


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_expressions(name: str, content: dict[str, Any]) -> list[str]:
    """`$` expressions are short, call no own code, and leave loops to Python files."""
    problems = []
    for item_id, value in iter_items(content):
        if ConfigExpression.is_expression(value):
            problems += [f"{name}: {item_id}: {problem}" for problem in _expression_problems(value)]
    return problems


def _expression_problems(value: str) -> list[str]:
    """What is wrong with one expression."""
    problems = []
    if len(value) > MAX_EXPRESSION_LENGTH:
        problems.append(f"expression of {len(value)} characters; at most {MAX_EXPRESSION_LENGTH}")
    if OWN_NAME.search(value):
        problems.append("own code inside an expression; use _target_, which packaging can rewrite")
    if is_import(value):
        statement = ast.parse(value[1:]).body[0]
        modules = [statement.module] if isinstance(statement, ast.ImportFrom) else [a.name for a in statement.names]  # type: ignore[attr-defined]
        own = any((module or "").split(".")[0] in OWN_PACKAGES for module in modules)
        return [*problems, "import of own code; use _target_"] if own else problems
    if "import" in value and "@" in value:
        problems.append("MONAI takes an expression with 'import' and '@' for an import, and fails; rename")
    text = ReferenceResolver.id_matcher.sub("reference", ReferenceResolver.normalize_id(value[1:]))
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        return [*problems, f"not an expression: {error.msg}"]
    found = {FORBIDDEN_SYNTAX[type(node)] for node in ast.walk(tree) if type(node) in FORBIDDEN_SYNTAX}
    return problems + [f"{what} in an expression; write a function" for what in sorted(found)]


def check_initialize(name: str, merged: dict[str, Any]) -> list[str]:
    """Nothing that `initialize` needs is own code: a packaged bundle is put on the path only after it."""
    reached = reachable_ids(merged, ["initialize"])
    return [
        f"{name}: {item_id}: '{value['_target_']}' is needed by 'initialize', before own code can be imported"
        for item_id, value in iter_items(merged)
        if item_id in reached and ConfigComponent.is_instantiable(value)
        if str(value["_target_"]).split(".")[0] in OWN_PACKAGES
    ]


def check_targets(name: str, merged: dict[str, Any]) -> list[str]:
    """Every `_target_` can be imported and called with the arguments given."""
    problems = []
    for item_id, value in iter_items(merged):
        if ConfigComponent.is_instantiable(value):
            problem = _target_problem(value)
            problems += [f"{name}: {item_id}: {problem}"] if problem else []
    return problems


def _target_problem(component: dict[str, Any]) -> str | None:
    """What is wrong with one component, or None."""
    target = component["_target_"]
    if not isinstance(target, str) or target.startswith(("$", "@")):
        return None  # made at run time
    mode = component.get("_mode_", CompInitMode.DEFAULT)
    if mode not in (CompInitMode.DEFAULT, CompInitMode.CALLABLE):
        return f"_mode_ '{mode}'; only default and callable belong in a config"
    arguments = {key: item for key, item in component.items() if key not in ConfigComponent.non_arg_keys}
    if private := [key for key in arguments if key.startswith("_")]:
        return f"'{private[0]}' is none of MONAI's keys {sorted(ConfigComponent.non_arg_keys)}"
    try:
        function = locate_target(target)
    except pydoc.ErrorDuringImport as error:
        return f"'{target}' fails to import: {error.exc}: {error.value}"
    if not callable(function):
        return f"'{target}' " + ("does not exist" if function is None else "cannot be called")
    signature = _signature(function)
    if signature is None:
        return None
    try:
        (signature.bind if mode == CompInitMode.DEFAULT else signature.bind_partial)(**arguments)
    except TypeError as error:
        return f"'{target}': {error}"
    return None


@cache
def _locator() -> ComponentLocator:
    """MONAI's table of short names; it is built by a walk over all of MONAI, so once."""
    return ComponentLocator()


@cache
def locate_target(target: str) -> Any:
    """What a `_target_` names, short names (`SupervisedTrainer`) as MONAI finds them."""
    module = _locator().get_component_module_name(target)
    module = module[0] if isinstance(module, list) else module  # MONAI takes the first, too
    return pydoc.locate(f"{module}.{target}" if module else target)


def _signature(function: Any) -> inspect.Signature | None:
    """The arguments of a callable; None for built-ins that do not tell."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return None
    kinds = {p.kind for p in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds and inspect.isclass(function) and issubclass(function, DataLoader):
        # MONAI's loader hands everything on; for other classes, what **kwargs takes is their own affair.
        own = {p.name: p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        merged = {**inspect.signature(DataLoader).parameters, **own}
        return inspect.Signature(sorted(merged.values(), key=lambda p: (p.kind, p.default is not p.empty)))
    return signature


def check_comments(path: Path, base_keys: Collection[str]) -> list[str]:
    """The file says what it is for at its top, and every scalar knob that it introduces has its unit or reason."""
    lines = path.read_text(encoding="utf-8").splitlines()
    problems = [] if lines and lines[0].startswith("# ") else [f"{path.name}: no header comment"]
    header_end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    for number, line in enumerate(lines):
        above = lines[number - 1] if number > header_end else ""
        match = KNOB_LINE.match(line)
        if not match or match[1] in base_keys or match[1] in KNOBS_THAT_EXPLAIN_THEMSELVES:
            continue
        value = yaml.safe_load(line)[match[1]] if not match[2].startswith(("|", ">", "[", "{", "&", "*")) else []
        is_knob = not isinstance(value, (list, dict)) and not str(value).startswith(("$", "@", "%"))
        explained = " # " in line or (above.startswith("# ") and not above.startswith("# --"))
        if is_knob and not explained:
            problems.append(f"{path.name}: '{match[1]}' has no comment with its unit or reason")
    return problems
