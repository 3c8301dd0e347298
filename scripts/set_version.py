"""Give the package and all bundles a new version, with an entry in each changelog.

python scripts/set_version.py 0.2.0 --note "what changed" [--dry_run]
"""

from __future__ import annotations

from pathlib import Path

from common.command_line import run_command
from common.packaging.versions import difference, plan_version, write_texts

REPOSITORY = Path(__file__).resolve().parents[1]


def set_version(version: str, *, note: str, dry_run: bool = False, repository: str | None = None) -> None:
    """Change every file that names the version, or none.

    Args:
        version: three whole numbers, newer than the present version.
        note: what changed, for the changelogs.
        dry_run: print what would change, and change nothing.
        repository: checkout to change; None is the one that this script is in.
    """
    root = Path(repository).resolve() if repository else REPOSITORY
    texts = plan_version(root, str(version), str(note))
    if dry_run:
        print(difference(texts, root), end="")
        return
    write_texts(texts)
    for path in texts:
        print(f"{version}  {path.relative_to(root)}")
    print("Package the bundles again: python scripts/package_bundle.py all --output_dir dist")


if __name__ == "__main__":
    run_command(set_version)
