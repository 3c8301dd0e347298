"""Put the bundle that this file is in on Python's path; every packaged config runs it first, as `scripts/on_path.py`.

MONAI itself does so only when a workflow is run, so that `monai.bundle.load` and `create_workflow` of a bundle with
code of its own fail. Another bundle's `scripts` that is loaded already is unloaded, as MONAI Label does; its objects
go on with the code they have.
"""

from __future__ import annotations

import sys
from pathlib import Path

CODE_PACKAGE = "scripts"


def put_first(bundle_root: Path) -> None:
    """Make `import scripts` find this bundle's, whatever else is on the path or loaded."""
    loaded = sys.modules.get(CODE_PACKAGE)
    if loaded is not None and str(bundle_root / CODE_PACKAGE) not in map(str, loaded.__path__):
        for name in [name for name in sys.modules if name.split(".")[0] == CODE_PACKAGE]:
            del sys.modules[name]
    sys.path[:] = [str(bundle_root), *(entry for entry in sys.path if entry != str(bundle_root))]


if __name__ == "<run_path>":  # as runpy names it
    put_first(Path(__file__).resolve().parents[1])
