"""What others get, bundles and wheel, where neither this repository nor its `common` is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

import common
from common.packaging.packaging import package_bundle
from common.packaging.zoo_check import check_bundle

# ---- bundles ---------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.slow
BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if path.is_dir())
NAMES = [path.name for path in BUNDLES]
FEW_STEPS = ["--prior_steps", "2", "--num_inference_steps", "2"]
FEW_FIGURES = ["--num_diverse_sources", "2", "--num_diverse", "2", "--num_resamples", "3"]
SHORT = {
    ("cxr_autoencoder", "evaluate"): ["--split", "all", "--image_size", "64"],
    ("cxr_dino_latent_diffusion", "inference"): ["--strategy", "prior", "--num_samples", "1", *FEW_STEPS],
    ("cxr_dino_latent_diffusion", "evaluate"): ["--split", "all", *FEW_STEPS, *FEW_FIGURES],
    ("dental_radiograph_segmentation", "evaluate"): ["--split", "all", "--limit", "4"],
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The zip of each bundle; its folder is beside it."""
    folder = tmp_path_factory.mktemp("dist")
    return {bundle.name: package_bundle(bundle, folder, torchscript=True) for bundle in BUNDLES}


@pytest.fixture(scope="module")
def lonely_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment that sees the packages of this one, but not what is installed from a checkout."""
    folder = tmp_path_factory.mktemp("lonely")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return str(folder / "bin" / "python")


def said(*command: object, cwd: Path, **environment: str) -> str:
    """What a process prints on its output, without this one's PYTHONPATH; it has to end well."""
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"cwd": cwd, "env": {**others, **environment}, "capture_output": True, "text": True, "timeout": 600}
    done = subprocess.run([str(word) for word in command], **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_unpacked_it_trains_infers_and_evaluates_by_short_commands(archives, lonely_python, name, tmp_path):
    with zipfile.ZipFile(archives[name]) as archive:
        archive.extractall(tmp_path)
    root, data = tmp_path / name, REPOSITORY / "bundles" / name / "samples"
    bundle_run = [lonely_python, "-W", "ignore", "-m", "monai.bundle", "run"]
    settings = ["--dataset_dir", data, "--output_dir"]
    smoke = ["training", "--config_file", "['configs/train.yaml','configs/smoke.yaml']"]
    said(*bundle_run, *smoke, *settings, tmp_path / "train", cwd=root)
    assert (tmp_path / "train" / "model.pt").is_file()
    for config, result in (("inference", "*.png"), ("evaluate", "table.md")):
        short = SHORT.get((name, config), [])
        said(*bundle_run, "--config_file", f"configs/{config}.yaml", *short, *settings, tmp_path / config, cwd=root)
        assert list((tmp_path / config).rglob(result))


PARAMETERIZED = """
class parameterized:
    @staticmethod
    def expand(cases):
        return lambda test: lambda self: [test(self, *case) for case in cases]
"""
UTILS = """
def check_workflow(workflow, check_properties):
    workflow.initialize()
    assert not check_properties or not workflow.check_properties()
    workflow.run()
    workflow.finalize()
"""


def test_the_zoos_unit_test_of_it_passes(archives, lonely_python, tmp_path):
    """With stand-ins for the zoo's helpers, which are not at hand."""
    dist = archives["cxr_autoencoder"].parent
    for name, content in (("parameterized", PARAMETERIZED), ("utils", UTILS)):
        (tmp_path / f"{name}.py").write_text(content)
    (tmp_path / "models").symlink_to(dist)
    test = dist / "zoo_ci" / "unit_tests" / "test_cxr_autoencoder.py"
    said(lonely_python, "-W", "ignore", test, cwd=tmp_path, PYTHONPATH=str(tmp_path))


ONE_AFTER_THE_OTHER = """
import json, sys
from pathlib import Path
import monai.bundle, torch
zips, folder = json.loads(sys.argv[1]), sys.argv[2]
try:
    import common
except ModuleNotFoundError:
    pass
else:
    sys.exit("this Python has common")
for name, archive in zips.items():
    monai.bundle.download(name=name, url=archive, bundle_dir=folder, progress=False)
    root = Path(folder) / name
    script, meta, _ = monai.bundle.load(name, bundle_dir=folder, load_ts_module=True)
    assert meta["version"] and not any(module.startswith("scripts") for module in sys.modules), name
for name in zips:
    root = Path(folder) / name
    network = monai.bundle.load(name, bundle_dir=folder)
    code = sys.modules[type(network).__module__].__file__
    assert code.startswith(str(root)), code
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    assert state.keys() == network.state_dict().keys(), name
    assert all(torch.equal(value.float(), network.state_dict()[key].float()) for key, value in state.items()), name
    workflow = monai.bundle.create_workflow(
        config_file=str(root / "configs" / "inference.json"), workflow_type="inference", bundle_root=str(root)
    )
    assert type(workflow.network_def) is type(network)
"""


def test_downloaded_and_loaded_one_after_the_other_each_uses_its_own_code(archives, lonely_python, tmp_path):
    zips = {name: archive.as_uri() for name, archive in archives.items()}
    said(lonely_python, "-W", "ignore", "-c", ONE_AFTER_THE_OTHER, json.dumps(zips), tmp_path / "got", cwd=tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_zoo_would_take_it(archives, name):
    verdicts = list(check_bundle(archives[name]))
    wrong = [verdict.line() for verdict in verdicts if verdict.problems and verdict.name != "sizes"]
    assert wrong == []


# ---- wheel -----------------------------------------------------------------------------------------------------------


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
    said(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "-q", *words, cwd=cwd)


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
    use = [sys.executable, "-W", "ignore", "-c", USE, folder, REPOSITORY]
    printed = said(*use, cwd=elsewhere, PYTHONPATH=str(folder))
    version, modules, *shape = printed.split(maxsplit=2)
    assert version == common.__version__ and int(modules) > 10 and shape == ["(1, 1, 32, 32)\n"]
