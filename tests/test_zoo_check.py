"""Seeded defects, on the autoencoder's bundle as it is packaged, are found by the question that is meant for them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from script_module import load_script
from tiny_bundles import bundle_of_code, codec_bundle, diffusion_bundle

from common.command_line import run_command
from common.errors import RunError
from common.packaging import zoo_check
from common.packaging.bundle import Bundle
from common.packaging.packaging import package_bundle
from common.packaging.torchscript import trace_bundle
from common.packaging.zoo_check import CODE_QUESTIONS, FILE_QUESTIONS, LARGE_BYTES, Verdict, check_bundle
from common.packaging.zoo_code import answers, network


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    package_bundle(REPOSITORY / "bundles" / "cxr_autoencoder", folder)
    return folder / "cxr_autoencoder"


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


def without(key: str) -> Callable[[str], str]:
    return lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != key}, indent=4)


LARGE = "large_files: [{path: ../model.pt, url: nowhere}]"
DEFECTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no LICENSE": ("files", lambda b: (b / "LICENSE").unlink()),
    "no weights": ("files", lambda b: (b / "models" / "model.pt").unlink()),
    "no inference": ("files", lambda b: [p.unlink() for p in (b / "configs").glob("inference.*")]),
    "empty LICENSE": ("files", lambda b: add(b, "LICENSE", "Please select a license")),
    "no copyright": ("metadata", lambda b: metadata(b, copyright="")),
    "version not in changelog": ("version", lambda b: metadata(b, version="0.9.0")),
    "no version": ("metadata", lambda b: metadata(b, version="latest")),
    "not the newest": ("version", lambda b: metadata(b, changelog={"0.1.0": "a", "0.2.0": "b"})),
    "no name": ("metadata", lambda b: metadata(b, name="")),
    "package without version": ("metadata", lambda b: metadata(b, required_packages_version={"einops": "new"})),
    "no name of a package": ("metadata", lambda b: metadata(b, required_packages_version={"a b": "1.0"})),
    "channels are text": ("metadata", lambda b: metadata(b, network_data_format={"inputs": {}, "outputs": {}})),
    "home path": ("contents", lambda b: replace(b / "configs" / "smoke.yaml", lambda t: t + "x: /home/ann/x # y\n")),
    "home path in code": ("contents", lambda b: add(b, "scripts/x.py", "HERE = '/Users/ann'\n")),
    "home path in TorchScript": ("contents", lambda b: add(b, "models/model.ts", "\0/root/x.py\0")),
    "dangling reference": ("configs", lambda b: train_json(b, lambda t: t.update(device="@gone"))),
    "broken config": ("configs", lambda b: add(b, "configs/train.json", "{")),
    "twins differ": ("configs", lambda b: train_json(b, lambda t: t.update(max_epochs=1))),
    "no run": ("keys", lambda b: train_json(b, lambda t: t.pop("run"))),
    "no key": ("keys", lambda b: train_json(b, lambda t: t.pop("dataset_dir"))),
    "no handlers": ("keys", lambda b: train_json(b, lambda t: t["train"].pop("handlers"))),
    "property elsewhere": ("keys", lambda b: train_json(b, lambda t: t["train"].pop("inferer"))),
    "cache": ("contents", lambda b: add(b, "scripts/common/__pycache__/x.pyc")),
    "no Python": ("contents", lambda b: add(b, "scripts/x.py", "def\n")),
    "macro of a file": ("keys", lambda b: train_json(b, lambda t: t.update(device="%other.yaml::device"))),
    "evaluation without evaluator": ("keys", lambda b: replace(b / "configs" / "evaluate.json", without("evaluator"))),
    "broken metadata": ("metadata", lambda b: add(b, "configs/metadata.json", "{")),
    "path out of the bundle": ("large files", lambda b: add(b, "large_files.yml", LARGE)),
}


@pytest.mark.parametrize(("question", "seed"), DEFECTS.values(), ids=list(DEFECTS))
def test_a_seeded_defect_is_found(bundle, question, seed):
    seed(bundle)
    assert verdict_of(bundle, question).failed


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("docs/x.md", "x"), ("docs/x.md", "x\n\n"), ("docs/x.md", "x \ny\n"), ("configs/x.json", '{"x": "é"}\n')),
        *(("docs/x.png", (2**20 + 1) * "x"), ("scripts/x.txt", "-----BEGIN RSA PRIVATE KEY-----\n")),
    ],
)
def test_what_the_hooks_of_the_zoo_would_change_or_refuse_is_told(bundle, name, content):
    add(bundle, name, content)
    assert name in verdict_of(bundle, "pre-commit").line()


def test_a_bundle_without_defects_is_asked_everything(bundle):
    verdicts = list(check_bundle(bundle, run_code=False))
    assert [verdict.name for verdict in verdicts] == [name for name, *_ in FILE_QUESTIONS]
    assert [verdict.line() for verdict in verdicts if verdict.problems] == []


def test_formatters_are_asked_when_they_are_wanted(bundle, monkeypatch):
    monkeypatch.setattr(zoo_check, "FORMATTERS", ("py_compile",))  # installed everywhere, and no folder is its code
    monkeypatch.chdir(bundle)
    add(bundle, "py_compile.py", "open('ran', 'w')\n")  # a bundle of somebody else's
    assert [v.name for v in check_bundle(bundle, run_code=False, formatters=True) if v.problems] == ["format"]
    assert not (bundle / "ran").exists()
    monkeypatch.setattr(zoo_check, "FORMATTERS", ("no_such_tool --check",))
    with pytest.raises(RunError):
        list(check_bundle(bundle, run_code=False, formatters=True))


def verdict_of(bundle: Path, question: str) -> Verdict:
    return next(v for v in check_bundle(bundle, run_code=False) if v.name == question)


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
    assert verdict_of(bundle, "keys").problems == []


def test_keys_inside_train_are_asked_only_of_a_config_with_train(bundle):
    train_json(bundle, lambda tree: tree.pop("train"))
    assert not [problem for problem in verdict_of(bundle, "keys").problems if "no key train" in problem]


def test_metadata_of_a_generator_follow_the_schema_that_they_name(bundle):
    found = json.loads((bundle / "configs" / "metadata.json").read_text())
    declared = found["network_data_format"]
    declared["inputs"] = {"latent": declared["inputs"]["image"]}
    packages = found["required_packages_version"]
    metadata(bundle, network_data_format=declared, schema=GENERATOR, optional_packages_version=packages)
    replace(bundle / "configs" / "metadata.json", lambda text: text.replace('"required_packages_version"', '"other"'))
    assert verdict_of(bundle, "metadata").problems == []


def test_a_large_file_needs_no_hash_and_may_lie_there_when_listed(bundle):
    large = [{"path": "models/big.pt", "url": "https://example.org/big.pt"}]
    add(bundle, "large_files.yml", json.dumps({"large_files": large}))
    with (bundle / "models" / "big.pt").open("wb") as file:
        file.truncate(LARGE_BYTES + 1)
    assert verdict_of(bundle, "large files").problems == []
    sizes = verdict_of(bundle, "sizes")
    assert len(sizes.problems) == 1 and "hash" in sizes.problems[0] and not sizes.failed
    (bundle / "large_files.yml").unlink()
    assert [problem.split(":")[0] for problem in verdict_of(bundle, "sizes").problems] == ["models/big.pt"]


def test_a_name_of_one_word_is_one(bundle):
    moved = bundle.rename(bundle.with_name("vista3d"))
    assert verdict_of(moved, "name").problems == []
    assert verdict_of(moved.rename(moved.with_name("Vista-3D")), "name").failed


def code_verdicts(bundle: Path) -> dict[str, list[str]]:
    return {v.name: v.problems for v in check_bundle(bundle) if v.name in CODE_QUESTIONS}


@pytest.mark.slow
def test_defects_of_code_and_weights_are_found_where_only_the_bundle_is_on_the_path(bundle):
    data_format = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    data_format["inputs"]["image"]["num_channels"] = 3
    metadata(bundle, network_data_format=data_format)
    evaluate, smoke, weights = (
        bundle / "configs" / "evaluate.yaml",
        bundle / "configs" / "smoke.yaml",
        bundle / "models",
    )
    replace(evaluate, lambda t: t.replace("scripts.common.data.dataset.", "common.data.dataset.", 1))
    replace(smoke, lambda t: t + "x:\n  _target_: scripts.common.gone.Thing\n")
    content = (weights / "model.pt").read_bytes()
    (weights / "model.pt").unlink()
    (weights / "model.pt").write_bytes(content[: len(content) // 2])
    found = code_verdicts(bundle)
    assert "common.data.dataset" in found["targets"][0], "an installed package does not stand in"
    assert "scripts.common.gone.Thing" in found["targets"][1] and len(found["targets"]) == 2
    assert found["weights"] and found["network"] and found["torchscript"] and found.keys() == CODE_QUESTIONS.keys()


@pytest.mark.slow
def test_code_that_ends_the_process_is_told(tmp_path):
    root = bundle_of_code(tmp_path / "bundle", "image")
    add(root, "scripts/net.py", "import os\nprint('last words', file=__import__('sys').stderr)\nos._exit(3)\n")
    found = code_verdicts(root)
    assert all("last words" in problems[0] for problems in found.values()) and len(found) == len(CODE_QUESTIONS)


def test_the_command_ends_with_an_error_and_a_line_for_each_question(bundle, capsys):
    (bundle / "LICENSE").unlink()
    with pytest.raises(SystemExit) as ended:
        run_command(load_script("check_bundle").check, [str(bundle), "--run_code", "false"])
    assert isinstance(ended.value.code, str), "text is printed and makes the exit code 1"
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert lines[0].startswith("FAIL files: ") and len(lines) == len(FILE_QUESTIONS)


# ---- code and weights, asked in this process -------------------------------------------------------------------------


def problems(root):
    return {name for name, found in answers(Bundle(root)).items() if found}


@pytest.fixture
def root(tmp_path):
    return codec_bundle(tmp_path / "codec")


@pytest.mark.parametrize("make", [codec_bundle, diffusion_bundle])
def test_a_good_bundle_has_no_problems(tmp_path, make):
    root = make(tmp_path / "good")
    assert list(network(Bundle(root), n=3)) == []  # at another size
    trace_bundle(Bundle(root), root / "models" / "model.ts")
    assert answers(Bundle(root)) == {"targets": [], "weights": [], "network": [], "torchscript": []}


def test_targets_that_do_not_exist_are_found_in_any_config(root):
    (root / "configs" / "other.json").write_text('{"x": {"_target_": "torch.pi"}, "y": {"_target_": "torch.no_such"}}')
    assert problems(root) == {"targets"} and len(answers(Bundle(root))["targets"]) == 2


def test_missing_and_other_weights_are_found(root):
    path = root / "models" / "model.pt"
    torch.save({**torch.load(path, weights_only=True), "extra": torch.zeros(1)}, path)
    assert "weights" in problems(root)
    path.unlink()
    assert problems(root) == {"weights", "torchscript"}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("outputs", {"num_channels": 2}),
        ("outputs", {"spatial_shape": ["4*n", "8*n"]}),
        ("outputs", {"dtype": "float64"}),
        ("inputs", {"num_channels": 3}),
    ],
)
def test_a_network_that_is_not_as_declared_is_found(root, kind, changes):
    data_format = Bundle(root).metadata["network_data_format"]
    data_format[kind][{"inputs": "image", "outputs": "pred"}[kind]] |= changes
    metadata(root, network_data_format=data_format)
    assert "network" in problems(root)


def test_names_that_monai_does_not_look_for_are_told(root):
    replace(root / "configs" / "metadata.json", lambda text: text.replace('"image": {', '"latents": {'))
    assert "verify_net_in_out" in answers(Bundle(root))["network"][0]


def test_no_network_is_an_error_of_the_bundle(root):
    replace(root / "configs" / "inference.yaml", lambda text: text.replace("LatentCodec", "NoSuchClass"))
    with pytest.raises(RunError):
        list(network(Bundle(root)))
    assert problems(root) == {"targets", "weights", "network", "torchscript"}


def test_another_torchscript_is_found(root):
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1, 1, 8, 8)), root / "models" / "model.ts")
    assert problems(root) == {"torchscript"}
