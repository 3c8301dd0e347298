"""One version everywhere, and the command that changes it everywhere or nowhere."""

import json
import re
import shutil

import pytest
from conftest import REPOSITORY
from script_module import load_script

import common
from common.command_line import run_command
from common.errors import SettingsError

PATTERNS = ("common/__init__.py", "pyproject.toml", "README.md", "CITATION.cff")
PATTERNS += ("bundles/*/configs/*", "bundles/*/docs/*.md")
DENTAL = "bundles/dental_radiograph_segmentation"
OLD = common.__version__


@pytest.fixture
def copy(tmp_path):
    """The files of the repository that name a version, and their neighbours."""
    for file in sorted(file for pattern in PATTERNS for file in REPOSITORY.glob(pattern)):
        target = tmp_path / "copy" / file.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return tmp_path / "copy"


def run(copy, *words):
    run_command(load_script("set_version").set_version, [*words, "--repository", str(copy)])


def texts(copy):
    return {path.relative_to(copy).as_posix(): path.read_text() for path in copy.rglob("*") if path.is_file()}


def named_versions(files):
    """Versions that the package, metadata, and mentions of a bundle's name with a version say."""
    names = "|".join(path.name for path in (REPOSITORY / "bundles").iterdir())
    mention = re.compile(
        rf'(?:\b(?:{names})(?: |_v)|^__version__ = "|^ {{4}}"version": ")(\d+\.\d+\.\d+)', re.MULTILINE
    )
    return [(name, version) for name, text in files.items() for version in mention.findall(text)]


def test_the_versions_of_this_repository_agree(copy):
    found = named_versions(texts(copy))
    assert {version for _, version in found} == {OLD}
    assert {f"{DENTAL}/configs/inference.yaml", "common/__init__.py", "README.md"} <= {name for name, _ in found}
    for path in REPOSITORY.glob("bundles/*/configs/metadata.json"):
        assert next(iter(json.loads(path.read_text())["changelog"])) == OLD


def test_one_command_moves_everything_and_nothing_else(copy, capfd):
    path = copy / DENTAL / "configs" / "metadata.json"  # letters beyond ASCII stay as the file writes them
    path.write_text(json.dumps({**json.loads(path.read_text()), "authors": "Jérémy"}, indent=4, ensure_ascii=False))
    before, note = texts(copy), '"Zähne":  no\nlonger\\ "lost" {curly}'
    run(copy, "9.0.1", "--note", note)
    after = texts(copy)
    assert after.keys() == before.keys()
    assert {version for _, version in named_versions(after)} == {"9.0.1"}
    told = capfd.readouterr()
    for name in before:
        if name.endswith("metadata.json"):
            entry = after[name].split('"changelog": {\n')[1].splitlines(keepends=True)[0]
            rest = after[name].replace(entry, "", 1).replace('"version": "9.0.1"', f'"version": "{OLD}"', 1)
            assert rest == before[name] and entry.startswith('        "9.0.1": "')
            first = next(iter(json.loads(after[name])["changelog"].items()))
            assert first == ("9.0.1", " ".join(note.split()))
        else:
            assert after[name].replace("9.0.1", OLD) == before[name]
        if after[name] != before[name] and name != "pyproject.toml":
            assert name in told.out + told.err


def test_a_dry_run_shows_the_difference_and_changes_nothing(copy, capfd):
    before = texts(copy)
    run(copy, "9.0.1", "--note", "new", "--dry_run")
    told = capfd.readouterr()
    shown = told.out + told.err
    assert f'! __version__ = "{OLD}"' in shown and '! __version__ = "9.0.1"' in shown
    assert f"{DENTAL}/configs/inference.yaml" in shown and '"9.0.1": "new",' in shown
    assert texts(copy) == before


@pytest.mark.parametrize(
    ("version", "note"),
    [("0.2", "x"), ("9.0.1rc1", "x"), ("9.00.1", "x"), ("9.0.1", " \n"), ("0.0.1", "x"), (OLD, "x")],
)
def test_what_is_no_new_version_is_refused(copy, version, note):
    before = texts(copy)
    with pytest.raises(SettingsError):
        run(copy, version, "--note", note)
    assert texts(copy) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("common/__init__.py", f'"{OLD}"', '"0.0.9"'),
        (f"{DENTAL}/configs/inference.yaml", f"dental_radiograph_segmentation {OLD}", "dental 0.0.9"),
        (f"{DENTAL}/configs/metadata.json", '    "version": ', '  "version": '),
        (f"{DENTAL}/configs/metadata.json", '    "changelog": {', '    "changelog":  {'),
        (f"{DENTAL}/configs/metadata.json", f'        "{OLD}"', '        "0.0.9"'),
    ],
)
def test_a_repository_that_is_not_in_order_is_left_as_it_is(copy, file, old, new):
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    before = texts(copy)
    with pytest.raises(SystemExit) as ended:
        run(copy, "9.0.1", "--note", "x")
    assert isinstance(ended.value.code, str) and texts(copy) == before
    with pytest.raises(SettingsError):  # what is no repository of bundles at all
        run(copy / "bundles", "9.0.1", "--note", "x")
