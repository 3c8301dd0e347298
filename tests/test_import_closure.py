from pathlib import Path

import pytest
from conftest import REPOSITORY

from common.packaging.import_closure import MissingModuleError, module_file, needed_files


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


def names(package: Path, *dotted: str) -> list[str]:
    return [file.relative_to(package).as_posix() for file in needed_files(package, dotted)]


def test_imports_are_followed_through_functions_packages_and_their_inits(package):
    assert names(package, "pack.used.Thing") == [
        *("__init__.py", "below.py", "inner/__init__.py", "inner/chain.py", "inner/first.py", "late.py"),
        *("lazy_user.py", "used.py"),
    ]


def test_a_module_that_imports_nothing_needs_only_the_packages_it_is_in(package):
    assert names(package, "pack.below.value") == ["__init__.py", "below.py"]
    assert names(package, "pack.inner.alone") == [
        *("__init__.py", "below.py", "inner/__init__.py", "inner/alone.py", "inner/first.py")
    ]


def test_names_and_imports_that_lead_nowhere_are_refused(package):
    with pytest.raises(MissingModuleError, match="absent"):
        needed_files(package, ["pack.absent.Thing"])
    (package / "used.py").write_text("from .gone import x\n")
    with pytest.raises(MissingModuleError, match="line 1 imports"):
        needed_files(package, ["pack.used"])


def test_the_reader_needs_no_network():
    files = {file.name for file in needed_files(REPOSITORY / "common", ["common.io.read.read_radiograph"])}
    assert "dicom.py" in files and not {"latent_codec.py", "label_efficiency.py"} & files
    assert module_file(REPOSITORY / "common", "common.io.read.read_radiograph").name == "read.py"
