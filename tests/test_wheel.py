"""The wheel holds `common` and nothing else, and works where the repository is not."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import REPOSITORY

import common

pytestmark = pytest.mark.slow

USE = """
import sys
from pathlib import Path

import torch

import common
import common.io
import common.packaging.vendoring
from common.networks.latent_codec import LatentCodec
from common.data.phantom import draw_chest_phantom

folder, repository = map(Path, sys.argv[1:])
assert Path(common.__file__).parent == folder / "common", common.__file__
own = [name for name in sys.modules if name.split(".")[0] == "common"]
assert all(Path(sys.modules[name].__file__).is_relative_to(folder) for name in own)
assert not any(Path(entry or ".").resolve() == repository for entry in sys.path), sys.path
codec = LatentCodec(channels=[8, 8, 8, 8], num_res_blocks=1, latent_channels=2, norm_num_groups=4).eval()
with torch.no_grad():
    image = draw_chest_phantom(32, 32, seed=0)[0][None, None]
    print(common.__version__, len(own), tuple(codec(image).shape))
"""


def pip(*words, cwd):
    """Without a network: whatever pip would fetch is an error."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "-q", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the checkout gets no build folder; the weights stay behind."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("common", "scripts", "tests", "bundles"):
        ignored = shutil.ignore_patterns("__pycache__", "models", "outputs", "samples", "eval")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    options = ("--no-deps", "--no-build-isolation", "--no-index")
    pip("wheel", *options, "--wheel-dir", source.parent / "dist", ".", cwd=source)
    (path,) = (source.parent / "dist").iterdir()
    return path


def test_it_holds_all_of_common_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in (REPOSITORY / "common").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert names == {path.relative_to(REPOSITORY).as_posix() for path in files}
    assert {"common/__init__.py", "common/networks/__init__.py", "common/packaging/__init__.py"} <= names


def test_it_works_without_the_repository(wheel, tmp_path):
    folder, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel, cwd=elsewhere)
    command = [sys.executable, "-W", "ignore", "-c", USE, str(folder), str(REPOSITORY)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    version, modules, *shape = done.stdout.split(maxsplit=2)
    assert version == common.__version__ and int(modules) > 10 and shape == ["(1, 1, 32, 32)\n"]
