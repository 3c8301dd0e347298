"""Which files of a package some of its modules need: what they import, and what that imports, read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import UserError


class MissingModuleError(UserError, ValueError):
    """A dotted name does not lead to a module of the package."""


def needed_files(package_dir: Path, dotted_names: Iterable[str]) -> list[Path]:
    """The package's files that importing what the names say would load, sorted; imports inside of functions count too.

    Only relative imports are followed: a package that is to be copied elsewhere may use no others for itself.

    Args:
        package_dir: folder of the package, with `__init__.py`.
        dotted_names: such as `common.networks.latent_codec.LatentCodec`; the first word is the package.

    Raises:
        MissingModuleError: a name, or an import, of something that is not there.
    """
    waiting = [module_file(package_dir, name) for name in dotted_names]
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        waiting += _inits_above(package_dir, file)
        waiting += _imported_files(package_dir, file)
    return sorted(found)


def module_file(package_dir: Path, dotted_name: str) -> Path:
    """The file of the module that a dotted name is in; the rest of the name is an attribute.

    Raises:
        MissingModuleError: not even the first module below the package is there.
    """
    words = dotted_name.split(".")[1:]
    for length in range(len(words), 0, -1):
        if file := _as_module(package_dir.joinpath(*words[:length])):
            return file
    raise MissingModuleError(f"{dotted_name}: no such module in {package_dir}")


def _as_module(path: Path) -> Path | None:
    """The file that `import` would read for a path without suffix."""
    candidates = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _inits_above(package_dir: Path, file: Path) -> Iterator[Path]:
    """The `__init__.py` of every package that a file is in, down from `package_dir`."""
    for folder in (package_dir, *(package_dir / part for part in file.relative_to(package_dir).parents)):
        yield folder / "__init__.py"


def _imported_files(package_dir: Path, file: Path) -> Iterator[Path]:
    """Files of the package that a file's own import statements name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = file.parents[node.level - 1]
            module = base.joinpath(*node.module.split(".")) if node.module else base
            named = _as_module(module)
            if named is None:
                raise MissingModuleError(f"{file}: line {node.lineno} imports {module}, which is not there")
            yield named
            if named.name == "__init__.py":  # what is named may be a module itself
                yield from filter(None, (_as_module(module / alias.name) for alias in node.names))
