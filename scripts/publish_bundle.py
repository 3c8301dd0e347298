"""Push a packaged bundle to the Hugging Face hub, with a model card made from its README and metadata.

python scripts/publish_bundle.py dist/NAME --repo OWNER/NAME --dry_run
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from common.command_line import run_command
from common.packaging.bundle import Bundle
from common.packaging.hub import CARD, LATEST, publish, publishable_files

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
    files, version = publishable_files(path, repo), Bundle(path).metadata["version"]
    if not dry_run:
        print(publish(files, repo, version, None if token is None else str(token), private))
        return
    contents = {name: file if isinstance(file, bytes) else file.read_bytes() for name, file in sorted(files.items())}
    for name, content in contents.items():
        print(f"{hashlib.sha256(content).hexdigest()}  {len(content):>11,}  {name}")
    print(f"{len(files)} files, {sum(map(len, contents.values())):,} bytes")
    print(f"to {repo}, {'private' if private else 'public'} if it is new; tags: {version}, {LATEST}")
    card = contents[CARD].decode().splitlines()
    print(f"{CARD} begins:", *(f"  {line}" for line in card[:CARD_LINES]), sep="\n")
    print("Nothing was sent.")


if __name__ == "__main__":
    run_command(publish_bundle)
