"""The paper-scale configs are not trained here: parameter count, shapes and one step of a narrow twin."""

from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser
from torch.utils.flop_counter import FlopCounterMode

from common.networks.latent_codec import VariationalPass

CONFIGS = "bundles/cxr_autoencoder/configs"


@pytest.fixture
def network_config(repository):
    parser = ConfigParser()
    parser.read_config([str(repository / CONFIGS / name) for name in ("train.yaml", "paper_scale_512.yaml")])
    return parser["network_def"], parser["image_size"]


def build(config):
    return ConfigParser({"network": config}).get_parsed_content("network")


def test_it_is_as_large_as_documented(network_config):
    config, size = network_config
    with torch.device("meta"):
        codec = build(config)
        mean, std = codec.posterior(torch.zeros(1, 1, size, size))
    millions = sum(parameter.numel() for parameter in codec.parameters()) / 1e6
    assert millions == pytest.approx(72.2, abs=0.05)  # Stable Diffusion's decoder has one block more per level: 83.7
    assert mean.shape == std.shape == (1, 4, 64, 64)


def test_its_work_per_image_is_what_the_documentation_says(network_config):
    config, size = network_config
    with torch.device("meta"):
        codec = build({**config, "use_checkpoint": False}).eval()
        image = torch.zeros(1, 1, size, size)
        with FlopCounterMode(display=False) as counter:
            codec(image)
    assert counter.get_total_flops() / 1e12 == pytest.approx(3.12, rel=0.01)


def test_one_step_of_a_narrow_twin_lowers_the_loss(network_config):
    config, _ = network_config
    torch.manual_seed(0)
    network = VariationalPass(build({**config, "channels": [8, 16, 32, 32], "norm_num_groups": 8}))
    image, noise = torch.rand(1, 1, 64, 64), torch.randn(1, 4, 8, 8)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    losses = SimpleNamespace(before=0.0, after=0.0)
    for name in ("before", "after"):
        loss = (network(image, noise)[0] - image).abs().mean()
        setattr(losses, name, loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert losses.after < losses.before
