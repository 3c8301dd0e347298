import zipfile
from pathlib import Path

import pytest

from common.packaging.bundle_source import NoBundleError, opened_bundle


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "text")
    return path


def test_a_folder_is_itself_and_a_zip_is_gone_afterwards(tmp_path):
    with opened_bundle(tmp_path) as folder:
        assert folder == tmp_path.resolve()
    with opened_bundle(zipped(tmp_path / "a_v1.zip", "a/LICENSE", "a/configs/train.yaml")) as folder:
        assert folder.name == "a" and (folder / "configs" / "train.yaml").read_text() == "text"
    assert not folder.exists()


@pytest.mark.parametrize("names", [("a/x", "b/x"), ("x",), ("a/x", "x"), ("../a/x",), ("/a/x",), ("a/../../x",)])
def test_zips_of_another_form_are_refused(tmp_path, names):
    path = zipped(tmp_path / "a.zip", *names)
    with pytest.raises(NoBundleError), opened_bundle(path):
        pass
    assert sorted(tmp_path.iterdir()) == [path]


def test_neither_folder_nor_zip_is_refused(tmp_path):
    (tmp_path / "a.zip").write_text("no zip")
    for name in ("a.zip", "absent"):
        with pytest.raises(NoBundleError, match=name), opened_bundle(tmp_path / name):
            pass
