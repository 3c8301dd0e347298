"""A run's record: complete, appended to on resume, written once per job, never half written."""

from __future__ import annotations

import json
from pathlib import Path

import monai.bundle
import pytest
import torch
import yaml
from conftest import make_tiny_store
from monai.bundle import ConfigWorkflow

import common
from common.data.latent_store import LatentDataset
from common.training.run_record import data_digest, run_settings, write_run_record

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")

TRAIN = """# tiny
seed: 3
learning_rate: 0.1
output_dir: unset
sampler:
  lr: "@learning_rate"
run:
  - _target_: common.training.run_record.write_run_record
    output_dir: "@output_dir"
  - "$@sampler['lr']"
training: "%run"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "configs" / "train.yaml"
    file.parent.mkdir()
    file.write_text(TRAIN)
    (file.parent / "metadata.json").write_text('{"version": "0.4.0"}')
    return file


def run(config: Path, output_dir: Path, **overrides: object) -> list[dict[str, object]]:
    """Run the tiny config; the runs on record afterwards."""
    monai.bundle.run("training", config_file=str(config), output_dir=str(output_dir), **overrides)
    return json.loads((output_dir / "run_record.json").read_text())["runs"]


def test_a_record_says_what_ran(config: Path, tmp_path: Path) -> None:
    [entry] = run(config, tmp_path / "new" / "out", learning_rate=0.5)
    assert entry["seed"] == 3 and entry["run_id"] == "training" and entry["bundle_version"] == "0.4.0"
    assert entry["config_dir"] == str(config.parent) and entry["common_version"] == common.__version__
    assert entry["packages"]["torch"] == torch.__version__ and "monai" in entry["packages"]
    assert entry["torch_threads"] == torch.get_num_threads() and entry["devices"]
    assert str(entry["date_utc"]).endswith("+00:00")


def test_the_resolved_config_has_overrides_and_references(config: Path, tmp_path: Path) -> None:
    run(config, tmp_path, learning_rate=0.5, device=torch.device("cpu"))
    resolved = yaml.safe_load((tmp_path / "resolved_config.yaml").read_text())
    assert resolved["learning_rate"] == 0.5 and resolved["sampler"]["lr"] == "@learning_rate"
    assert resolved["training"] == resolved["run"] and resolved["device"] == "cpu"
    assert "_meta_" not in resolved
    assert list(resolved)[:2] == ["seed", "learning_rate"], "in the order of the file"


def test_a_resumed_run_keeps_what_was_there(config: Path, tmp_path: Path) -> None:
    run(config, tmp_path)
    first = (tmp_path / "resolved_config.yaml").read_text()
    run(config, tmp_path, learning_rate=0.5)
    run(config, tmp_path)
    runs = run(config, tmp_path, learning_rate=0.5)
    names = ["resolved_config.yaml", "resolved_config_2.yaml"]
    assert [entry["resolved_config"] for entry in runs] == [*names, *names]
    assert (tmp_path / "resolved_config.yaml").read_text() == first
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted([*names, "run_record.json"])


def test_only_rank_zero_writes(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(FileNotFoundError):
        run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_without_a_workflow(tmp_path: Path) -> None:
    write_run_record(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": 1}'])
def test_a_foreign_record_is_not_overwritten(config: Path, tmp_path: Path, text: str) -> None:
    record = tmp_path / "run_record.json"
    record.write_text(text)
    with pytest.raises(RuntimeError) as caught:
        run(config, tmp_path)
    assert str(record) in str(caught.value.__cause__)
    assert record.read_text() == text


SETTINGS = """# what a training may depend on
bundle_root: bundle
label_budget: 10
mask_values: periapical
pretrained: none
shipped: "$@bundle_root + '/model.pt'"
prediction_type: epsilon
image_size: [144, 192]
network_def: {_target_: types.SimpleNamespace, channels: [8, 16]}
max_epochs: 2
num_workers: 0
dataset_dir: somewhere
loader: {_target_: types.SimpleNamespace, dataset: "$range(3)"}
initialize: []
run:
  - _target_: common.training.run_record.run_settings
    loader: "@loader"
"""


@pytest.fixture
def settings_of(tmp_path: Path):
    """The settings of a run with other values of some keys."""
    (tmp_path / "train.yaml").write_text(SETTINGS)

    def find(**overrides: object) -> dict[str, object]:
        options = {"config_file": str(tmp_path / "train.yaml"), "logging_file": False, "workflow_type": "train"}
        workflow = ConfigWorkflow(**options, **{"bundle_root": str(tmp_path), **overrides})
        workflow.initialize()
        return workflow.run()[0]

    return find


@pytest.mark.parametrize(
    ("change", "is_another_run"),
    [
        ({"label_budget": 20}, True),
        ({"mask_values": "labels"}, True),
        ({"pretrained": "ddpm"}, True),
        ({"prediction_type": "v"}, True),
        ({"image_size": [144, 144]}, True),
        ({"network_def#channels": [8, 32]}, True),
        ({"loader#dataset": "$range(4)"}, True),
        ({"max_epochs": 9, "num_workers": 2, "dataset_dir": "elsewhere"}, False),
    ],
)
def test_what_makes_another_run_of_a_resumed_one(settings_of, change: dict, is_another_run: bool) -> None:
    assert (settings_of(**change) != settings_of()) == is_another_run


def test_weights_to_start_from_count_by_what_they_hold(settings_of, tmp_path: Path) -> None:
    for folder, content in (("a/run", b"one"), ("b/run", b"two"), ("c/run", b"one")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.pt").write_bytes(content)
    first, other, moved = (settings_of(pretrained=str(tmp_path / name / "run" / "model.pt")) for name in "abc")
    assert first != other and first == moved
    shipped = [settings_of(bundle_root=str(tmp_path / name / "run"))["shipped"] for name in "abc"]
    assert shipped[0] != shipped[1] and shipped[0] == shipped[2]


def test_a_store_of_other_images_is_other_data(tmp_path: Path) -> None:
    digests = []
    for name, made_with in (("a", {}), ("b", {"data_list_sha256": "other"}), ("c", {"dataset_dir": "/moved"})):
        store = make_tiny_store(tmp_path / name)
        store.made_with |= made_with
        digests.append(data_digest(LatentDataset(store, "train")))
    assert digests[0] != digests[1] and digests[0] == digests[2]
    assert run_settings(torch.utils.data.DataLoader(LatentDataset(store, "train")))["data"] == digests[2]
