"""Fine-tuned weights with their versions: published whole or not at all, each kept, any of them served again.

A folder holds `v0001.pt` with what describes the weights (`v0001.json`, where training wrote it) and what they were
trained on and scored (`v0001.info.json`), and so on; `served.json` names the version in use. Version 0 is the bundle's
shipped weights, which are never written to.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..files import atomic_path, read_json, write_json


class WeightsStore:
    """Versions of the weights of one model; a version that is not there is a WeightsError."""

    def __init__(self, folder: str | Path, shipped: str | Path) -> None:
        self.folder = Path(folder)  # made when something is published
        self.shipped = Path(shipped)
        for path in self.folder.glob("v????.json"):
            if "parent" in read_json(path):  # of 0.1.0, where it was in the place of the description
                path.rename(path.with_suffix(".info.json"))

    def versions(self) -> list[int]:
        """All there are, the shipped one (0) first."""
        numbers = (path.stem[1:] for path in self.folder.glob("v*.pt"))
        return [0, *sorted(int(number) for number in numbers if number.isdigit())]

    def path(self, version: int) -> Path:
        """File of a version."""
        if version not in self.versions():
            raise WeightsError(
                f"weights: found version {version}; expected one of {', '.join(map(str, self.versions()))} "
                "(0 is what the bundle ships)."
            )
        return self._file(version, ".pt") if version else self.shipped

    def served(self) -> int:
        """The version in use, the shipped one where nothing else was said; WeightsError if served.json is damaged."""
        path = self.folder / "served.json"
        if not path.exists():
            return 0
        try:
            version = int(read_json(path)["version"])
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                f'{path}: found no version in it ({error}); expected {{"version": N}}. Remove the file to serve the '
                "shipped weights."
            ) from error
        self.path(version)
        return version

    def info(self, version: int) -> dict[str, Any]:
        """What was noted when the version was published; nothing for the shipped one."""
        path = self._file(version, ".info.json")
        return read_json(path) if path.exists() else {}

    def publish(self, weights: Path, info: dict[str, Any]) -> int:
        """Copy weights, with the description beside them, in as the next version, which is returned, and serve it.

        A kill at any moment leaves the old one served. `info` is what to remember, in JSON types.
        """
        version = self.versions()[-1] + 1
        write_json(self._file(version, ".info.json"), {**info, "parent": self.served()})
        for suffix in (".json", ".pt"):
            if weights.with_suffix(suffix).is_file():
                with atomic_path(self._file(version, suffix)) as temporary:
                    shutil.copyfile(weights.with_suffix(suffix), temporary)
        self.serve(version)
        return version

    def serve(self, version: int) -> None:
        """Use this version from now on: the way back from a training, too."""
        self.path(version)
        write_json(self.folder / "served.json", {"version": version})

    def _file(self, version: int, suffix: str) -> Path:
        return self.folder / f"v{version:04d}{suffix}"
