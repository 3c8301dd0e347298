"""Push a packaged bundle to the Hugging Face hub, with a model card made from its README and metadata.

python scripts/publish_bundle.py dist/NAME --repo OWNER/NAME --dry_run
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from common.command_line import run_command
from common.packaging.publishing import CARD, LATEST, check_packaged, check_repo, list_files, publish, stage

CARD_LINES = 40


def publish_bundle(
    folder: str, *, repo: str, token: str | None = None, private: bool = True, dry_run: bool = False
) -> None:
    """Check the folder, then push it; monai.bundle.download gives others what is in it.

    Args:
        folder: that scripts/package_bundle.py made; it is not changed.
        repo: OWNER/NAME on the hub; made if there is none.
        token: of the hub; without it HF_TOKEN or what `hf auth login` has stored.
        private: whether a repository that is made now can be seen by its owner only.
        dry_run: print what would go, and contact nothing.
    """
    path, repo = Path(str(folder)), str(repo)
    check_repo(repo)
    version = check_packaged(path)["version"]
    if dry_run:
        show(path, repo, version, private)
    else:
        print(publish(path, repo, version, None if token is None else str(token), private))


def show(folder: Path, repo: str, version: str, private: bool) -> None:
    """Print the files as they would be on the hub, the tags, and the beginning of the card."""
    with tempfile.TemporaryDirectory() as parent:
        staged = stage(folder, repo, Path(parent))
        files = list_files(staged)
        card = (staged / CARD).read_text(encoding="utf-8").splitlines()
    for file in files:
        print(f"{file.sha256}  {file.size:>11,}  {file.path}")
    print(f"{len(files)} files, {sum(file.size for file in files):,} bytes")
    print(f"to {repo}, {'private' if private else 'public'} if it is new; tags: {version}, {LATEST}")
    print(f"{CARD} begins:", *(f"  {line}" for line in card[:CARD_LINES]), sep="\n")
    print("Nothing was sent.")


if __name__ == "__main__":
    run_command(publish_bundle)
