"""Change one operator or number of the code at a time, and see that a test fails.

python scripts/mutation.py --output_dir OUT --mutants 200   # hours on one core; needs the extra `dev`
"""

from __future__ import annotations

import ast
import csv
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec

from common.command_line import run_command
from common.progress import ProgressBar

ROOT = Path(__file__).parents[1]
COLUMNS = ("module", "line", "column", "operator", "occurrence", "outcome")


class Group(NamedTuple):
    """Modules, and the tests that are to fail when one of them is wrong."""

    modules: Sequence[str]
    tests: Sequence[str]


GROUPS = {
    "diffusion": Group(
        ("common/diffusion/samplers.py", "common/diffusion/noise_schedule.py"),
        ("tests/test_samplers.py", "tests/test_noise_schedule.py"),
    ),
    "reader": Group(
        ("common/io/dicom_pixels.py", "common/io/dicom.py", "common/io/raster.py", "common/io/scaling.py"),
        ("tests/test_dicom_pixels.py", "tests/test_reader_*.py"),
    ),
    "trainer": Group(("common/training/trainer.py",), ("tests/test_trainer.py",)),
    "folder_job": Group(
        ("common/pipelines/folder_job.py", "common/pipelines/job_log.py"), ("tests/test_folder_job.py",)
    ),
}


def mutation(
    output_dir: str, mutants: int = 200, seed: int = 0, timeout: float = 900, only: str | Sequence[str] | None = None
) -> None:
    """Test so many mutants, as many of each group, and list them in OUT/mutants.csv; the same command goes on.

    Args:
        output_dir: of the table.
        mutants: number of them.
        seed: another one draws others.
        timeout: seconds of a test run; a mutant that takes longer is killed.
        only: groups, of diffusion, reader, trainer and folder_job; None for all.
    """
    names = list(GROUPS) if only is None else [only] if isinstance(only, str) else list(only)
    table = Path(output_dir) / "mutants.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("common", "scripts", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("bundles", "docs", "pyproject.toml", "README.md"):
            (copy / part).symlink_to(ROOT / part)
        outcomes = {
            name: group_outcomes(copy, GROUPS[name], -(-mutants // len(names)), seed, timeout, table) for name in names
        }
    for name, found in outcomes.items():
        print(f"{name}: {found.count('killed')} of {len(found)} killed")
    print(f"each mutant is in {table}")


def group_outcomes(root: Path, group: Group, count: int, seed: int, timeout: float, table: Path) -> list[str]:
    """What became of `count` mutants of a group: killed or survived; they are added to the table one by one.

    Args:
        root: a copy of the repository, whose modules are changed and put back.
        group: of it.
        count: of mutants, fewer where there are not as many.
        seed: of their choice.
        timeout: seconds of a test run.
        table: CSV file of COLUMNS; what it has is not tested again.
    """
    tests = sorted(str(path) for pattern in group.tests for path in root.glob(pattern))
    run = shlex.join([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests])
    command = shlex.join(["sh", "-c", f"cd {shlex.quote(str(root))} && PYTHONPATH=. exec {run}"])
    known: dict[tuple[str, ...], str] = {}
    if table.is_file():
        with table.open(newline="") as stream:
            known = {tuple(row[key] for key in COLUMNS[:-1]): row["outcome"] for row in csv.DictReader(stream)}
    found = []
    with table.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if not known:
            writer.writerow(COLUMNS)
        for spec in ProgressBar(chosen([root / module for module in group.modules], count, seed), desc="mutants"):
            key = (
                spec.module_path.relative_to(root).as_posix(),
                *map(str, spec.start_pos),
                spec.operator_name.partition("/")[2],
                str(spec.occurrence),
            )
            if key not in known:
                result = mutate_and_test([spec], command, timeout)
                known[key] = "killed" if result.is_killed else "survived"
                writer.writerow([*key, known[key]])
                stream.flush()
                print(result.diff if known[key] == "survived" else "", end="")
            found.append(known[key])
    return found


def chosen(modules: Sequence[Path], count: int, seed: int) -> list[MutationSpec]:
    """At most one mutant of each place in the modules; none of annotations, nor of == against `is`."""
    with tempfile.TemporaryDirectory() as folder:
        everything = WorkDB(str(Path(folder) / "mutants.sqlite"), WorkDB.Mode.create)
        init(modules, everything, {})
        specs = [item.mutations[0] for item in everything.work_items]
        everything.close()
    ignored = {module: set(annotated(ast.parse(module.read_text()))) for module in modules}
    places: dict[tuple[Path, tuple[int, int]], list[MutationSpec]] = {}
    for spec in sorted(specs, key=lambda spec: (spec.module_path, spec.start_pos, spec.operator_name)):
        if spec.start_pos[0] not in ignored[spec.module_path] and not spec.operator_name.endswith(("_Is", "_IsNot")):
            places.setdefault((spec.module_path, spec.start_pos), []).append(spec)
    draw = np.random.default_rng(seed)
    every = list(places.values())
    taken = sorted(draw.permutation(len(every))[:count])
    return [every[place][draw.integers(len(every[place]))] for place in taken]


def annotated(tree: ast.AST) -> Iterator[int]:
    """Lines that have annotations of arguments, results or fields."""
    for node in ast.walk(tree):
        for found in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(found, ast.expr):
                yield from range(found.lineno, (found.end_lineno or found.lineno) + 1)


if __name__ == "__main__":
    run_command(mutation)
