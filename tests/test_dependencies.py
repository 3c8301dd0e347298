"""The parts of `common` depend on each other in one direction: each can be read and shipped without those above it."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter

from conftest import REPOSITORY

COMMON = REPOSITORY / "common"
LAYERS = (
    "io",
    "networks",
    "data",
    "diffusion",
    "training",
    "pipelines",
    "evaluation",
    "experiments",
    "packaging",
    "label",
)


def part_of(words):
    """A package below `common`, or a module at its top."""
    return words[0] if words else "__init__"


def imported_parts(file):
    """What a file's relative imports name, with the imports inside of functions."""
    package = file.relative_to(COMMON).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            yield part_of([*base, *(node.module or "").split(".")] if node.module else list(base))


def test_no_part_depends_on_one_that_depends_on_it():
    needs = defaultdict(set)
    for file in COMMON.rglob("*.py"):
        part = part_of(file.relative_to(COMMON).with_suffix("").parts)
        needs[part] |= {other for other in imported_parts(file) if other != part}
    list(TopologicalSorter(needs).static_order())  # CycleError names the circle
    for place, part in enumerate(LAYERS):
        assert not needs[part] & set(LAYERS[place + 1 :]), f"{part} needs what is above it"
