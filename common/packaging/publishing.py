"""A packaged bundle on the Hugging Face hub, with its model card."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import push_to_hf_hub

from ..errors import UserError
from ..fingerprint import file_sha256
from .model_card import make_model_card
from .packaging import OMITTED

CARD = "README.md"
LATEST = "latest_version"  # the tag that monai.bundle.download takes when it is told no version
REQUIRED = (
    *("LICENSE", "docs/README.md", "configs/metadata.json", "models/model.pt"),
    *("scripts/__init__.py", "scripts/common/__init__.py"),
)
NEEDED_METADATA = (
    *("version", "changelog", "task"),
    *("monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
)
OLD_FILES = ["configs/*", "docs/*", "models/*", "samples/*", "scripts/*"]
"""What an older version may have left on the hub and this one replaces; other files there are none of ours."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_OWN_TARGET = re.compile(r"""["']?_target_["']?\s*:\s*["']?common\.""")


class PublishError(UserError, ValueError):
    """The bundle, or where it should go, is not fit to be published; nothing was sent."""


class HubError(UserError, RuntimeError):
    """The hub could not be reached, or refused."""


@dataclass(frozen=True)
class PublishedFile:
    """A file as it will be on the hub: its path there, size in bytes, and hash."""

    path: str
    size: int
    sha256: str


def check_repo(repo: str) -> None:
    """Raise PublishError unless `repo` is OWNER/NAME as the hub allows it."""
    name = repo.partition("/")[2]
    if not _REPO.fullmatch(repo) or len(name) > 96 or re.search(r"--|\.\.|[.-]$|\.git$", repo):
        raise PublishError(
            f"found '{repo}' as the repository; expected OWNER/NAME of letters, digits, '_', and single '-' or '.' "
            "inside"
        )


def check_packaged(folder: Path) -> dict[str, Any]:
    """Return the metadata of a bundle that runs alone.

    Raises:
        PublishError: the folder is none; everything that it lacks is listed.
    """
    if not folder.is_dir():
        raise PublishError(f"{folder}: found no folder; expected one that scripts/package_bundle.py has made")
    problems = [f"{name} is missing" for name in REQUIRED if not (folder / name).is_file()]
    problems += [f"{path.relative_to(folder)} is a link" for path in sorted(folder.rglob("*")) if path.is_symlink()]
    for path in sorted(folder.glob("configs/*.*")):
        if path.suffix in {".yaml", ".yml", ".json"} and _OWN_TARGET.search(path.read_text(encoding="utf-8")):
            problems.append(f"configs/{path.name} needs the package `common`, which does not come with it")
    for listing in sorted(folder.glob("large_files.*")):
        listed = (yaml.safe_load(listing.read_text(encoding="utf-8")) or {}).get("large_files", [])
        absent = [entry["path"] for entry in listed if not (folder / entry["path"]).is_file()]
        problems += [f"{path} of {listing.name} is missing; the hub takes large files" for path in absent]
    metadata, faults = _metadata(folder / "configs" / "metadata.json")
    if problems + faults:
        listed_problems = "\n".join(f"  {problem}" for problem in problems + faults)
        raise PublishError(
            f"{folder}: expected a packaged bundle (scripts/package_bundle.py makes one); found\n{listed_problems}"
        )
    return metadata


def _metadata(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The metadata and what is wrong with the part that publishing needs; a missing file is told elsewhere."""
    if not path.is_file():
        return {}, []
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return {}, [f"configs/metadata.json is no JSON: {error}"]
    faults = [f"configs/metadata.json has no {key}" for key in NEEDED_METADATA if key not in metadata]
    if not faults and metadata["version"] not in metadata["changelog"]:
        faults = [f"version {metadata['version']} is not in the changelog of configs/metadata.json"]
    return metadata, faults


def stage(folder: Path, repo: str, parent: Path) -> Path:
    """Copy what will be published into `parent`, with the card as its README.md; the folder itself stays as it is.

    MONAI writes into the folder that it uploads.
    """
    folder = folder.resolve()
    staged = parent / folder.name
    shutil.copytree(folder, staged, ignore=shutil.ignore_patterns(*OMITTED))
    (staged / CARD).write_text(make_model_card(staged, repo), encoding="utf-8")
    return staged


def list_files(staged: Path) -> list[PublishedFile]:
    """Every file of a folder, by path."""
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    return [
        PublishedFile(path.relative_to(staged).as_posix(), path.stat().st_size, file_sha256(path)) for path in files
    ]


def publish(folder: Path, repo: str, version: str, token: str | None = None, private: bool = True) -> str:
    """Push a packaged bundle by `monai.bundle.push_to_hf_hub` and tag it; return its address.

    The card goes by a commit of its own: MONAI puts front matter of its own, two tags and the licence, before whatever
    docs/README.md has, and the hub reads only what comes first. The tags come last, and from here: MONAI makes a tag
    only where there is none, so its `latest_version` would stay with the first version for ever.

    Args:
        folder: as `check_packaged` wants it.
        repo: OWNER/NAME.
        version: of the bundle; a tag of that name must not be on the hub.
        token: of the hub; None takes HF_TOKEN or what `hf auth login` has stored.
        private: whether a repository that is made now is; one that exists stays as it is.

    Raises:
        HubError: no token, no connection, no permission, or the version is there already.
    """
    import huggingface_hub

    token = token or huggingface_hub.get_token()
    if token is None:
        raise HubError(
            "found no token of the Hugging Face hub; give --token, set HF_TOKEN, or run `hf auth login` once"
        )
    api = huggingface_hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as parent:
        staged = stage(folder, repo, Path(parent))
        card = (staged / CARD).read_bytes()
        try:
            _check_new(api, repo, version)
            options = {"ignore_patterns": [CARD], "delete_patterns": OLD_FILES, "commit_message": f"Version {version}"}
            push_to_hf_hub(repo, staged.name, parent, token, private, None, False, **options)
            api.upload_file(path_or_fileobj=card, path_in_repo=CARD, repo_id=repo, commit_message=f"Card of {version}")
            _tag(api, repo, version)
        except UserError:
            raise
        except Exception as error:  # of requests, httpx or httpx2, as the version of huggingface_hub has it
            raise HubError(
                f"{repo}: the hub could not be reached, or refused: {type(error).__name__}: {str(error).strip()}\n"
                "Look at the network, the token and its right to write there. The same command again is safe."
            ) from error
    return f"https://huggingface.co/{repo}"


def _check_new(api: Any, repo: str, version: str) -> None:
    """A version that others may have downloaded is not replaced behind their backs."""
    if api.repo_exists(repo) and version in {tag.name for tag in api.list_repo_refs(repo).tags}:
        raise HubError(
            f"{repo}: version {version} is on the hub already; expected a new one (scripts/set_version.py), or delete "
            "its tag there first"
        )


def _tag(api: Any, repo: str, version: str) -> None:
    """Move `latest_version` to what was just pushed; the version's own tag comes last and says that all is there."""
    if LATEST in {tag.name for tag in api.list_repo_refs(repo).tags}:
        api.delete_tag(repo, tag=LATEST)
    api.create_tag(repo, tag=LATEST)
    api.create_tag(repo, tag=version)
