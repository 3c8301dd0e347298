"""What a packaged bundle brings along: all the code that it needs, and configs that find it there."""

import ast
import json
import re
import runpy
import shutil
import sys
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from common.errors import RunError
from common.packaging.vendoring import (
    ON_PATH,
    PACKAGE_DIR,
    named_code,
    needed_files,
    retargeted,
    rewrite_configs,
    vendor,
)

BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
CONFIG = """# common.nothing in a comment stays
bundle_root: "." # knob
network_def:
  _target_: common.networks.x.Net # the network
  channels: [8, 16]
handlers:
  - _target_: "common.training.handlers.Saver"
    path: common
  - _target_: monai.handlers.StatsHandler
initialize:
  - "$monai.utils.set_determinism(seed=0)"
run:
  - _target_: common.override_check.check_overrides
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    files = {
        "__init__.py": "",
        "used.py": "from .inner import chain\nfrom . import lazy_user\n",
        "lazy_user.py": "def late():\n    from .late import thing\n    return thing\n",
        "late.py": "thing = 1\n",
        "unused.py": "from .used import nothing\n",
        "inner/__init__.py": "from .first import value\n",
        "inner/first.py": "from ..below import value\n",
        "inner/chain.py": "import os\n",
        "inner/alone.py": "",
        "below.py": "value = 2\n",
    }
    for name, text in files.items():
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_text(text)
    return tmp_path / "pack"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("used.Thing", "__init__ below inner/__init__ inner/chain inner/first late lazy_user used"),
        ("below.value", "__init__ below"),
        ("inner.alone", "__init__ below inner/__init__ inner/alone inner/first"),
    ],
)
def test_imports_are_followed_through_functions_packages_and_their_inits(package, name, expected):
    found = [file.relative_to(package).with_suffix("").as_posix() for file in needed_files(package, [name])]
    assert found == expected.split()


def test_a_name_that_leads_nowhere_and_scripts_of_a_bundles_own_are_refused(package, tmp_path):
    with pytest.raises(RunError, match="absent"):
        needed_files(package, ["absent.Thing"])
    (tmp_path / "scripts").mkdir()
    with pytest.raises(RunError, match="of the bundle's own"):
        vendor(tmp_path)


def test_the_reader_needs_no_network():
    files = {file.name for file in needed_files(PACKAGE_DIR, ["io.read.read_radiograph"])}
    assert "dicom.py" in files and not {"latent_codec.py", "label_efficiency.py"} & files


def test_code_is_named_by_configs_and_by_what_weights_say_they_are(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text(CONFIG)
    (tmp_path / "models" / "model.json").write_text('{"network": {"_target_": ".networks.latent_codec.LatentCodec"}}')
    names = set(named_code(tmp_path))
    assert names == {
        *("networks.x.Net", "training.handlers.Saver"),
        *("override_check.check_overrides", "networks.latent_codec.LatentCodec"),
    }


def test_no_code_reaches_for_the_package_by_its_name():
    """Elsewhere it would find nothing, or another version."""
    for file in PACKAGE_DIR.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
            names += [f"{node.module}."] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            names += [f"{alias.name}." for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if re.fullmatch(r"common\.[\w.]*", name)], file


def test_only_own_targets_change_comments_stay_and_the_bundle_goes_on_the_path_first():
    found = retargeted(CONFIG, "x.yaml")
    lines = found.replace(f'  - "{ON_PATH}"\n', "").splitlines()
    assert [new for old, new in zip(CONFIG.splitlines(), lines, strict=True) if old != new] == [
        "  _target_: scripts.common.networks.x.Net # the network",
        '  - _target_: "scripts.common.training.handlers.Saver"',
        "  - _target_: scripts.common.override_check.check_overrides",
    ]
    assert yaml.safe_load(found)["initialize"] == [ON_PATH, "$monai.utils.set_determinism(seed=0)"]
    assert retargeted("batch_size: 2 # images\n", "smoke.yaml") == "batch_size: 2 # images\n"


@pytest.mark.parametrize(
    "text",
    [
        "x: {? _target_ : common.a.B}\n",  # a key that is spelled otherwise
        "initialize: [1]\nrun: []\n",
        "value: $common.a.b()\n",
        "value: $import common\n",
        "name: common.networks.x.Net\n",
        "a: {1: 2}\n",  # which JSON cannot say
    ],
)
def test_what_cannot_be_rewritten_line_by_line_is_refused(text):
    with pytest.raises(RunError, match=r"x\.yaml"):
        retargeted(text, "x.yaml")


def test_a_workflow_gets_a_twin_that_says_the_same_in_order(tmp_path):
    (tmp_path / "smoke.yaml").write_text("b: 2\n")
    (tmp_path / "train.yaml").write_text("b: 1.0e-4\na: [true, null, 'ü']\nrun: []\n")
    rewrite_configs(tmp_path)
    text = (tmp_path / "train.json").read_text()
    assert json.loads(text) == yaml.safe_load((tmp_path / "train.yaml").read_text())
    assert text.startswith('{\n    "b"') and json.loads(text)["a"][2] == "ü" and text.isascii()
    assert not (tmp_path / "smoke.json").exists(), "it runs nothing by itself"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_what_the_packaged_code_imports_first_is_listed_in_the_metadata(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    listed = {"torch", "monai", "numpy", *(package.lower() for package in metadata["required_packages_version"])}
    known = packages_distributions()
    for file in needed_files(PACKAGE_DIR, named_code(bundle)):
        for node in ast.parse(file.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in {module.split(".")[0] for module in modules} - sys.stdlib_module_names:
                assert {package.lower() for package in known[module]} & listed, f"{file.name} imports {module}"
    assert "fire" in listed, "python -m monai.bundle needs it"


# ---- the bundle on the path ------------------------------------------------------------------------------------------


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
        shutil.copy(PACKAGE_DIR / "packaging" / "on_path.py", code)
        found.append(tmp_path / name)
    yield found
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]


def test_each_bundle_gets_its_own_code_in_one_process_and_keeps_it(bundles):
    first, second = bundles
    before = list(sys.path)
    runpy.run_path(str(first / "scripts" / "on_path.py"), run_name="scripts.on_path")
    assert sys.path == before, "importing the file changes nothing"
    for bundle, name in ((first, "one"), (second, "two"), (first, "one")):
        for _ in range(2):  # the second time what is loaded stays
            loaded = sys.modules.get("scripts.common")
            runpy.run_path(str(bundle / "scripts" / "on_path.py"))
            found = import_module("scripts.common")
            assert name == found.WHOSE and sys.path[0] == str(bundle)
        assert found is loaded
    assert sys.path.count(str(first)) == 1
