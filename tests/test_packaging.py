import ast
import hashlib
import json
import shutil
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import monai.bundle
import pytest
import yaml
from conftest import REPOSITORY

from common.packaging import packaging
from common.packaging.import_closure import needed_files
from common.packaging.packaging import PackagingError, package_bundle
from common.packaging.retargeting import own_targets, retarget_tree

PACKAGE = REPOSITORY / "common"
BUNDLE = REPOSITORY / "bundles" / "cxr_autoencoder"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The autoencoder's bundle with weights of a few bytes, and what a working copy has beside it."""
    copy = tmp_path / "cxr_autoencoder"
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("outputs", "*.pt", "*.dcm", "quickstart.png"))
    (copy / "models").mkdir(exist_ok=True)
    (copy / "models" / "model.pt").write_bytes(b"weights")
    for name in ("outputs/train/log.txt", "configs/__pycache__/x.pyc", ".cache/x", "models/.x.partial", "eval/x.json"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("left over")
    return copy


def names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as content:
        return content.namelist()


def test_the_zip_holds_code_configs_and_twins_and_no_leftovers(bundle, tmp_path):
    made = package_bundle(bundle, PACKAGE, tmp_path / "dist")
    found = names(made.archive)
    assert made.archive.name == "cxr_autoencoder_v0.1.0.zip" and all(n.startswith("cxr_autoencoder/") for n in found)
    inside = {name.removeprefix("cxr_autoencoder/") for name in found}
    assert {"LICENSE", "models/model.pt", "configs/train.yaml", "configs/train.json", "configs/smoke.yaml"} <= inside
    assert {"scripts/__init__.py", "scripts/on_path.py", "scripts/common/networks/latent_codec.py"} <= inside
    assert not any(word in name for name in inside for word in ("outputs", "pycache", "partial", ".cache", "eval/"))
    assert "configs/smoke.json" not in inside, "it runs nothing by itself"
    assert "scripts/common/networks/latent_denoiser.py" not in inside, "another bundle's"
    assert inside == {p.relative_to(made.folder).as_posix() for p in made.folder.rglob("*") if p.is_file()}


def test_configs_are_the_repository_s_but_for_targets_and_path(bundle, tmp_path):
    folder = package_bundle(bundle, PACKAGE, tmp_path / "dist").folder / "configs"
    for path in sorted((bundle / "configs").glob("*.yaml")):
        tree = yaml.safe_load((folder / path.name).read_text())
        assert tree == retarget_tree(yaml.safe_load(path.read_text()))
        if "run" in tree:
            assert json.loads((folder / path.name).with_suffix(".json").read_text()) == tree


def test_same_input_same_bytes_whatever_the_dates(bundle, tmp_path):
    first = package_bundle(bundle, PACKAGE, tmp_path / "one")
    (bundle / "LICENSE").touch()
    second = package_bundle(bundle, PACKAGE, tmp_path / "two")
    assert first.archive.read_bytes() == second.archive.read_bytes()
    assert first.sha256 == hashlib.sha256(first.archive.read_bytes()).hexdigest()
    (bundle / "models" / "model.pt").write_bytes(b"others!")
    assert package_bundle(bundle, PACKAGE, tmp_path / "two").sha256 != first.sha256


def test_large_files_are_listed_so_that_monai_gets_them_back(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(packaging, "LARGE_BYTES", 100_000)
    weights = bytes(range(256)) * 1000
    (bundle / "models" / "model.pt").write_bytes(weights)
    net = tmp_path / "net"
    made = package_bundle(bundle, PACKAGE, tmp_path / "dist", large_files_url=net.as_uri())
    listed = made.folder / "large_files.yml"
    assert not (made.folder / "models" / "model.pt").exists() and "model.pt" in listed.read_text()
    assert "cxr_autoencoder/models/model.pt" in names(made.archive), "the zip runs alone"
    assert "cxr_autoencoder/large_files.yml" not in names(made.archive)
    for name in ("models/model.pt", "samples/phantom_06_16bit.png"):
        (net / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle / name, net / name)
    monai.bundle.download_large_files(str(made.folder))
    assert (made.folder / "models" / "model.pt").read_bytes() == weights


def test_the_list_has_the_form_of_the_zoo(bundle, tmp_path):
    made = package_bundle(bundle, PACKAGE, tmp_path / "dist", source_url="https://example.org/zips/")
    known = json.loads((tmp_path / "dist" / "model_info.json").read_text())
    assert known == {
        "cxr_autoencoder_v0.1.0": {
            "checksum": hashlib.sha1(made.archive.read_bytes()).hexdigest(),
            "source": "https://example.org/zips/cxr_autoencoder_v0.1.0.zip",
        }
    }


def test_what_was_there_is_replaced_only_if_it_was_packaged(bundle, tmp_path):
    dist = tmp_path / "dist"
    package_bundle(bundle, PACKAGE, dist)
    (dist / "cxr_autoencoder" / "stale.txt").write_text("old")
    package_bundle(bundle, PACKAGE, dist)
    assert not (dist / "cxr_autoencoder" / "stale.txt").exists()
    with pytest.raises(PackagingError, match="was not made by packaging"):
        package_bundle(bundle, PACKAGE, bundle.parent)
    assert (bundle / "LICENSE").is_file()


def test_a_failure_leaves_the_old_package(bundle, tmp_path):
    dist = tmp_path / "dist"
    made = package_bundle(bundle, PACKAGE, dist)
    before = made.archive.read_bytes()
    (bundle / "configs" / "train.yaml").write_text("run: [{_target_: common.gone.Thing}]\n")
    with pytest.raises(Exception, match="gone"):
        package_bundle(bundle, PACKAGE, dist)
    assert made.archive.read_bytes() == before and (made.folder / "LICENSE").is_file()
    assert sorted(p.name for p in dist.iterdir()) == [
        *("cxr_autoencoder", "cxr_autoencoder_v0.1.0.zip", "model_info.json")
    ]


@pytest.mark.parametrize("line", ["import common.files", "from common import x", "NAME = 'common.files.thing'"])
def test_code_that_would_reach_for_the_installed_package_is_refused(tmp_path, line):
    bundle, package = tmp_path / "b", tmp_path / "common"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs" / "train.yaml").write_text("x:\n  _target_: common.code.run\n")
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "code.py").write_text(f"{line}\n")
    with pytest.raises(PackagingError, match="line 1 names common"):
        packaging.vendor(bundle, package)


def test_no_bundle_is_refused(tmp_path):
    with pytest.raises(PackagingError, match=r"metadata\.json"):
        package_bundle(tmp_path, PACKAGE, tmp_path / "dist")


@pytest.mark.parametrize("name", [path.name for path in (REPOSITORY / "bundles").iterdir()])
def test_what_the_packaged_code_imports_first_is_listed_in_the_metadata(name):
    bundle = REPOSITORY / "bundles" / name
    configs = [yaml.safe_load(path.read_text()) for path in (bundle / "configs").glob("*.yaml")]
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    listed = {"torch", "monai", "numpy", *(package.lower() for package in metadata["required_packages_version"])}
    known = packages_distributions()
    for file in needed_files(PACKAGE, {target for config in configs for target in own_targets(config)}):
        for node in ast.parse(file.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in {module.split(".")[0] for module in modules} - sys.stdlib_module_names:
                assert {package.lower() for package in known[module]} & listed, f"{file.name} imports {module}"
    assert "fire" in listed, "python -m monai.bundle needs it"
