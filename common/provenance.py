"""Where figures come from: command, commit, date, device and versions."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import monai
import numpy as np
import PIL
import torch

from . import __version__

OWN_CODE = Path(__file__).resolve().parent
GIT_TIMEOUT_SECONDS = 10
BUT_RESULTS = ":(top,exclude,glob)bundles/*/docs/**"  # a pathspec


def provenance(device: torch.device | str) -> dict[str, Any]:
    """Command, date, device, versions and git commit (None outside its checkout) behind a set of figures."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__}
    versions |= {"numpy": np.__version__, "pillow": PIL.__version__, "common": __version__}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"command": command_line(), "date": date, "device": str(device), "versions": versions, "git": git_state()}


def command_line() -> str:
    """The command of this process as one would type it, without the path of the interpreter or of MONAI."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec is not None else f"python {sys.argv[0]}"
    return shlex.join([*program.split(), *sys.argv[1:]])


def git_state(folder: Path = OWN_CODE) -> dict[str, Any] | None:
    """Commit of the checkout that holds this code and whether it was modified; None when it is not in one.

    An installed copy may lie inside some other repository (a virtual environment in a checkout): only a repository
    that tracks this very code counts. The docs of bundles do not: results are written there, and would else say of
    themselves that they were made by other code than the commit's.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--", ":/", BUT_RESULTS)
    return {"commit": commit, "is_dirty": bool(status)} if commit else None


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command; None when git is missing, too slow, or refuses."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
