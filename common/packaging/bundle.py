"""A bundle, ours or anybody's: what is read of it without running it, within limits, and its networks."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from monai.apps import extractall
from monai.bundle import ConfigParser
from torch import nn

from ..errors import RunError, root_user_error
from .on_path import CODE_PACKAGE, put_first

SUFFIXES = (".json", ".yaml", ".yml")  # JSON before YAML, as MONAI's own tools choose
MOST_FILES = 10_000
MOST_BYTES = 2**30  # of a zip's files together
MOST_TEXT_BYTES = 2**23  # of a file that is read as text
MOST_ITEMS = 100_000  # of a config, with what YAML's aliases repeat


@dataclass(frozen=True)
class Bundle:
    """The folder of a bundle; what cannot be read raises RunError."""

    root: Path

    @cached_property
    def files(self) -> list[Path]:
        """All files, sorted by path."""
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What configs/metadata.json says."""
        return read_tree(self.root / "configs" / "metadata.json")

    @cached_property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Content of each config but the metadata, by file name."""
        paths = [path for path in sorted(self.root.glob("configs/*")) if path.suffix in SUFFIXES]
        return {path.name: read_tree(path) for path in paths if path.stem != "metadata"}

    def workflow(self, stem: str) -> str | None:
        """Name of a workflow's config."""
        return next((f"{stem}{suffix}" for suffix in SUFFIXES if f"{stem}{suffix}" in self.configs), None)

    @cached_property
    def large_files(self) -> dict[str, dict[str, Any]]:
        """Entries of large_files.yml, if there is one, by the path that each is for."""
        entries = [entry for path in self.root.glob("large_files.*") for entry in read_tree(path)["large_files"]]
        return {str(entry.get("path", "")): entry for entry in entries}

    def build(self, network_id: str = "network_def") -> nn.Module:
        """A network of inference.yaml on the CPU, in eval mode, its weights not loaded; runs code of the bundle's.

        What was imported as `scripts` of another bundle is unloaded.
        """
        name = self.workflow("inference")
        if name is None:
            raise RunError(f"{self.root}/configs/inference.yaml: no such config; expected a bundle's folder")
        if (self.root / CODE_PACKAGE).is_dir():
            put_first(self.root.resolve())
        parser = ConfigParser(self.configs[name])
        parser.update({"_meta_": self.metadata, "bundle_root": str(self.root), "device": "cpu"})
        try:
            return parser.get_parsed_content(network_id).eval()
        except Exception as error:  # of anybody's code
            cause = root_user_error(error) or error.__cause__ or error
            raise RunError(f"{self.root}/configs/{name}: cannot build {network_id}: {cause}") from error


@contextmanager
def opened_bundle(path: str | Path) -> Iterator[Bundle]:
    """Give a bundle's folder; a zip is extracted for as long as that takes.

    Raises:
        RunError: neither a folder nor a zip of one folder; entries that lead out of it; something that is no regular
            file, such as a pipe; more or larger files than any bundle has.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="bundle_") as temporary:
        try:
            root = path.resolve() if path.is_dir() else _extract(path, Path(temporary).resolve())
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise RunError(f"{path}: expected a bundle, a folder or a zip of one: {error}") from error
        for number, found in enumerate(root.rglob("*")):
            if number >= MOST_FILES or not (found.is_file() or found.is_dir()):
                raise RunError(f"{found}: is no regular file, or one of more than {MOST_FILES}")
        yield Bundle(root)


def _extract(path: Path, folder: Path) -> Path:
    """Extract a zip and return the one folder at its top."""
    with zipfile.ZipFile(path) as archive:
        size, number = sum(entry.file_size for entry in archive.infolist()), len(archive.infolist())
    if size > MOST_BYTES or number > MOST_FILES:
        raise ValueError(
            f"found {number} files of {size / 2**20:.0f} MiB; a zip may hold {MOST_FILES} of {MOST_BYTES / 2**20:.0f}; "
            "extract it and give the folder"
        )
    logging.getLogger("monai.apps").setLevel(logging.WARNING)  # it tells each extraction on the standard output
    extractall(path, folder, file_type="zip", has_base=False)
    tops = list(folder.iterdir())
    if len(tops) != 1 or not tops[0].is_dir():
        raise ValueError(f"found {len(tops)} entries at its top, expected one folder, named as the bundle")
    return tops[0]


def read_text(path: Path) -> str:
    """Text of a file, unless it is larger than any text of a bundle."""
    if path.stat().st_size > MOST_TEXT_BYTES:
        raise RunError(f"{path.name}: expected at most {MOST_TEXT_BYTES / 2**20:.0f} MiB of text")
    return path.read_text(encoding="utf-8")


def read_tree(path: Path) -> dict[str, Any]:
    """Content of a JSON or YAML file, without running anything."""
    try:
        text = read_text(path)
        if path.suffix != ".json" and _count(yaml.compose(text, Loader=yaml.SafeLoader), {}) > MOST_ITEMS:
            raise ValueError(f"more than {MOST_ITEMS} items, with those that aliases repeat")
        tree = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise RunError(f"{path}: found a {type(tree).__name__}; expected keys and values")
    return tree


def _count(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Nodes of a YAML document as often as they are named; a node that holds itself has no end."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        children = [child for item in inner for child in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
    return known[id(node)]
