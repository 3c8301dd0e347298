"""Call a function of ours in a process where the bundle's code is all there is, as on a machine without this package.

There our own package has another name and the bundle's folder is first on the path: a bundle that still needs the
installed package fails there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import UserError

PACKAGE_DIR = Path(__file__).resolve().parents[1]
ALIAS = "_bundle_checker"
LIMIT_SECONDS = 1800
LAST_LINES = 15

BOOTSTRAP = """
import importlib, importlib.util, json, sys
package, alias, module, function, bundle, result = sys.argv[1:]
spec = importlib.util.spec_from_file_location(
    alias, package + "/__init__.py", submodule_search_locations=[package]
)
sys.modules[alias] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[alias])
sys.path[:] = [bundle, *(entry for entry in sys.path if entry)]
import os
absent = os.path.basename(package)
class Absent:  # the package, installed or not, cannot be imported by its name
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == absent and not os.path.exists(os.path.join(bundle, absent)):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent)
found = getattr(importlib.import_module(alias + module), function)(bundle)
with open(result, "w", encoding="utf-8") as file:
    json.dump(found, file)
"""


class IsolatedError(UserError, RuntimeError):
    """The process ended without a result."""


def call_isolated(module: str, function: str, bundle_dir: Path) -> object:
    """Return what `function(str(bundle_dir))` returns there, which must be plain JSON types.

    The bundle's code is run: only for bundles that are trusted.

    Args:
        module: relative to our package, such as `.packaging.network_checks`.
        function: in it.
        bundle_dir: absolute.

    Raises:
        IsolatedError: with the last lines of what the process said.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as elsewhere:
        result = Path(elsewhere) / "result.json"
        arguments = [str(PACKAGE_DIR), ALIAS, module, function, str(bundle_dir), str(result)]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", BOOTSTRAP, *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        if not result.is_file():
            said = "\n".join(done.stderr.splitlines()[-LAST_LINES:])
            raise IsolatedError(f"{bundle_dir.name}: the process that looks at its code ended with {said}")
        return json.loads(result.read_text(encoding="utf-8"))
