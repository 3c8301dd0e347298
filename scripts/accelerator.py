"""A stage at larger size in minutes, on an accelerator that has neither images nor models nor a network connection.

python scripts/accelerator.py pack STORE --output_file latents.npz
python scripts/accelerator.py train latents.npz --output_dir OUT --minutes 9 --channels "[96,192,288]" --batch_size 256
python scripts/accelerator.py join OUT --output_file model.pt

`train` needs this script, `common` and the packed file, which brings the config of its stage; of the packages, torch,
monai, pytorch-ignite, fire, transformers, einops, tensorboard, matplotlib and pillow.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import nn

from common.command_line import run_command
from common.data.latent_store import LatentStore
from common.data.packed_data import PackedData, Rounded, rounded_store, write_pack
from common.errors import SettingsError
from common.files import join_parts, read_json, write_json, write_parts
from common.fingerprint import file_sha256
from common.networks.weights import half_precision
from common.provenance import provenance
from common.training.lr_schedule import TimedLength
from common.training.packed_run import PackedRun, configure, network_id
from common.training.step_log import read_log

CONFIG = Path(__file__).resolve().parents[1] / "bundles" / "cxr_dino_latent_diffusion" / "configs" / "train.yaml"
RECORD_NAME = "accelerator.json"
WEIGHTS_NAME = "model.pt"
PART_BYTES = 15 * 2**20
SPARE_SECONDS = 10.0  # at the end, to write


def pack(source: str, *, output_file: str, config: str | Sequence[str] = str(CONFIG), patch_grid: int = 4) -> None:
    """Write what a stage's training reads into one file of eight bits a number, and say what rounding lost.

    For 5,000 radiographs of 256 px that is under 45 MiB. Names of files and patients are left out.

    Args:
        source: a finished store of latents and tokens; of pre-training on images, their folder.
        output_file: .npz to write.
        config: YAML files of the stage's training, later ones override: train.yaml or train_prior.yaml of the latent
            diffusion bundle, pretrain.yaml of the dental one.
        patch_grid: k of the grid of patch tokens; what the config conditions on must divide it.
    """
    parser = ConfigParser()
    parser.read_config([config] if isinstance(config, str) else [str(path) for path in config])
    settings = dict(parser.get())
    arrays: dict[str, Rounded]
    if network_id(parser) == "denoiser_def":
        arrays, items = packed_images(parser, source)
        lost, made_with = {"image": 1 / 12**0.5 / float(arrays["image"][0].std())}, {}
    else:
        store = LatentStore(source)
        arrays, lost = rounded_store(store, patch_grid, latents=network_id(parser) == "network_def")
        items = list(store.items)
        made_with = {name: store.made_with.get(name) for name in ("codec_sha256", "encoder_sha256")}
    about = {"config": settings, "lost": lost, "made_with": made_with}
    write_pack(output_file, arrays, items, about)
    size = Path(output_file).stat().st_size / 2**20
    print(
        f"{output_file}: {len(items)} images, {size:.1f} MiB; lost by rounding, as a share of the standard deviation:"
    )
    print(", ".join(f"{name} {value:.4f}" for name, value in lost.items()))


def packed_images(parser: ConfigParser, dataset_dir: str) -> tuple[dict[str, Rounded], list[dict[str, str]]]:
    """Images of training and validation as the config loads them, in uint8, and the split of each."""
    pixels, items = [], []
    with tempfile.TemporaryDirectory() as reports:
        parser["dataset_dir"], parser["output_dir"] = dataset_dir, reports
        for split, where in (("train", "train"), ("val", "validate")):
            dataset = parser.get_parsed_content(f"{where}#dataset")
            pixels += [(dataset[number]["image"] * 255).round().byte().numpy() for number in range(len(dataset))]
            items += [{"split": split}] * len(dataset)
    return {"image": (np.stack(pixels), np.full((1,), 1 / 255, np.float32))}, items


def train(
    packed_file: str,
    *,
    output_dir: str,
    minutes: float = 9.0,
    max_steps: int = 10**9,
    limit: int | None = None,
    channels: Sequence[int] | None = None,
    val_every_steps: int = 1000,
    max_mebibytes: float = 60.0,
    device: str | None = None,
    **overrides: Any,
) -> None:
    """Train for minutes; write weights in parts of 15 MiB, the log, and accelerator.json with how they came about.

    All data are in the device's memory. The number of steps follows from the seconds that a step takes; the rate
    decays over the last of them, as the config says. Of the two averages the one of lower validation loss is kept.
    What was learned before an error is written, too.

    Args:
        packed_file: what `pack` wrote.
        output_dir: empty or new.
        minutes: from here to the end of all writing.
        max_steps: fewer than the time allows.
        limit: images per split at most, for a trial.
        channels: of the network, per level.
        val_every_steps: steps between validations.
        max_mebibytes: of the weights in half precision; a larger network is refused before it is trained.
        device: torch's name of it; None takes the accelerator, where there is one.
        **overrides: of the config, such as --batch_size 256 or --network_def#num_res_blocks 2;
            --train#denoising_pass#is_compiled True goes on without if it fails.
    """
    started = time.perf_counter()
    folder = Path(output_dir)
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder}: expected an empty folder or none; give another --output_dir")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data = PackedData(packed_file)
    parser = ConfigParser(data.about["config"])
    if channels is not None:
        overrides = {**overrides, f"{network_id(parser)}#channels": list(channels)}
    overrides = configure(parser, overrides, data, where, limit)
    run = PackedRun(parser, where)
    check_size(run, max_mebibytes)
    folder.mkdir(parents=True, exist_ok=True)
    before = time.perf_counter()
    validations = {"start": run.validate(run.ema.network)}
    seconds = time.perf_counter() - before
    end = started + 60 * minutes - SPARE_SECONDS - 3 * seconds
    if end <= time.perf_counter():
        raise SettingsError(f"--minutes {minutes}: found {seconds:.0f} s for each of three validations; give more")
    length = TimedLength(parser.get_parsed_content("train#lr_scheduler"), end, max_steps)
    problem = run.train(length, folder, val_every_steps)
    validations |= {name: run.validate(network) for name, network in run.averages().items()}
    best = min(run.averages(), key=lambda name: validations[name]["val_loss"])
    record = {
        "weights": {"average": best, "parts": write_weights(run.averages()[best], folder)},
        "overrides": overrides,
        **run.progress(length),
        "seconds": round(time.perf_counter() - started, 1),
        "stopped_by": problem and repr(problem),
        "validation": validations,
        "hardware": hardware(where),
        "seed": parser["seed"],
        "pack": {"sha256": file_sha256(packed_file), "limit": limit, **data.about, "config": None},
        **provenance(where),
        "log": read_log(folder),
    }
    write_json(folder / RECORD_NAME, record)
    print(f"{folder}: {record['steps']} steps in {record['seconds']} s, validation {validations}, kept: {best}")
    if problem is not None:
        raise problem


def join(output_dir: str, *, output_file: str) -> None:
    """Join the parts that `train` wrote; beside the weights goes NAME_config.json, which describes their network.

    Args:
        output_dir: of `train`, as it was fetched.
        output_file: .pt to write.
    """
    target = Path(output_file)
    record_path = Path(output_dir) / RECORD_NAME
    if not record_path.is_file():
        raise SettingsError(f"{record_path}: no such file; expected the folder that `train` wrote")
    record = read_json(record_path)
    join_parts(record_path.parent, record["weights"]["parts"], target)
    overrides = target.with_name(f"{target.stem}_config.json")  # NAME.json would describe the weights
    write_json(overrides, record["overrides"])
    print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB, {record['steps']} steps, config {overrides.name}")


def check_size(run: PackedRun, max_mebibytes: float) -> None:
    """Refuse a network whose weights in half precision are larger."""
    found = sum(2 * each.numel() for each in run.ema.network.state_dict().values()) / 2**20
    if found > max_mebibytes:
        raise SettingsError(
            f"found {found:.1f} MiB of weights in half precision, expected at most {max_mebibytes}; take fewer "
            "--channels, or give another --max_mebibytes if more can be fetched"
        )


def write_weights(network: nn.Module, folder: Path) -> dict[str, str]:
    """Half precision, in parts; their names and SHA-256."""
    stream = io.BytesIO()
    torch.save({name: value.cpu() for name, value in half_precision(network.state_dict()).items()}, stream)
    return write_parts(stream.getvalue(), folder / WEIGHTS_NAME, PART_BYTES)


def hardware(device: torch.device) -> dict[str, Any]:
    """The device, and the most memory that was used on it."""
    if device.type != "cuda":
        return {"device": device.type, "threads": torch.get_num_threads()}
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    return {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, "peak_gibibytes": round(peak, 2)}


if __name__ == "__main__":
    run_command({"pack": pack, "train": train, "join": join})
