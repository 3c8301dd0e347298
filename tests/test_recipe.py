import yaml

from common.training.recipe import read_recipe


def write(path, **content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_recipe_on_another_changes_what_it_names_and_nothing_else(tmp_path):
    first = {"commands": [{"script": "a.py"}], "steps": 5, "weights": "a.pt", "choose": {"by": "psnr"}}
    write(tmp_path / "base.yaml", stages={"first": first, "second": {"commands": []}})
    other = write(tmp_path / "other.yaml", base="base.yaml", stages={"first": {"steps": 7, "choose": None}})
    base, found = read_recipe(tmp_path / "base.yaml"), read_recipe(other)
    assert list(found) == ["first", "second"] and found["second"] == base["second"]
    assert (found["first"].steps, found["first"].choose) == (7, None)
    assert (found["first"].commands, found["first"].weights) == (base["first"].commands, "a.pt")
