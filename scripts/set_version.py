"""Give the package and all bundles a new version, with an entry in each changelog.

python scripts/set_version.py 0.2.0 --note "what changed" [--dry_run]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

from common.command_line import run_command
from common.errors import SettingsError

REPOSITORY = Path(__file__).resolve().parents[1]


def set_version(version: str, *, note: str, dry_run: bool = False, repository: str | None = None) -> None:
    """Change every place that names the version, or none: bump-my-version does it, pyproject.toml lists the places.

    Args:
        version: three whole numbers, newer than the present version.
        note: what changed, for the changelogs.
        dry_run: print what would change, and change nothing.
        repository: checkout to change; None is the one that this script is in.
    """
    root, version, note = Path(repository or REPOSITORY), str(version), " ".join(str(note).split())
    package = root / "common" / "__init__.py"
    present = re.findall(
        r'^__version__ = "(.+)"$', package.read_text("utf-8") if package.is_file() else "", re.MULTILINE
    )
    if len(present) != 1:
        raise SettingsError(f"{package}: found no version; expected the repository of the bundles")
    is_version = re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version)
    if not is_version or Version(version) <= Version(present[0]):
        raise SettingsError(f"found {version}; expected three whole numbers such as 9.0.1, more than {present[0]}")
    if not note:
        raise SettingsError("found no note; expected in a few words what changed: --note 'what changed'")
    quoted = json.dumps(note).replace("\\", "\\\\")  # it becomes the replacement of a regular expression
    command = [sys.executable, "-m", "bumpversion", "bump", "-v", "--new-version", version]
    environment = {**os.environ, "NOTE": quoted, "COLUMNS": "160"}
    done = subprocess.run([*command, *(["--dry-run"] if dry_run else [])], cwd=root, env=environment, check=False)
    if done.returncode:
        sys.exit(f"nothing was changed; set_version needs pip install -e '.[dev]' and {root}/pyproject.toml")
    if not dry_run:
        print("Package the bundles again: python scripts/package_bundle.py all --output_dir dist")


if __name__ == "__main__":
    run_command(set_version)
