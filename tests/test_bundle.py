"""Bundles of anybody: what is taken for one, and what is refused before it costs anything."""

import logging
import os
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_bundles import bundle_of_code, codec_bundle

from common.errors import RunError
from common.packaging import bundle as module
from common.packaging.bundle import Bundle, opened_bundle, read_tree


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
