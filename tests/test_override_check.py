"""A mistyped key stops a run before anything happens; everything a user may rightly override goes through."""

from __future__ import annotations

import json
from pathlib import Path

import fire
import monai.bundle
import pytest
from monai.bundle import ConfigParser

from common.errors import SettingsError
from common.override_check import check_overrides, restore_paths

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")  # MONAI says so at every start

TRAIN = """# tiny
learning_rate: 0.1
max_epochs: 2
only_for_training: 1
data_dir: here
train:
  spare: 0
  trainer:
    _target_: collections.ChainMap
  steps: "$@max_epochs * 10"
initialize:
  - "$print('initialised')"
run:
  - _target_: common.override_check.check_overrides
    config_name: train
  - "$print('ran', @learning_rate, @train::steps, @train::trainer)"
training:
  - "%run::0"
  - "$print('trained', @only_for_training, @data_dir)"
"""
SMOKE = """# base: train.yaml
max_epochs: 1
train#steps: 3
smoke_only: 7
"""


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle" / "configs"
    folder.mkdir(parents=True)
    (folder / "train.yaml").write_text(TRAIN)
    (folder / "smoke.yaml").write_text(SMOKE)
    (folder / "inference.yaml").write_text("# another workflow\nsheet_rows: 3\nrun: []\n")
    (folder / "smoke_inference.yaml").write_text("# base: inference.yaml\nsheet_rows: 1\n")
    (folder / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    return folder


def run(configs: Path, *files: str | Path, run_id: str = "run", **overrides: object) -> None:
    paths = [str(configs / file) for file in files or ("train.yaml",)]
    monai.bundle.run(run_id, config_file=paths, **overrides)


@pytest.mark.parametrize("run_id", ["run", "training"])
@pytest.mark.parametrize(
    ("overrides", "near"),
    [
        ({"max_epoch": 5}, "'max_epochs'"),
        ({"Learning_rate": 5}, "'learning_rate'"),
        ({"train#step": 5}, "'train#steps'"),
        ({"sheet_rows": 5}, " inference.yaml"),  # another workflow's
        ({"smoke_only": 5}, "smoke.yaml"),  # of a file that takes no part
    ],
)
def test_unknown_key_stops_the_run(
    configs: Path, capsys: pytest.CaptureFixture[str], run_id: str, overrides: dict[str, int], near: str
) -> None:
    with pytest.raises(RuntimeError, match="check_overrides") as caught:
        run(configs, run_id=run_id, **overrides)
    cause = caught.value.__cause__
    assert isinstance(cause, SettingsError)
    assert near in str(cause) and "train.yaml" in str(cause) and next(iter(overrides)) in str(cause)
    assert "smoke_inference.yaml" not in str(cause)  # would not make it a setting of this run
    printed = capsys.readouterr().out
    assert "initialised" in printed and "ran" not in printed and "trained" not in printed


@pytest.mark.parametrize(
    ("overrides", "printed"),
    [
        ({}, "ran 0.1 20"),
        ({"max_epochs": 5}, "ran 0.1 50"),
        ({"train#steps": 4}, "ran 0.1 4"),
        ({"train": {"steps": 4, "trainer": None, "spare": 1}}, "ran 0.1 4"),
        ({"only_for_training": 2}, "ran"),  # declared; this run id has no use for it
        ({"train#spare": 2}, "ran"),
        ({"_note": "free"}, "ran"),
        ({"learning_rate": "$@_rate / 2", "_rate": 1.0}, "ran 0.5"),
        ({"_note": {"seed": 0, "num_workers": 0, "batch_size": "$1", "device": "cpu"}}, "ran"),
        ({"learning_rate": "$@my_rate / 2", "my_rate": 1.0}, "ran 0.5"),  # a helper that is reached
    ],
)
def test_right_overrides_go_through(
    configs: Path, capsys: pytest.CaptureFixture[str], overrides: dict[str, object], printed: str
) -> None:
    run(configs, **overrides)
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [
        *({"max_epochs": value} for value in (0, -1, 1.5, "two")),
        *({"_note": {"step": {"max_grad_norm": value}}} for value in (-1, 0, float("nan"))),
        *({"_note": {name: -1}} for name in ("warmup_steps", "sheet_images", "sheet_rows", "seed", "num_workers")),
        *({"_note": {name: 0}} for name in ("batch_size", "learning_rate", "image_size", "limit", "epoch_length")),
        *({key: word} for key, word in (("learning_rate", "false"), ("train#spare", "true"), ("train#spare", "False"))),
        {"_note": {"image_size": [256, 0]}},
        {"_note": {"device": "cuda:99"}},
        {"_note": {"output_dir": __file__}},
        {"_note": {"cache_dir": f"{__file__}/inside"}},
        {"dataset_dir": "data", "_note": {"output_dir": "data/."}, "_used": "@dataset_dir"},
    ],
)
def test_a_value_that_cannot_be_stops_the_run_before_any_work(
    configs: Path, capsys: pytest.CaptureFixture[str], overrides: dict[str, object]
) -> None:
    with pytest.raises(RuntimeError) as caught:
        run(configs, **overrides)
    assert isinstance(caught.value.__cause__, SettingsError)
    assert "ran" not in capsys.readouterr().out


def test_files_merged_after_it_declare_keys_and_may_be_mistyped(
    configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(configs, "train.yaml", "smoke.yaml", smoke_only=8)
    assert "ran 0.1 3" in capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text("max_epoch: 3\n")
    with pytest.raises(RuntimeError) as caught:
        run(configs, "train.yaml", tmp_path / "mine.yaml")
    assert "max_epochs" in str(caught.value.__cause__)


def test_args_file_and_create_workflow(configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args_file = tmp_path / "args.json"
    arguments = {"config_file": str(configs / "train.yaml"), "run_id": "training", "only_for_training": 9}
    args_file.write_text(json.dumps(arguments))
    monai.bundle.run(args_file=str(args_file))
    assert "trained 9" in capsys.readouterr().out
    args_file.write_text(json.dumps({**arguments, "only_for_trainin": 9}))
    workflow = monai.bundle.create_workflow(args_file=str(args_file), workflow_type="train")
    with pytest.raises(RuntimeError, match="check_overrides"):
        workflow.run()


def test_what_is_no_bundle_is_refused_with_the_folder_that_is_one(configs: Path, tmp_path: Path) -> None:
    (configs / "train.yaml").write_text(TRAIN + "bundle_root: .\n")
    run(configs, bundle_root=str(configs.parent))
    with pytest.raises(RuntimeError) as caught:
        run(configs, bundle_root=str(tmp_path))
    assert isinstance(caught.value.__cause__, SettingsError) and str(configs.parent) in str(caught.value.__cause__)


SAMPLES = "bundle_root: .\ndataset_dir: \"$@bundle_root + '/samples'\"\n"
CHECK = "probe: '@dataset_dir'\nrun: [{_target_: common.override_check.check_overrides, config_name: %s}]\n"


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("train", TRAIN + SAMPLES, 1),
        ("train", TRAIN + "bundle_root: .\ndataset_dir: somewhere\n", 0),
        ("evaluate", SAMPLES + CHECK % "evaluate", 1),
        ("inference", SAMPLES + CHECK % "inference", 0),  # which only makes images
    ],
)
def test_trainings_and_evaluations_say_that_they_have_only_the_images_that_ship(
    configs: Path, caplog: pytest.LogCaptureFixture, name: str, content: str, count: int
) -> None:
    (configs / f"{name}.yaml").write_text(content)
    run(configs, f"{name}.yaml", bundle_root=str(configs.parent))
    assert len([record for record in caplog.records if "--dataset_dir" in record.message]) == count


def test_a_copy_kept_elsewhere_knows_what_is_reached(configs: Path, tmp_path: Path) -> None:
    mine = tmp_path / "elsewhere" / "my_train.yaml"
    mine.parent.mkdir()
    mine.write_text(
        TRAIN.replace("only_for_training: 1\ndata_dir: here\n", "").replace("  spare: 0\n", "").split("training:")[0]
    )
    run(configs, mine, max_epochs=3)
    with pytest.raises(RuntimeError) as caught:
        run(configs, mine, max_epoch=3)
    assert "max_epoch" in str(caught.value.__cause__)


def test_the_json_twin_counts_as_the_own_file(configs: Path) -> None:
    content = ConfigParser.load_config_file(str(configs / "train.yaml"))
    (configs / "train.yaml").unlink()
    (configs / "train.json").write_text(json.dumps(content))
    run(configs, "train.json", only_for_training=2)
    with pytest.raises(RuntimeError, match="check_overrides"):
        run(configs, "train.json", only_for_trainin=2)


def test_nothing_is_checked_without_a_workflow(configs: Path) -> None:
    check_overrides("train")
    parser = ConfigParser(ConfigParser.load_config_file(str(configs / "train.yaml")))
    parser["max_epoch"] = 5
    assert parser.get_parsed_content("run::0") is None


def test_what_monai_checks_itself(configs: Path) -> None:
    """The cases left to MONAI; if one of these passes one day, the check has a gap."""
    with pytest.raises(RuntimeError, match="Failed to instantiate") as caught:
        run(configs, **{"train#trainer#max_epoch": 5})
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(ValueError, match="invalid literal"):
        run(configs, **{"learning_rate#typo": 5})
    with pytest.raises(KeyError, match="trian"):
        run(configs, **{"trian#steps": 5})


@pytest.mark.parametrize("name", ["2024", "1e3", "a,b", "[set1]", "{a}", "1_0", "-1"])
@pytest.mark.parametrize("form", ["--{key} {name}", "--{key}={name}"])
@pytest.mark.parametrize("key", ["dataset_dir", "weights_path", "train#init_weights", "bundle_root"])
def test_folders_that_look_like_numbers_or_lists_are_folders(name: str, form: str, key: str) -> None:
    made = fire.parser.DefaultParseValue(name)
    parser = ConfigParser({"train": {}, "seed": 0})
    parser[key] = made
    words = form.format(key=key, name=name).split(" ", 1)
    restore_paths(parser, ["monai.bundle", "run", "--seed", "0", *words])
    assert parser[key] == name and parser["seed"] == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"dataset_dir": ""}, ["--dataset_dir", ""]),
        ({"dataset_dir": "samples"}, ["--dataset_dir", "None"]),  # MONAI drops it
        ({"epoch_length": 5}, ["--epoch_length=None"]),
        ({"output_dir": True}, ["--output_dir"]),
        ({"output_dir": 2024}, []),  # of a file
    ],
    ids=str,
)
def test_a_setting_that_was_left_empty_is_refused(config: dict, words: list[str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(config))):
        restore_paths(ConfigParser(config), words)
    restore_paths(ConfigParser({"epoch_length": None, "cache_dir": None}), ["--epoch_length", "None"])
    restore_paths(ConfigParser({"output_dir": Path("out")}), [])
