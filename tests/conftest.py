"""Fixtures every test may use."""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.data.latent_store import LatentStore
from common.data.phantom import draw_chest_phantom
from common.networks.latent_codec import LatentCodec
from common.networks.latent_denoiser import LatentDenoiser

REPOSITORY = Path(__file__).resolve().parents[1]

# The tests of MONAI Label have an environment and a conftest of their own, see scripts/run_label_tests.sh.
collect_ignore = [] if importlib.util.find_spec("monailabel") else ["label"]


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def shared_data() -> Path:
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the shared real data in {folder}, which is absent")
    return folder


@pytest.fixture
def tiny_codec() -> LatentCodec:
    return make_tiny_codec()


def make_tiny_codec(seed: int = 0) -> LatentCodec:
    """A real codec of 8 channels: 32 px become 2×4×4."""
    torch.manual_seed(seed)
    return LatentCodec(channels=[8, 8, 8, 8], num_res_blocks=1, latent_channels=2, norm_num_groups=4)


def draw_radiographs(folder: Path, count: int, size: int) -> None:
    """Write phantoms as 8-bit PNGs, each counting as a patient of its own."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = (draw_chest_phantom(size, size, seed=number)[0] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"phantom_{number}.png")


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a real DINOv2: 16 features, patches of 14 px, 2 registers, no weight zero."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    folder = tmp_path_factory.mktemp("tiny_dino")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 28}
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**size, num_register_tokens=2))
    randomise(model, 0.3)
    model.save_pretrained(folder)
    return folder


def randomise(network: torch.nn.Module, std: float) -> None:
    """Draw every weight from N(0, std²): many start as zeros, which would hide what they are for."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)


def make_tiny_denoiser(num_tokens: int = 2, token_dim: int = 6) -> LatentDenoiser:
    """A real denoiser of two levels for latents 2×4×4, no weight zero."""
    denoiser = LatentDenoiser(
        latent_channels=2,
        channels=[8, 16],
        num_res_blocks=1,
        attention_levels=[False, True],
        num_head_channels=8,
        num_tokens=num_tokens,
        token_dim=token_dim,
        context_dim=8,
        norm_num_groups=4,
    )
    randomise(denoiser, 0.2)
    return denoiser


def make_tiny_store(folder: Path, num_train: int = 7, num_val: int = 3, num_views: int = 1) -> LatentStore:
    """A finished store of random latents 2×4×4 and tokens of 6 features: CLS, one register, a grid of 2×2."""
    generator = torch.Generator().manual_seed(0)
    splits = ["train"] * num_train + ["val"] * num_val
    items = [{"image": f"/data/{n}.png", "patient_id": str(n), "split": split} for n, split in enumerate(splits)]
    shapes = {"latents_mean": (2, 4, 4), "latents_std": (2, 4, 4)}
    shapes |= {"cls_token": (6,), "register_tokens": (1, 6), "patch_grid": (2, 2, 6)}
    LatentStore.allocate(folder, {"codec_sha256": "none", "dataset_dir": "/data"}, items, num_views, shapes)
    store = LatentStore(folder, writable=True)
    rows = [(image, view) for image in range(len(items)) for view in range(num_views)]
    values = {name: torch.randn(len(rows), *shape, generator=generator) for name, shape in shapes.items()}
    store.write(rows, {**values, "latents_std": 0.1 * values["latents_std"].abs()})
    return LatentStore(folder)


def run_ranks(function: Callable[[int], None], count: int, folder: Path) -> None:
    """Run `function(rank)` in `count` processes that share a gloo group; all have to end well.

    Forked, as starting Python anew takes longer than the tests; so without backward passes, which do not survive it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rendezvous = f"file://{folder / 'rendezvous'}"

    def member(rank: int) -> None:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=count)
        function(rank)
        torch.distributed.barrier()

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=member, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    for process in processes:
        process.kill()
    assert [process.exitcode for process in processes] == [0] * count
