"""How fast this is, and how fast MONAI, diffusers and SciPy are at the same work, side by side.

python scripts/benchmark.py --output_dir OUT
python scripts/benchmark.py sample_step train_step --device cuda --output_dir OUT
python scripts/benchmark.py bundles --device cuda --output_dir OUT  # the check of a GPU
python scripts/benchmark.py cost --num_images 868394 --num_devices 8 --device cuda --output_dir OUT  # hours and GB

diffusers comes with the extra `bench`. OUT gets benchmark.md, benchmark.json, benchmark.png, of `bundles` gpu.md and of
`cost` cost.md.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_networks import (
    BUNDLES,
    HAS_DIFFUSERS,
    Calls,
    Setting,
    autoencoder,
    bundles,
    caching,
    encoded,
    one_pass,
    own_step,
    random_batch,
    sample_image,
    sample_step,
    train_step,
)
from monai.transforms import Compose, LoadImage, Resize, ScaleIntensity
from PIL import Image

from common.checks import check_device
from common.command_line import run_command
from common.data.latent_store import TOKENS, LatentStore
from common.data.phantom import draw_chest_phantom
from common.data.transforms import load_square
from common.errors import SettingsError
from common.evaluation.distribution_metrics import frechet_distance, gaussian_mmd
from common.evaluation.nearest_patients import SPACES, CopyFeatures, NearestPatients
from common.evaluation.report import markdown_table
from common.experiments.benchmark import Row, draw, hardware, markdown, measure, predicted_costs
from common.experiments.lung_choice import EXCLUDED, Tuned
from common.experiments.lung_study import find_lungs
from common.files import TUNED, atomic_path, read_json, write_json
from common.io.image_writer import write_png
from common.io.synthetic_dicom import write_synthetic_dicom
from common.pipelines import DentalSegmenter
from common.provenance import provenance

FID_FEATURES = 2048
ITEMS = (10_000, 100_000, 868_394)  # the last is the paper's
SIDE = 1024  # px, of the files to read
ITEM_TEXT_BYTES = 300  # of an item of the store: path, patient, label, split

_logger = logging.getLogger(__name__)


def read(setting: Setting) -> Iterator[Row]:
    """Files of 1024 px to images of 256."""
    side = 128 if setting.tiny else SIDE
    pixels = draw_chest_phantom(side, side, 0)
    grey = Image.fromarray((255 * pixels[0]).round().byte().numpy())
    paths = {name: setting.folder / f"image.{name}" for name in ("png", "jpg", "dcm")}
    grey.save(paths["png"])
    grey.save(paths["jpg"], quality=90)
    about: Any = {"identity": "0", "model": "phantom", "description": "phantom", "bits": 16, "provenance": {}}
    write_synthetic_dicom(pixels, paths["dcm"], **about)
    load = Compose(
        [LoadImage(image_only=True, ensure_channel_first=True), ScaleIntensity(), Resize((256, 256), mode="area")]
    )
    for name, path in paths.items():
        yield Row(
            "read", f"{name} of {side} px", {"ours": partial(load_square, path, 256), "MONAI": partial(load, path)}
        )


def fid(setting: Setting) -> Iterator[Row]:
    """Fréchet distance of random features."""
    from monai.metrics import FIDMetric

    width = 64 if setting.tiny else FID_FEATURES
    for count in (48,) if setting.tiny else (552, 3000):
        one, other = (np.random.default_rng(seed).normal(size=(count, width)) for seed in (0, 1))
        theirs = torch.from_numpy(one), torch.from_numpy(other)
        calls: Calls = {"ours": partial(frechet_distance, one, other), "MONAI (sqrtm)": partial(FIDMetric(), *theirs)}
        yield Row("fid", f"{count} images, {width} features", calls)


def store(setting: Setting) -> Iterator[Row]:
    """Opening stores of sparse files, an item that is not in memory, and a batch that is."""
    counts = (100, 1_000) if setting.tiny else ITEMS
    folders = {f"{count:,} items": sparse_store(setting.folder / str(count), count) for count in counts}
    opens = {name: partial(LatentStore, folder) for name, folder in folders.items()}
    yield Row("store_open", "opening", opens, is_wall=True, note="memory is what opening adds to a process")
    opened, random = LatentStore(next(iter(folders.values()))), np.random.default_rng(0)
    path, number = opened.folder / "rows.npy", len(opened.items)
    written = np.load(path, mmap_mode="r+")
    written[:] = np.ones((), written.dtype)  # a sparse file has nothing to read
    written.flush()
    del written  # what is mapped cannot be forgotten
    held = [opened.row(item, 0) for item in range(32)]

    def forget() -> None:
        if hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    cold: Calls = {
        "one read": lambda: opened.row(int(random.integers(number)), 0),
        "memory map": lambda: np.load(path, mmap_mode="r")[random.integers(number), 0].tobytes(),
    }
    yield Row("store_item", "cold random item", cold, is_wall=True, before=forget)
    batch: Calls = {
        "store": lambda: opened.tokens(range(32)),
        "memory": lambda: [np.stack([row[name] for row in held]).astype(np.float32) for name in TOKENS],
    }
    yield Row("store_batch", "tokens of 32 warm items", batch)


def sparse_store(folder: Path, count: int) -> Path:
    """An empty store of so many items."""
    names = [f"/data/{number // 10:06d}/{number:07d}.png" for number in range(count)]
    items = [{"image": name, "patient_id": Path(name).parent.name, "split": "train"} for name in names]
    shapes = {"latents_mean": (4, 32, 32), "latents_std": (4, 32, 32), "cls_token": (384,)}
    shapes |= {"register_tokens": (0, 384), "patch_grid": (4, 4, 384)}
    LatentStore.allocate(folder, {"dataset_dir": "/data"}, items, 1, shapes)
    return folder


def segment(setting: Setting) -> Iterator[Row]:
    """A dental radiograph."""
    segmenter = DentalSegmenter.from_bundle(BUNDLES / "dental_radiograph_segmentation", setting.device)
    path = BUNDLES / "dental_radiograph_segmentation" / "samples" / "images" / "0000.png"
    yield Row("segment", "radiograph", {"ours": lambda: segmenter.segment(path)}, note="no peer is pre-trained for it")


def lungs(setting: Setting) -> Iterator[Row]:
    """The lungs of a radiograph, found without a segmenter."""
    tuned = Tuned.from_plain(read_json(BUNDLES / "cxr_dino_latent_diffusion" / "docs" / "zero_shot_lungs" / TUNED))
    image = draw_chest_phantom(256, 256, 0)
    calls = {"ours": torch.no_grad()(partial(find_lungs, setting.pipe, tuned, image, EXCLUDED))}
    yield Row("lungs", "radiograph", calls, note="of a phantom; no peer does it without masks")


def cost(setting: Setting) -> Iterator[Row]:
    """What `predicted_costs` reckons with: work on an image by what is done with it, and on a pair of images."""
    pipe, count, side = setting.pipe, setting.batch_size, 128 if setting.tiny else SIDE
    path, num_pairs = setting.folder / "cost.png", 40 if setting.tiny else 512
    write_png(draw_chest_phantom(side, side, 0), path)
    images = torch.rand(count, 1, 256, 256, device=setting.device)
    tokens = torch.randn(count, *pipe.network.context_encoder.scaler.tokens_mean.shape)
    embeddings = torch.randn(num_pairs, pipe.network.context_encoder.scaler.tokens_mean.shape[1])
    features = CopyFeatures(embeddings, torch.rand(num_pairs, 1, 32, 32))
    patients = NearestPatients(features, features, None, 5, 2)
    calls: Calls = {
        "reading": partial(load_square, path, 256),
        "encoding": partial(encoded, setting, images),
        "training": partial(own_step(setting), random_batch(setting, count)),
        "reconstruction": partial(one_pass, pipe.codec, "forward", images),
        "generation": partial(pipe.image_sampler.sample, tokens, list(range(count))),
        "features": partial(one_pass, pipe.encoder, "forward", images),
        "pair": partial(gaussian_mmd, embeddings, embeddings),
        "nearest": lambda: [patients.nearest(space, features, [()] * num_pairs) for space in SPACES],
    }
    factors = dict.fromkeys(calls, 1 / count) | {"reading": 1.0, "pair": num_pairs**-2, "nearest": num_pairs**-2}
    yield Row("cost", "image or pair", calls, factors=factors, note="different work, so the ratios say nothing")


def cost_table(
    setting: Setting, figures: list[dict[str, Any]], num_images: int, num_devices: int, num_epochs: int
) -> str:
    """What `predicted_costs` says, as a table."""
    dim = setting.pipe.network.context_encoder.scaler.tokens_mean.shape[1]
    latents, tokens = 2 * math.prod(setting.pipe.image_sampler.latents_shape), dim * (1 + setting.pipe.patch_grid**2)
    seconds = {each["contender"]: each["seconds"] for each in figures if each["row"] == "cost"}
    costs = predicted_costs(seconds, num_images, num_devices, num_epochs, 2 * (latents + tokens) + ITEM_TEXT_BYTES)
    lines = [[name, f"{hours:.3g}", f"{disk:.3g}", f"{memory:.3g}"] for name, (hours, disk, memory) in costs.items()]
    return markdown_table([f"{num_images:,} images", "hours", "GB on disk", "GB of memory"], lines)


def startup(setting: Setting) -> Iterator[Row]:
    """Imports of a command that generates images."""
    python = [sys.executable, "-W", "ignore", "-c"]
    codes = {"ours": "from common.pipelines import DinoDiffusion", "torch and MONAI": "import torch, monai.bundle"}
    calls = {name: partial(subprocess.run, [*python, code], check=True) for name, code in codes.items()}
    yield Row("startup", "process", calls, is_wall=True)


ALL = (train_step, sample_step, sample_image, autoencoder, read, fid, store, caching, segment, lungs, startup)
ROWS: dict[str, Callable[[Setting], Iterator[Row]]] = {each.__name__: each for each in (*ALL, bundles, cost)}


def benchmark(
    *rows: str,
    output_dir: str = "outputs/benchmark",
    device: str = "cpu",
    repetitions: int = 5,
    batch_size: int = 8,
    tiny: bool = False,
    num_images: int = ITEMS[-1],
    num_devices: int = 1,
    num_epochs: int = 40,
) -> None:
    """Measure rows, all of them where none is named; print the table, and write it, benchmark.json and benchmark.png.

    Args:
        *rows: train_step, sample_step, sample_image, autoencoder, read, fid, store, caching, segment, lungs, startup.
            Left out of all are bundles, which trains and uses the three bundles by batch size, and cost, which predicts
            hours and GB from a folder of radiographs to as many generated ones.
        output_dir: for the results.
        device: cpu or cuda.
        repetitions: of each call; one more comes before them and does not count.
        batch_size: of training steps.
        tiny: small files and few of them, to see that everything works.
        num_images: of the folder, for cost.
        num_devices: such as this one, for cost.
        num_epochs: of the denoiser's training, for cost.
    """
    if unknown := set(rows) - ROWS.keys():
        raise SettingsError(f"found rows {sorted(unknown)}; expected some of {', '.join(ROWS)}")
    if not HAS_DIFFUSERS:
        _logger.warning(
            "diffusers is not installed (pip install -e '.[bench]' -c scripts/constraints.txt): its columns are missing"
        )
    where, folder = check_device(device), Path(output_dir)
    figures: list[dict[str, Any]] = []
    about = {"hardware": hardware(where), **provenance(where), "repetitions": repetitions, "diffusers": HAS_DIFFUSERS}
    named = rows or [each.__name__ for each in ALL]
    with tempfile.TemporaryDirectory() as files:
        setting = Setting(where, batch_size, Path(files), tiny)
        for row in (row for name in named for row in ROWS[name](setting)):
            try:
                measured = measure(row, where, repetitions)
            except torch.OutOfMemoryError:
                _logger.warning("%s, %s: out of memory", ", ".join(row.contenders), row.unit)
                continue
            print(markdown(measured), flush=True)
            figures += measured
    texts = {"benchmark.md": markdown(figures)}
    if "cost" in rows:
        texts["cost.md"] = cost_table(setting, figures, num_images, num_devices, num_epochs)
        print(texts["cost.md"])
    if "bundles" in rows:
        not_yet = "This has not run on a GPU yet: these figures are of a CPU."
        began = "Measured on a GPU." if where.type == "cuda" else not_yet
        texts["gpu.md"] = f"{began}\n\n{markdown(figures)}\n```json\n{json.dumps(about, indent=1)}\n```\n"
    write_json(folder / "benchmark.json", {**about, "rows": figures})
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    draw(figures, folder / "benchmark.png")
    print(f"{folder}: benchmark.md, benchmark.json, benchmark.png")


if __name__ == "__main__":
    run_command(benchmark)
