"""Fine-tuned weights with their versions: published whole or not at all, each kept, any of them served again.

A folder holds `v0001.pt` with `v0001.json` (what it was trained on, what it scored) and so on, and `served.json`, which
names the version in use. Version 0 is the bundle's shipped weights, which are never written to.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic_path

SHIPPED = 0
SERVED_NAME = "served.json"


class WeightsStoreError(UserError, ValueError):
    """There is no such version, or a file of the store is damaged."""


class WeightsStore:
    """Versions of the weights of one model.

    Args:
        folder: of the fine-tuned weights; made when something is published.
        shipped: the bundle's own weights file.
    """

    def __init__(self, folder: str | Path, shipped: str | Path) -> None:
        self.folder = Path(folder)
        self.shipped = Path(shipped)

    def versions(self) -> list[int]:
        """All there are, the shipped one (0) first."""
        numbers = (path.stem[1:] for path in self.folder.glob("v*.pt"))
        return [SHIPPED, *sorted(int(number) for number in numbers if number.isdigit())]

    def path(self, version: int) -> Path:
        """File of a version.

        Raises:
            WeightsStoreError: there is no such version.
        """
        if version not in self.versions():
            raise WeightsStoreError(
                f"weights: found version {version}; expected one of {', '.join(map(str, self.versions()))} "
                "(0 is what the bundle ships)."
            )
        return self.shipped if version == SHIPPED else self.folder / f"v{version:04d}.pt"

    def served(self) -> int:
        """The version in use: that of served.json, or the shipped one without such a file.

        Raises:
            WeightsStoreError: the file is damaged, or names a version that is gone.
        """
        path = self.folder / SERVED_NAME
        if not path.exists():
            return SHIPPED
        try:
            version = int(json.loads(path.read_text(encoding="utf-8"))["version"])
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsStoreError(
                f'{path}: found no version in it ({error}); expected {{"version": N}}. Remove the file to serve the '
                "shipped weights."
            ) from error
        self.path(version)
        return version

    def info(self, version: int) -> dict[str, Any]:
        """What was noted when the version was published; nothing for the shipped one."""
        path = self.folder / f"v{version:04d}.json"
        return json.loads(path.read_text(encoding="utf-8")) if version != SHIPPED and path.exists() else {}

    def publish(self, weights: str | Path, info: dict[str, Any]) -> int:
        """Copy a weights file in as the next version and serve it; a kill at any moment leaves the old one served.

        Args:
            weights: the file to copy.
            info: what to remember of it, in JSON types.

        Returns:
            The version.
        """
        version = self.versions()[-1] + 1
        parent = self.served()
        with atomic_path(self.folder / f"v{version:04d}.json") as temporary:
            temporary.write_text(json.dumps({**info, "parent": parent}, indent=2) + "\n", encoding="utf-8")
        with atomic_path(self.folder / f"v{version:04d}.pt") as temporary:
            shutil.copyfile(weights, temporary)
        self.serve(version)
        return version

    def serve(self, version: int) -> None:
        """Use this version from now on: the way back from a training, too.

        Raises:
            WeightsStoreError: there is no such version.
        """
        self.path(version)
        with atomic_path(self.folder / SERVED_NAME) as temporary:
            temporary.write_text(json.dumps({"version": version}) + "\n", encoding="utf-8")
