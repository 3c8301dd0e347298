"""Fixtures every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from common.networks.latent_codec import LatentCodec
from common.phantom import draw_chest_phantom

REPOSITORY = Path(__file__).resolve().parents[1]


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
