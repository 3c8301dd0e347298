"""The three bundles as packaged, in a Python that has what they require and neither this repository nor `common`."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import REPOSITORY

from common.packaging.packaging import package_bundle
from common.packaging.zoo_check import check_bundle

pytestmark = pytest.mark.slow
BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if path.is_dir())
NAMES = [path.name for path in BUNDLES]
SHORT_INFERENCE = {"cxr_dino_latent_diffusion": ["--strategy", "prior", "--num_samples", "1", "--prior_steps", "2"]}


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


def run(python: str, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-W", "ignore", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_infers_from_another_directory(archives, lonely_python, name, tmp_path):
    root = archives[name].with_name(name)
    override = ["--bundle_root", str(root)]
    config = root / "configs"
    command = ["-m", "monai.bundle", "run"]
    files = f"['{config}/train.yaml','{config}/smoke.yaml']"
    run(
        lonely_python,
        *command,
        "training",
        "--config_file",
        files,
        "--output_dir",
        str(tmp_path / "train"),
        *override,
        cwd=tmp_path,
    )
    assert (tmp_path / "train" / "model.pt").is_file()
    results = ["--output_dir", str(tmp_path / "results"), *SHORT_INFERENCE.get(name, [])]
    run(lonely_python, *command, "--config_file", str(config / "inference.json"), *results, *override, cwd=tmp_path)
    assert list((tmp_path / "results").rglob("*.png"))


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
    run(lonely_python, "-c", ONE_AFTER_THE_OTHER, json.dumps(zips), str(tmp_path / "got"), cwd=tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_zoo_would_take_it(archives, name):
    verdicts = list(check_bundle(archives[name]))
    wrong = [verdict.line() for verdict in verdicts if verdict.problems and verdict.name != "sizes"]
    assert wrong == []
