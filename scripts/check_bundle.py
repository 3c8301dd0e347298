"""Ask of a bundle, offline, what the MONAI model zoo's checks and reviewers ask; one line for each question.

python scripts/check_bundle.py PATH_OR_ZIP
"""

from __future__ import annotations

import sys

from common.command_line import run_command
from common.packaging.zoo_check import check_bundle


def check(path: str, run_code: bool = True, formatters: bool = False) -> None:
    """Print a line for each question and exit with 1 if the zoo would refuse the bundle.

    Args:
        path: of a bundle: a folder or a zip, ours or anybody's.
        run_code: also build, load and trace its network. A bundle's configs can run any code: for a bundle that you
            do not trust give False.
        formatters: also ask black, isort and flake8 (pip install black isort flake8-bugbear pep8-naming), with the
            zoo's settings.
    """
    failed = 0
    for verdict in check_bundle(path, run_code, formatters):
        print(verdict.line(), flush=True)
        failed += verdict.failed
    if failed:
        sys.exit(f"{path}: {failed} of the required answers {'is' if failed == 1 else 'are'} no")


if __name__ == "__main__":
    run_command(check)
