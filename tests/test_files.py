import pytest

from common.files import atomic_path, read_json, result_name, write_json


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyError("broken")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_whole_write_replaces_the_file_and_makes_its_folder(tmp_path):
    for text in ("old", "new"):
        with atomic_path(tmp_path / "deep" / "file.txt") as temporary:
            temporary.write_text(text)
    assert (tmp_path / "deep" / "file.txt").read_text() == "new"
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_results_of_one_name_in_two_folders_have_two_names(tmp_path):
    names = [result_name(tmp_path / path, tmp_path) for path in ("a.png", "deep/a.png", "deep/a.dcm")]
    assert names == ["a_png", "deep__a_png", "deep__a_dcm"]
    assert result_name(tmp_path.parent / "a.png", tmp_path) == "a_png"


def test_json_comes_back_and_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": [1, None]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": [1, None]} and list(path.parent.iterdir()) == [path]
