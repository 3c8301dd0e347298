"""The paper-scale configs are not trained here: parameter count, shapes and some steps of a narrow twin."""

from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser
from torch.utils.flop_counter import FlopCounterMode

from common.networks.latent_codec import VariationalPass

CONFIGS = "bundles/cxr_autoencoder/configs"
DIFFUSION_CONFIGS = "bundles/cxr_dino_latent_diffusion/configs"


@pytest.fixture
def network_config(repository):
    parser = ConfigParser()
    parser.read_config([str(repository / CONFIGS / name) for name in ("train.yaml", "paper_scale_512.yaml")])
    return parser["network_def"], parser["image_size"]


def build(config):
    return ConfigParser({"network": config}).get_parsed_content("network")


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def assert_a_step_lowers(loss_of, network, optimizer):
    before = loss_of()
    before.backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert loss_of() < before


def test_it_is_as_large_as_documented(network_config):
    config, size = network_config
    with torch.device("meta"):
        codec = build(config)
        mean, std = codec.posterior(torch.zeros(1, 1, size, size))
    # Stable Diffusion's decoder has one block more per level: 83.7
    assert num_parameters(codec) / 1e6 == pytest.approx(72.2, abs=0.05)
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
    assert_a_step_lowers(lambda: (network(image, noise)[0] - image).abs().mean(), network, optimizer)


@pytest.fixture
def diffusion(repository):
    """The latent diffusion bundle's config; its network starts from nothing, its data are but a number of images."""
    parser = ConfigParser()
    parser.read_config([str(repository / DIFFUSION_CONFIGS / name) for name in ("train.yaml", "paper_scale_512.yaml")])
    parser["network"] = "@network_def"
    parser["store"] = SimpleNamespace(token_dim=768)  # of its encoder
    parser["train::dataset"] = list(range(1000))
    return parser


@pytest.fixture
def narrow(diffusion):
    """The same with a fraction of the width, eight heads as before; it learns from the first step on."""
    diffusion["network_def::channels"] = [32, 32, 64, 64]
    diffusion["network_def::num_head_channels"] = [4, 4, 8, 8]
    diffusion["learning_rate"], diffusion["warmup_steps"] = 1e-3, 0
    return diffusion


def test_denoiser_is_as_large_as_documented_and_takes_the_latents_and_tokens_of_its_config(diffusion, network_config):
    codec_config, size = network_config
    assert diffusion["image_size"] == size
    with torch.device("meta"):
        denoiser, codec = diffusion.get_parsed_content("network_def"), build(codec_config)
        latents, _ = codec.posterior(torch.zeros(1, 1, size, size))
        context = denoiser.encode_tokens(torch.zeros(1, 1, 768))
        output = denoiser(latents, torch.zeros(1, dtype=torch.int64), context)
    assert num_parameters(denoiser.unet) == 859_520_964  # exactly those of Stable Diffusion 1's U-Net
    assert num_parameters(denoiser) / 1e6 == pytest.approx(860.11, abs=0.005)
    assert output.shape == latents.shape == (1, 4, 64, 64)
    assert diffusion.get_parsed_content("selection").num_tokens(num_register_tokens=0) == 1


def test_attention_of_the_denoiser_is_fused_and_has_eight_heads(diffusion):
    with torch.device("meta"):
        denoiser = diffusion.get_parsed_content("network_def")
    attentions = [module for module in denoiser.modules() if hasattr(module, "use_flash_attention")]
    assert len(attentions) == 32  # 16 blocks, self and cross
    assert all(attention.use_flash_attention and attention.num_heads == 8 for attention in attentions)


def test_noise_is_that_of_stable_diffusion(diffusion):
    schedule = diffusion.get_parsed_content("schedule")
    assert (schedule.prediction_type, schedule.num_train_timesteps) == ("epsilon", 1000)
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0, 999]))
    # cumprod of 1 - linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000) ** 2
    torch.testing.assert_close(alpha.square(), torch.tensor([0.99915, 0.0046601]), rtol=1e-4, atol=0)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(2))


def test_learning_rate_warms_up_and_stays(diffusion):
    diffusion["network_def"] = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    diffusion["train::network"] = "@network"
    optimizer, scheduler = (diffusion.get_parsed_content(f"train::{name}") for name in ("optimizer", "lr_scheduler"))
    rates = []
    for step in (0, 500, 1000, scheduler.total_steps - 1):
        scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": step, "_step_count": step + 1})
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0, 5e-5, 1e-4, 1e-4], abs=2e-7)


def test_optimiser_steps_of_a_narrow_denoiser_lower_its_loss(narrow):
    torch.manual_seed(0)
    names = ("network", "optimizer", "step", "ema")
    network, optimizer, step, ema = (narrow.get_parsed_content(f"train::{name}") for name in names)
    start = [parameter.clone() for parameter in ema.network.parameters()]
    batch = {
        **{"latents_mean": torch.randn(2, 4, 16, 16), "latents_std": torch.full((2, 4, 16, 16), 0.1)},
        **{"cls_token": torch.randn(2, 768), "register_tokens": torch.empty(2, 0, 768)},
        **{"patch_grid": torch.empty(2, 0, 0, 768), "draw": torch.tensor([0, 1])},
    }
    engine = SimpleNamespace(network=network, optimizer=optimizer)
    losses = []
    for iteration in range(1, 6):
        engine.state = SimpleNamespace(device=torch.device("cpu"), iteration=iteration)
        losses.append(step(engine, batch)["loss"])
    assert losses[0] == pytest.approx(1.0, abs=0.1)  # the U-Net starts at zero, and noise has unit variance
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())  # or distribution would wait for ever
    assert any((now != before).any() for now, before in zip(ema.network.parameters(), start, strict=True))


DENTAL_CONFIGS = "bundles/dental_radiograph_segmentation/configs"


def dental(repository, name, network_id, **changes):
    """A network of the dental bundle at paper scale."""
    parser = ConfigParser()
    suffix = "_pretrain" if name == "pretrain" else ""
    files = (f"{name}.yaml", f"paper_scale_256{suffix}.yaml")
    parser.read_config([str(repository / DENTAL_CONFIGS / file) for file in files])
    for key, value in changes.items():
        parser[f"{network_id}::{key}"] = value
    return parser.get_parsed_content(network_id), parser["image_size"]


def test_dental_networks_are_as_large_as_documented_and_share_all_but_the_last_convolution(repository):
    with torch.device("meta"):
        denoiser, size = dental(repository, "pretrain", "denoiser_def")
        segmenter, fine_tuning_size = dental(repository, "train", "network_def")
        image = torch.zeros(1, 1, *size)
        assert denoiser(image, torch.zeros(1, dtype=torch.int64)).shape == image.shape
        assert segmenter(image).shape == (1, 6, *size)
    assert num_parameters(denoiser) == 131_649_793 and size == fine_tuning_size == [256, 256]
    ours, theirs = (
        {name: value.shape for name, value in network.state_dict().items()} for network in (segmenter, denoiser)
    )
    assert {name for name in ours if ours[name] != theirs[name]} == {"unet.out.2.conv.weight", "unet.out.2.conv.bias"}


@pytest.mark.parametrize(("name", "network_id"), [("pretrain", "denoiser_def"), ("train", "network_def")])
def test_a_step_of_a_narrow_dental_twin_lowers_the_loss(repository, name, network_id):
    narrow = {"channels": [8, 8, 16, 16, 32, 32], "num_head_channels": 8, "norm_num_groups": 8, "dropout": 0.0}
    network, _ = dental(repository, name, network_id, **narrow, use_flash_attention=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    image = torch.rand(2, 1, 64, 64)
    target = torch.randint(6, (2, 64, 64)) if name == "train" else torch.randn(2, 1, 64, 64)

    def loss():
        if name == "train":
            return torch.nn.functional.cross_entropy(network(image), target)
        return torch.nn.functional.mse_loss(network(image, torch.tensor([0, 3999])), target)

    assert_a_step_lowers(loss, network, optimizer)
