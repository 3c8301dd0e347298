"""The script that trains on an accelerator from one packed file, here on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import draw_radiographs, make_tiny_store
from monai.bundle import ConfigParser
from script_module import SCRIPTS, load_script

from common.command_line import run_command
from common.data.latent_store import LatentStore
from common.data.packed_data import PackedData
from common.errors import DatasetError, SettingsError
from common.networks.weights import load_weights
from common.training.lr_schedule import TimedLength
from common.training.packed_run import PackedRun, configure

BUNDLES = SCRIPTS.parent / "bundles"
LATENTS = BUNDLES / "cxr_dino_latent_diffusion" / "configs"
DENTAL = BUNDLES / "dental_radiograph_segmentation" / "configs"
TINY = {
    "network_def#latent_channels": 2,
    "network_def#num_head_channels": 8,
    "network_def#norm_num_groups": 4,
    "network_def#context_dim": 8,
    "network_def#attention_levels": [False, True],
    "ema_decay": 0.8,
}
SHORT = {"max_steps": 40, "batch_size": 4, "learning_rate": 1.0e-2, "warmup_steps": 2, "limit": 6}
NOT_THERE = ("nibabel", "pydicom", "imagecodecs", "ruamel", "generative")  # on a machine that has torch and MONAI only


@pytest.fixture(scope="module")
def script():
    return load_script("accelerator")


def command(script, *words, **settings):
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    commands = {"pack": script.pack, "train": script.train, "join": script.join}
    run_command(commands, [str(word) for word in (*words, *options)])


def make_learnable_store(folder):
    """A store whose latents are much alike, so that a few steps on some tell about others."""
    made = make_tiny_store(folder, num_train=8)
    values = {name: torch.from_numpy(array[:, 0].astype("float32")) for name, array in made.arrays.items()}
    values["latents_mean"] = values["latents_mean"][:1] + 0.1 * values["latents_mean"]
    LatentStore(folder, writable=True).write([(image, 0) for image in range(len(made.items))], values)
    return folder


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    """Folder with latents.npz of a tiny store, and OUT of a training of a few steps."""
    folder = tmp_path_factory.mktemp("accelerator")
    store, packed = make_learnable_store(folder / "store"), folder / "latents.npz"
    command(script, "pack", store, output_file=packed, patch_grid=2)
    command(script, "train", packed, output_dir=folder / "OUT", channels=[8, 16], **SHORT, **TINY)
    return folder


def record_of(folder):
    return json.loads((folder / "accelerator.json").read_text())


def joined(script, folder, configs, network_id):
    """The network that the joined weights and the config beside them give."""
    command(script, "join", folder, output_file=folder.parent / "joined.pt")
    parser = ConfigParser()
    parser.read_config([*map(str, configs), str(folder.parent / "joined_config.json")])
    return load_weights(parser.get_parsed_content(network_id), folder.parent / "joined.pt")


def test_a_few_steps_give_joined_weights_that_load_and_are_better_than_the_start(script, trained):
    network = joined(script, trained / "OUT", [LATENTS / "train.yaml"], "network_def")
    assert network.middle_channels == 16 and network.context_encoder.scaler.tokens_num_images == 6
    found = record_of(trained / "OUT")
    assert found["steps"] == found["planned_steps"] == 40 and found["images_seen"] == 160
    losses = {name: metrics["val_loss"] for name, metrics in found["validation"].items()}
    assert losses[found["weights"]["average"]] == min(losses["ema"], losses["long_ema"]) < 0.9 * losses["start"]
    assert [line["step"] for line in found["log"]] == [20, 40]
    assert found["log"][-1]["learning_rate"] < found["log"][0]["learning_rate"]  # it decays at the end


def test_what_is_joined_is_what_was_validated(script, trained):
    network = joined(script, trained / "OUT", [LATENTS / "train.yaml"], "network_def")
    data, cpu = PackedData(trained / "latents.npz"), torch.device("cpu")
    parser = ConfigParser(data.about["config"])
    found = record_of(trained / "OUT")
    configure(parser, found["overrides"], data, cpu, limit=6)
    expected = found["validation"][found["weights"]["average"]]
    assert PackedRun(parser, cpu).validate(network) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_part_is_refused_and_nothing_is_written(script, trained, tmp_path, damage):
    for file in (trained / "OUT").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    part = tmp_path / "model.pt.part00"
    part.write_bytes(part.read_bytes()[:-1] + b"x") if damage == "changed" else part.unlink()
    with pytest.raises(DatasetError):
        command(script, "join", tmp_path, output_file=tmp_path / "new" / "model.pt")
    assert not any((tmp_path / "new").iterdir())


def test_prior_and_images_are_packed_and_trained_too(script, trained, tmp_path):
    packed = tmp_path / "tokens.npz"
    config = LATENTS / "train_prior.yaml"
    command(script, "pack", trained / "store", output_file=packed, patch_grid=2, config=config)
    tiny = {"prior_def#hidden_dim": 16, "prior_def#num_blocks": 1, "num_components": 4}
    command(script, "train", packed, output_dir=tmp_path / "prior", **SHORT, **tiny)
    assert joined(script, tmp_path / "prior", [config], "prior_def").num_components == 4

    draw_radiographs(tmp_path / "images", 8, size=40)
    configs = [DENTAL / "pretrain.yaml"]
    packed = tmp_path / "images.npz"
    command(script, "pack", tmp_path / "images", output_file=packed, config=[str(each) for each in configs])
    tiny = {f"denoiser_def#{name}": 8 for name in ("num_head_channels", "norm_num_groups")}
    tiny |= {"channels": [8, 8, 8, 8], **SHORT, "max_steps": 2}
    command(script, "train", packed, output_dir=tmp_path / "pretraining", **tiny)
    assert joined(script, tmp_path / "pretraining", configs, "denoiser_def").unet.conv_in.conv.out_channels == 8


def test_mistakes_are_told_before_anything_is_trained(script, trained, tmp_path):
    packed = trained / "latents.npz"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("old")
    with pytest.raises(SettingsError):
        command(script, "train", packed, output_dir=tmp_path / "full")
    with pytest.raises(SettingsError):
        command(script, "train", packed, output_dir=tmp_path / "new", learning_rat=1)
    with pytest.raises(SettingsError):
        command(script, "train", packed, output_dir=tmp_path / "new", channels=[8, 16], max_mebibytes=0.01, **TINY)
    assert not (tmp_path / "new").exists()


def test_what_was_learned_before_an_error_is_kept(script, trained, tmp_path):
    settings = {**SHORT, "learning_rate": 1.0e30, "warmup_steps": 0}
    with pytest.raises(FloatingPointError):
        command(script, "train", trained / "latents.npz", output_dir=tmp_path, channels=[8, 16], **settings, **TINY)
    found = record_of(tmp_path)
    assert "step" in found["stopped_by"] and found["steps"] < 40
    assert (tmp_path / "model.pt.part00").exists()


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_trained_as_it_is(script, trained, tmp_path):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    data, cpu = PackedData(trained / "latents.npz"), torch.device("cpu")
    parser = ConfigParser(data.about["config"])
    configure(parser, {**TINY, "network_def#channels": [8, 16], "batch_size": 2}, data, cpu, limit=2)
    run = PackedRun(parser, cpu)
    run.engine_parts["network"].compile(backend=broken)
    length = TimedLength(parser.get_parsed_content("train#lr_scheduler"), float("inf"), max_steps=2)
    try:
        assert isinstance(run.train(length, tmp_path / "plain", 10), RuntimeError)
        run.is_compiled = True  # as where the config asks for it
        assert run.train(length, tmp_path / "asked", 10) is None and run.trainer.state.iteration == 2
    finally:
        torch.compiler.set_stance("default")


@pytest.mark.slow
def test_training_needs_no_more_than_torch_and_monai(repository):
    code = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({NOT_THERE})); runpy.run_path('scripts/accelerator.py')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
