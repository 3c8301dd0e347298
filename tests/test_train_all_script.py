"""From the shipped samples to a packaged bundle by one command, in miniature."""

import csv
import inspect
import json
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY
from script_module import load_script

from common.errors import UserError
from common.files import write_csv, write_json
from common.training.stages import Chain, frozen_files
from common.training.step_log import read_log

BUNDLE = "dental_radiograph_segmentation"
SAMPLES = REPOSITORY / "bundles" / BUNDLE / "samples"
SIZES = {"channels": [8, 16, 16], "attention_levels": [False, False, True], "num_head_channels": 8}
SIZES |= {"norm_num_groups": 8}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The dental recipe with the smoke configs in the place of its own."""
    content = yaml.safe_load((REPOSITORY / "scripts" / "recipes" / "dental.yaml").read_text())
    stages = content["stages"]
    pretraining, segmenter, evaluation = (stages[name] for name in ("pretraining", "segmenter", "evaluation"))
    pretraining |= {"steps": 200, "defaults": [f"denoiser_def#{key}" for key in SIZES]}
    pretraining["commands"][0]["configs"] = ["pretrain.yaml", "smoke_pretrain.yaml"]
    segmenter |= {"steps": 6, "defaults": [f"network_def#{key}" for key in SIZES]}
    segmenter["commands"][0]["configs"] = ["train.yaml", "smoke.yaml"]
    for stage in (pretraining, segmenter):
        stage.pop("choose", None)
        stage["commands"][0]["settings"]["train#trainer#checkpoint_every_steps"] = 5
    evaluation["commands"][0]["configs"] = ["evaluate.yaml"]
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    stages["package"]["commands"][0]["settings"]["chain"] = str(path)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def words(command, recipe, work, **more):
    script = REPOSITORY / "scripts" / "train_all.py"
    settings = {"work_dir": work, "chain": recipe, **more}
    return [
        sys.executable,
        str(script),
        command,
        str(SAMPLES),
        *(f"--{key}={value}" for key, value in settings.items()),
    ]


def run(command, recipe, work, **more):
    done = subprocess.run(words(command, recipe, work, **more), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    work = tmp_path_factory.mktemp("whole")
    return Chain(recipe, SAMPLES, work, REPOSITORY), run("run", recipe, work)


@pytest.mark.slow
def test_a_folder_becomes_a_packaged_bundle_with_its_record(whole):
    chain, output = whole
    assert {chain.status(name) for name in chain.stages} == {"done"}
    assert all(name in output for name in chain.stages)
    with zipfile.ZipFile(next((chain.work / "dist").glob("*.zip"))) as archive:
        record = json.loads(archive.read(f"{BUNDLE}/docs/training/pretraining.json"))
        config = yaml.safe_load(archive.read(f"{BUNDLE}/configs/generate.yaml"))
    assert config["denoiser_def"]["channels"] == SIZES["channels"]
    assert (record["steps"], record["images_seen"], record["seed"], record["resumed"]) == (200, 400, 0, 0)
    assert len(record["data_sha256"]) == len(record["file"]["sha256"]) == 64
    assert (chain.work / "bundles" / BUNDLE / "docs" / "training" / "pretraining.png").is_file()
    shipped = torch.load(chain.work / "bundles" / BUNDLE / "models" / "denoiser.pt", weights_only=True)
    trained = torch.load(chain.weights("pretraining"), weights_only=True)
    assert all(torch.equal(shipped[key], value.to(shipped[key].dtype)) for key, value in trained.items())
    evaluated = json.loads((chain.folder("evaluation") / "segmenter" / "evaluation.json").read_text())
    assert evaluated


@pytest.mark.slow
def test_a_run_of_fewer_steps_than_the_recipe_has_ships(whole, recipe, tmp_path):
    chain, content = whole[0], yaml.safe_load(recipe.read_text())
    content["stages"]["pretraining"]["steps"] = 400
    longer = tmp_path / "longer.yaml"
    longer.write_text(yaml.safe_dump(content, sort_keys=False))
    ship = load_script("train_all").ship
    where = {"work_dir": str(chain.work), "bundles_dir": str(tmp_path / "bundles")}
    ship(str(SAMPLES), chain=str(longer), only="pretraining", **where)
    record = json.loads((tmp_path / "bundles" / BUNDLE / "docs" / "training" / "pretraining.json").read_text())
    assert record["steps"] == record["planned_steps"] == 200


@pytest.mark.slow
def test_a_chain_stopped_in_the_middle_ends_like_an_uninterrupted_one(whole, recipe, tmp_path, capsys):
    chain, pause = Chain(recipe, SAMPLES, tmp_path / "work", REPOSITORY), load_script("train_all").pause
    process = subprocess.Popen(words("run", recipe, chain.work, only="['data','pretraining','segmenter']"))
    while chain.steps_done("pretraining") < 10 and process.poll() is None:
        time.sleep(0.05)
    pause(str(SAMPLES), work_dir=str(chain.work), chain=str(recipe))  # not as a process: it would begin too late
    assert "saved" in capsys.readouterr().out
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert chain.status("pretraining") == "stopped" and chain.status("segmenter") == "waiting"
    run("run", recipe, chain.work, only="['data','pretraining','segmenter']")
    for name in ("pretraining", "segmenter"):
        found, expected = (
            torch.load(each.weights(name), map_location="cpu", weights_only=True) for each in (chain, whole[0])
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in found.items()), name
        logs = [
            [
                {key: value for key, value in line.items() if key != "seconds"}
                for line in read_log(each.run_folder(name))
            ]
            for each in (chain, whole[0])
        ]
        assert logs[0] == logs[1]


def test_the_plan_names_every_stage_its_steps_and_state(recipe, tmp_path, capsys):
    plan = load_script("train_all").plan
    plan(str(SAMPLES), work_dir=str(tmp_path / "work"), chain=str(recipe), measure=False)
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line for line in lines}
    assert {"data", "pretraining", "segmenter", "evaluation", "package"} < found.keys()
    assert "0 of 200" in found["pretraining"] and "waiting" in found["pretraining"]
    assert not (tmp_path / "work").exists()


def test_the_plan_of_a_recipe_that_trains_nothing_tells_what_ran(tmp_path, capsys):
    write_json(tmp_path / "stages" / "exports" / "state.json", {"status": "done", "seconds": 5400})
    evidence = REPOSITORY / "scripts" / "recipes" / "evidence_dental.yaml"
    load_script("train_all").plan(str(SAMPLES), work_dir=str(tmp_path), chain=str(evidence))
    said = capsys.readouterr().out
    assert "1 of 5 stages" in said and "?" not in said
    assert next(line for line in said.splitlines() if line.startswith("exports")).endswith("done after 1.50 hours")


@pytest.mark.parametrize(("columns", "where"), [(("image",), None), (("image", "mask"), {"set": "periapical"})])
def test_the_plan_says_why_a_stage_cannot_be_run(columns, where, recipe, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    with (SAMPLES / "manifest.csv").open() as file:
        rows = [[str(SAMPLES / row[column]) for column in columns] for row in csv.DictReader(file)]
    write_csv(tmp_path / "data" / "manifest.csv", columns, rows)
    content = yaml.safe_load(recipe.read_text())
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump({"stages": {"segmenter": content["stages"]["segmenter"]}}))
    load_script("train_all").plan(
        str(tmp_path / "data"), work_dir=str(tmp_path / "work"), chain=str(short), where=where
    )
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("?: segmenter") and (where is None or "set" in said)
    assert (tmp_path / "work" / "measured" / "segmenter" / "output.txt").read_text().strip()


def test_labelled_stages_alone_take_the_rows_that_are_asked_for(tmp_path):
    chosen = {"set": "periapical"}
    path = REPOSITORY / "scripts" / "recipes" / "dental.yaml"
    chain = Chain(path, SAMPLES, tmp_path / "work", REPOSITORY, where=chosen)
    with_where = {name for name, stage in chain.stages.items() if "where" in stage.commands[0].get("settings", {})}
    assert with_where == {"segmenter", "evaluation"}
    words = chain.command("segmenter", chain.stages["segmenter"].commands[0], REPOSITORY, pretrained=None)
    assert words[words.index("--where") + 1] == str(chosen)
    with pytest.raises(UserError):
        Chain(path.with_name("cxr.yaml"), SAMPLES, tmp_path / "work", REPOSITORY, where=chosen)


def test_a_training_alone_starts_from_weights_that_are_named(tmp_path):
    path, weights = REPOSITORY / "scripts" / "recipes" / "dental.yaml", tmp_path / "half.pt"
    with pytest.raises(UserError):
        Chain(path, SAMPLES, tmp_path / "work", REPOSITORY, init_weights={"pretraining": weights})
    weights.touch()
    chain = Chain(path, SAMPLES, tmp_path / "work", REPOSITORY, {"pretraining": 50}, None, {"pretraining": weights})
    words = chain.command("pretraining", chain.stages["pretraining"].commands[0], REPOSITORY)
    assert words[words.index("--init_weights") + 1] == str(weights)
    assert "init_weights" not in chain.stages["segmenter"].commands[0]["settings"]
    with pytest.raises(UserError):
        Chain(path, SAMPLES, tmp_path / "work", REPOSITORY, init_weights={"evaluation": weights})


def test_what_is_not_finished_is_not_shipped(recipe, tmp_path):
    ship = load_script("train_all").ship
    with pytest.raises(UserError):
        ship(str(SAMPLES), work_dir=str(tmp_path / "work"), chain=str(recipe), bundles_dir=str(tmp_path / "bundles"))


def test_many_images_or_the_wish_begin_from_nothing(tmp_path, monkeypatch):
    script = load_script("train_all")

    def begun_with(chain="cxr", from_scratch=None):
        made = script.open_chain(str(SAMPLES), str(tmp_path), chain, from_scratch, None)
        settings = made.stages["latent_diffusion"].commands[0]["settings"]
        return "init_weights" not in settings and settings["codec_path"] == "{weights:decoder}"

    assert not begun_with() and begun_with(from_scratch=True)
    monkeypatch.setattr(script, "FEW_IMAGES", 1)
    assert begun_with() and not begun_with(from_scratch=False)
    with pytest.raises(UserError):
        begun_with("dental", from_scratch=True)


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "scripts" / "recipes").iterdir()), ids=lambda path: path.stem)
def test_every_file_and_setting_of_the_recipes_exists(recipe):
    chain = Chain(recipe, SAMPLES, "work", REPOSITORY)
    frozen = {path.relative_to(REPOSITORY) for path in frozen_files(REPOSITORY)}
    frozen |= {folder for path in frozen for folder in path.parents}
    for stage in chain.stages.values():
        folders = []
        for command in stage.commands:
            settings = {name: value for name, value in command.get("settings", {}).items() if value is not None}
            folders.append(settings.get("output_dir", "of the stage"))
            unmade = {name: None for name, value in settings.items() if "{weights:" in str(value)}
            line = " ".join(chain.command(stage.name, {**command, "settings": {**settings, **unmade}}, REPOSITORY))
            assert {Path(name) for name in re.findall(r"bundles/[\w/.]+", line.replace("work/bundles", ""))} <= frozen
            if "script" in command:
                stem = Path(command["script"]).stem
                function = getattr(
                    load_script(stem), {"train_all": "ship", "package_bundle": "package"}.get(stem, stem)
                )
                given = {"output_dir": "", **command.get("settings", {})}
                wanted = {name for name, value in given.items() if value is not None}
                assert wanted <= inspect.signature(function).parameters.keys(), stage.name
                continue
            configs = REPOSITORY / "bundles" / command["bundle"] / "configs"
            keys = set(yaml.safe_load((configs / command["configs"][0]).read_text()))
            assert all((configs / name).is_file() for name in command["configs"])
            assert settings.keys() <= keys, stage.name
        assert "package" in stage.name or len(set(folders)) == len(folders), stage.name
        assert all((REPOSITORY / "bundles" / name / path).is_file() for name, path in stage.ships.items())
