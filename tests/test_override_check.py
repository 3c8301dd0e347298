"""A mistyped key stops a run before anything happens; everything a user may rightly override goes through."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
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
def configs(tmp_path):
    folder = tmp_path / "bundle" / "configs"
    folder.mkdir(parents=True)
    (folder / "train.yaml").write_text(TRAIN)
    (folder / "smoke.yaml").write_text(SMOKE)
    (folder / "inference.yaml").write_text("# another workflow\nsheet_rows: 3\nrun: []\n")
    (folder / "smoke_inference.yaml").write_text("# base: inference.yaml\nsheet_rows: 1\n")
    (folder / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    return folder


def run(configs, *files, run_id="run", **overrides):
    paths = [str(configs / file) for file in files or ("train.yaml",)]
    monai.bundle.run(run_id, config_file=paths, **overrides)


def refused(configs, *files, **overrides):
    """What the run is refused with."""
    with pytest.raises(RuntimeError, match="check_overrides") as caught:
        run(configs, *files, **overrides)
    assert isinstance(caught.value.__cause__, SettingsError)
    return str(caught.value.__cause__)


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
def test_unknown_key_stops_the_run(configs, capsys, run_id, overrides, near):
    told = refused(configs, run_id=run_id, **overrides)
    assert near in told and "train.yaml" in told and next(iter(overrides)) in told
    assert "smoke_inference.yaml" not in told  # would not make it a setting of this run
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
def test_right_overrides_go_through(configs, capsys, overrides, printed):
    run(configs, **overrides)
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [
        *({"max_epochs": value} for value in (0, -1, 1.5, "two")),
        *({"_note": {"step": {"max_grad_norm": value}}} for value in (-1, 0, float("nan"))),
        *({"_note": {name: -1}} for name in ("warmup_steps", "sheet_images", "sheet_rows", "seed", "num_workers")),
        *({"_note": {name: 0}} for name in ("batch_size", "learning_rate", "image_size", "limit", "epoch_length")),
        {"_note": {"image_size": [256, 0]}},
        {"_note": {"device": "cuda:99"}},
        {"_note": {"output_dir": __file__}},
        {"_note": {"cache_dir": f"{__file__}/inside"}},
        {"dataset_dir": "data", "_note": {"output_dir": "data/."}, "_used": "@dataset_dir"},
    ],
)
def test_a_value_that_cannot_be_stops_the_run_before_any_work(configs, capsys, overrides):
    assert refused(configs, **overrides)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "word"), [("learning_rate", "false"), ("train#spare", "true"), ("train#spare", "False")]
)
def test_a_boolean_as_text_stops_the_run(configs, capsys, key, word):
    assert f"expected {word.capitalize()}" in refused(configs, **{key: word})
    assert "ran" not in capsys.readouterr().out


def test_an_override_file_declares_its_keys(configs, capsys):
    run(configs, "train.yaml", "smoke.yaml", smoke_only=8)
    assert "ran 0.1 3" in capsys.readouterr().out


def test_a_typo_in_a_users_own_file_is_found(configs, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("max_epoch: 3\n")
    assert "max_epochs" in refused(configs, "train.yaml", mine)


def test_args_file_and_create_workflow(configs, tmp_path, capsys):
    args_file = tmp_path / "args.json"
    arguments = {"config_file": str(configs / "train.yaml"), "run_id": "training", "only_for_training": 9}
    args_file.write_text(json.dumps(arguments))
    monai.bundle.run(args_file=str(args_file))
    assert "trained 9" in capsys.readouterr().out
    args_file.write_text(json.dumps({**arguments, "only_for_trainin": 9}))
    workflow = monai.bundle.create_workflow(args_file=str(args_file), workflow_type="train")
    with pytest.raises(RuntimeError, match="check_overrides"):
        workflow.run()


def test_what_is_no_bundle_is_refused_with_the_folder_that_is_one(configs, tmp_path):
    (configs / "train.yaml").write_text(TRAIN + "bundle_root: .\n")
    run(configs, bundle_root=str(configs.parent))
    assert str(configs.parent) in refused(configs, bundle_root=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "dataset_dir", "count"),
    [
        *(("train", "$@bundle_root + '/samples'", 1), ("train", "somewhere", 0)),
        *(("evaluate", "$@bundle_root + '/samples'", 1), ("inference", "$@bundle_root + '/samples'", 0)),
    ],
)
def test_trainings_and_evaluations_say_that_they_have_only_the_images_that_ship(
    configs, caplog, name, dataset_dir, count
):
    check = f"probe: '@dataset_dir'\nrun: [{{_target_: common.override_check.check_overrides, config_name: {name}}}]\n"
    content = f'bundle_root: .\ndataset_dir: "{dataset_dir}"\n'
    (configs / f"{name}.yaml").write_text((TRAIN if name == "train" else check) + content)
    run(configs, f"{name}.yaml", bundle_root=str(configs.parent))
    assert len([record for record in caplog.records if "--dataset_dir" in record.message]) == count


def test_a_copy_kept_elsewhere_knows_what_is_reached(configs, tmp_path):
    mine = tmp_path / "elsewhere" / "my_train.yaml"
    mine.parent.mkdir()
    mine.write_text(
        TRAIN.replace("only_for_training: 1\ndata_dir: here\n", "").replace("  spare: 0\n", "").split("training:")[0]
    )
    run(configs, mine, max_epochs=3)
    assert "max_epoch" in refused(configs, mine, max_epoch=3)


def test_the_json_twin_counts_as_the_own_file(configs):
    content = ConfigParser.load_config_file(str(configs / "train.yaml"))
    (configs / "train.yaml").unlink()
    (configs / "train.json").write_text(json.dumps(content))
    run(configs, "train.json", only_for_training=2)
    assert refused(configs, "train.json", only_for_trainin=2)


def test_nothing_is_checked_without_a_workflow(configs):
    check_overrides("train")
    parser = ConfigParser(ConfigParser.load_config_file(str(configs / "train.yaml")))
    parser["max_epoch"] = 5
    assert parser.get_parsed_content("run::0") is None


def test_what_monai_checks_itself(configs):
    """The cases left to MONAI; if one of these passes one day, the check has a gap."""
    with pytest.raises(RuntimeError, match="Failed to instantiate") as caught:
        run(configs, **{"train#trainer#max_epoch": 5})
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(ValueError, match="invalid literal"):
        run(configs, **{"learning_rate#typo": 5})
    with pytest.raises(KeyError, match="trian"):
        run(configs, **{"trian#steps": 5})


@pytest.mark.slow
def test_command_of_a_packaged_bundle(configs, repository, tmp_path):
    """`python -m monai.bundle`, from another directory, with `common` vendored: one clear message and no run."""
    bundle = configs.parent
    shutil.copytree(repository / "common", bundle / "scripts" / "common", ignore=shutil.ignore_patterns("__pycache__"))
    train = configs / "train.yaml"
    train.write_text(train.read_text().replace("common.override_check", "scripts.common.override_check"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(train)]

    def call(*options):
        settings = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 120}
        return subprocess.run([*command, *options], **settings, check=False)

    wrong = call("--only_for_trainin", "5")
    assert wrong.returncode == 1 and "trained" not in wrong.stdout
    assert "Traceback" not in wrong.stderr
    assert "unknown config key 'only_for_trainin'; did you mean 'only_for_training'?" in wrong.stderr
    right = call("--only_for_training", "5", "--data_dir", "1e3")
    assert right.returncode == 0, right.stderr
    assert "trained 5 1e3" in right.stdout


@pytest.mark.parametrize("name", ["2024", "1e3", "a,b", "[set1]", "{a}", "1_0", "-1"])
@pytest.mark.parametrize("form", ["--{key} {name}", "--{key}={name}"])
@pytest.mark.parametrize("key", ["dataset_dir", "weights_path", "train#init_weights", "bundle_root"])
def test_folders_that_look_like_numbers_or_lists_are_folders(name, form, key):
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
def test_a_setting_that_was_left_empty_is_refused(config, words):
    with pytest.raises(SettingsError, match=next(iter(config))):
        restore_paths(ConfigParser(config), words)
    restore_paths(ConfigParser({"epoch_length": None, "cache_dir": None}), ["--epoch_length", "None"])
    restore_paths(ConfigParser({"output_dir": Path("out")}), [])
