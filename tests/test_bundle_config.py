"""Each static check finds the mistake that it is there for, and finds none in a good config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common import config_values
from common.packaging import bundle_config, bundle_metadata
from common.packaging.bundle_config import ConfigLoadError, check_configs, read_config

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
TENSOR: dict[str, Any] = {
    **{"type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": ["8*n", "8*n"]},
    **{"dtype": "float32", "value_range": [0, 1]},
}
METADATA: dict[str, Any] = {
    **{"schema": "https://example.org/s.json", "version": "0.2.0", "changelog": {"0.1.0": "first", "0.2.0": "second"}},
    **{"monai_version": "1.6.1", "pytorch_version": "2.8.0", "numpy_version": "2.2.6", "task": "t", "description": "d"},
    **{"required_packages_version": {"einops": "0.8.0"}, "authors": "a", "copyright": "c"},
    "network_data_format": {"inputs": {"image": TENSOR}, "outputs": {"pred": TENSOR}},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    configs = tmp_path / "tiny" / "configs"
    configs.mkdir(parents=True)
    for name, text in (("train", TRAIN), ("smoke", SMOKE), ("inference", INFERENCE)):
        (configs / f"{name}.yaml").write_text(text)
    (configs / "metadata.json").write_text(json.dumps(METADATA))
    return configs.parent


def change(bundle: Path, name: str, old: str, new: str) -> list[str]:
    """Problems of the bundle after one replacement in one file."""
    path = bundle / "configs" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return check_configs(bundle)


def test_a_good_bundle_has_no_problems(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_configs(bundle) == []
    assert bundle_metadata.check_metadata(bundle) == []


def test_a_bundle_without_train_yaml(bundle: Path) -> None:
    (bundle / "configs" / "train.yaml").unlink()
    assert check_configs(bundle) == ["tiny: configs/train.yaml is missing"]


END = 'training: "%run"\n'
EXPRESSION = '"$print(@network_def,'
CASES = [
    # reading
    ("train.yaml", END, "training: [\n", "cannot be read"),
    ("train.yaml", END, END + "image_size: 3 # px\n", "Duplicate key: `image_size`"),
    ("smoke.yaml", "train#dataset", "trian#dataset", "cannot be read: 'query key: trian'"),
    ("smoke.yaml", "train#dataset#data:", "+training_ids:", "'training_ids' is not in target"),
    ("train.yaml", "weights: null #", 'weights: "%other.yaml::weights" #', "relative to the current directory"),
    # references and dead keys
    ("train.yaml", "@train::dataset", "@train::data_set", "refers to 'train::data_set'"),
    ("train.yaml", END, END + "dead: 3 # px\n", "'dead' is not reached"),
    ("train.yaml", "  loss:\n", "  lr: 3\n  loss:\n", "'train::lr' is not reached"),
    ("train.yaml", ", @weights", "", "'weights' is not reached"),
    ("smoke.yaml", "image_size", "image_sice", "smoke.yaml: 'image_sice' is not reached"),
    ("smoke.yaml", "train#dataset#data:", "train#data:", "smoke.yaml: 'train::data' is not reached"),
    # run ids
    ("train.yaml", END, "", "'training' is missing"),
    ("inference.yaml", "config_name: inference", "config_name: train", "config_name 'train', not 'inference'"),
    (
        "train.yaml",
        "  - _target_: common.override_check.check_overrides\n    config_name: train\n",
        "",
        "first item of 'run' must be",
    ),
    # values
    ("train.yaml", "weights: null", "weights: 1e-4", "'1e-4' is text, not a number"),
    ("train.yaml", "weights: null", 'weights: "3"', "'3' is text, not a number"),
    ("train.yaml", "weights: null", "weights: None", "'None' is text"),
    ("train.yaml", "weights: null", 'weights: "true"', "'true' is text"),
    ("smoke.yaml", "image_size: 8", "image_size: 1e3", "smoke.yaml: image_size: '1e3' is text"),
    # expressions
    ("train.yaml", EXPRESSION, EXPRESSION + " 'a text that makes this too long',", "at most 80"),
    ("train.yaml", EXPRESSION, '"$(lambda: 1)(@network_def,', "a lambda"),
    ("train.yaml", EXPRESSION, '"$print([i for i in [1]], @network_def,', "a comprehension"),
    ("train.yaml", EXPRESSION, '"$print(i for i in [1])(@network_def,', "a comprehension"),
    ("train.yaml", EXPRESSION, '"$common.training.losses.x(@network_def,', "own code inside an expression"),
    ("train.yaml", EXPRESSION, '"$print(@network_def 3,', "not an expression"),
    ("train.yaml", "weights: null", "weights: $import common.training.losses", "import of own code"),
    ("train.yaml", "weights: null", "weights: $from common import losses", "import of own code"),
    ("train.yaml", "weights: null", "weights: $@image_size * 'importance'", "with 'import' and '@'"),
    (
        "train.yaml",
        '  - "$monai.utils.set_determinism(seed=0)"',
        "  - _target_: common.override_check.check_overrides\n    config_name: train",
        "'common.override_check.check_overrides' is needed by 'initialize'",
    ),
    (
        "train.yaml",
        "weights: null # none yet\n",
        "weights: # none\n  _target_: common.override_check.check_overrides\n  config_name: train\n",
        None,
    ),
    # targets
    ("train.yaml", "torch.nn.Conv2d", "torch.nn.Conv2e", "'torch.nn.Conv2e' does not exist"),
    (
        "train.yaml",
        "torch.nn.Conv2d",
        "common.training.losses.Nothing",
        "'common.training.losses.Nothing' does not exist",
    ),
    ("train.yaml", "torch.nn.Conv2d", "torch.pi", "'torch.pi' cannot be called"),
    ("train.yaml", "out_channels: 1", "out_channel: 1", "missing a required argument: 'out_channels'"),
    ("train.yaml", "kernel_size: 1", "kernel_size: 1\n  strides: 1", "unexpected keyword argument 'strides'"),
    ("train.yaml", "reduction: none", "reductions: none", "unexpected keyword argument 'reductions'"),
    ("train.yaml", "batch_size:", "batchsize:", "unexpected keyword argument 'batchsize'"),
    ("train.yaml", "_mode_: callable", "_mode_: callable\n    smoothing: 1", "unexpected keyword argument 'smoothing'"),
    ("train.yaml", "_mode_: callable", "_mode_: debug", "only default and callable"),
    ("train.yaml", "kernel_size: 1", "kernel_size: 1\n  _disable_: true", "'_disable_' is none of MONAI's keys"),
    ("smoke.yaml", "train#dataset#data:", "train#dataset#dat:", "unexpected keyword argument 'dat'"),
    # comments
    ("train.yaml", "# Train something tiny.\n", "", "no header comment"),
    ("train.yaml", " # px", "", "'image_size' has no comment"),
    ("train.yaml", "weights: null # none yet", "# ---- paths\nweights: null", "'weights' has no comment"),
    ("train.yaml", "weights: null # none yet", "# none yet\nweights: null", None),
    ("smoke.yaml", " # px", "", None),
    # agreement of workflow files
    (
        "inference.yaml",
        "kernel_size: 1",
        "kernel_size: 3",
        "'network_def' differs between inference.yaml and train.yaml",
    ),
    ("inference.yaml", "image_size: 64", "image_size: 65", "'image_size' differs"),
    ("inference.yaml", "run:", "initialize: []\nrun:", None),
]


@pytest.mark.parametrize(("name", "old", "new", "expected"), CASES, ids=[f"{i}-{c[3]}" for i, c in enumerate(CASES)])
def test_each_mistake_is_found(bundle: Path, name: str, old: str, new: str, expected: str | None) -> None:
    problems = change(bundle, name, old, new)
    if expected is None:
        assert problems == []
    else:
        assert any(expected in problem for problem in problems), problems


def test_every_check_is_exercised() -> None:
    """A new check without a case above would pass without anybody knowing that it can fail."""
    modules = (bundle_config, config_values)
    checks = {name for module in modules for name in vars(module) if name.startswith("check_")}
    known = {"macros", "references", "used", "run_ids", "shared_keys", "file", "configs", "text_values", "expressions"}
    assert checks == {f"check_{name}" for name in known | {"initialize", "targets", "comments"}}


def test_the_base_of_an_override_file(bundle: Path) -> None:
    configs = bundle / "configs"
    (configs / "pretrain.yaml").write_text(INFERENCE)
    for name in ("smoke_inference", "multi_gpu_train", "multi_gpu_pretrain", "other"):
        (configs / f"{name}.yaml").write_text("# An override.\nimage_size: 8\n")
    (configs / "hinted.yaml").write_text("# An override.\n# base: inference.yaml\nrun: []\n")
    bases = {path.stem: bundle_config.base_file(path) for path in bundle_config.config_files(configs)}
    assert {stem: base.stem if base else None for stem, base in bases.items()} == {
        **{"train": None, "inference": None, "pretrain": None, "smoke": "train", "other": "train"},
        **{"smoke_inference": "inference", "multi_gpu_train": "train", "multi_gpu_pretrain": "pretrain"},
        "hinted": "inference",
    }


def test_a_base_that_does_not_exist(bundle: Path) -> None:
    path = bundle / "configs" / "smoke.yaml"
    path.write_text("# base: nothing.yaml\n" + SMOKE)
    with pytest.raises(ConfigLoadError, match=r"nothing\.yaml"):
        read_config(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": ""}, "task"),
        ({"changelog": {}}, "not in the changelog"),
        ({"version": "0.1.0"}, "not the newest"),
        ({"version": "1.0-rc", "changelog": {"1.0-rc": "x"}}, "'1.0-rc' is no version"),
        ({"references": "one"}, "references"),
        ({"pytorch_version": "21.3.0"}, "newer than"),
        ({"monai_version": ">=1.6"}, "no version"),
        ({"numpy_version": "2.3.0"}, "Python 3.10"),
        ({"required_packages_version": {"PIL": "11.0.0"}}, "not installed here"),
        ({"network_data_format": {"inputs": {"image": TENSOR}, "outputs": {}}}, "'pred' is a required property"),
        (
            {"network_data_format": {"inputs": {"image": {"type": "x"}}, "outputs": {"pred": TENSOR}}},
            "required property",
        ),
        ({"latents_data_format": {"inputs": {}}}, "'outputs' is a required property"),
        ({"copyright": None}, "copyright"),
    ],
)
def test_each_metadata_mistake_is_found(bundle: Path, changes: dict[str, Any], expected: str) -> None:
    (bundle / "configs" / "metadata.json").write_text(json.dumps({**METADATA, **changes}))
    problems = bundle_metadata.check_metadata(bundle)
    assert any(expected in problem for problem in problems), problems


@pytest.mark.parametrize("key", sorted(METADATA))
def test_every_required_key_of_the_metadata(bundle: Path, key: str) -> None:
    (bundle / "configs" / "metadata.json").write_text(json.dumps({k: v for k, v in METADATA.items() if k != key}))
    assert any(f"'{key}' is a required property" in problem for problem in bundle_metadata.check_metadata(bundle))


def test_unreadable_metadata(bundle: Path) -> None:
    (bundle / "configs" / "metadata.json").write_text("{")
    assert "cannot be read" in bundle_metadata.check_metadata(bundle)[0]


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ({}, ""),
        ({"num_channels": 2}, "output channel number"),
        ({"spatial_shape": ["4*n", "8*n"]}, "metadata.json says [1, 1, 8, 16]"),
        ({"dtype": "float64"}, "dtype"),
    ],
)
def test_network_against_metadata(bundle: Path, tensor: dict[str, Any], expected: str) -> None:
    formats = {"inputs": {"image": TENSOR}, "outputs": {"pred": {**TENSOR, **tensor}}}
    (bundle / "configs" / "metadata.json").write_text(json.dumps({**METADATA, "network_data_format": formats}))
    problems = bundle_metadata.check_network([bundle / "configs" / "inference.yaml"], n=2)
    assert expected in problems[0] if expected else problems == []


def test_missing_and_misplaced_properties(bundle: Path) -> None:
    files = [bundle / "configs" / "train.yaml"]
    assert "'bundle_root'" in bundle_metadata.check_properties(files, "train")[0]
    text = TRAIN.replace("  loss:\n", "  inferer: 1\n  trainer: {max_epochs: 1, train_handlers: '@weights'}\n  loss:\n")
    files[0].write_text(text + "bundle_root: .\ndevice: cpu\ndataset_dir: .\n")
    assert bundle_metadata.check_properties(files, "train") == [
        "train.yaml: property 'train_handlers' is missing or not where MONAI looks for it"
    ]
