"""The folder and the zip that a user gets, and what is read of bundles of anybody."""

import ast
import hashlib
import json
import logging
import os
import shutil
import zipfile
from pathlib import Path

import monai.bundle
import pytest
import torch
import yaml
from conftest import REPOSITORY
from filelock import FileLock
from script_module import load_script
from tiny_bundles import bundle_of_code, codec_bundle

from common.errors import RunError, SettingsError
from common.packaging import bundle as module
from common.packaging import packaging
from common.packaging.bundle import Bundle, opened_bundle, read_tree
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


# ---- reading ---------------------------------------------------------------------------------------------------------


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "text")
    return path


def test_a_folder_is_itself_and_a_zip_is_gone_afterwards(tmp_path, caplog):
    with opened_bundle(tmp_path) as bundle:
        assert bundle.root == tmp_path.resolve()
    logging.getLogger("monai.apps").addHandler(caplog.handler)
    with opened_bundle(zipped(tmp_path / "a_v1.zip", "a/LICENSE", "a/configs/train.yaml")) as bundle:
        assert bundle.root.name == "a" and (bundle.root / "configs" / "train.yaml").read_text() == "text"
        assert [path.name for path in bundle.files] == ["LICENSE", "train.yaml"]
    assert not bundle.root.exists() and not caplog.records, "nothing is said beside the answers"
    logging.getLogger("monai.apps").removeHandler(caplog.handler)


@pytest.mark.parametrize("names", [("a/x", "b/x"), ("x",), ("a/x", "x"), ("../a/x",), ("/a/x",), ("a/../../x",)])
def test_zips_of_another_form_are_refused(tmp_path, names):
    path = zipped(tmp_path / "a.zip", *names)
    with pytest.raises(RunError, match=r"a\.zip"), opened_bundle(path):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_bundle_or_too_much_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_text("no zip")
    os.mkfifo(tmp_path / "folder_of_a_pipe")
    path = zipped(tmp_path / "b.zip", "b/x", "b/y")
    monkeypatch.setattr(module, "MOST_FILES", 1)
    for given in (tmp_path / "a.zip", tmp_path / "absent", tmp_path, path):
        with pytest.raises(RunError), opened_bundle(given):
            pass
    monkeypatch.setattr(module, "MOST_FILES", 10)
    monkeypatch.setattr(module, "MOST_BYTES", 3)
    with pytest.raises(RunError), opened_bundle(path):
        pass


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", '"long"'.ljust(200)),
        ("a.yaml", "a: [\n"),
        ("a.yaml", "a: &a [*a]\n"),
        ("a.yaml", "a: &a [1, 1, 1]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"),
        ("a.yaml", "a: !!python/object/apply:os.getcwd []\n"),
    ],
)
def test_trees_are_read_within_limits_and_run_nothing(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(module, "MOST_ITEMS", 30)
    monkeypatch.setattr(module, "MOST_TEXT_BYTES", 100)
    (tmp_path / "good.yaml").write_text("a: &a [1, 2]\nb: *a\n")
    assert read_tree(tmp_path / "good.yaml") == {"a": [1, 2], "b": [1, 2]}
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=name):
        read_tree(tmp_path / name)


def test_json_goes_before_yaml_and_the_metadata_are_no_config(tmp_path):
    root = codec_bundle(tmp_path / "codec")
    assert list(Bundle(root).configs) == ["inference.yaml"] and Bundle(root).workflow("train") is None
    (root / "configs" / "inference.json").write_text("{}")
    assert Bundle(root).workflow("inference") == "inference.json"


def test_each_bundle_builds_its_own_code(tmp_path):
    for name, forward, expected in (("one", "self.weight * image", 10.0), ("two", "self.weight + image", 7.0)):
        network = Bundle(bundle_of_code(tmp_path / name, forward)).build()
        assert not network.training and network(torch.tensor(5.0)).item() == expected


def test_what_gives_no_network_is_told(tmp_path):
    with pytest.raises(RunError, match=r"inference\.yaml"):
        Bundle(tmp_path).build()
    root = codec_bundle(tmp_path / "codec", prefix="no_such_package.")
    with pytest.raises(RunError, match="network_def"):
        Bundle(root).build()
