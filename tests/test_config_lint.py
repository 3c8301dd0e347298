"""Each rule finds the mistake that it is there for, and finds none in a good config."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_lint import base_file, disagreements, problems_of

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
