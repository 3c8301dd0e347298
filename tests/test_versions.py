"""One version everywhere, and the command that changes it everywhere or nowhere."""

import json
import shutil

import pytest
from conftest import REPOSITORY
from script_module import load_script

import common
from common.command_line import run_command
from common.packaging.versions import VersionError, check_agreement, find_versions, plan_version, write_texts

PATTERNS = ("common/__init__.py", "README.md", "bundles/*/configs/*", "bundles/*/docs/*.md")
DENTAL = "bundles/dental_radiograph_segmentation"


@pytest.fixture
def copy(tmp_path):
    """The files of the repository that name a version, and their neighbours."""
    for file in sorted(file for pattern in PATTERNS for file in REPOSITORY.glob(pattern)):
        target = tmp_path / "copy" / file.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def script():
    return load_script("set_version")


def run(script, copy, *words):
    run_command(script.set_version, [*words, "--repository", str(copy)])


def texts(copy):
    return {path.relative_to(copy).as_posix(): path.read_text() for path in copy.rglob("*") if path.is_file()}


def substitute(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_the_versions_of_this_repository_agree():
    assert check_agreement(REPOSITORY) == common.__version__
    named = {place.file.relative_to(REPOSITORY).as_posix() for place in find_versions(REPOSITORY)}
    bundles = {path.name for path in (REPOSITORY / "bundles").iterdir() if (path / "configs").is_dir()}
    wanted = {"common/__init__.py", *(f"bundles/{name}/configs/metadata.json" for name in bundles)}
    assert len(bundles) == 3 and named >= wanted | {f"{DENTAL}/configs/inference.yaml"}


def test_one_command_moves_everything_and_nothing_else(script, copy, capsys):
    before, old = texts(copy), common.__version__
    run(script, copy, "9.0.1", "--note", '"Zähne":  no\nlonger\\ "lost"')
    after = texts(copy)
    assert check_agreement(copy) == "9.0.1" and set(after) == set(before)
    for name in before:
        if name.endswith("metadata.json"):
            entry = after[name].split('"changelog": {\n')[1].splitlines(keepends=True)[0]
            rest = after[name].replace(entry, "", 1).replace('"version": "9.0.1"', f'"version": "{old}"', 1)
            assert rest == before[name] and entry.startswith('        "9.0.1": "')
            first = next(iter(json.loads(after[name])["changelog"].items()))
            assert first == ("9.0.1", '"Zähne": no longer\\ "lost"')
            assert after[name].isascii() == before[name].isascii()
        else:
            assert after[name].replace("9.0.1", old) == before[name]
    assert '__version__ = "9.0.1"\n' in after["common/__init__.py"]
    assert "dental_radiograph_segmentation 9.0.1\n" in after[f"{DENTAL}/configs/inference.yaml"]
    changed = {name for name in before if before[name] != after[name]}
    told = capsys.readouterr().out
    assert all(f"9.0.1  {name}\n" in told for name in changed)


def test_letters_beyond_ascii_stay_as_the_file_writes_them(copy):
    path = copy / DENTAL / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "authors": "Jérémy"}, indent=4, ensure_ascii=False))
    text = plan_version(copy, "9.0.1", "Zähne")[path]
    assert '"authors": "Jérémy"' in text and '"9.0.1": "Zähne"' in text


def test_names_of_packages_in_readmes_move_and_records_do_not(copy):
    version = common.__version__
    readme = copy / "README.md"
    readme.write_text(f"cxr_autoencoder_v{version}.zip, `lpips` {version}, cxr_autoencoder {version}.\n")
    text = plan_version(copy, "9.0.1", "x")[readme]
    assert text == f"cxr_autoencoder_v9.0.1.zip, `lpips` {version}, cxr_autoencoder 9.0.1.\n"


def test_a_dry_run_shows_the_difference_and_changes_nothing(script, copy, capsys):
    before = texts(copy)
    run(script, copy, "9.0.1", "--note", "new", "--dry_run")
    shown = capsys.readouterr().out
    assert f'-__version__ = "{common.__version__}"\n+__version__ = "9.0.1"\n' in shown
    assert f"+++ b/{DENTAL}/configs/inference.yaml\n" in shown and '+        "9.0.1": "new",\n' in shown
    assert texts(copy) == before


@pytest.mark.parametrize(
    ("version", "note", "told"),
    [
        ("0.2", "x", "three whole numbers"),
        ("9.0.1rc1", "x", "three whole numbers"),
        ("9.00.1", "x", "three whole numbers"),
        ("9.0.1", " \n", "found no note"),
        ("0.0.1", "x", "newer than the present one"),
        (common.__version__, "x", "newer than the present one"),
    ],
)
def test_what_is_no_new_version_is_refused(script, copy, version, note, told):
    before = texts(copy)
    with pytest.raises(VersionError, match=told):
        run(script, copy, version, "--note", note)
    assert texts(copy) == before


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("common/__init__.py", f'"{common.__version__}"', '"0.0.9"', r"(?s)do not agree.*0\.0\.9  common/__init__\.py"),
        (
            f"{DENTAL}/configs/inference.yaml",
            f"dental_radiograph_segmentation {common.__version__}",
            "dental_radiograph_segmentation 0.0.9",
            r"(?s)do not agree.*0\.0\.9  bundles/dental.*inference\.yaml",
        ),
        (f"{DENTAL}/configs/metadata.json", '    "version": ', '  "version": ', "found 0 places for a version"),
        (f"{DENTAL}/configs/metadata.json", '    "changelog": {', '    "changelog":  {', "on a line of its own"),
        (
            f"{DENTAL}/configs/metadata.json",
            f'        "{common.__version__}"',
            '        "0.0.9"',
            "top of the changelog",
        ),
    ],
)
def test_a_repository_that_is_not_in_order_is_left_as_it_is(script, copy, file, before, after, told):
    substitute(copy / file, before, after)
    texts_before = texts(copy)
    with pytest.raises(VersionError, match=told):
        run(script, copy, "9.0.1", "--note", "x")
    assert texts(copy) == texts_before


def test_a_file_that_cannot_be_written_leaves_all_as_they_were(copy):
    before = texts(copy)
    wanted = plan_version(copy, "9.0.1", "x")
    wanted[copy / "README.md" / "below_a_file.md"] = "never"
    with pytest.raises(OSError, match=r"below_a_file|README\.md"):
        write_texts(wanted)
    assert texts(copy) == before


def test_elsewhere_is_told(script, tmp_path):
    with pytest.raises(VersionError, match="expected the repository of the bundles"):
        run(script, tmp_path, "9.0.1", "--note", "x")
