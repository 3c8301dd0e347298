import runpy
import shutil
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

ON_PATH = REPOSITORY / "common" / "packaging" / "on_path.py"


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    found = []
    for name in ("one", "two"):
        code = tmp_path / name / "scripts"
        (code / "common").mkdir(parents=True)
        (code / "__init__.py").touch()
        (code / "common" / "__init__.py").write_text(f"WHOSE = {name!r}\n")
        shutil.copy(ON_PATH, code)
        found.append(tmp_path / name)
    yield found
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]


def whose() -> str:
    import importlib

    return importlib.import_module("scripts.common").WHOSE


def test_each_bundle_gets_its_own_code_in_one_process(bundles):
    first, second = bundles
    for bundle, name in ((first, "one"), (second, "two"), (first, "one")):
        runpy.run_path(str(bundle / "scripts" / "on_path.py"))
        assert whose() == name and sys.path[0] == str(bundle)
    assert sys.path.count(str(first)) == 1


def test_code_that_is_loaded_stays_loaded_for_the_same_bundle(bundles):
    runpy.run_path(str(bundles[0] / "scripts" / "on_path.py"))
    assert whose() == "one"
    loaded = sys.modules["scripts.common"]
    runpy.run_path(str(bundles[0] / "scripts" / "on_path.py"))
    assert sys.modules["scripts.common"] is loaded


def test_importing_the_file_changes_nothing(bundles):
    before = list(sys.path)
    runpy.run_path(str(bundles[0] / "scripts" / "on_path.py"), run_name="scripts.on_path")
    assert sys.path == before
