"""Every bundle in bundles/, now and later: static checks of its configs, what MONAI makes of them; and those checks."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from config_lint import base_file, disagreements, problems_of
from monai.bundle import ConfigParser, ConfigWorkflow
from packaging.version import Version

from common.config_graph import iter_items
from common.packaging.bundle import Bundle
from common.packaging.zoo_check import check_bundle
from common.packaging.zoo_code import network

BUNDLES = sorted(p for p in (Path(__file__).resolve().parents[1] / "bundles").iterdir() if p.is_dir())
CONFIGS = [path for bundle in BUNDLES for path in sorted(bundle.glob("configs/*.yaml"))]
NETWORK_SIZE = 8  # `8*n` is 64 px then: small, and large enough for every network here

every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")


def overrides_for(files: list[Path], bundle: Path, output_dir: Path) -> dict[str, Any]:
    """Overrides that build a workflow without the real data or weights: the bundle's samples and random weights."""
    config = ConfigParser.load_config_files([str(file) for file in files])
    overrides: dict[str, Any] = {
        "bundle_root": str(bundle),
        "output_dir": str(output_dir),
        "device": "$torch.device('cpu')",
    }
    if "weights_path" in config:
        weights = output_dir / "random.pt"
        parser = ConfigParser(config)
        parser["bundle_root"] = str(bundle)
        torch.save(parser.get_parsed_content("network_def").state_dict(), weights)
        overrides["weights_path"] = str(weights)
    return overrides


@every_config
def test_config_file(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # what parses only from the repository is found out
    assert problems_of(config) == []


@every_bundle
def test_configs_together(bundle: Path) -> None:
    assert (bundle / "configs" / "train.yaml").is_file() and (bundle / "configs" / "inference.yaml").is_file()
    assert disagreements(bundle / "configs") == []


@every_bundle
def test_files_and_metadata_are_what_the_zoo_asks_for(bundle: Path) -> None:
    """Packaged or not; of a bundle that is not packaged it would miss the JSON twins, and find what training left."""
    verdicts = [v for v in check_bundle(bundle, run_code=False) if v.name not in ("contents", "sizes")]
    assert [verdict.line() for verdict in verdicts if verdict.problems] == []


@every_bundle
def test_pinned_packages_are_installed_here_and_not_newer(bundle: Path) -> None:
    metadata = Bundle(bundle).metadata
    pins = {name: metadata[f"{key}_version"] for name, key in (("monai", "monai"), ("torch", "pytorch"))}
    pins |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    newer = {name for name, pin in pins.items() if Version(pin) > Version(importlib.metadata.version(name))}
    assert newer == set()
    assert Version(pins["numpy"]) < Version("2.3"), "the zoo checks with Python 3.10, which 2.3 has no wheel for"


@every_bundle
def test_figures_of_the_metadata_are_those_of_the_evaluation(bundle: Path) -> None:
    metrics = json.loads((bundle / "configs" / "metadata.json").read_text())["eval_metrics"]
    measured = json.loads((bundle / "docs" / "evaluation.json").read_text())
    numbers = [value for _, value in iter_items(measured) if isinstance(value, float)]
    for name, value in metrics.items():
        digits = len(str(value).split(".")[1])
        assert value in {round(number, digits) for number in numbers}, name


@every_bundle
def test_network_is_what_the_metadata_say(bundle: Path) -> None:
    assert list(network(Bundle(bundle), NETWORK_SIZE)) == []


@every_bundle
@pytest.mark.parametrize(("names", "kind"), [(("train", "smoke"), "train"), (("inference",), "infer")])
def test_properties(bundle: Path, names: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    files = [bundle / "configs" / f"{name}.yaml" for name in names]
    overrides = overrides_for(files, bundle, tmp_path)
    workflow = ConfigWorkflow([*map(str, files)], workflow_type=kind, logging_file=False, **overrides)
    workflow.initialize()
    assert not workflow.check_properties()
    assert not list(tmp_path.rglob("checkpoint*")), "nothing was trained"


@every_config
@pytest.mark.parametrize("run_id", ["run", "training"])
def test_override_check_in_place(config: Path, run_id: str) -> None:
    """The check at the head of the real run list is silent as shipped, and stops a typo; nothing else is run."""
    base = base_file(config)
    files = [str(file) for file in ([base, config] if base else [config])]
    if run_id not in ConfigParser.load_config_files(files):
        assert run_id == "training", "every workflow has 'run'"
        return
    options = {"run_id": run_id, "bundle_root": str(config.parents[1])}
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type=None, **options)
    workflow.parser.parse()
    assert workflow._run_expr(f"{run_id}::0") == [None]
    workflow.parser["image_sice"] = 64
    with pytest.raises(RuntimeError, match="check_overrides") as caught:
        workflow._run_expr(f"{run_id}::0")
    assert "'image_sice'" in str(caught.value.__cause__)


# ---- each mistake is found -------------------------------------------------------------------------------------------


TRAIN = """# Train something tiny.
image_size: 64 # px
weights: null # none yet
network_def:
  _target_: torch.nn.Conv2d
  in_channels: 1
  out_channels: 1
  kernel_size: 1
train:
  dataset:
    _target_: monai.data.Dataset
    data: [1, 2]
  dataloader:
    _target_: monai.data.DataLoader
    dataset: "@train::dataset"
    batch_size: "@image_size"
  loss:
    _target_: DiceLoss
    reduction: none
  order:
    _target_: operator.lt
    _mode_: callable
initialize:
  - "$monai.utils.set_determinism(seed=0)"
run:
  - _target_: common.override_check.check_overrides
    config_name: train
  - "$print(@network_def, @train::dataloader, @train::loss, @train::order, @weights)"
training: "%run"
"""
SMOKE = "# Small.\nimage_size: 8 # px\ntrain#dataset#data: [1]\n"
INFERENCE = """# Apply it.
image_size: 64 # px
network_def:
  _target_: torch.nn.Conv2d
  in_channels: 1
  out_channels: 1
  kernel_size: 1
run:
  - _target_: common.override_check.check_overrides
    config_name: inference
  - "$print(@network_def, @image_size)"
"""


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    for name, text in (("train", TRAIN), ("smoke", SMOKE), ("inference", INFERENCE)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def problems(configs: Path) -> list[str]:
    return [p for path in sorted(configs.glob("*.yaml")) for p in problems_of(path)] + disagreements(configs)


def test_good_configs_have_no_problems(configs: Path) -> None:
    assert problems(configs) == []


END = 'training: "%run"\n'
PRINT = '"$print(@network_def,'
CHECK = "  - _target_: common.override_check.check_overrides\n    config_name: train\n"
WEIGHTS, KERNEL, DATA = "weights: null", "kernel_size: 1", "train#dataset#data:"
CASES = [  # file, text, other text, the item that a problem is about; None where there is none
    ("train", END, END + "image_size: 3 # px\n", "cannot be read"),
    ("smoke", "train#dataset", "trian#dataset", "cannot be read"),
    ("smoke", DATA, "+training_ids:", "cannot be read"),
    ("train", WEIGHTS, 'weights: "%other.yaml::weights"', "cannot be read"),
    ("train", "@train::dataset", "@train::data_set", "train::dataloader::dataset"),
    ("train", END, END + "dead: 3 # px\n", "dead"),
    ("train", "  loss:\n", "  lr: 3\n  loss:\n", "train::lr"),
    ("train", ", @weights", "", "weights"),
    ("train", "weights: null # none yet", "spare: 3 # px\nweights: '%spare'", None),  # a macro is a use
    ("smoke", "image_size", "image_sice", "image_sice"),
    ("smoke", DATA, "train#data:", "train::data"),
    ("train", END, "", "training"),
    ("inference", "config_name: inference", "config_name: train", "run"),
    ("train", CHECK, "", "run"),
    ("train", WEIGHTS, "weights: 1e-4", "weights"),
    ("train", WEIGHTS, 'weights: "0"', "weights"),
    ("train", WEIGHTS, "weights: None", "weights"),
    ("train", WEIGHTS, 'weights: "true"', "weights"),
    ("smoke", "image_size: 8", "image_size: 1e3", "image_size"),
    ("train", PRINT, PRINT + " 'a text that makes this too long',", "run::1"),
    ("train", PRINT, '"$(lambda: 1)(@network_def,', "run::1"),
    ("train", PRINT, '"$print([i for i in [1]], @network_def,', "run::1"),
    ("train", PRINT, '"$common.training.losses.x(@network_def,', "run::1"),
    ("train", PRINT, '"$print(@network_def 3,', "run::1"),
    ("train", WEIGHTS, "weights: $import common.training.losses", "weights"),
    ("train", WEIGHTS, "weights: $from common import files", "weights"),
    ("train", WEIGHTS, "weights: $@image_size * 'importance'", "weights"),
    ("train", '  - "$monai.utils.set_determinism(seed=0)"\n', CHECK, "initialize::0"),
    ("train", "weights: null # none yet\n", "weights: # none\n" + CHECK.replace("  -", "   "), None),
    ("train", "torch.nn.Conv2d", "torch.nn.Conv2e", "network_def"),
    ("train", "torch.nn.Conv2d", "common.training.losses.Nothing", "network_def"),
    ("train", "torch.nn.Conv2d", "torch.pi", "network_def"),
    ("train", "out_channels: 1", "out_channel: 1", "network_def"),
    ("train", KERNEL, KERNEL + "\n  strides: 1", "network_def"),
    ("train", "reduction: none", "reductions: none", "train::loss"),
    ("train", "batch_size:", "batchsize:", "train::dataloader"),
    ("train", "_mode_: callable", "_mode_: callable\n    smoothing: 1", "train::order"),
    ("train", "_mode_: callable", "_mode_: debug", "train::order"),
    ("train", KERNEL, KERNEL + "\n  _disable_: true", "network_def"),
    ("smoke", DATA, "train#dataset#dat:", "train::dataset"),
    ("train", "# Train something tiny.\n", "", "no header comment"),
    ("train", " # px", "", "image_size"),
    ("train", "weights: null # none yet", "# ---- paths\nweights: null", "weights"),
    ("train", "weights: null # none yet", "# none yet\nweights: null", None),
    ("smoke", " # px", "", None),
    ("inference", "image_size: 64", "image_size: 32", "'image_size' differs"),
    ("inference", "image_size: 64", "image_size: 65", "'image_size' differs"),
    ("inference", "run:", "initialize: []\nrun:", None),
]


@pytest.mark.parametrize(("name", "old", "new", "about"), CASES, ids=[f"{i}-{c[3]}" for i, c in enumerate(CASES)])
def test_each_mistake_is_found(configs: Path, name: str, old: str, new: str, about: str | None) -> None:
    path = configs / f"{name}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if about is None:
        assert problems(configs) == []
    else:
        assert any(problem.removeprefix(f"{name}.yaml: ").startswith(about) for problem in problems(configs))


def test_the_base_of_an_override_file(configs: Path) -> None:
    (configs / "pretrain.yaml").write_text(INFERENCE)
    for name in ("smoke_inference", "multi_gpu_train", "multi_gpu_pretrain", "other"):
        (configs / f"{name}.yaml").write_text("# An override.\nimage_size: 8\n")
    (configs / "hinted.yaml").write_text("# An override.\n# base: inference.yaml\nrun: []\n")
    bases = {path.stem: base_file(path) for path in configs.glob("*.yaml")}
    assert {stem: base.stem if base else None for stem, base in bases.items()} == {
        **{"train": None, "inference": None, "pretrain": None, "smoke": "train", "other": "train"},
        **{"smoke_inference": "inference", "multi_gpu_train": "train", "multi_gpu_pretrain": "pretrain"},
        "hinted": "inference",
    }
