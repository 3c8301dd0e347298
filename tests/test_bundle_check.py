"""Seeded defects, on the autoencoder's bundle as it is packaged, are found by the question that is meant for them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from common.command_line import run_command
from common.packaging.bundle_check import CODE_QUESTIONS, FILE_QUESTIONS, Question, Verdict, check_bundle
from common.packaging.isolation import IsolatedError, call_isolated
from common.packaging.network_checks import check_format
from common.packaging.packaging import LARGE_BYTES, package_bundle


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    return package_bundle(REPOSITORY / "bundles" / "cxr_autoencoder", REPOSITORY / "common", folder).folder


@pytest.fixture
def bundle(packaged: Path, tmp_path: Path) -> Path:
    """A copy whose files are links: replace them, do not write into them."""
    return Path(shutil.copytree(packaged, tmp_path / packaged.name, copy_function=os.link))


def replace(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text()
    path.unlink()
    path.write_text(change(text))
    assert path.read_text() != text


def metadata(bundle: Path, **changes: object) -> None:
    replace(bundle / "configs" / "metadata.json", lambda text: json.dumps({**json.loads(text), **changes}, indent=4))


def add(bundle: Path, name: str, content: str = "x") -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).unlink(missing_ok=True)
    (bundle / name).write_text(content)


def train_json(bundle: Path, change: Callable[[dict], object]) -> None:
    def changed(text: str) -> str:
        tree = json.loads(text)
        change(tree)
        return json.dumps(tree, indent=4)

    replace(bundle / "configs" / "train.json", changed)


LARGE = "large_files: [{path: ../model.pt, url: nowhere}]"
DEFECTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no LICENSE": ("files", lambda b: (b / "LICENSE").unlink()),
    "no weights": ("files", lambda b: (b / "models" / "model.pt").unlink()),
    "no inference": ("files", lambda b: [p.unlink() for p in (b / "configs").glob("inference.*")]),
    "empty LICENSE": ("licences", lambda b: add(b, "LICENSE", "Please select a license")),
    "no copyright": ("metadata", lambda b: metadata(b, copyright="")),
    "version not in changelog": ("version", lambda b: metadata(b, version="0.9.0")),
    "no version": ("version", lambda b: metadata(b, version="latest")),
    "not the newest": ("version", lambda b: metadata(b, changelog={"0.1.0": "a", "0.2.0": "b"})),
    "no name": ("name", lambda b: metadata(b, name="")),
    "package without version": ("packages", lambda b: metadata(b, required_packages_version={"einops": "new"})),
    "no name of a package": ("packages", lambda b: metadata(b, required_packages_version={"a b": "1.0"})),
    "channels are text": ("metadata", lambda b: metadata(b, network_data_format={"inputs": {}, "outputs": {}})),
    "home path": ("paths", lambda b: replace(b / "configs" / "smoke.yaml", lambda t: t + "x: /home/ann/x # y\n")),
    "home path in code": ("paths", lambda b: add(b, "scripts/x.py", "HERE = '/Users/ann'\n")),
    "home path in TorchScript": ("paths", lambda b: add(b, "models/model.ts", "\0/root/x.py\0")),
    "dangling reference": ("configs", lambda b: train_json(b, lambda t: t.update(device="@gone"))),
    "broken config": ("configs", lambda b: add(b, "configs/train.json", "{")),
    "twins differ": ("twins", lambda b: train_json(b, lambda t: t.update(max_epochs=1))),
    "no run": ("run ids", lambda b: train_json(b, lambda t: t.pop("run"))),
    "no key": ("keys", lambda b: train_json(b, lambda t: t.pop("dataset_dir"))),
    "no handlers": ("keys", lambda b: train_json(b, lambda t: t["train"].pop("handlers"))),
    "property elsewhere": ("properties", lambda b: train_json(b, lambda t: t["train"].pop("inferer"))),
    "cache": ("leftovers", lambda b: add(b, "scripts/common/__pycache__/x.pyc")),
    "no Python": ("python", lambda b: add(b, "scripts/x.py", "def\n")),
    "path out of the bundle": ("large files", lambda b: add(b, "large_files.yml", LARGE)),
}


@pytest.mark.parametrize(("question", "seed"), DEFECTS.values(), ids=list(DEFECTS))
def test_a_seeded_defect_is_found(bundle, question, seed):
    seed(bundle)
    verdicts = {verdict.question.name: verdict for verdict in check_bundle(bundle, run_code=False)}
    assert verdicts[question].failed, verdicts[question].line()


def test_a_bundle_without_defects_is_asked_everything(bundle):
    verdicts = list(check_bundle(bundle, run_code=False))
    assert [verdict.question for verdict in verdicts] == [question for question, _ in FILE_QUESTIONS]
    assert [verdict.line() for verdict in verdicts if verdict.problems] == []


def verdict_of(bundle: Path, question: str) -> Verdict:
    return next(v for v in check_bundle(bundle, run_code=False) if v.question.name == question)


MIX_IN = {"train#sampler": {"dataset": "@train#dataset"}, "train#dataloader#sampler": "@train#sampler", "run": ["@run"]}
GENERATOR = "https://example.org/meta_schema_generator_20220718.json"


def test_a_config_on_top_of_others_may_refer_to_them_but_not_to_nothing(bundle):
    add(bundle, "configs/on_top.json", json.dumps(MIX_IN, indent=4) + "\n")
    assert verdict_of(bundle, "configs").problems == []
    add(bundle, "configs/on_top.json", json.dumps({**MIX_IN, "device": "@gone"}, indent=4))
    assert "'gone'" in verdict_of(bundle, "configs").problems[0]


def test_properties_are_found_by_the_older_spelling_of_ids(bundle):
    for path in (bundle / "configs").glob("train.*"):
        replace(path, lambda text: text.replace("@train::", "@train#").replace("@validate::", "@validate#") + "\n")
    assert "@train#" in (bundle / "configs" / "train.json").read_text()
    assert verdict_of(bundle, "properties").problems == []


def test_keys_inside_train_are_asked_only_of_a_config_with_train(bundle):
    train_json(bundle, lambda tree: tree.pop("train"))
    assert verdict_of(bundle, "keys").problems == []
    assert verdict_of(bundle, "properties").failed, "MONAI wants them all the same"


def test_metadata_of_a_generator_follow_the_schema_that_they_name(bundle):
    found = json.loads((bundle / "configs" / "metadata.json").read_text())
    declared = found["network_data_format"]
    declared["inputs"] = {"latent": declared["inputs"]["image"]}
    packages = found["required_packages_version"]
    metadata(bundle, network_data_format=declared, schema=GENERATOR, optional_packages_version=packages)
    replace(bundle / "configs" / "metadata.json", lambda text: text.replace('"required_packages_version"', '"other"'))
    assert verdict_of(bundle, "metadata").problems == []
    assert "`image`" in check_format(bundle)[0]


def test_a_large_file_needs_no_hash_and_may_lie_there_when_listed(bundle):
    large = [{"path": "models/big.pt", "url": "https://example.org/big.pt"}]
    add(bundle, "large_files.yml", json.dumps({"large_files": large}))
    with (bundle / "models" / "big.pt").open("wb") as file:
        file.truncate(LARGE_BYTES + 1)
    assert verdict_of(bundle, "large files").problems == verdict_of(bundle, "sizes").problems == []
    hashes = verdict_of(bundle, "hashes")
    assert hashes.problems and not hashes.failed
    (bundle / "large_files.yml").unlink()
    assert "big.pt" in verdict_of(bundle, "sizes").problems[0]


def test_a_name_of_one_word_is_one(bundle):
    moved = bundle.rename(bundle.with_name("vista3d"))
    assert verdict_of(moved, "name").problems == []
    assert verdict_of(moved.rename(moved.with_name("Vista-3D")), "name").failed


@pytest.mark.slow
def test_defects_of_code_and_weights_are_found_where_only_the_bundle_is_on_the_path(bundle):
    metadata(bundle, network_data_format=wrong_channels(bundle))
    replace(
        bundle / "configs" / "evaluate.yaml",
        lambda t: t.replace("scripts.common.data.dataset.", "common.data.dataset.", 1),
    )
    replace(bundle / "configs" / "smoke.yaml", lambda t: t + "x:\n  _target_: scripts.common.gone.Thing\n")
    weights = (bundle / "models" / "model.pt").read_bytes()
    (bundle / "models" / "model.pt").unlink()
    (bundle / "models" / "model.pt").write_bytes(weights[: len(weights) // 2])
    found = call_isolated(".packaging.network_checks", "all_checks", bundle)
    assert len(found["targets"]) == 2, found["targets"]
    assert "common.data.dataset" in found["targets"][0], "an installed package does not stand in"
    assert "scripts.common.gone.Thing" in found["targets"][1]
    assert "cannot be read" in found["weights"][0]
    assert found["network"] and found["trace"]
    assert {question.name for question in CODE_QUESTIONS} == found.keys()


def wrong_channels(bundle: Path) -> dict:
    data_format = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    data_format["inputs"]["image"]["num_channels"] = 3
    return data_format


@pytest.mark.slow
def test_other_weights_and_another_torchscript_are_found(bundle):
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    (bundle / "models" / "model.pt").unlink()
    torch.save({**state, "extra": torch.zeros(1)}, bundle / "models" / "model.pt")
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1, 1, 8, 8)), bundle / "models" / "model.ts")
    found = call_isolated(".packaging.network_checks", "all_checks", bundle)
    assert "extra" in found["weights"][0] and found["targets"] == [] and found["network"] == []
    assert found["torchscript"]


def test_code_that_ends_the_process_is_told(tmp_path):
    with pytest.raises(IsolatedError, match="no_such_function"):
        call_isolated(".files", "no_such_function", tmp_path)


def test_the_command_ends_with_an_error_and_a_line_for_each_question(bundle, capsys):
    import sys
    from importlib import import_module

    sys.path.insert(0, str(REPOSITORY / "scripts"))
    check = import_module("check_bundle").check
    (bundle / "LICENSE").unlink()
    with pytest.raises(SystemExit, match="2 of the required"):
        run_command(check, [str(bundle), "--run_code", "false"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "FAIL files:       LICENSE is missing"
    assert len(lines) == len(FILE_QUESTIONS)


def test_advice_does_not_fail():
    assert not Verdict(Question("docs", "good", required=False), ["bad"]).failed
    assert Verdict(Question("docs", "good"), ["bad", "worse"]).line() == "FAIL docs:        bad\n" + " " * 18 + "worse"
