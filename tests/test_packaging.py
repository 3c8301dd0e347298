"""The folder and the zip that a user gets."""

import ast
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import monai.bundle
import pytest
import yaml
from conftest import REPOSITORY
from filelock import FileLock
from script_module import load_script

from common.errors import RunError, SettingsError
from common.packaging import packaging
from common.packaging.packaging import package_bundle
from common.packaging.vendoring import retargeted_tree

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


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    return tmp_path / "dist"


def names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as content:
        return content.namelist()


def test_the_zip_holds_code_configs_and_twins_and_no_leftovers(bundle, dist):
    archive = package_bundle(bundle, dist)
    found = names(archive)
    assert archive == dist / "cxr_autoencoder_v0.1.0.zip" and all(n.startswith("cxr_autoencoder/") for n in found)
    inside = {name.removeprefix("cxr_autoencoder/") for name in found}
    assert {"LICENSE", "models/model.pt", "configs/train.yaml", "configs/train.json", "configs/smoke.yaml"} <= inside
    assert {"scripts/__init__.py", "scripts/on_path.py", "scripts/common/networks/latent_codec.py"} <= inside
    assert not any(word in name for name in inside for word in ("outputs", "pycache", "partial", ".cache", "eval/"))
    assert "scripts/common/networks/latent_denoiser.py" not in inside, "another bundle's"
    folder = dist / "cxr_autoencoder"
    assert inside == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    for path in sorted((bundle / "configs").glob("*.yaml")):
        packaged = yaml.safe_load((folder / "configs" / path.name).read_text())
        assert packaged == retargeted_tree(yaml.safe_load(path.read_text()))


def test_same_input_same_bytes_whatever_the_dates(bundle, dist):
    first = package_bundle(bundle, dist / "one").read_bytes()
    (bundle / "LICENSE").touch()
    assert package_bundle(bundle, dist / "two").read_bytes() == first
    (bundle / "models" / "model.pt").write_bytes(b"others!")
    assert package_bundle(bundle, dist / "two").read_bytes() != first


def test_large_files_are_listed_so_that_monai_gets_them_back(bundle, dist, tmp_path, monkeypatch):
    monkeypatch.setattr(packaging, "LARGE_BYTES", 100_000)
    weights = bytes(range(256)) * 1000
    (bundle / "models" / "model.pt").write_bytes(weights)
    net, folder = tmp_path / "net", dist / "cxr_autoencoder"
    archive = package_bundle(bundle, dist, large_files_url=net.as_uri())
    assert not (folder / "models" / "model.pt").exists() and "model.pt" in (folder / "large_files.yml").read_text()
    assert "cxr_autoencoder/models/model.pt" in names(archive), "the zip runs alone"
    assert "cxr_autoencoder/large_files.yml" not in names(archive)
    for name in (entry["path"] for entry in yaml.safe_load((folder / "large_files.yml").read_text())["large_files"]):
        (net / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle / name, net / name)
    monai.bundle.download_large_files(str(folder))
    assert (folder / "models" / "model.pt").read_bytes() == weights


def test_the_list_has_the_form_of_the_zoo_and_keeps_what_it_lists(bundle, dist):
    dist.mkdir()
    (dist / "model_info.json").write_text('{"a_v1.0.0": {"checksum": "1", "source": ""}}')
    archive = package_bundle(bundle, dist, source_url="https://example.org/zips/")
    assert json.loads((dist / "model_info.json").read_text()) == {
        "a_v1.0.0": {"checksum": "1", "source": ""},
        "cxr_autoencoder_v0.1.0": {
            "checksum": hashlib.sha1(archive.read_bytes()).hexdigest(),
            "source": "https://example.org/zips/cxr_autoencoder_v0.1.0.zip",
        },
    }


def test_what_a_pull_request_to_the_zoo_adds_lies_beside_the_folder(bundle, dist):
    package_bundle(bundle, dist)
    tree = ast.parse((dist / "zoo_ci" / "unit_tests" / "test_cxr_autoencoder.py").read_text())
    assert "models/cxr_autoencoder" in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["inputs"]["timesteps"] = metadata["network_data_format"]["inputs"]["image"]
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    bundle = bundle.rename(bundle.with_name("denoiser"))
    package_bundle(bundle, dist)
    assert json.loads((dist / "zoo_ci" / "bundle_custom_data.json").read_text()) == {
        "exclude_verify_shape_list": ["denoiser"],
        "exclude_verify_torchscript_list": ["cxr_autoencoder", "denoiser"],
    }


def test_what_was_there_is_replaced_only_if_it_was_packaged(bundle, dist):
    package_bundle(bundle, dist)
    (dist / "cxr_autoencoder" / "stale.txt").write_text("old")
    package_bundle(bundle, dist)
    assert not (dist / "cxr_autoencoder" / "stale.txt").exists()
    with pytest.raises(RunError, match="was not made by packaging"):
        package_bundle(bundle, bundle.parent)
    assert (bundle / "LICENSE").is_file()


def test_a_failure_leaves_the_old_package(bundle, dist):
    archive = package_bundle(bundle, dist)
    before = archive.read_bytes()
    (bundle / "configs" / "train.yaml").write_text("run: [{_target_: common.gone.Thing}]\n")
    with pytest.raises(RunError, match="gone"):
        package_bundle(bundle, dist)
    assert archive.read_bytes() == before and (dist / "cxr_autoencoder" / "LICENSE").is_file()
    visible = sorted(path.name for path in dist.iterdir() if path.name != ".lock")
    assert visible == ["cxr_autoencoder", "cxr_autoencoder_v0.1.0.zip", "model_info.json", "zoo_ci"]


def test_a_package_whose_replacing_was_killed_comes_back(bundle, dist):
    package_bundle(bundle, dist)
    (dist / "cxr_autoencoder").rename(dist / ".cxr_autoencoder.old")  # as a kill between two renames leaves it
    (bundle / "configs" / "train.yaml").write_text("run: [{_target_: common.gone.Thing}]\n")
    with pytest.raises(RunError, match="gone"):
        package_bundle(bundle, dist)
    assert (dist / "cxr_autoencoder" / "LICENSE").is_file()


def test_one_process_at_a_time(bundle, dist):
    dist.mkdir()
    with FileLock(dist / ".lock"), pytest.raises(RunError, match="another process"):
        package_bundle(bundle, dist)


@pytest.mark.parametrize("metadata", [None, "{}"])
def test_no_bundle_is_refused(tmp_path, dist, metadata):
    if metadata is not None:
        (tmp_path / "b" / "configs").mkdir(parents=True)
        (tmp_path / "b" / "configs" / "metadata.json").write_text(metadata)
    with pytest.raises(RunError, match="metadata"):
        package_bundle(tmp_path / "b", dist)
    assert not dist.exists()


def test_the_command_takes_one_or_all_from_anywhere(tmp_path, monkeypatch, capsys):
    script = load_script("package_bundle")
    monkeypatch.chdir(tmp_path)
    assert len(script.chosen_bundles("all")) == 3
    with pytest.raises(SettingsError, match="cxr_autoencoder,"):
        script.package("cxr_autoencode")
    script.package("cxr_autoencoder", torchscript=False)
    assert (tmp_path / "dist" / "cxr_autoencoder" / "scripts" / "common" / "__init__.py").is_file()
    archive = tmp_path / "dist" / "cxr_autoencoder_v0.1.0.zip"
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in capsys.readouterr().out
